"""Each statistic against scipy, a worked example, or the property it is used for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from ablations import statistics as st

RNG = np.random.default_rng(7)
TEST, BASE = RNG.normal(1.0, 0.1, 8), RNG.normal(1.05, 0.2, 8)


def test_paired_summary_matches_scipy() -> None:
    pairs = st.paired(TEST, BASE)
    reference = scipy.stats.ttest_rel(TEST, BASE)
    assert pairs.estimate.p_value() == pytest.approx(reference.pvalue)
    assert pairs.estimate.p_value(alternative="less") == pytest.approx(
        scipy.stats.ttest_rel(TEST, BASE, alternative="less").pvalue
    )
    for level in (0.5, 0.9, 0.95):
        assert pairs.estimate.interval(level) == pytest.approx(tuple(reference.confidence_interval(level)))
    assert pairs.rho == pytest.approx(np.corrcoef(TEST, BASE)[0, 1])
    assert pairs.sd == pytest.approx(np.std(TEST - BASE, ddof=1))


def test_welch_matches_scipy() -> None:
    estimate = st.welch(TEST, BASE)
    reference = scipy.stats.ttest_ind(TEST, BASE, equal_var=False)
    assert estimate.p_value() == pytest.approx(reference.pvalue)
    assert estimate.interval() == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_differences_without_spread() -> None:
    assert st.paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).estimate.p_value() == 1.0
    assert st.paired([1.0, 2.0, 3.0], [0.5, 1.5, 2.5]).estimate.p_value() == 0.0
    assert st.paired([1.0, 1.0, 1.0], [0.5, 1.5, 2.5]).rho is None


def test_paired_needs_pairs() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        st.paired([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least two"):
        st.paired([1.0], [2.0])


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_sign_flip_matches_scipy_permutation_test(alternative: st.Alternative) -> None:
    for n in (5, 8, 11):
        d = RNG.normal(0.4, 1.0, n)
        reference = scipy.stats.permutation_test(
            (d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative=alternative
        )
        assert st.sign_flip(d, 0.0, alternative) == pytest.approx(reference.pvalue)


@pytest.mark.parametrize(("n", "smallest"), [(3, 0.25), (5, 0.0625), (6, 0.03125), (8, 0.0078125)])
def test_sign_flip_smallest_p(n: int, smallest: float) -> None:
    assert st.sign_flip(np.arange(1.0, n + 1)) == smallest
    assert st.sign_flip(np.full(n, 0.1)) == smallest  # ties in floating point count as ties


def test_sign_flip_beyond_enumeration_is_deterministic_and_close_to_t() -> None:
    d = RNG.normal(0.3, 1.0, 24)
    assert st.sign_flip(d) == st.sign_flip(d)
    assert st.sign_flip(d) == pytest.approx(st.sample_estimate(d).p_value(), abs=0.02)
    assert st.sign_flip(np.full(24, 1.0)) > 0  # never exactly zero


def test_sign_test_keeps_every_pair() -> None:
    d = np.array([math.inf] * 7 + [math.nan])
    assert st.sign_test(d) == pytest.approx(2 * (8 + 1) / 256)  # seven of eight: the tie stays in n
    assert st.sign_test(d[:7]) == pytest.approx(2 / 128)
    assert st.sign_test(d, 0.0, "less") == 1.0
    assert st.sign_test(TEST - BASE) == pytest.approx(scipy.stats.binomtest(int(np.sum(TEST > BASE)), len(TEST)).pvalue)


def test_equivalence_and_beyond_are_interval_statements() -> None:
    seen = set()
    for _ in range(400):
        d = RNG.normal(RNG.normal(0, 1.5), RNG.uniform(0.2, 2), 8)
        estimate = st.sample_estimate(d)
        low, high = estimate.interval(0.90)
        inside = max(-low, high) < 1
        assert (estimate.equivalence(1.0) < 0.05) == inside
        low, high = estimate.interval(0.95)
        outside = low > 1 or high < -1
        assert (estimate.beyond(1.0) < 0.05) == outside
        seen |= {(inside, outside)}
    assert seen == {(True, False), (False, True), (False, False)}


def test_equivalence_around_a_centre() -> None:
    estimate = st.Estimate(2.02, 0.02, 6)
    assert estimate.equivalence(0.15, centre=2.0) < 0.001 < 0.5 < estimate.equivalence(0.15, centre=1.5)


def test_holm_worked_example() -> None:
    adjusted = st.holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st.holm([0.9, 0.8]).max() == 1.0
    assert st.holm([0.02]) == pytest.approx([0.02])
    assert len(st.holm([])) == 0


def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order() -> None:
    p = RNG.uniform(0, 0.3, 7)
    adjusted = st.holm(p)
    assert np.all(adjusted >= p) and np.all(adjusted <= np.minimum(1, 7 * p))
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)


def test_benjamini_hochberg_worked_example() -> None:
    assert st.benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert len(st.benjamini_hochberg([])) == 0


def test_fieller_is_the_inverse_of_the_t_test() -> None:
    base = RNG.normal(1.5, 0.05, 8)
    arm = RNG.normal(2.6, 0.1, 8)
    ratio = st.recovered_fraction(3.0, arm, base)
    assert ratio.value == pytest.approx(np.mean(3 - arm) / np.mean(3 - base))
    for end in ratio.interval:
        assert st.sample_estimate((3 - arm) - end * (3 - base)).p_value() == pytest.approx(0.05)


def test_fieller_covers_the_truth_and_says_when_it_cannot() -> None:
    hits = 0
    for _ in range(1500):
        shared = RNG.normal(0, 0.1, 8)
        arm, base = 2.5 + shared + RNG.normal(0, 0.1, 8), 1.5 + shared + RNG.normal(0, 0.1, 8)
        low, high = st.recovered_fraction(3.0, arm, base).interval
        hits += low <= 1 / 3 <= high
    assert hits / 1500 == pytest.approx(0.95, abs=0.02)
    no_gap = st.recovered_fraction(3.0, RNG.normal(3, 0.1, 8), RNG.normal(3, 0.1, 8))
    assert no_gap.interval == (-math.inf, math.inf)


def test_recovered_fraction_is_the_same_for_accuracies() -> None:
    loss = st.recovered_fraction(3.0, [2.5, 2.6, 2.4], [1.5, 1.4, 1.6])
    accuracy = st.recovered_fraction(-3.0, [-2.5, -2.6, -2.4], [-1.5, -1.4, -1.6])
    assert loss == accuracy


def test_page_trend_sees_direction() -> None:
    rising = np.tile([1.0, 2.0, 3.0], (6, 1))
    assert st.page_trend(rising) < 0.001 < 0.9 < st.page_trend(rising[:, ::-1])


def test_slope_of_an_exact_power_law() -> None:
    sizes = np.array([128, 256, 512, 1024.0])
    assert st.log_log_slopes(sizes, 3 * sizes**2) == pytest.approx([2.0])
    assert st.slope_estimate(sizes, 3 * sizes**2).mean == pytest.approx(2.0)


def test_slope_uncertainty_comes_from_seeds_or_scatter() -> None:
    sizes = np.array([128, 256, 512, 1024.0])
    noise = np.exp(RNG.normal(0, 0.05, (8, 4)))
    several = st.slope_estimate(sizes, sizes**1.5 * noise)
    assert several.df == 7 and several.interval()[0] < 1.5 < several.interval()[1]
    single = st.slope_estimate(sizes, sizes**1.5 * noise[0])
    reference = scipy.stats.linregress(np.log(sizes), np.log(sizes**1.5 * noise[0]))
    assert (single.mean, single.standard_error, single.df) == pytest.approx((reference.slope, reference.stderr, 2))


@pytest.mark.parametrize(
    ("sizes", "values", "match"),
    [
        ([1.0, 2.0], [1.0, 2.0], "at least three"),
        ([2.0, 2.0], [1.0, 2.0], "two different"),
        ([1.0, 2.0, 3.0], [1.0, 0.0, 2.0], "above zero"),
    ],
)
def test_slope_refuses(sizes: list[float], values: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        st.slope_estimate(sizes, np.array(values))


def test_divergence_rates() -> None:
    assert st.divergence_rates(5, 8, 0, 8).p == pytest.approx(0.0256, abs=1e-3)
    assert st.divergence_rates(4, 8, 0, 8).p > 0.05
    assert st.divergence_rates(4, 8, 0, 8, "barnard").p < 0.05
    assert st.divergence_rates(0, 8, 0, 8, "barnard").p == 1.0
    assert st.divergence_rates(4, 8, 2, 8).difference == 0.25


def test_learning_rate_sensitivity_caps_at_the_initial_loss() -> None:
    # (2 + 1 + 4 + 4) / 4 - 1: a diverged run and one above the start both count as the start
    assert st.learning_rate_sensitivity([2.0, 1.0, None, 9.0], 4.0) == pytest.approx(1.75)
    assert st.learning_rate_sensitivity([0.5, 0.9, None], 0.1, "higher") == pytest.approx(0.4)
    assert st.learning_rate_sensitivity([1.0, 1.0], 4.0) == 0.0
