"""Slope and ordering: does a measurement follow the claimed power law, or the arms the claimed order?"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import scipy.stats

from ablations import statistics
from ablations.analyses.common import Analysis, Significance, common_seeds, median, metric, subtract, worst
from ablations.evidence import Evidence
from ablations.power import minimum_detectable_effect
from ablations.schema import Contrast

SLOPE_MARGIN = 0.15  # an exponent is confirmed within this distance
FLOAT_NOISE = 1e-6  # smallest standard error of a slope: exact counts on an exact power law still round


def analyse_slope(contrast: Contrast, evidence: Evidence) -> Analysis:
    """The log-log exponent and the claimed one: equal within 0.15 speaks for it, a difference against."""
    if evidence.claimed is None or len(evidence.points) < 3:
        return Analysis(
            missing=f"{len(evidence.points)} sizes and the claimed exponent {evidence.claimed}",
            remedy="state the exponent and measure at least three sizes",
        )
    sizes = sorted(evidence.points)
    seeds = sorted(set.intersection(*(set(evidence.points[size]) for size in sizes)))
    table = [[evidence.points[size][seed] for size in sizes] for seed in seeds]
    if not seeds or any(value is None for row in table for value in row):
        return Analysis(n=len(seeds), missing="a size of which a run diverged", remedy="run or shrink that size")
    values = np.array(table, dtype=np.float64)
    if not np.all(values > 0):
        return Analysis(
            n=len(seeds), missing="a value without a logarithm", remedy="take a metric that stays above zero"
        )
    fitted = statistics.slope_estimate(sizes, values)
    fitted = dataclasses.replace(fitted, standard_error=max(fitted.standard_error, FLOAT_NOISE))
    near, off = fitted.equivalence(SLOPE_MARGIN, evidence.claimed), fitted.p_value(evidence.claimed)
    primary, counter = Significance(near, near), Significance(off, off)
    if len(seeds) > 1:
        distance = statistics.log_log_slopes(sizes, values) - evidence.claimed
        primary = Significance(near, statistics.sign_flip_equivalence(distance, SLOPE_MARGIN))
        counter = Significance(off, statistics.sign_flip(distance))
    return Analysis(
        method="t interval of the log-log slope",
        n=len(seeds),
        primary=primary,
        counter=counter,
        estimate=fitted.mean,
        interval90=fitted.interval(0.90),
        interval95=fitted.interval(0.95),
        effect=fitted.mean - evidence.claimed,
    )


def analyse_ordering(contrast: Contrast, evidence: Evidence) -> Analysis:
    """Page's trend test over the claimed order (best first; `expect: worse` reads it worst first).

    Against the claim: the reverse trend, or any adjacent pair of arms significantly the wrong way round
    (Bonferroni over these tests). Ranks take a diverged run as worst, so nothing is dropped. The estimate is
    the arm claimed best minus the arm claimed worst.
    """
    arms = evidence.arms[::-1] if contrast.expect != "worse" else evidence.arms
    seeds = common_seeds(*arms)
    if len(arms) < 3 or len(seeds) < 2:
        return Analysis(
            n=len(seeds),
            missing=f"{len(arms)} arms with {len(seeds)} common seeds",
            remedy="an ordering needs at least three arms and two seeds",
        )
    good = 1.0 if contrast.better == "higher" else -1.0
    rising = good * np.stack([metric(arm, seeds, worst(contrast)) for arm in arms], axis=1)  # [seeds, arms]
    ranks = scipy.stats.rankdata(rising, axis=1)
    steps = [subtract(rising[:, j + 1], rising[:, j]) for j in range(len(arms) - 1)]
    whole = subtract(rising[:, -1], rising[:, 0])
    trend = statistics.page_trend(ranks)
    wrong = [statistics.page_trend(ranks[:, ::-1]), *(_step_reversed(step) for step in steps)]
    reversal = min(1.0, len(wrong) * min(wrong))
    finite = bool(np.all(np.isfinite(whole)))
    ends = statistics.sample_estimate(good * whole) if finite else None
    lost = [
        f"{arm.name} {count} of {len(seeds)}" for arm in arms if (count := sum(arm.outcomes[s].diverged for s in seeds))
    ]
    sd = float(np.std(whole, ddof=1)) if finite else None
    return Analysis(
        method="Page's trend test",
        n=len(seeds),
        primary=Significance(trend, trend),
        counter=Significance(reversal, reversal),
        estimate=ends.mean if ends else None,
        interval90=ends.interval(0.90) if ends else None,
        interval95=ends.interval(0.95) if ends else None,
        effect=median(whole),
        sd=sd,
        detectable=None if sd is None else minimum_detectable_effect(len(seeds)) * sd,
        lost=", ".join(lost),
        steps=tuple(float(step.mean()) if np.all(np.isfinite(step)) else median(step) for step in steps),
    )


def _step_reversed(step: npt.NDArray[np.float64]) -> float:
    """One-sided p that a step of the claimed order goes the other way; the larger of t and sign flips."""
    if not np.all(np.isfinite(step)):
        return statistics.sign_test(step, 0.0, "less")
    return max(statistics.sample_estimate(step).p_value(0.0, "less"), statistics.sign_flip(step, 0.0, "less"))
