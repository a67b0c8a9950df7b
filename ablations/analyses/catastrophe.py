"""Catastrophe: how much of what the baseline learned is left without the part?"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from ablations import statistics
from ablations.analyses.common import (
    Analysis,
    Significance,
    bounded,
    common_seeds,
    finite,
    metric,
    rates_of,
    subtract,
    two_arms,
    worst,
)
from ablations.evidence import Evidence
from ablations.schema import Contrast

HALF = 0.5  # the recovered fraction tested against


def minimum_gap(contrast: Contrast) -> float:
    """How far the baseline must beat the trivial predictor before a fraction of that gap means anything."""
    return 0.3 if contrast.better == "lower" else 20.0  # nats per token, or points


def analyse_catastrophe(contrast: Contrast, evidence: Evidence) -> Analysis:
    """Is less than half of the gap between the trivial predictor and the baseline recovered?

    R = (trivial - test) / (trivial - base). R < 1/2 exactly when e = (test - trivial) - (base - trivial) / 2
    is on the bad side of zero on average: the one-sided t test of e is Fieller's test of R = 1/2, and e can
    be sign-flipped. That something is left (R > 0) and something is lost (R < 1) is tested in the same way, each at
    2.5%, as the 95% interval has it; both must hold, so the larger p counts.
    """
    arms = two_arms(evidence)
    if isinstance(arms, Analysis):
        return arms
    if evidence.trivial is None:
        return Analysis(missing="no trivial predictor was scored", remedy="record the task's trivial predictor")
    seeds = common_seeds(*arms)
    test, base = (metric(arm, seeds, worst(contrast)) for arm in arms)
    good = 1.0 if contrast.better == "higher" else -1.0
    excess = subtract(good * (test - evidence.trivial), HALF * good * (base - evidence.trivial))
    if np.isinf(test).any() or np.isinf(base).any():
        return _catastrophe_by_signs(contrast, evidence.trivial, test, base, excess)
    mean = statistics.sample_estimate(excess)
    recovered = statistics.recovered_fraction(evidence.trivial, test, base, 0.95)
    lost = Significance(mean.p_value(0.0, "less"), statistics.sign_flip(excess, 0.0, "less"))
    kept = Significance(mean.p_value(0.0, "greater"), statistics.sign_flip(excess, 0.0, "greater"))
    above, below = good * (test - evidence.trivial), good * (base - test)
    left, gone = statistics.sample_estimate(above), statistics.sample_estimate(below)
    partial = Significance(
        min(1.0, 2 * max(left.p_value(0.0, "greater"), gone.p_value(0.0, "greater"))),
        min(1.0, 2 * max(statistics.sign_flip(x, 0.0, "greater") for x in (above, below))),
    )
    return _oriented(
        contrast,
        Analysis(
            method="one-sided paired t test at half of the gap",
            n=len(seeds),
            primary=lost,
            counter=kept,
            partial=partial,
            estimate=finite(recovered.value),
            interval90=bounded(statistics.recovered_fraction(evidence.trivial, test, base, 0.90).interval),
            interval95=bounded(recovered.interval),
            effect=recovered.value,
        ),
    )


def _catastrophe_by_signs(
    contrast: Contrast,
    trivial: float,
    test: npt.NDArray[np.float64],
    base: npt.NDArray[np.float64],
    excess: npt.NDArray[np.float64],
) -> Analysis:
    with np.errstate(invalid="ignore", divide="ignore"):
        fractions = (trivial - test) / (trivial - base)
    # a diverged arm recovered nothing; where the baseline itself diverged there was nothing to lose; both are a tie
    fractions = np.where(np.isinf(base), 1.0, np.where(np.isinf(test), 0.0, fractions))
    fractions = np.where(np.isinf(base) & np.isinf(test), HALF, fractions)
    lost, kept = (statistics.sign_test(excess, 0.0, side) for side in ("less", "greater"))
    middle = float(np.median(fractions))
    return _oriented(
        contrast,
        Analysis(
            method="one-sided sign test at half of the gap (diverged runs recover nothing)",
            n=len(test),
            primary=Significance(lost, lost),
            counter=Significance(kept, kept),
            estimate=middle,
            effect=middle,
            median=True,
            rates=rates_of(test, base),
        ),
    )


def _oriented(contrast: Contrast, analysis: Analysis) -> Analysis:
    """`expect: better` turns "X is essential" into "X is dispensable": the two p values change places."""
    if contrast.expect != "better":
        return analysis
    return dataclasses.replace(analysis, primary=analysis.counter, counter=analysis.primary)
