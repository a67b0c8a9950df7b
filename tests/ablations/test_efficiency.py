"""Compute multipliers and equal-cost readings on curves whose answers are known."""

from __future__ import annotations

import pytest

from ablations.efficiency import CostCurve, equal_loss_multiplier, iso_summary

TOKENS, LOSSES = (1e5, 1e6, 1e7), (4.0, 3.0, 2.0)  # one nat per factor of ten


def test_multiplier_interpolates_in_log_tokens() -> None:
    assert equal_loss_multiplier(TOKENS, LOSSES, 3.0).value == pytest.approx(0.1)
    assert equal_loss_multiplier(TOKENS, LOSSES, 2.5).value == pytest.approx(10**-0.5)
    assert equal_loss_multiplier(TOKENS, LOSSES, 2.0).value == pytest.approx(1.0)


def test_multiplier_uses_the_first_crossing_of_a_noisy_curve() -> None:
    assert equal_loss_multiplier((1e5, 1e6, 1e7), (4.0, 2.0, 2.5), 2.0).value == pytest.approx(0.1)


def test_multiplier_says_when_it_cannot_tell() -> None:
    better = equal_loss_multiplier(TOKENS, LOSSES, 1.9)
    assert better.value is None and better.text.startswith("beyond the budget")
    assert "before the baseline's first measurement" in equal_loss_multiplier(TOKENS, LOSSES, 4.5).text


@pytest.mark.parametrize("tokens", [(1e5,), (0.0, 1e5, 1e6), (1e5, 1e5, 1e6)])
def test_multiplier_refuses_a_bad_curve(tokens: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="increasing token counts"):
        equal_loss_multiplier(tokens, LOSSES[: len(tokens)], 2.5)


def test_a_gain_can_be_lost_at_equal_time() -> None:
    """0.2 nats better per token, ten times slower: a nat worse per second."""
    base = CostCurve(TOKENS, LOSSES, {"seconds": 1e-6, "flops": 1.0})
    slow = CostCurve(TOKENS, tuple(loss - 0.2 for loss in LOSSES), {"seconds": 1e-5, "bytes": 1.0})
    rows = {row.equal: row for row in iso_summary(slow, base)}
    assert set(rows) == {"tokens", "seconds"}  # only costs both arms report
    assert rows["tokens"].difference == pytest.approx(-0.2)
    assert rows["seconds"].difference == pytest.approx(0.8)
    assert rows["seconds"].ratio == pytest.approx(10)
    mirrored = {row.equal: row for row in iso_summary(base, slow)}
    assert mirrored["seconds"].difference == pytest.approx(-0.8)


def test_equal_cost_before_a_curve_starts_is_unknown() -> None:
    base = CostCurve((1e6, 1e7), (3.0, 2.0), {"seconds": 1e-6})
    slow = CostCurve((1e6, 1e7), (3.0, 2.0), {"seconds": 1e-4})
    assert {row.equal: row.difference for row in iso_summary(slow, base)}["seconds"] is None
