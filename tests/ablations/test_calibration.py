"""The engine on simulated families with known truth: 2,000 of them where a rate is claimed, fixed seed."""

from __future__ import annotations

import pytest

from ablations.calibration import World, false_difference_rate, labels, rule_rates, simulate
from ablations.schema import Contrast

BETTER = Contrast("gain", "superiority", test="test", base="base", expect="better", margin=0.01)


@pytest.mark.parametrize("contrasts", [1, 3])
def test_identical_arms_give_five_percent_false_verdicts(contrasts: int) -> None:
    decided = simulate(BETTER, World(effect=0.0), contrasts=contrasts)
    assert false_difference_rate(decided) == pytest.approx(0.05, abs=0.015)


def test_without_correlation_the_rate_still_holds() -> None:
    assert false_difference_rate(simulate(BETTER, World(rho=0.0))) == pytest.approx(0.05, abs=0.015)


def test_rules_that_were_weighed() -> None:
    """The engine's rule has the right size; the two alternatives are too strict, and too lax."""
    rates = rule_rates(World(rho=0.0), contrasts=6)
    assert rates["t and sign flips"] == pytest.approx(0.05, abs=0.015)
    assert rates["both adjusted"] < 0.035
    assert rates["switch to Welch"] > 0.06


@pytest.mark.parametrize("expect", ["better", "worse"])
@pytest.mark.parametrize("effect", [-0.04, 0.04])
def test_planted_effects_get_the_right_sign(effect: float, expect: str) -> None:
    template = Contrast("gain", "superiority", test="test", base="base", expect=expect, margin=0.01)
    shares = labels(simulate(template, World(effect=effect), families=200))
    right, wrong = ("supported", "refuted, reversed")
    if (effect < 0) != (expect == "better"):  # lower is better
        right, wrong = wrong, right
    assert shares[right] > 0.85 and wrong not in shares


def test_power_is_what_plan_promises() -> None:
    """1.16 sd of the differences is found in 80% of the cases with 8 seeds, less what sign flips cost."""
    world = World(sigma=0.01, rho=0.5, effect=-0.0116)  # sd of the differences is 0.01
    shares = labels(simulate(BETTER, world, contrasts=1, families=1000))
    found = shares["supported"] + shares.get("supported, negligible", 0.0)
    assert found == pytest.approx(0.78, abs=0.04)


def test_equivalence_is_seldom_declared_at_the_margin() -> None:
    template = Contrast("same", "equivalence", test="test", base="base", margin=0.02)
    at_margin = labels(simulate(template, World(effect=0.02, sigma=0.01), contrasts=1))
    assert at_margin.get("supported", 0.0) == pytest.approx(0.05, abs=0.015)
    assert labels(simulate(template, World(sigma=0.01), contrasts=1, families=300))["supported"] > 0.8
