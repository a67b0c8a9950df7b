"""What a number of seeds can show: detectable effects, seeds needed, and the noise floor.

Effects are in units of the standard deviation of the paired differences unless said otherwise, so one table
serves every metric: an arm pair with sd 0.02 nats and 8 seeds detects 1.16 * 0.02 nats.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats

from ablations.statistics import Estimate, Interval, Values, sample_estimate


def power(effect: float, n: int, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t test: P(|T| > t), T noncentral t, noncentrality effect * sqrt(n)."""
    critical, centre = float(scipy.special.stdtrit(n - 1, 1 - alpha / 2)), effect * math.sqrt(n)
    wrong_side = np.nan_to_num(scipy.stats.nct.cdf(-critical, n - 1, centre))  # NaN where too small for scipy
    return float(scipy.stats.nct.sf(critical, n - 1, centre) + wrong_side)


@functools.cache
def minimum_detectable_effect(n: int, alpha: float = 0.05, target: float = 0.8) -> float:
    """The effect, in sd of the differences, that n pairs detect with power `target`; inf below two pairs."""
    if n < 2:
        return math.inf
    high = 1.0
    while power(high, n, alpha) < target:
        high *= 2
    return float(scipy.optimize.brentq(lambda effect: power(effect, n, alpha) - target, 1e-9, high, xtol=1e-6))


def seeds_needed(effect: float, alpha: float = 0.05, target: float = 0.8) -> int:
    """The smallest number of pairs that detects `effect`, in sd of the differences, with power `target`.

    Raises:
      ValueError: an effect that is not above zero.
    """
    if not effect > 0:
        raise ValueError(f"The effect to detect must be above zero, got {effect}.")
    z = float(scipy.special.ndtri(1 - alpha / 2) + scipy.special.ndtri(target))
    n = max(2, math.ceil((z / effect) ** 2))  # the normal answer, a lower bound that is off by two or three
    if n > 1000:
        return n
    while minimum_detectable_effect(n, alpha, target) > effect:
        n += 1
    return n


def equivalence_power(margin: float, n: int, alpha: float = 0.05) -> float:
    """Probability that two one-sided tests declare equivalence when the true difference is zero.

    Both pass when |mean| <= margin - t s / sqrt(n). Given s, the mean is normal; s^2 (n-1) is chi-square:
    the power is the integral over s of max(0, 2 Phi(sqrt(n) margin - t s) - 1), with sigma = 1 (Phillips
    1990).
    """
    critical, df = float(scipy.special.stdtrit(n - 1, 1 - alpha)), n - 1
    largest = math.sqrt(n) * margin / critical  # above this spread no mean passes

    def integrand(s: float) -> float:
        passes = 2 * scipy.special.ndtr(math.sqrt(n) * margin - critical * s) - 1
        return float(passes * scipy.stats.chi.pdf(s * math.sqrt(df), df) * math.sqrt(df))

    value, _ = scipy.integrate.quad(integrand, 0.0, min(largest, 1 + 12 / math.sqrt(df)), limit=200)
    return float(value)


@functools.cache
def equivalence_margin_needed(n: int, target: float = 0.8, alpha: float = 0.05) -> float:
    """The margin, in sd of the paired differences, at which n pairs show equivalence with power `target`."""
    if n < 2:
        return math.inf
    high = 1.0
    while equivalence_power(high, n, alpha) < target:
        high *= 2
    return float(
        scipy.optimize.brentq(lambda margin: equivalence_power(margin, n, alpha) - target, 1e-6, high, xtol=1e-5)
    )


def sign_seeds_needed(comparisons: int, alpha: float = 0.05) -> int:
    """The smallest number of pairs, all alike, whose one-sided sign test passes Holm among so many comparisons."""
    return math.ceil(math.log2(max(1, comparisons) / alpha))


def equivalence_seeds_needed(margin: float, target: float = 0.8, alpha: float = 0.05) -> int:
    """The smallest number of pairs that shows equivalence within `margin` (in sd) with power `target`.

    Raises:
      ValueError: a margin that is not above zero.
    """
    if not margin > 0:
        raise ValueError(f"An equivalence margin must be above zero, got {margin}.")
    z = float(scipy.special.ndtri(1 - alpha) + scipy.special.ndtri(0.5 + target / 2))
    n = max(2, math.ceil((z / margin) ** 2))
    if n > 1000:
        return n
    while equivalence_margin_needed(n, target, alpha) > margin:
        n += 1
    return n


@dataclasses.dataclass(frozen=True)
class NoiseFloor:
    """The spread of differences between runs that differ in nothing but their initialisation.

    Attributes:
      n: pairs of a baseline run and its init-salted twin.
      sigma: standard deviation of their differences, in units of the metric.
      interval: 95% interval of sigma, from the chi-square distribution (n - 1 degrees of freedom).
      mean: the mean difference, whose true value is zero.
    """

    n: int
    sigma: float
    interval: Interval
    mean: Estimate

    @property
    def centred(self) -> bool:
        """The negative control: the 95% interval of the mean difference holds zero."""
        low, high = self.mean.interval(0.95)
        return low <= 0 <= high

    def equivalent(self, margin: float) -> bool:
        """The 90% interval of the mean difference lies within the margin: two one-sided tests at 5%."""
        return max(map(abs, self.mean.interval(0.90))) < margin

    def detectable(self, seeds: int, alpha: float = 0.05, target: float = 0.8) -> float:
        """The difference, in units of the metric, that `seeds` pairs would detect at this noise."""
        return minimum_detectable_effect(seeds, alpha, target) * self.sigma


def noise_floor(baseline: Values, twins: Values) -> NoiseFloor:
    """sigma of the difference from a baseline and its twins: same data, new initialisation; pairs by index.

    Raises:
      ValueError: fewer than two pairs.
    """
    differences = np.asarray(twins, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    mean = sample_estimate(differences)
    n, sigma = len(differences), float(differences.std(ddof=1))
    low = sigma * math.sqrt((n - 1) / scipy.stats.chi2.ppf(0.975, n - 1))
    high = sigma * math.sqrt((n - 1) / scipy.stats.chi2.ppf(0.025, n - 1))
    return NoiseFloor(n, sigma, (low, high), mean)
