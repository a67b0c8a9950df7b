"""Does the verdict engine keep its promises? Simulated families of arms whose truth is known.

A family is what one config registers: several contrasts, each with paired seeds, judged together. Baseline
and arm share a part of their noise, which gives the correlation rho that common batches and initial weights
give real runs.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ablations.analyses.common import ALPHA
from ablations.evidence import ArmResult, Evidence, Outcome, Setting
from ablations.schema import Contrast
from ablations.statistics import Values, holm, paired, sign_flip, welch
from ablations.verdict import Decision, judge_all

FAMILIES = 2000
DIFFERENT = frozenset({"supported", "supported, negligible", "refuted, reversed", "refuted, different"})


@dataclasses.dataclass(frozen=True)
class World:
    """The truth behind simulated runs, in nats.

    Attributes:
      sigma: standard deviation of an arm over seeds.
      rho: correlation of the two arms over seeds, -1 to 1; the differences have variance 2 sigma^2 (1 - rho).
      effect: true mean of test - base.
      level: true mean of the baseline.
    """

    sigma: float = 0.02
    rho: float = 0.6
    effect: float = 0.0
    level: float = 1.5


def draw(
    world: World, rng: np.random.Generator, families: int, contrasts: int, seeds: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Final losses of test and base, both float64 `[families, contrasts, seeds]`, bivariate normal."""
    own, other = rng.standard_normal((2, families, contrasts, seeds))
    test = world.rho * other + np.sqrt(1 - world.rho**2) * own
    return world.level + world.effect + world.sigma * test, world.level + world.sigma * other


def as_evidence(test: Values, base: Values) -> Evidence:
    """Two arms with one finite outcome per seed."""
    return Evidence(
        test=ArmResult("test", {seed: Outcome(float(value)) for seed, value in enumerate(test)}),
        base=ArmResult("base", {seed: Outcome(float(value)) for seed, value in enumerate(base)}),
    )


def simulate(
    template: Contrast,
    world: World,
    *,
    families: int = FAMILIES,
    contrasts: int = 3,
    seeds: int = 8,
    seed: int = 0,
) -> list[list[Decision]]:
    """Judges `families` simulated configs of `contrasts` copies of a contrast with the real engine."""
    test, base = draw(world, np.random.default_rng(seed), families, contrasts, seeds)
    registered = [dataclasses.replace(template, claim=f"{template.claim}_{i}") for i in range(contrasts)]
    keys = [(contrast.hash, "default") for contrast in registered]
    setting = Setting(profile="quick", scale="simulated")
    return [
        judge_all(registered, {key: as_evidence(test[f, i], base[f, i]) for i, key in enumerate(keys)}, setting)
        for f in range(families)
    ]


def false_difference_rate(decided: Sequence[Sequence[Decision]]) -> float:
    """Share of families whose superiority contrasts state a difference: false ones for identical arms."""
    stated = {"supported", "supported, negligible", "refuted, reversed"}
    return float(np.mean([any(decision.label in stated for decision in family) for family in decided]))


def labels(decided: Sequence[Sequence[Decision]]) -> dict[str, float]:
    """Share of each label over all contrasts of all families."""
    counts = collections.Counter(decision.label for family in decided for decision in family)
    total = sum(counts.values())
    return {label: count / total for label, count in counts.most_common()}


def rule_rates(
    world: World, *, families: int = FAMILIES, contrasts: int = 3, seeds: int = 8, seed: int = 0
) -> dict[str, float]:
    """Share of families with a significant difference under each rule that was weighed; 5% is wanted.

    `t`: Holm over paired t. `sign flips`: Holm over the exact test. `t and sign flips`: Holm over t, and the
    exact p at most 0.05 unadjusted: the rule of the engine. `both adjusted`: Holm over the larger p. `switch
    to Welch`: as `t`, but Welch's p wherever the measured correlation is not positive.
    """
    test, base = draw(world, np.random.default_rng(seed), families, contrasts, seeds)
    counts = dict.fromkeys(("t", "sign flips", "t and sign flips", "both adjusted", "switch to Welch"), 0)
    for f in range(families):
        pairs = [paired(test[f, i], base[f, i]) for i in range(contrasts)]
        t = np.array([pair.estimate.p_value() for pair in pairs])
        exact = np.array([sign_flip(pair.differences) for pair in pairs])
        unpaired = np.array([welch(test[f, i], base[f, i]).p_value() for i in range(contrasts)])
        switched = np.where([(pair.rho or 0.0) <= 0 for pair in pairs], unpaired, t)
        counts["t"] += bool(np.any(holm(t) <= ALPHA))
        counts["sign flips"] += bool(np.any(holm(exact) <= ALPHA))
        counts["t and sign flips"] += bool(np.any((holm(t) <= ALPHA) & (exact <= ALPHA)))
        counts["both adjusted"] += bool(np.any(holm(np.maximum(t, exact)) <= ALPHA))
        counts["switch to Welch"] += bool(np.any(holm(switched) <= ALPHA))
    return {rule: count / families for rule, count in counts.items()}
