"""Every cell of the verdict table, every reason to withhold a verdict, and the sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats

from ablations.evidence import ArmResult, Control, Evidence, ExactCheck, FormulaCheck, Number, Outcome, Setting
from ablations.schema import Contrast
from ablations.verdict import Decision, judge, judge_all, overall
from transformer.errors import ConfigError

QUICK = Setting(profile="quick", scale="64-wide, 0.5M tokens of stdlib")
N = 8
GRID = (1e-4, 1e-3, 1e-2)


def spread(n: int = N, shift: int = 0) -> np.ndarray:
    """n residuals with mean 0 and sd 1, normal quantiles in an order that `shift` changes."""
    z = scipy.stats.norm.ppf((np.arange(n) + 0.5) / n)
    order = np.random.default_rng(shift).permutation(n)
    return (z / z.std(ddof=1))[order]


def arm(name: str, values: Sequence[float | None], edge: bool = False, **stated: float) -> ArmResult:
    runs = {seed: Outcome(None if value is None else float(value), 4.0, **stated) for seed, value in enumerate(values)}
    return ArmResult(name, runs, edge=edge)


def pair(effect: float, sd: float, n: int = N, level: float = 1.5, **extra) -> Evidence:
    """Two arms whose paired differences have exactly this mean and sd; they share half of their own noise."""
    base = level + 0.02 * spread(n, shift=1)
    return Evidence(test=arm("test", base + effect + sd * spread(n)), base=arm("base", base), **extra)


def contrast(type: str, **fields) -> Contrast:
    defaults = dict(claim="some_claim", test="test", base="base", min_seeds=N)
    if type in ("superiority", "stability"):
        defaults["expect"] = "better"
    if type in ("exact", "formula"):
        defaults["check"] = "some_check"
    return Contrast(type=type, **(defaults | fields))


def curves(test: Sequence[float | None], base: Sequence[float | None], jitter: float = 0.01, n: int = N):
    """Evidence for stability: one loss per learning rate and arm, the same for every seed up to jitter."""

    def one(name: str, losses: Sequence[float | None], shift: int) -> ArmResult:
        noise = jitter * spread(n, shift)
        curve = {
            rate: {s: Outcome(None if loss is None else loss + noise[s] * (rate == GRID[0]), 4.0) for s in range(n)}
            for rate, loss in zip(GRID, losses, strict=True)
        }
        best = [loss for loss in losses if loss is not None]
        return dataclasses.replace(arm(name, [min(best, default=None)] * n), curve=curve)

    return Evidence(test=one("test", test, 1), base=one("base", base, 2))


def breaking(evidence: Evidence, arm: str, rate: float) -> Evidence:
    """The same, where all runs of an arm at a rate ended with a number, but broken."""
    result = getattr(evidence, arm)
    broken = {seed: dataclasses.replace(run, broken=True) for seed, run in result.curve[rate].items()}
    return dataclasses.replace(evidence, **{arm: dataclasses.replace(result, curve={**result.curve, rate: broken})})


def losing(evidence: Evidence, seeds: Sequence[int], **ending) -> Evidence:
    """The same, where the test arm diverged on some seeds: without a value, or broken with one."""
    runs = evidence.test.outcomes
    lost = {seed: dataclasses.replace(runs[seed], **ending) for seed in seeds}
    return dataclasses.replace(evidence, test=dataclasses.replace(evidence.test, outcomes={**runs, **lost}))


def powers(exponent: float, sd: float, claimed: float = 2.0, n: int = N) -> Evidence:
    sizes = (128.0, 256.0, 512.0, 1024.0)
    slopes = exponent + sd * spread(n)
    return Evidence(points={x: {s: x ** slopes[s] for s in range(n)} for x in sizes}, claimed=claimed)


def order(*means: float, sd: float = 0.01, n: int = N) -> Evidence:
    arms = (arm(f"arm{i}", mean + sd * spread(n, i)) for i, mean in enumerate(means))
    return Evidence(arms=tuple(arms))


FAIR = dict(trivial=3.5)  # baseline 1.5: two nats to lose
CELLS = {
    "superiority/supported": (contrast("superiority"), pair(-0.05, 0.01), "supported"),
    "superiority/supported, claimed worse": (
        contrast("superiority", expect="worse"),
        pair(0.05, 0.01),
        "supported",
    ),
    "superiority/supported, accuracy": (
        contrast("superiority", better="higher"),
        pair(0.05, 0.01),
        "supported",
    ),
    "superiority/refuted: other direction": (
        contrast("superiority"),
        pair(0.05, 0.01),
        "refuted, reversed",
    ),
    "superiority/refuted: other direction, below the margin": (
        contrast("superiority"),
        pair(0.005, 0.002),
        "refuted, reversed",
    ),
    "superiority/refuted: practically no difference": (
        contrast("superiority"),
        pair(0.0005, 0.005),
        "refuted, no practical difference",
    ),
    "superiority/mixed: negligible": (
        contrast("superiority"),
        pair(-0.005, 0.002),
        "supported, negligible",
    ),
    "superiority/inconclusive": (contrast("superiority"), pair(-0.01, 0.05), "inconclusive"),
    "equivalence/supported": (contrast("equivalence"), pair(0.001, 0.005), "supported"),
    "equivalence/supported although a difference is detected": (
        contrast("equivalence"),
        pair(0.004, 0.002),
        "supported",
    ),
    "equivalence/refuted": (contrast("equivalence"), pair(0.05, 0.01), "refuted, different"),
    "equivalence/refuted, downwards": (contrast("equivalence"), pair(-0.05, 0.01), "refuted, different"),
    "equivalence/inconclusive": (contrast("equivalence"), pair(0.008, 0.01), "inconclusive"),
    "catastrophe/supported": (contrast("catastrophe"), pair(1.8, 0.1, **FAIR), "supported"),
    "catastrophe/supported, accuracy": (
        contrast("catastrophe", better="higher"),
        pair(-80, 2, level=99, trivial=10),
        "supported",
    ),
    "catastrophe/refuted": (contrast("catastrophe"), pair(0.1, 0.1, **FAIR), "refuted"),
    "catastrophe/mixed": (contrast("catastrophe"), pair(1.0, 0.3, **FAIR), "mixed, partly lost"),
    "catastrophe/mixed, below one half": (
        contrast("catastrophe"),
        pair(1.4, 0.05, **FAIR),
        "mixed, partly lost",
    ),
    "catastrophe/mixed, above one half": (
        contrast("catastrophe"),
        pair(0.7, 0.05, **FAIR),
        "mixed, partly lost",
    ),
    "catastrophe/inconclusive": (contrast("catastrophe"), pair(1.6, 3.0, **FAIR), "inconclusive"),
    "stability/supported by sensitivity": (
        contrast("stability"),
        curves([1.6, 1.5, 1.7], [2.5, 1.5, 3.5]),
        "supported",
    ),
    "stability/supported by divergences": (
        contrast("stability", expect="worse"),
        curves([1.6, 1.5, None], [1.6, 1.5, 1.7], n=N),
        "supported",
    ),
    "stability/supported by divergences alone": (
        contrast("stability", expect="worse"),
        curves([1.6, 1.5, None], [1.6, 1.5, 3.95]),
        "supported",
    ),
    "stability/refuted: equally stable": (
        contrast("stability"),
        curves([1.8, 1.5, 2.0], [1.8, 1.5, 2.0]),
        "refuted, equally stable",
    ),
    "stability/refuted: the other way": (
        contrast("stability"),
        curves([2.5, 1.5, 3.5], [1.6, 1.5, 1.7]),
        "refuted, reversed",
    ),
    "stability/inconclusive": (
        contrast("stability"),
        curves([1.8, 1.5, 2.0], [1.8, 1.5, 2.2]),
        "inconclusive",
    ),
    "slope/supported": (contrast("slope"), powers(2.01, 0.05), "supported"),
    "slope/refuted": (contrast("slope"), powers(1.5, 0.05), "refuted"),
    "slope/refuted although near": (contrast("slope"), powers(1.95, 0.01), "refuted"),
    "slope/inconclusive: wide": (contrast("slope"), powers(2.01, 0.5), "inconclusive"),
    "slope/inconclusive: a little too wide": (contrast("slope"), powers(2.0, 0.203), "inconclusive"),
    "ordering/supported": (contrast("ordering"), order(1.5, 1.6, 1.7), "supported"),
    "ordering/supported, worst first": (
        contrast("ordering", expect="worse"),
        order(1.7, 1.6, 1.5),
        "supported",
    ),
    "ordering/refuted: reverse trend": (
        contrast("ordering"),
        order(1.7, 1.6, 1.5),
        "refuted, reversed",
    ),
    "ordering/refuted: one step reversed": (
        contrast("ordering"),
        order(1.5, 1.8, 1.7, 1.9),
        "refuted, reversed",
    ),
    "ordering/mixed: a step leans back": (contrast("ordering"), order(1.5, 1.601, 1.6, 1.7), "mixed"),
    "ordering/mixed: no trend in spite of power": (
        contrast("ordering", margin=0.1),
        order(1.5, 1.5, 1.5),
        "mixed",
    ),
    "ordering/inconclusive: no power": (
        contrast("ordering"),
        order(1.5, 1.5, 1.5, sd=0.1),
        "inconclusive",
    ),
    "exact/supported": (contrast("exact"), Evidence(exact=ExactCheck(True, True)), "supported"),
    "exact/refuted": (contrast("exact"), Evidence(exact=ExactCheck(False, True, "x = 3")), "refuted"),
    "exact/inconclusive: sabotage not caught": (
        contrast("exact"),
        Evidence(exact=ExactCheck(True, False)),
        "inconclusive",
    ),
    "exact/inconclusive: no sabotage": (
        contrast("exact"),
        Evidence(exact=ExactCheck(True, None)),
        "inconclusive",
    ),
    "formula/supported": (
        contrast("formula"),
        Evidence(formula=FormulaCheck((Number("share", 12.0, 12.04, 0.05),))),
        "supported",
    ),
    "formula/refuted": (
        contrast("formula"),
        Evidence(formula=FormulaCheck((Number("", 12.0, 13.4, 0.5, "GB"),))),
        "refuted",
    ),
    "formula/mixed": (
        contrast("formula"),
        Evidence(formula=FormulaCheck((Number("here", 2.0, 2.0, 0.0), Number("there", 12.0, 13.4, 0.5)))),
        "mixed",
    ),
    "formula/inconclusive": (contrast("formula"), Evidence(), "inconclusive"),
    "level/supported": (contrast("level", margin=1.6), pair(0.0, 0.01), "supported"),
    "level/refuted": (contrast("level", margin=1.4), pair(0.0, 0.01), "refuted"),
    "level/inconclusive": (contrast("level", margin=1.5), pair(0.0, 0.01), "inconclusive"),
    "level/supported: higher": (contrast("level", better="higher", margin=1.4), pair(0.0, 0.01), "supported"),
    "level/refuted: always diverged": (
        contrast("level", margin=1.6),
        Evidence(test=arm("test", [None] * N)),
        "refuted",
    ),
}


@pytest.mark.parametrize("cell", CELLS)
def test_cell(cell: str) -> None:
    registered, evidence, label = CELLS[cell]
    decision = judge(registered, evidence, QUICK)
    assert decision.label == label, decision.sentence
    assert decision.verdict == {"supported, negligible": "mixed"}.get(label, label.split(",")[0])
    assert not decision.downgrades or decision.verdict == "inconclusive"
    assert decision.reason
    assert decision.remedy or decision.verdict != "inconclusive"


def test_every_type_and_verdict_has_a_cell() -> None:
    cells = {(c.type, judge(c, e, QUICK).verdict) for c, e, _ in CELLS.values()}
    four = {"supported", "refuted", "mixed", "inconclusive"}
    expected = {(kind, verdict) for kind in ("superiority", "catastrophe", "ordering") for verdict in four}
    expected |= {(kind, v) for kind in ("equivalence", "stability", "slope", "exact") for v in four - {"mixed"}}
    expected |= {("level", v) for v in four - {"mixed"}} | {("formula", verdict) for verdict in four}
    assert cells == expected


# Flipping what is claimed, and deleting what was measured


@pytest.mark.parametrize(
    ("cell", "flipped"),
    [
        ("superiority/supported", "refuted"),
        ("superiority/refuted: other direction", "supported"),
        ("catastrophe/supported", "refuted"),
        ("catastrophe/refuted", "supported"),
        ("stability/supported by sensitivity", "refuted"),
        ("stability/supported by divergences", "refuted"),
        ("ordering/supported", "refuted"),
    ],
)
def test_flipping_the_expectation_flips_the_verdict(cell: str, flipped: str) -> None:
    registered, evidence, _ = CELLS[cell]
    other = "worse" if registered.expect == "better" or registered.type == "ordering" else "better"
    assert judge(dataclasses.replace(registered, expect=other), evidence, QUICK).verdict == flipped


def keep_seeds(evidence: Evidence, seeds: set[int]) -> Evidence:
    def cut(result: ArmResult | None) -> ArmResult | None:
        if result is None:
            return None
        curve = {rate: {s: o for s, o in runs.items() if s in seeds} for rate, runs in result.curve.items()}
        outcomes = {s: o for s, o in result.outcomes.items() if s in seeds}
        return dataclasses.replace(result, outcomes=outcomes, curve=curve)

    points = {x: {s: y for s, y in runs.items() if s in seeds} for x, runs in evidence.points.items()}
    arms = tuple(cut(result) for result in evidence.arms)
    return dataclasses.replace(evidence, test=cut(evidence.test), base=cut(evidence.base), arms=arms, points=points)


@pytest.mark.parametrize("left", [0, 1, 2, N - 1])
@pytest.mark.parametrize("cell", [cell for cell in CELLS if not cell.startswith(("exact", "formula"))])
def test_deleting_seeds_turns_it_inconclusive(cell: str, left: int) -> None:
    registered, evidence, _ = CELLS[cell]
    decision = judge(registered, keep_seeds(evidence, set(range(left))), QUICK)
    assert decision.verdict == "inconclusive"
    assert decision.remedy


def test_a_superiority_claim_needs_a_direction() -> None:
    with pytest.raises(ConfigError, match="must state `expect`"):
        judge(contrast("superiority", expect=None), pair(0.0, 0.1), QUICK)


# t and sign flips must agree; pairing that does not help is said


def test_one_outlying_seed_is_a_disagreement() -> None:
    base = np.full(N, 1.5)
    test = base - np.array([0.01, 0.02, 0.03, 0.01, 0.02, 0.03, 0.02, 0.9])
    decision = judge(contrast("superiority"), Evidence(arm("test", test), arm("base", base)), QUICK)
    assert decision.verdict == "inconclusive" and "disagree" in decision.reason
    assert decision.p is not None and decision.p > 0.05


@pytest.mark.parametrize(
    ("type", "test", "trivial"),
    [
        ("equivalence", 1.5 + np.array([0.013, 0.01, -0.003, -0.002, 0.008, -0.001, -0.01, 0.014]), None),
        ("catastrophe", 2.5 + np.array([0.75, 1.41, -0.44, -0.21, -0.13, 0.28, 2.55, 1.69]), 3.5),
    ],
)
def test_the_normal_test_alone_does_not_decide(type: str, test: np.ndarray, trivial: float | None) -> None:
    decision = judge(contrast(type), Evidence(arm("test", test), arm("base", [1.5] * N), trivial=trivial), QUICK)
    assert decision.p is not None and decision.p < 0.05
    assert decision.verdict == "inconclusive" and "disagree" in decision.reason


def test_five_seeds_cannot_decide() -> None:
    small = dataclasses.replace(QUICK, test_seeds=5)
    assert judge(contrast("superiority"), pair(-0.5, 0.001, n=5), small).verdict == "inconclusive"
    small = dataclasses.replace(QUICK, test_seeds=6)
    assert judge(contrast("superiority"), pair(-0.5, 0.001, n=6), small).verdict == "supported"


def test_negative_correlation_is_said_and_does_not_lower_p() -> None:
    noise = 0.02 * spread()
    evidence = Evidence(arm("test", 1.47 + noise), arm("base", 1.5 - noise))
    decision = judge(contrast("superiority"), evidence, QUICK)
    assert decision.analysis is not None and decision.analysis.rho == pytest.approx(-1)
    assert "pairing did not help" in decision.sentence and "Welch" in decision.sentence
    assert decision.analysis.welch is not None
    assert decision.p is not None and decision.p > decision.analysis.welch.p_value()
    assert "Welch" not in judge(contrast("superiority"), pair(-0.05, 0.001), QUICK).sentence


# Divergence


def test_diverged_runs_make_it_a_sign_test() -> None:
    base = 1.5 + 0.01 * spread()
    test = [None, None, None, *(base[3:] + 0.1)]
    decision = judge(contrast("superiority", expect="worse"), Evidence(arm("test", test), arm("base", base)), QUICK)
    assert decision.verdict == "supported" and decision.n == N
    assert decision.p == pytest.approx(2 / 256)  # all eight pairs count, the diverged ones too
    assert "sign test" in decision.sentence and "diverged 3 of 8 against 0 of 8" in decision.sentence
    assert decision.interval95 is None


def test_dropping_diverged_runs_would_give_another_verdict() -> None:
    """Six good runs and two diverged: better wherever it survives, and still no verdict."""
    base = 1.5 + 0.01 * spread()
    test = [None, None, *(base[2:] - 0.1)]
    registered = contrast("superiority", min_seeds=6)
    assert judge(registered, Evidence(arm("test", test), arm("base", base)), QUICK).verdict == "inconclusive"
    survivors = Evidence(arm("test", test[2:]), arm("base", base[2:]))
    assert judge(registered, survivors, QUICK).verdict == "supported"


def test_an_arm_that_always_diverges_is_worse_and_not_equal() -> None:
    evidence = Evidence(arm("test", [None] * N), arm("base", 1.5 + 0.01 * spread()), trivial=3.5)
    assert judge(contrast("superiority", expect="worse"), evidence, QUICK).verdict == "supported"
    assert judge(contrast("equivalence"), evidence, QUICK).verdict == "refuted"
    lost = judge(contrast("catastrophe"), evidence, QUICK)
    assert lost.verdict == "supported" and lost.estimate == 0.0


def test_a_nan_that_slipped_through_counts_as_diverged() -> None:
    assert Outcome(float("nan")).diverged and Outcome(float("inf")).diverged and not Outcome(1.0).diverged


def test_pairs_that_both_diverged_are_ties() -> None:
    values = [None] * 4 + [1.5] * 4
    decision = judge(contrast("superiority"), Evidence(arm("test", values), arm("base", values)), QUICK)
    assert decision.verdict == "inconclusive" and decision.n == N


def test_ordering_ranks_diverged_runs_last() -> None:
    evidence = order(1.5, 1.6, 1.7)
    broken = dataclasses.replace(evidence, arms=(*evidence.arms[:2], arm("arm2", [None] * N)))
    assert judge(contrast("ordering"), broken, QUICK).verdict == "supported"
    assert judge(contrast("ordering", expect="worse"), broken, QUICK).verdict == "refuted"


# Downgrades


def downgraded(evidence: Evidence, setting: Setting = QUICK, **fields) -> Decision:
    decision = judge(contrast("superiority", **fields), evidence, setting)
    assert decision.verdict == "inconclusive" and decision.remedy
    return decision


def test_smoke_gives_no_verdict_of_any_type() -> None:
    smoke = Setting(profile="smoke", scale="8-wide, 20 steps", verdicts=False)
    for registered, evidence, _ in CELLS.values():
        decision = judge(registered, evidence, smoke)
        assert decision.verdict == "inconclusive" and "smoke" in decision.reason


def test_failed_positive_control() -> None:
    failed = Control("solves the task", False, "accuracy 0.41")
    decision = downgraded(pair(-0.05, 0.01, controls=(Control("beats bigram", True), failed)))
    assert "solves the task: accuracy 0.41" in decision.reason and "beats bigram" not in decision.reason


def test_baseline_no_better_than_trivial() -> None:
    assert "trivial predictor" in downgraded(pair(-0.05, 0.01, trivial=1.4)).reason


@pytest.mark.parametrize(("trivial", "verdict"), [(1.75, "inconclusive"), (1.85, "supported")])
def test_recovered_fraction_needs_a_gap_of_three_tenths(trivial: float, verdict: str) -> None:
    evidence = pair(trivial - 1.51, 0.002, trivial=trivial)
    assert judge(contrast("catastrophe"), evidence, QUICK).verdict == verdict


def test_catastrophe_p_and_interval_say_the_same() -> None:
    """One-sided p of R < 1/2 at most 0.05 exactly when the 90% Fieller interval lies below 1/2."""
    sides = set()
    for effect in np.linspace(0.6, 1.6, 21):
        decision = judge(contrast("catastrophe"), pair(effect, 0.3, **FAIR), QUICK)
        assert decision.p is not None and decision.interval90 is not None
        assert (decision.p < 0.05) == (decision.interval90[1] < 0.5)
        sides.add(decision.p < 0.05)
    assert sides == {True, False}


def test_catastrophe_without_a_trivial_predictor() -> None:
    decision = judge(contrast("catastrophe"), pair(1.8, 0.1), QUICK)
    assert decision.verdict == "inconclusive" and "trivial predictor" in decision.reason


@pytest.mark.parametrize("side", ["test", "base"])
def test_learning_rate_at_the_edge(side: str) -> None:
    evidence = pair(-0.05, 0.01)
    evidence = dataclasses.replace(evidence, **{side: dataclasses.replace(getattr(evidence, side), edge=True)})
    assert f"learning rate of {side}" in downgraded(evidence).reason


def test_fewer_seeds_than_declared_and_the_profile_that_declares_fewer() -> None:
    assert "8 of 12 declared seeds so far" in downgraded(pair(-0.05, 0.01), min_seeds=12).reason
    demo = dataclasses.replace(QUICK, profile="demo", test_seeds=6)
    assert judge(contrast("superiority"), pair(-0.05, 0.01, n=6), demo).verdict == "supported"


@pytest.mark.parametrize(
    ("declared", "least", "there", "verdict"),
    [(12, 8, 8, "inconclusive"), (12, 8, 12, "supported"), (8, 12, 8, "inconclusive"), (6, 8, 6, "supported")],
)
def test_a_verdict_waits_for_every_declared_seed(declared: int, least: int, there: int, verdict: str) -> None:
    """The effect is plain at eight seeds; where twelve are declared, looking then would be looking twice."""
    setting = dataclasses.replace(QUICK, test_seeds=declared)
    decision = judge(contrast("superiority", min_seeds=least), pair(-0.05, 0.01, n=there), setting)
    assert decision.verdict == verdict, decision.sentence
    if verdict == "inconclusive":
        assert f"{there} of {max(declared, least)} declared seeds so far" in decision.reason


def test_stability_waits_for_the_tuning_seeds() -> None:
    evidence = curves([1.5, 1.5, None], [1.5, 1.5, 1.5])
    setting = dataclasses.replace(QUICK, test_seeds=8, tuning_seeds=N)
    registered = contrast("stability", expect="worse")
    assert judge(registered, evidence, setting).verdict == "supported"
    assert judge(registered, evidence, dataclasses.replace(setting, tuning_seeds=N + 1)).verdict == "inconclusive"


@pytest.mark.parametrize("type", ["superiority", "equivalence", "level", "catastrophe"])
def test_a_run_that_ends_broken_counts_as_diverged_in_pairs(type: str) -> None:
    """Its loss stays finite but shows that training failed: a sign test and a rate, as if there were no number."""
    registered = contrast(type, **({"margin": 2.0} if type == "level" else {}))
    whole = pair(0.3, 0.01, **FAIR)
    gone, broken = (losing(whole, [0, 3], **ending) for ending in ({"value": None}, {"broken": True}))
    expected, found = judge(registered, gone, QUICK), judge(registered, broken, QUICK)
    assert found.sentence == expected.sentence and found.analysis == expected.analysis
    assert "sign test" in found.analysis.method and "sign test" not in judge(registered, whole, QUICK).analysis.method
    assert found.analysis.diverged == (f"2 of {N}" if type == "level" else f"2 of {N} against 0 of {N}")
    assert found.analysis.median and f"diverged {found.analysis.diverged}" in found.sentence


def test_an_order_with_diverged_runs_says_how_many() -> None:
    whole = order(1.0, 2.0, 3.0)
    lost = {s: dataclasses.replace(run, broken=s < 3) for s, run in whole.arms[1].outcomes.items()}
    arms = (whole.arms[0], dataclasses.replace(whole.arms[1], outcomes=lost), whole.arms[2])
    decision = judge(contrast("ordering"), dataclasses.replace(whole, arms=arms), QUICK)
    assert f"diverged arm1 3 of {N}" in decision.sentence
    assert "diverged" not in judge(contrast("ordering"), whole, QUICK).sentence


def test_a_pair_in_which_both_runs_diverged_is_a_tie() -> None:
    """Also in the fraction that is shown: neither all lost nor nothing."""
    evidence = losing(pair(1.8, 0.1, **FAIR), [0, 1, 2, 3, 4], broken=True)
    base = {seed: dataclasses.replace(run, broken=seed < 5) for seed, run in evidence.base.outcomes.items()}
    evidence = dataclasses.replace(evidence, base=dataclasses.replace(evidence.base, outcomes=base))
    assert judge(contrast("catastrophe"), evidence, QUICK).analysis.estimate == 0.5


def test_a_broken_run_took_all_its_steps() -> None:
    """So its tokens and FLOPs count where arms are matched, unlike those of one that stopped."""
    half = dataclasses.replace(pair(0.3, 0.01, **FAIR).test, outcomes={0: Outcome(3.9, tokens=100, broken=True)})
    assert half.mean("tokens") == 100.0
    assert dataclasses.replace(half, outcomes={0: Outcome(None, tokens=40)}).mean("tokens") is None


def test_a_run_that_ends_broken_counts_as_diverged_in_stability() -> None:
    claimed, whole = contrast("stability", expect="worse"), curves([1.6, 1.5, 3.9], [1.6, 1.5, 1.7])
    gone = judge(claimed, curves([1.6, 1.5, None], [1.6, 1.5, 1.7]), QUICK)
    broken = judge(claimed, breaking(whole, "test", GRID[2]), QUICK)
    assert (broken.label, broken.p, broken.analysis.estimate) == (gone.label, gone.p, gone.analysis.estimate)
    assert broken.analysis.rates.test == N and judge(claimed, whole, QUICK).analysis.rates.test == 0


def test_partly_lost_is_decided_after_holm() -> None:
    """Alone the same numbers would be mixed; among ten comparisons of which no other shows anything, they are not."""
    claims = [contrast("catastrophe", claim=f"claim{i}") for i in range(10)]
    uncertain = pair(1.0, 1.0, **FAIR)  # R = 1/2, the 95% interval within 0 and 1
    flat = pair(1.0, 30.0, **FAIR)
    evidence = {(c.hash, "default"): uncertain if c is claims[0] else flat for c in claims}
    assert judge(claims[0], uncertain, QUICK).label == "mixed, partly lost"
    among = judge_all(claims, evidence, QUICK)[0]
    assert among.verdict == "inconclusive" and "not among the claims of this config" in among.sentence
    clear = judge_all(claims, {**evidence, (claims[0].hash, "default"): pair(1.0, 0.3, **FAIR)}, QUICK)[0]
    assert clear.label == "mixed, partly lost" and "part is left (p = " in clear.sentence


def test_a_slope_needs_logarithms() -> None:
    evidence = powers(2.0, 0.05)
    points = {size: {seed: 0.0 for seed in values} for size, values in evidence.points.items()}
    decision = judge(contrast("slope"), dataclasses.replace(evidence, points=points), QUICK)
    assert decision.verdict == "inconclusive" and "a value without a logarithm" in decision.sentence


def test_no_margin_needs_no_number_of_seeds() -> None:
    decision = judge(contrast("superiority", margin=0.0), pair(0.001, 1.0), QUICK)
    assert decision.verdict == "inconclusive" and "run more test seeds" in decision.sentence


def test_the_level_of_an_arm_with_a_diverged_run_is_a_median() -> None:
    for lost, name in ((None, "median"), (0.02, "mean")):
        evidence = Evidence(test=arm("test", [lost, *(0.02 + 0.001 * spread(N - 1))]))
        assert f"; {name} 0.02" in judge(contrast("level", base="", margin=0.5), evidence, QUICK).sentence


def test_a_slope_may_differ_in_size() -> None:
    registered, evidence, _ = CELLS["slope/supported"]
    sizes = tuple(arm(f"x{k}", [1.5] * N, tokens=100 * k) for k in (1, 2, 4))
    decision = judge(registered, dataclasses.replace(evidence, arms=sizes), QUICK)
    assert decision.verdict == "supported", decision.sentence


@pytest.mark.parametrize("quantity", ["parameters", "flops", "tokens"])
def test_undeclared_mismatch(quantity: str) -> None:
    def build(ours: int, theirs: int) -> Evidence:
        base = 1.5 + 0.02 * spread(shift=1)
        test = arm("test", base - 0.05 + 0.01 * spread(), **{quantity: ours})
        return Evidence(test, arm("base", base, **{quantity: theirs}))

    reason = downgraded(build(1020, 1000)).reason
    assert "undeclared" in reason and quantity in reason
    assert judge(contrast("superiority"), build(1009, 1000), QUICK).verdict == "supported"
    declared = dataclasses.replace(QUICK, may_differ=frozenset({quantity}))
    assert judge(contrast("superiority"), build(2000, 1000), declared).verdict == "supported"


def test_early_end_of_a_diverged_run_is_no_mismatch() -> None:
    base = arm("base", 1.5 + 0.01 * spread(), tokens=1000)
    test = arm("test", 1.7 + 0.01 * spread(), tokens=1000)
    broken = dataclasses.replace(test, outcomes={**test.outcomes, 0: Outcome(None, 4.0, tokens=10)})
    assert judge(contrast("superiority", expect="worse"), Evidence(broken, base), QUICK).verdict == "supported"


def test_insignificant_and_underpowered() -> None:
    decision = downgraded(pair(-0.01, 0.02))
    assert "go unseen" in decision.reason and decision.remedy == "run about 34 paired seeds"
    assert "mechanism task" in downgraded(pair(-0.01, 0.2)).remedy
    assert "mechanism task" in judge(contrast("equivalence"), pair(0.0, 0.2), QUICK).remedy


def test_not_run_yet() -> None:
    for registered, _, _ in CELLS.values():
        decision = judge_all([registered], {}, QUICK)[0]
        assert decision.verdict == "inconclusive" and decision.p is None and decision.remedy


# Multiplicity


def test_holm_decides_over_claims_and_conditions() -> None:
    marginal = pair(-0.02, 0.0165)  # p of about 0.01 alone
    alone = judge(contrast("superiority"), marginal, QUICK)
    assert alone.verdict == "supported" and alone.p is not None and 0.008 < alone.p < 0.0125

    registered = [contrast("superiority"), contrast("superiority", claim="another")]
    names = ("shallow", "deep", "wide")
    evidence = {(c.hash, name): pair(-0.01, 0.03) for c in registered for name in names}
    evidence[(registered[0].hash, "deep")] = marginal
    decided = judge_all(registered, evidence, QUICK, names)
    assert len(decided) == 6
    hit = next(d for d in decided if d.condition == "deep" and d.contrast is registered[0])
    assert hit.p == alone.p and hit.p_adjusted == pytest.approx(6 * alone.p)
    assert hit.verdict == "inconclusive" and "not among the claims" in hit.reason
    assert hit.interval95 == alone.interval95  # raw intervals are printed, never adjusted
    assert hit.q is not None and hit.p < hit.q <= hit.p_adjusted


def test_cells_still_missing_count_in_the_family() -> None:
    registered = [contrast("superiority", claim=f"claim{i}") for i in range(6)]
    decided = judge_all(registered, {(registered[0].hash, "default"): pair(-0.02, 0.0165)}, QUICK)
    assert decided[0].p_adjusted == pytest.approx(6 * decided[0].p)


def test_checks_stay_outside_the_family() -> None:
    registered = [contrast("superiority"), contrast("exact", claim="proof"), contrast("formula", claim="sum")]
    evidence = {
        (registered[0].hash, "default"): pair(-0.05, 0.01),
        (registered[1].hash, "default"): Evidence(exact=ExactCheck(False, True)),
    }
    first, second, third = judge_all(registered, evidence, QUICK)
    assert first.p_adjusted == first.p
    assert (second.verdict, second.p, third.verdict) == ("refuted", None, "inconclusive")


def test_a_contrast_is_judged_only_under_its_own_conditions() -> None:
    registered = [contrast("superiority", conditions=("deep",))]
    assert [d.condition for d in judge_all(registered, {}, QUICK, ("shallow", "deep"))] == ["deep"]


# Over conditions


def decisions(**labelled: str) -> list[Decision]:
    """One decision per condition, made by the engine from a cell of superiority."""
    cells = {
        "supported": CELLS["superiority/supported"],
        "refuted": CELLS["superiority/refuted: other direction"],
        "mixed": CELLS["superiority/mixed: negligible"],
        "inconclusive": CELLS["superiority/inconclusive"],
    }
    return [judge(*cells[verdict][:2], QUICK, name) for name, verdict in labelled.items()]


@pytest.mark.parametrize(
    ("labelled", "verdict", "reduced"),
    [
        (dict(a="supported", b="supported"), "supported", False),
        (dict(a="refuted", b="refuted"), "refuted", False),
        (dict(a="supported", b="refuted"), "mixed", False),
        (dict(a="supported", b="mixed"), "mixed", False),
        (dict(a="supported", b="inconclusive"), "supported", True),
        (dict(a="supported", b="refuted", c="inconclusive"), "mixed", True),
        (dict(a="inconclusive", b="inconclusive"), "inconclusive", False),
        (dict(a="refuted"), "refuted", False),
    ],
)
def test_overall(labelled: dict[str, str], verdict: str, reduced: bool) -> None:
    joined = overall(decisions(**labelled))
    assert (joined.verdict, joined.reduced) == (verdict, reduced)
    if len(set(labelled.values())) > 1:
        for name in labelled:
            assert f", {name}" in joined.reason


def test_overall_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one"):
        overall([])


# Sentences


@pytest.mark.parametrize("cell", CELLS)
def test_sentences_name_profile_scale_and_verdict(cell: str) -> None:
    registered, evidence, label = CELLS[cell]
    sentence = judge(registered, evidence, QUICK, "deep").sentence
    assert sentence.startswith("At quick scale (64-wide, 0.5M tokens of stdlib), ")
    assert "deep" in sentence and f": {label}" in sentence and sentence.endswith(".")
    assert "nan" not in sentence and "None" not in sentence


def test_sentence_in_full() -> None:
    sentence = judge(contrast("superiority"), pair(-0.05, 0.01), QUICK).sentence
    assert sentence == (
        "At quick scale (64-wide, 0.5M tokens of stdlib), test against base on loss: supported; "
        "difference -0.05 [-0.05836, -0.04164]; 8 seeds, paired t test, p = 2.1e-06, Holm p = 2.1e-06; "
        "the difference is as claimed."
    )


def test_refuted_number_prints_the_corrected_value() -> None:
    assert "13.4" in judge(*CELLS["formula/refuted"][:2], QUICK).sentence
    assert "the exponent is 1.500, not 2" in judge(*CELLS["slope/refuted"][:2], QUICK).sentence
    assert "counter-example: x = 3" in judge(*CELLS["exact/refuted"][:2], QUICK).sentence
