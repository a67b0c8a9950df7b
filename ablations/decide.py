"""The verdict table: from an analysis and its adjusted p values to supported, refuted, mixed or inconclusive.

One function per claim type. What makes a verdict void whatever the numbers say (a failed control, too few
seeds, an undeclared difference) is the second half.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Literal

from ablations.analyses.catastrophe import minimum_gap
from ablations.analyses.common import ALPHA, Analysis, Significance
from ablations.analyses.stability import AS_STABLE
from ablations.analyses.trend import SLOPE_MARGIN
from ablations.evidence import QUANTITIES, ArmResult, Evidence, Number, Setting
from ablations.power import equivalence_seeds_needed, seeds_needed
from ablations.schema import Contrast

Verdict = Literal["supported", "refuted", "mixed", "inconclusive"]
LOST, KEPT = 0.25, 0.75  # recovered fractions below and above which a part is essential, or dispensable
MATCHED_WITHIN = 0.01
FEW = 8  # test seeds below which a profile has a minimum of its own
SEEDS_IN_REACH = 64  # asking for more than this is no remedy


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the numbers alone say.

    Attributes:
      verdict: one of the four.
      label: the verdict with its shade, such as "supported, negligible".
      reason: one clause for the sentence.
      remedy: what would settle an inconclusive one.
      significant: the registered test rejected its null hypothesis after adjustment.
      against: the verdict rests on the test against the claim.
    """

    verdict: Verdict
    label: str
    reason: str
    remedy: str = ""
    significant: bool = False
    against: bool = False


@dataclasses.dataclass(frozen=True)
class Adjusted:
    """Holm-adjusted p values of a contrast, over claims and conditions of its config."""

    primary: float
    counter: float
    partial: float


def passes(test: Significance, adjusted: float) -> bool:
    """The adjusted p is at most 0.05 and the exact partner agrees at 0.05.

    The partner is a check on the normal assumption, not a second decision, so it is not adjusted: with 8
    pairs it cannot go below 0.0078, and a config of seven claims could never be decided. Measured, this keeps
    the family-wise error at 4 to 5%; adjusting both would push it to 3% (`calibration.rule_rates`).
    """
    return adjusted <= ALPHA and test.exact <= ALPHA


def _inconclusive(reason: str, remedy: str) -> Finding:
    return Finding("inconclusive", "inconclusive", reason, remedy)


def _almost(a: Analysis, adjusted: Adjusted) -> Finding | None:
    """Why neither direction passes although one of them looks significant; None where none does."""
    for test, level in ((a.primary, adjusted.primary), (a.counter, adjusted.counter)):
        if not test.agree:
            return _disagreement(test)
        if test.p <= ALPHA:
            return _not_after_holm(test.p, level)
    return None


def _disagreement(test: Significance) -> Finding:
    return _inconclusive(
        f"the t test and the exact sign-flip test disagree (p = {test.p:.3g} and {test.exact:.3g})",
        "run more test seeds, and look for one seed that carries the difference",
    )


def _not_after_holm(p: float, adjusted: float) -> Finding:
    return _inconclusive(
        f"significant alone (p = {p:.3g}) but not among the claims of this config (Holm p = {adjusted:.3g})",
        "run more test seeds, or register fewer contrasts",
    )


def _more_seeds(contrast: Contrast, analysis: Analysis, count: Callable[[float], int]) -> str:
    """How many pairs would settle a difference the size of the margin, or that no affordable number would."""
    if not analysis.sd or contrast.margin <= 0:
        return "run more test seeds"
    needed = count(contrast.margin / analysis.sd)
    if needed > SEEDS_IN_REACH:
        return (
            f"{needed} paired seeds would be needed for a margin of {contrast.margin:g}: "
            "decide on a mechanism task, or register a wider margin"
        )
    if needed <= analysis.n:  # enough for an effect of the margin; this one lies between zero and the margin
        needed = 2 * analysis.n
    return f"run about {needed} paired seeds"


def superiority(contrast: Contrast, evidence: Evidence, a: Analysis, adjusted: Adjusted) -> Finding:
    """A difference as claimed and at least the margin; refuted by the reverse or by equivalence."""
    if not a.primary.agree:
        return _disagreement(a.primary)
    if passes(a.primary, adjusted.primary):
        if a.effect < 0:
            return Finding("refuted", "refuted, reversed", "the difference is the other way", significant=True)
        if a.effect < contrast.margin:
            return Finding(
                "mixed",
                "supported, negligible",
                f"the difference is real but below the margin of {contrast.margin:g}",
                significant=True,
            )
        return Finding("supported", "supported", "the difference is as claimed", significant=True)
    if a.primary.p > ALPHA and passes(a.counter, adjusted.counter):
        return Finding(
            "refuted",
            "refuted, no practical difference",
            f"the 90% interval lies inside the margin of {contrast.margin:g}",
            against=True,
        )
    if a.primary.p <= ALPHA:
        return _not_after_holm(a.primary.p, adjusted.primary)
    return _inconclusive("no difference shown, and none ruled out", _more_seeds(contrast, a, seeds_needed))


