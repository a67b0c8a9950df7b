"""What every analysis shares: its result, the claimed direction, metrics with diverged runs as infinities.

There are two p values because a verdict can be given either way. For every claim their null hypotheses
exclude each other, so at most one of the two can be rejected falsely. Each p has an exact partner that does
not assume normal differences; `verdict.py` asks both to agree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ablations import statistics
from ablations.evidence import ArmResult, Evidence
from ablations.schema import Contrast
from ablations.statistics import Estimate, Interval, Rates
from transformer.errors import ConfigError

ALPHA = 0.05


@dataclasses.dataclass(frozen=True)
class Significance:
    """A p value and its exact partner (sign flips, or itself where it is exact already)."""

    p: float
    exact: float

    @property
    def agree(self) -> bool:
        """Both at most 0.05, or both above."""
        return (self.p <= ALPHA) == (self.exact <= ALPHA)


NOTHING = Significance(1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The numbers of one contrast under one condition.

    Attributes:
      method: how `primary` was computed.
      n: paired seeds.
      primary: for the claim; two-sided where it has a direction, and the sign of `effect` says which side.
      counter: against it where `primary` cannot speak: no practical difference, or one beyond the margin.
      partial: of a fraction, that it is neither nothing nor all.
      estimate, interval90, interval95: test - base in units of the metric, or the ratio, fraction or exponent
        judged; None if unknown or unbounded.
      effect: the estimate turned to the claimed direction, used for deciding; infinite when half of the
        seeds or more diverged.
      sd, rho: of the paired differences.
      detectable: the difference that this n and sd detect with power 0.8.
      welch: the unpaired estimate, shown beside the paired one.
      rates: divergences of both arms, when any run diverged.
      steps: estimates of adjacent differences in the claimed direction (ordering).
      median: the estimate is the middle one, since runs diverged and signs decide.
      lost: how many runs diverged, in words, where there are no two arms to compare the rates of.
      missing, remedy: why nothing could be computed, and what would help.
    """

    method: str = ""
    n: int = 0
    primary: Significance = NOTHING
    counter: Significance = NOTHING
    partial: Significance = NOTHING
    estimate: float | None = None
    interval90: Interval | None = None
    interval95: Interval | None = None
    effect: float = 0.0
    sd: float | None = None
    rho: float | None = None
    detectable: float | None = None
    welch: Estimate | None = None
    rates: Rates | None = None
    steps: tuple[float, ...] = ()
    median: bool = False
    lost: str = ""
    missing: str = ""
    remedy: str = ""

    @property
    def diverged(self) -> str:
        """How many runs of each arm diverged, in words; empty where none did."""
        return self.rates.counts if self.rates else self.lost


def claimed_sign(contrast: Contrast) -> float:
    """+1 when the claim says the metric of `test` is above that of `base`, -1 when below.

    Raises:
      ConfigError: the contrast states no direction.
    """
    if contrast.expect is None:
        raise ConfigError(
            f"Contrast {contrast.claim!r} of type {contrast.type!r} must state `expect`: 'better' or 'worse'."
        )
    return 1.0 if (contrast.expect == "better") == (contrast.better == "higher") else -1.0


def common_seeds(*arms: ArmResult) -> list[int]:
    """Seeds every arm has finished or diverged on, sorted."""
    return sorted(set.intersection(*(set(arm.outcomes) for arm in arms))) if arms else []


def metric(arm: ArmResult, seeds: Sequence[int], missing: float) -> npt.NDArray[np.float64]:
    """The metric `[seeds]`, with `missing` (an infinity) where the run diverged."""
    runs = [arm.outcomes[seed] for seed in seeds]
    return np.array([missing if run.diverged else run.value for run in runs], dtype=np.float64)


def worst(contrast: Contrast) -> float:
    return math.inf if contrast.better == "lower" else -math.inf


def subtract(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """a - b where both may be infinite: two diverged runs give NaN, which is a tie."""
    with np.errstate(invalid="ignore"):
        return a - b


def median(values: npt.NDArray[np.float64]) -> float:
    """The median with ties (NaN) as zero; infinite when half or more of one arm diverged."""
    with np.errstate(invalid="ignore"):
        return float(np.nan_to_num(np.median(np.where(np.isnan(values), 0.0, values)), posinf=np.inf, neginf=-np.inf))


def finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def bounded(interval: Interval) -> Interval | None:
    return interval if all(math.isfinite(end) for end in interval) else None


def rates_of(test: npt.NDArray[np.float64], base: npt.NDArray[np.float64]) -> Rates:
    broken = int(np.sum(np.isinf(test))), int(np.sum(np.isinf(base)))
    return statistics.divergence_rates(broken[0], len(test), broken[1], len(base))


def two_arms(evidence: Evidence) -> tuple[ArmResult, ArmResult] | Analysis:
    if evidence.test is None or evidence.base is None:
        return Analysis(missing="an arm has no runs yet", remedy="run the missing arm")
    seeds = common_seeds(evidence.test, evidence.base)
    if len(seeds) < 2:
        return Analysis(n=len(seeds), missing=f"{len(seeds)} paired seeds", remedy="run more test seeds")
    return evidence.test, evidence.base
