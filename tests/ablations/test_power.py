"""The power table against the ledger's simulation, against fresh simulations, and against itself."""

from __future__ import annotations

import numpy as np
import pytest

from ablations import power
from ablations.statistics import holm, sample_estimate


@pytest.mark.parametrize(
    ("n", "five_percent", "one_percent", "thirty_claims"),
    [
        (3, 3.27, 7.34, 18.0),
        (5, 1.68, 2.63, 4.19),
        (8, 1.16, 1.59, 2.17),
        (10, 1.00, 1.33, 1.74),
        (12, 0.89, 1.16, 1.48),
        (16, 0.75, 0.96, 1.19),
        (20, 0.66, 0.84, 1.03),
    ],
)
def test_minimum_detectable_effect(n: int, five_percent: float, one_percent: float, thirty_claims: float) -> None:
    assert power.minimum_detectable_effect(n) == pytest.approx(five_percent, abs=0.011)
    assert power.minimum_detectable_effect(n, 0.01) == pytest.approx(one_percent, abs=0.021)
    assert power.minimum_detectable_effect(n, 0.05 / 30) == pytest.approx(thirty_claims, rel=0.01)


@pytest.mark.parametrize(
    ("n", "at_80", "at_90"),
    [
        (5, 1.60, 1.81),
        (8, 1.15, 1.30),
        (10, 1.00, 1.13),
        (12, 0.90, 1.02),
        (16, 0.77, 0.86),
        (20, 0.68, 0.76),
    ],
)
def test_equivalence_margin_needed(n: int, at_80: float, at_90: float) -> None:
    assert power.equivalence_margin_needed(n, 0.8) == pytest.approx(at_80, abs=0.011)
    assert power.equivalence_margin_needed(n, 0.9) == pytest.approx(at_90, abs=0.011)


def test_power_is_what_a_simulation_finds() -> None:
    draws = np.random.default_rng(0).standard_normal((4000, 8))
    effect, margin = power.minimum_detectable_effect(8), power.equivalence_margin_needed(8)
    detected = np.mean([sample_estimate(d + effect).p_value() <= 0.05 for d in draws])
    equivalent = np.mean([sample_estimate(d).equivalence(margin) <= 0.05 for d in draws])
    assert (detected, equivalent) == pytest.approx((0.8, 0.8), abs=0.02)


@pytest.mark.parametrize("effect", [0.3, 0.66, 1.0, 2.0])
def test_seeds_needed_is_the_smallest_number(effect: float) -> None:
    n = power.seeds_needed(effect)
    assert power.minimum_detectable_effect(n) <= effect < power.minimum_detectable_effect(n - 1)
    n = power.equivalence_seeds_needed(effect)
    assert power.equivalence_margin_needed(n) <= effect < power.equivalence_margin_needed(n - 1)


@pytest.mark.parametrize("comparisons", [1, 12, 13, 16, 100])
def test_sign_seeds_are_the_fewest_that_can_pass_holm(comparisons: int) -> None:
    n = power.sign_seeds_needed(comparisons)
    fewer, enough = (holm(np.full(comparisons, 0.5**k)).max() for k in (n - 1, n))
    assert enough <= 0.05 < fewer


def test_small_margins_need_many_seeds() -> None:
    assert 12 < power.equivalence_seeds_needed(0.01 / 0.02) < 50  # sd 0.02 nats: 12 seeds cannot show 0.01
    assert power.seeds_needed(0.001) > 1_000_000


@pytest.mark.parametrize("function", [power.seeds_needed, power.equivalence_seeds_needed])
def test_effects_must_be_positive(function) -> None:
    with pytest.raises(ValueError, match="above zero"):
        function(0.0)


def test_noise_floor_covers_sigma_and_detects_a_shift() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(500):
        floor = power.noise_floor(rng.normal(0, 0.01, 20), rng.normal(0, 0.01, 20))
        covered += floor.interval[0] <= 0.01 * np.sqrt(2) <= floor.interval[1]
    assert covered / 500 == pytest.approx(0.95, abs=0.03)
    baseline = rng.normal(0, 0.01, 20)
    assert not power.noise_floor(baseline, baseline + rng.normal(0.02, 0.01, 20)).centred
    floor = power.noise_floor(baseline, baseline + rng.normal(0, 0.01, 20))
    assert floor.detectable(8) == pytest.approx(1.156 * floor.sigma, rel=0.01)
