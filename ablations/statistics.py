"""Small-sample statistics over seeds: estimates with intervals, exact tests, and corrections for many claims.

The unit of replication is the training seed. Arrays of values are float64 `[seeds]` in the order of the
seeds, so that index i of one arm pairs with index i of another. Nothing here knows what a claim is;
`verdict.py` does.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.special
import scipy.stats

Alternative = Literal["two-sided", "greater", "less"]
Interval = tuple[float, float]
Values = Sequence[float] | npt.NDArray[np.float64]

ENUMERATED_PAIRS = 16  # up to here the sign-flip test visits all 2^n sign patterns
SAMPLED_PATTERNS = 100_000  # beyond, a fixed random sample of them


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and degrees of freedom: everything a t interval or a t test needs.

    `scipy.special.stdtr` (the t distribution function) is called directly: `scipy.stats.t` gives the same
    numbers fifty times slower, and the calibration judges thousands of families.
    """

    mean: float
    standard_error: float
    df: float

    def interval(self, level: float = 0.95) -> Interval:
        """The two-sided t interval: mean -+ t_{(1+level)/2, df} * standard error."""
        half = float(scipy.special.stdtrit(self.df, 0.5 + level / 2)) * self.standard_error
        return self.mean - half, self.mean + half

    def p_value(self, null: float = 0.0, alternative: Alternative = "two-sided") -> float:
        """The t test of mean = null; a difference of exactly zero without any spread is no evidence: 1."""
        if self.standard_error == 0:
            t = math.copysign(math.inf, self.mean - null) if self.mean != null else math.nan
        else:
            t = (self.mean - null) / self.standard_error
        if math.isnan(t):
            return 1.0
        if alternative == "two-sided":
            return float(2 * scipy.special.stdtr(self.df, -abs(t)))
        return float(scipy.special.stdtr(self.df, -t if alternative == "greater" else t))

    def equivalence(self, margin: float, centre: float = 0.0) -> float:
        """Two one-sided tests (Schuirmann 1987): the larger p of mean > centre - margin, < centre + margin.

        At most 0.05 exactly when the 90% interval lies inside centre -+ margin.
        """
        return max(self.p_value(centre - margin, "greater"), self.p_value(centre + margin, "less"))

    def beyond(self, margin: float) -> float:
        """The opposite: p of |mean| <= margin, at most 0.05 when the 95% interval lies outside the margin."""
        return min(1.0, 2 * min(self.p_value(margin, "greater"), self.p_value(-margin, "less")))


@dataclasses.dataclass(frozen=True)
class Paired:
    """Differences test - base of the same seeds.

    Attributes:
      differences: float64 `[n]`.
      estimate: their mean, with standard error sd / sqrt(n) and n - 1 degrees of freedom.
      sd: standard deviation of the differences; sd^2 = s_test^2 + s_base^2 - 2 rho s_test s_base.
      rho: correlation of the two arms over seeds; None when an arm does not vary.
    """

    differences: npt.NDArray[np.float64]
    estimate: Estimate
    sd: float
    rho: float | None

    @property
    def n(self) -> int:
        return len(self.differences)