def equivalence(contrast: Contrast, evidence: Evidence, a: Analysis, adjusted: Adjusted) -> Finding:
    """The 90% interval inside the margin; refuted by a 95% interval outside it."""
    if passes(a.primary, adjusted.primary):
        reason = f"the 90% interval lies inside the margin of {contrast.margin:g}"
        return Finding("supported", "supported", reason, significant=True)
    if passes(a.counter, adjusted.counter):
        reason = f"the difference is beyond the margin of {contrast.margin:g}"
        return Finding("refuted", "refuted, different", reason, significant=True, against=True)
    return _almost(a, adjusted) or _inconclusive(
        f"neither inside nor outside the margin of {contrast.margin:g}",
        _more_seeds(contrast, a, equivalence_seeds_needed),
    )


def level(contrast: Contrast, evidence: Evidence, a: Analysis, adjusted: Adjusted) -> Finding:
    """The metric is on the good side of the stated value, or significantly on the other."""
    side = "above" if contrast.better == "higher" else "below"
    if passes(a.primary, adjusted.primary):
        return Finding("supported", "supported", f"it is {side} {contrast.margin:g}", significant=True)
    if passes(a.counter, adjusted.counter):
        reason = f"it is not {side} {contrast.margin:g}"
        return Finding("refuted", "refuted", reason, significant=True, against=True)
    return _almost(a, adjusted) or _inconclusive(f"neither above nor below {contrast.margin:g}", "run more test seeds")


def catastrophe(contrast: Contrast, evidence: Evidence, a: Analysis, adjusted: Adjusted) -> Finding:
    """Recovered fraction below 1/4 and significantly below 1/2, or above 3/4 and above 1/2, or in between.

    One-sided at 0.05, so the 90% interval is the one that lies on one side of 1/2. In between is "mixed" when
    something is significantly lost and something significantly left.
    """
    essential = contrast.expect != "better"  # else the claim is that the part is dispensable
    lost, lost_p = (a.primary, adjusted.primary) if essential else (a.counter, adjusted.counter)
    kept, kept_p = (a.counter, adjusted.counter) if essential else (a.primary, adjusted.primary)
    if a.effect < LOST and passes(lost, lost_p):
        reason = "less than a quarter of what the baseline learned is left"
        return _either_way(essential, reason)
    if a.effect > KEPT and passes(kept, kept_p):
        reason = "more than three quarters of what the baseline learned is left"
        return _either_way(not essential, reason)
    if LOST <= a.effect <= KEPT and passes(a.partial, adjusted.partial):
        numbers = f"p = {a.partial.p:.3g}, Holm p = {adjusted.partial:.3g}"
        reason = f"part of what the baseline learned is lost and part is left ({numbers})"
        return Finding("mixed", "mixed, partly lost", reason, significant=True)
    for test, level in ((lost, lost_p), (kept, kept_p)):
        if not test.agree:
            return _disagreement(test)
        if test.p <= ALPHA < level:
            return _not_after_holm(test.p, level)
    if LOST <= a.effect <= KEPT and a.partial.p <= ALPHA < adjusted.partial:
        return _not_after_holm(a.partial.p, adjusted.partial)
    return _inconclusive("the recovered fraction is too uncertain", "run more test seeds")


def _either_way(claim_holds: bool, reason: str) -> Finding:
    verdict: Verdict = "supported" if claim_holds else "refuted"
    return Finding(verdict, verdict, reason, significant=True, against=not claim_holds)


def stability(contrast: Contrast, evidence: Evidence, a: Analysis, adjusted: Adjusted) -> Finding:
    """Sensitivity ratio above 1.5 or a difference in divergences; refuted by the reverse or a ratio of 1."""
    if not a.primary.agree:
        return _disagreement(a.primary)
    if passes(a.primary, adjusted.primary):
        if a.effect < 0:
            return Finding("refuted", "refuted, reversed", "the other arm is the less stable one", significant=True)
        return Finding("supported", "supported", "the stability differs as claimed", significant=True)
    if a.primary.p <= ALPHA:
        return _not_after_holm(a.primary.p, adjusted.primary)
    if passes(a.counter, adjusted.counter):
        alike = f"within {1 / AS_STABLE:g} to {AS_STABLE:g} of each other"
        reason = f"learning-rate sensitivities {alike}, no difference in divergences"
        return Finding("refuted", "refuted, equally stable", reason, significant=True, against=True)
    return _inconclusive(
        "neither sensitivities nor divergence rates settle it",
        "run the whole learning-rate grid on more seeds",
    )


