"""Stability: does one arm tolerate fewer learning rates than another?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ablations import statistics
from ablations.analyses.common import ALPHA, NOTHING, Analysis, Significance, claimed_sign
from ablations.evidence import ArmResult, Evidence, Outcome
from ablations.schema import Contrast
from ablations.statistics import Alternative, Estimate, Interval

LESS_STABLE = 1.5  # a learning-rate sensitivity this many times larger
AS_STABLE = 1.25  # ratios from 0.8 to 1.25, the limits of bioequivalence


def analyse_stability(contrast: Contrast, evidence: Evidence) -> Analysis:
    """Learning-rate sensitivity and divergence rate over the learning rates both arms were run at.

    The ratio is that of the arm claimed to be less stable over the other, from paired logs of per-seed
    sensitivities (seeds with every learning rate). Divergences are pooled over learning rates and seeds. Either may
    carry the claim, so the p is twice the smaller (Bonferroni). Against it stands equality of the sensitivities.
    """
    if evidence.test is None or evidence.base is None:
        return Analysis(missing="an arm has no runs yet", remedy="run the missing arm")
    claimed_sign(contrast)  # refuses a claim without a direction
    test_shaky = contrast.expect == "worse"
    shaky, steady = (evidence.test, evidence.base) if test_shaky else (evidence.base, evidence.test)
    grid = sorted(set(shaky.curve) & set(steady.curve))
    seeds = {rate: sorted(set(shaky.curve[rate]) & set(steady.curve[rate])) for rate in grid}
    runs = [(rate, seed) for rate in grid for seed in seeds[rate]]
    if len(grid) < 2 or not runs:
        return Analysis(missing=f"{len(grid)} learning rates common to both arms", remedy="run both arms over one grid")
    rates = statistics.divergence_rates(
        sum(evidence.test.curve[rate][seed].diverged for rate, seed in runs),
        len(runs),
        sum(evidence.base.curve[rate][seed].diverged for rate, seed in runs),
        len(runs),
    )
    complete = sorted(set.intersection(*(set(seeds[rate]) for rate in grid)))
    logs = _log_sensitivity_ratios(contrast, shaky, steady, grid, complete)
    ratio = statistics.sample_estimate(logs) if len(logs) > 1 else None
    excess = rates.difference if test_shaky else -rates.difference
    forward, reverse = (_one_direction(logs, ratio, rates.p if side * excess > 0 else 1.0, side) for side in (1, -1))
    equal = NOTHING
    if ratio is not None and rates.p > ALPHA:
        limit = math.log(AS_STABLE)
        equal = Significance(ratio.equivalence(limit), statistics.sign_flip_equivalence(logs, limit))
    as_claimed = forward.p <= reverse.p
    return Analysis(
        method="learning-rate sensitivity ratio and pooled divergence rate",
        n=len({seed for _, seed in runs}),
        primary=forward if as_claimed else reverse,
        counter=equal,
        estimate=math.exp(ratio.mean) if ratio else None,
        interval90=_exponential(ratio, 0.90),
        interval95=_exponential(ratio, 0.95),
        effect=1.0 if as_claimed else -1.0,
        rates=rates,
    )


def _log_sensitivity_ratios(
    contrast: Contrast, shaky: ArmResult, steady: ArmResult, grid: Sequence[float], seeds: Sequence[int]
) -> npt.NDArray[np.float64]:
    """log(sensitivity of shaky / of steady) `[seeds]`; empty unless all are known and above zero."""
    both = [
        [_sensitivity([arm.curve[rate][seed] for rate in grid], contrast) for seed in seeds] for arm in (shaky, steady)
    ]
    known = np.array(both, dtype=np.float64)  # None becomes NaN, which is not above zero
    return np.log(known[0] / known[1]) if known.size and np.all(known > 0) else np.zeros(0)


def _sensitivity(outcomes: Sequence[Outcome], contrast: Contrast) -> float | None:
    """One seed's sensitivity; None when no run recorded the metric before training, which caps a bad loss."""
    initial = next((outcome.initial for outcome in outcomes if outcome.initial is not None), None)
    if initial is None:
        return None
    values = [None if outcome.diverged else outcome.value for outcome in outcomes]
    return statistics.learning_rate_sensitivity(values, initial, contrast.better)


def _one_direction(logs: npt.NDArray[np.float64], ratio: Estimate | None, by_rate: float, side: int) -> Significance:
    """p that the sensitivity ratio is above 1.5 (side 1) or below 1 / 1.5 (side -1), or the rates say so."""
    if ratio is None:
        return Significance(by_rate, by_rate)
    limit = side * math.log(LESS_STABLE)
    alternative: Alternative = "greater" if side > 0 else "less"
    by_ratio = 2 * ratio.p_value(limit, alternative)
    by_flips = 2 * statistics.sign_flip(logs, limit, alternative)
    return Significance(min(1.0, 2 * min(by_rate, by_ratio)), min(1.0, 2 * min(by_rate, by_flips)))


def _exponential(ratio: Estimate | None, level: float) -> Interval | None:
    if ratio is None:
        return None
    low, high = ratio.interval(level)
    return math.exp(low), math.exp(high)