def sample_estimate(values: Values) -> Estimate:
    """Mean, s / sqrt(n) and n - 1 of one sample.

    Raises:
      ValueError: fewer than two values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        raise ValueError(f"An interval needs at least two values, got {len(sample)}.")
    return Estimate(float(sample.mean()), float(sample.std(ddof=1)) / math.sqrt(len(sample)), len(sample) - 1)


def paired(test: Values, base: Values) -> Paired:
    """Summary of the paired differences test - base.

    Raises:
      ValueError: unequal lengths, or fewer than two pairs.
    """
    a, b = np.asarray(test, dtype=np.float64), np.asarray(base, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"Paired samples must have equal lengths, got {len(a)} and {len(b)}.")
    estimate = sample_estimate(a - b)
    spread = float(a.std() * b.std())
    rho = float(np.mean((a - a.mean()) * (b - b.mean()))) / spread if spread > 0 else None
    return Paired(a - b, estimate, estimate.standard_error * math.sqrt(len(a)), rho)


def welch(test: Values, base: Values) -> Estimate:
    """Unpaired mean difference with unequal variances (Welch 1947; Satterthwaite's degrees of freedom)."""
    first, second = sample_estimate(test), sample_estimate(base)
    u, v = first.standard_error**2, second.standard_error**2
    spread = u**2 / first.df + v**2 / second.df
    df = (u + v) ** 2 / spread if spread > 0 else first.df + second.df
    return Estimate(first.mean - second.mean, math.sqrt(u + v), df)


@functools.lru_cache(maxsize=8)
def _sign_patterns(n: int) -> npt.NDArray[np.float64]:
    if n <= ENUMERATED_PAIRS:
        return np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    rng = np.random.default_rng(0)
    sampled = rng.choice((1.0, -1.0), size=(SAMPLED_PATTERNS, n))
    return np.concatenate([np.ones((1, n)), sampled])  # the observed pattern counts too (Phipson & Smyth 2010)


def sign_flip(differences: Values, null: float = 0.0, alternative: Alternative = "two-sided") -> float:
    """Permutation test of symmetry around `null`: the share of sign patterns at least as extreme.

    Exact (all 2^n patterns, Fisher 1935) up to 16 pairs; beyond, 100,000 patterns drawn with a fixed seed
    plus the observed one, which is still a valid test. The smallest two-sided p is 2^(1-n): 0.0625 with 5
    pairs, 0.03 with 6.
    """
    d = np.asarray(differences, dtype=np.float64) - null
    if len(d) == 0:
        return 1.0
    sums = _sign_patterns(len(d)) @ d
    observed, slack = float(d.sum()), 1e-9 * float(np.abs(d).sum())
    if alternative == "two-sided":
        return float(np.mean(np.abs(sums) >= abs(observed) - slack))
    direction = 1.0 if alternative == "greater" else -1.0
    return float(np.mean(direction * sums >= direction * observed - slack))


def sign_flip_equivalence(differences: Values, margin: float) -> float:
    """The two one-sided tests of equivalence with the sign-flip test in place of t: the larger p."""
    return max(sign_flip(differences, -margin, "greater"), sign_flip(differences, margin, "less"))


def sign_flip_beyond(differences: Values, margin: float) -> float:
    """p of |centre| <= margin by sign flips; the partner of `Estimate.beyond`."""
    return min(1.0, 2 * min(sign_flip(differences, margin, "greater"), sign_flip(differences, -margin, "less")))


def sign_test(values: Values, null: float = 0.0, alternative: Alternative = "two-sided") -> float:
    """Binomial test on the signs of values - null. Infinite values are welcome: a diverged run is a sign.

    NaN and ties stay in n and count for neither side, so a pair in which both runs diverged is never dropped;
    that makes the test conservative. The p is P(Bin(n, 1/2) >= wins), doubled for two sides.
    """
    sample = np.asarray(values, dtype=np.float64)
    n, above, below = len(sample), int(np.sum(sample > null)), int(np.sum(sample < null))
    wins = {"two-sided": max(above, below), "greater": above, "less": below}[alternative]
    tail = float(scipy.stats.binom.sf(wins - 1, n, 0.5))
    return min(1.0, 2 * tail) if alternative == "two-sided" else tail


def holm(p_values: Values) -> npt.NDArray[np.float64]:
    """Step-down adjusted p (Holm 1979): max over j <= i of (m - j + 1) p_(j); holds the family-wise error."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def benjamini_hochberg(p_values: Values) -> npt.NDArray[np.float64]:
    """Step-up adjusted p (Benjamini & Hochberg 1995): controls the expected share of false discoveries."""
    p = np.asarray(p_values, dtype=np.float64)
    return np.asarray(scipy.stats.false_discovery_control(p, method="bh")) if len(p) else p


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio of means with its interval; (-inf, inf) when the denominator is not clear of zero."""

    value: float
    interval: Interval


def fieller(numerator: Values, denominator: Values, level: float = 0.95) -> Ratio:
    """Interval for mean(numerator) / mean(denominator) from paired samples (Fieller 1954).

    It holds every r for which the t test of mean(numerator - r * denominator) = 0 is not rejected, which is
    the range between the roots of (y^2 - t^2 v_yy) r^2 - 2 (x y - t^2 v_xy) r + (x^2 - t^2 v_xx) = 0.
    """
    x, y = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    n = len(x)
    covariance = np.cov(x, y, ddof=1) / n
    t2 = float(scipy.special.stdtrit(n - 1, 0.5 + level / 2)) ** 2
    mean_x, mean_y = float(x.mean()), float(y.mean())
    a = mean_y**2 - t2 * covariance[1, 1]
    b = mean_x * mean_y - t2 * covariance[0, 1]
    c = mean_x**2 - t2 * covariance[0, 0]
    value = mean_x / mean_y if mean_y else math.nan
    if a <= 0:
        return Ratio(value, (-math.inf, math.inf))
    root = math.sqrt(max(0.0, b * b - a * c))
    return Ratio(value, (float((b - root) / a), float((b + root) / a)))


def recovered_fraction(trivial: float, arm: Values, base: Values, level: float = 0.95) -> Ratio:
    """(trivial - arm) / (trivial - base): 1 when the arm equals the base, 0 when no better than trivial.

    The sign cancels, so the same formula serves losses and accuracies. `trivial` is one number, the score of
    the trivial predictor on the same evaluation set.
    """
    return fieller(trivial - np.asarray(arm), trivial - np.asarray(base), level)


def page_trend(ranks: npt.NDArray[np.float64]) -> float:
    """p of the trend rank(column 0) <= rank(column 1) <= ... with one strict step (Page 1963).

    Args:
      ranks: `[seeds, arms]`, each row ranked from 1 by `scipy.stats.rankdata`.
    """
    return float(scipy.stats.page_trend_test(ranks, ranked=True).pvalue)


def log_log_slopes(x: Values, y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The exponent b of y = a x^b by least squares, one per row: y `[seeds, points]` -> `[seeds]`.

    Raises:
      ValueError: fewer than two sizes, or a value that has no logarithm.
    """
    sizes, values = np.asarray(x, dtype=np.float64), np.atleast_2d(np.asarray(y, dtype=np.float64))
    if len(np.unique(sizes)) < 2:
        raise ValueError("A slope needs at least two different sizes.")
    if np.any(sizes <= 0) or np.any(values <= 0):
        raise ValueError("A log-log slope needs sizes and values above zero.")
    centred = np.log(sizes) - np.log(sizes).mean()
    return np.log(values) @ centred / float(centred @ centred)


def slope_estimate(x: Values, y: npt.NDArray[np.float64]) -> Estimate:
    """The log-log slope with its uncertainty.

    With two or more rows (seeds) the seeds are the replicates: a t interval over their slopes. With one row,
    for measurements without a seed, the residual scatter around the line is used, with points - 2 degrees of
    freedom.

    Raises:
      ValueError: one row of fewer than three points.
    """
    slopes = log_log_slopes(x, y)
    if len(slopes) > 1:
        return sample_estimate(slopes)
    if len(x) < 3:
        raise ValueError(f"The slope of a single series needs at least three sizes, got {len(x)}.")
    fit = scipy.stats.linregress(np.log(np.asarray(x)), np.log(np.asarray(y)).ravel())
    return Estimate(float(fit.slope), float(fit.stderr), len(x) - 2)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Two divergence counts and the p of equal rates."""

    test: int
    base: int
    runs_test: int
    runs_base: int
    p: float

    @property
    def counts(self) -> str:
        """Both counts in words; empty where no run diverged."""
        return (
            f"{self.test} of {self.runs_test} against {self.base} of {self.runs_base}" if self.test + self.base else ""
        )

    @property
    def difference(self) -> float:
        """Rate of test minus rate of base, between -1 and 1."""
        return self.test / self.runs_test - self.base / self.runs_base


def divergence_rates(
    test: int, runs_test: int, base: int, runs_base: int, method: Literal["fisher", "barnard"] = "fisher"
) -> Rates:
    """Two-sided test of equal divergence rates: Fisher's exact test, or Barnard's (1947), more powerful.

    Five of eight against none is Fisher's p < 0.05; four of eight is not (Barnard's is). Zero of eight bounds
    a rate only at 31%, which is why stability claims pool over the learning-rate grid.
    """
    table = [[test, runs_test - test], [base, runs_base - base]]
    if test + base in (0, runs_test + runs_base):
        p = 1.0  # no run, or every run, diverged; Barnard's statistic would be 0 / 0
    elif method == "barnard":
        p = float(scipy.stats.barnard_exact(table).pvalue)
    else:
        p = float(scipy.stats.fisher_exact(table).pvalue)
    return Rates(test, base, runs_test, runs_base, p)


def learning_rate_sensitivity(
    values: Sequence[float | None], initial: float, better: Literal["lower", "higher"] = "lower"
) -> float:
    """Mean over the grid of min(loss, initial loss) - best loss, at least 0 (Wortsman et al. 2023).

    Args:
      values: final metric per learning rate; None where the run diverged, which counts as the initial value.
      initial: the metric before training.
    """
    sign = 1.0 if better == "lower" else -1.0
    capped = [sign * initial if value is None else min(sign * value, sign * initial) for value in values]
    return float(np.mean(capped) - min(capped))