def slope(contrast: Contrast, evidence: Evidence, a: Analysis, adjusted: Adjusted) -> Finding:
    """The 95% interval holds the claimed exponent and is narrow; refuted when it excludes it."""
    low, high = a.interval95 or (float("-inf"), float("inf"))
    if a.counter.p <= ALPHA:
        if not a.counter.agree:
            return _disagreement(a.counter)
        if not passes(a.counter, adjusted.counter):
            return _not_after_holm(a.counter.p, adjusted.counter)
        reason = f"the exponent is {a.estimate:.3f}, not {evidence.claimed:g}"
        return Finding("refuted", "refuted", reason, significant=True, against=True)
    if (high - low) / 2 < SLOPE_MARGIN and passes(a.primary, adjusted.primary):
        reason = f"the interval holds the claimed exponent {evidence.claimed:g} and is narrow"
        return Finding("supported", "supported", reason, significant=True)
    return _inconclusive(
        f"the interval does not pin the exponent within {SLOPE_MARGIN:g} of {evidence.claimed:g}",
        "measure more sizes, over a wider range, or more seeds",
    )


def ordering(contrast: Contrast, evidence: Evidence, a: Analysis, adjusted: Adjusted) -> Finding:
    """A significant trend with no step reversed; refuted by a significant reversal; mixed otherwise."""
    if passes(a.counter, adjusted.counter):
        reason = "two neighbouring arms, or the whole trend, are the other way round"
        return Finding("refuted", "refuted, reversed", reason, significant=True, against=True)
    trend = passes(a.primary, adjusted.primary)
    reversed_steps = sum(step < 0 for step in a.steps)
    if trend and not reversed_steps:
        return Finding("supported", "supported", "the arms follow the claimed order", significant=True)
    if not trend and a.detectable is None:
        return _inconclusive("no clear trend, and runs diverged", "run more test seeds")
    reason = f"{reversed_steps} of {len(a.steps)} neighbouring steps are reversed" if trend else "no clear trend"
    return Finding("mixed", "mixed", reason, _more_seeds(contrast, a, seeds_needed), significant=trend)


def exact(contrast: Contrast, evidence: Evidence) -> Finding:
    """All properties hold and the sabotaged variant is caught; refuted by a counter-example."""
    check = evidence.exact
    if check is None:
        return _inconclusive(f"the check {contrast.check!r} has not been run", "run it")
    if not check.passed:
        return Finding("refuted", "refuted", f"counter-example: {check.counterexample or 'not recorded'}")
    if not check.sabotage_caught:
        what = "not run" if check.sabotage_caught is None else "not caught"
        return _inconclusive(
            f"the properties hold, but the sabotaged variant was {what}", "show that the check can fail"
        )
    return Finding("supported", "supported", "every property holds and the sabotaged variant is caught")


def formula(contrast: Contrast, evidence: Evidence) -> Finding:
    """Every stated number within its rounding, or none, or some; ours are printed."""
    check = evidence.formula
    if check is None:
        return _inconclusive(f"the formula {contrast.check!r} has not been evaluated", "run it")
    wrong = [number for number in check.numbers if not number.agrees]
    if not wrong:
        return Finding("supported", "supported", _stated(check.numbers))
    if len(wrong) == len(check.numbers):
        return Finding("refuted", "refuted", _stated(wrong))
    agree = len(check.numbers) - len(wrong)
    return Finding("mixed", "mixed", f"{agree} of {len(check.numbers)} numbers agree; {_stated(check.numbers)}")


def _stated(numbers: Iterable[Number]) -> str:
    """What comes out and what was claimed, the claims about one thing together."""
    groups: dict[tuple[str, float, str], list[Number]] = {}
    for number in numbers:
        groups.setdefault((number.what, number.measured, number.unit), []).append(number)
    said = []
    for (what, measured, unit), group in groups.items():
        claimed = " and ".join(
            f"{n.claimed:g}" + (f" within {n.tolerance:g}" if n.tolerance else "") + (" (agrees)" if n.agrees else "")
            for n in group
        )
        # No more digits than tell the claims' rounding.
        finest = min((n.tolerance for n in group if n.tolerance), default=0.0)
        digits = 6 if not finest or not measured else math.ceil(math.log10(abs(measured) / finest)) + 2
        text = f"{measured:.{min(6, max(3, digits))}g}" + (unit and f" {unit}")
        if interval := group[0].interval:
            text += " [" + ", ".join(f"{end:.3g}" for end in interval) + "]"
        said.append((what and f"{what}: ") + f"{text}, claimed {claimed}")
    return "; ".join(said)


RULES: dict[str, Callable[[Contrast, Evidence, Analysis, Adjusted], Finding]] = {
    "superiority": superiority,
    "equivalence": equivalence,
    "level": level,
    "catastrophe": catastrophe,
    "stability": stability,
    "slope": slope,
    "ordering": ordering,
}
CHECKS: dict[str, Callable[[Contrast, Evidence], Finding]] = {"exact": exact, "formula": formula}


@dataclasses.dataclass(frozen=True)
class Downgrade:
    """Why a verdict is void, and what would make it valid."""

    reason: str
    remedy: str


def downgrades(
    contrast: Contrast, evidence: Evidence, analysis: Analysis | None, finding: Finding, setting: Setting
) -> tuple[Downgrade, ...]:
    """Everything that turns the finding into "inconclusive"; `analysis` is None for exact and formula."""
    found = []
    if not setting.verdicts:
        found.append(Downgrade(f"the {setting.profile} profile gives no verdicts", "run a larger profile"))
    if analysis is None:
        return tuple(found)
    found += _failed_controls(contrast, evidence)
    for arm in evidence.compared:
        if arm.edge:
            found.append(
                Downgrade(f"the best learning rate of {arm.name} is at the edge of its grid", "extend the grid")
            )
    needed = seeds_declared(contrast, setting)
    if analysis.n < needed:
        found.append(Downgrade(f"{analysis.n} of {needed} declared seeds so far", "run the missing seeds"))
    if contrast.type != "slope":  # whose arms differ in size on purpose
        found += _mismatches(evidence, setting)
    if analysis.detectable is not None and not finding.significant and analysis.detectable > contrast.margin:
        found.append(
            Downgrade(
                f"differences below {analysis.detectable:.3g} go unseen, the margin is {contrast.margin:g}",
                finding.remedy or _more_seeds(contrast, analysis, seeds_needed),
            )
        )
    return tuple(found)


def seeds_declared(contrast: Contrast, setting: Setting) -> int:
    """The seeds a verdict waits for. Judging earlier would be a second look at the same data, with a second chance.

    A profile that declares fewer than eight (demo) stands for itself; elsewhere a contrast may ask for more.
    """
    declared = setting.tuning_seeds if contrast.type == "stability" else setting.test_seeds
    if declared is None:
        return contrast.min_seeds
    return declared if declared < FEW or contrast.type == "stability" else max(declared, contrast.min_seeds)


def _failed_controls(contrast: Contrast, evidence: Evidence) -> list[Downgrade]:
    failed = []
    for control in evidence.controls:
        if not control.passed:
            what = f"{control.name}: {control.detail}" if control.detail else control.name
            failed.append(
                Downgrade(
                    f"the baseline fails its positive control ({what})",
                    "train the baseline longer, or on an easier task",
                )
            )
    if evidence.trivial is not None and evidence.base is not None:
        gap = _gap(contrast, evidence.base, evidence.trivial)
        needed = minimum_gap(contrast) if contrast.type == "catastrophe" else 0.0
        if gap is None or gap <= needed:
            shown = "diverged in every run" if gap is None else f"beats the trivial predictor by {gap:.3g}"
            failed.append(
                Downgrade(f"the baseline {shown}, needed is more than {needed:g}", "train the baseline longer")
            )
    return failed


def _gap(contrast: Contrast, base: ArmResult, trivial: float) -> float | None:
    """How much better than the trivial predictor the baseline's finite runs are on average."""
    finished = [outcome for outcome in base.outcomes.values() if outcome.finished]
    values = [outcome.value for outcome in finished if outcome.value is not None]
    if not values:
        return None
    mean = sum(values) / len(values)
    return trivial - mean if contrast.better == "lower" else mean - trivial


def _mismatches(evidence: Evidence, setting: Setting) -> list[Downgrade]:
    found = []
    for quantity in QUANTITIES:
        if quantity in setting.may_differ:
            continue
        for arm in evidence.compared[:-1]:
            reference = evidence.compared[-1]
            ours, theirs = arm.mean(quantity), reference.mean(quantity)
            if ours is None or theirs is None or abs(ours - theirs) <= MATCHED_WITHIN * abs(theirs):
                continue
            found.append(
                Downgrade(
                    f"undeclared: {arm.name} has {ours:.4g} {quantity}, {reference.name} {theirs:.4g}",
                    f"match the {quantity}, or declare that they differ",
                )
            )
    return found
