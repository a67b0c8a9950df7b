"""Verdicts: contrasts registered before any run, evidence from the runs, Holm over all, a sentence each.

`judge_all` is the engine; `judge` is its family of one; `overall` joins the conditions of a claim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ablations.analyses import ANALYSES, analyse
from ablations.analyses.common import Analysis
from ablations.decide import CHECKS, RULES, Adjusted, Downgrade, Finding, Verdict, downgrades
from ablations.evidence import Evidence, Setting
from ablations.schema import BY_CHECK, Contrast
from ablations.statistics import Interval, benjamini_hochberg, holm

DEFAULT_CONDITION = "default"


@dataclasses.dataclass(frozen=True)
class Decision:
    """The verdict on one contrast under one condition.

    Attributes:
      verdict, label: one of four words, and the same with its shade.
      reason, remedy: why, and what would settle it when it is inconclusive.
      p: of the registered test, unadjusted; None for checks and for what has not been run.
      p_adjusted, q: the same after Holm (decides) and after Benjamini-Hochberg (shown beside), within the
        config.
      counter_p, counter_p_adjusted: of the test against the claim (see `Analysis.counter`).
      against: the verdict rests on the test against the claim.
      estimate, interval90, interval95, n: see `Analysis`; raw intervals, never adjusted.
      downgrades: what made a verdict void.
      analysis: all numbers; None for exact and formula claims.
    """

    contrast: Contrast
    condition: str
    setting: Setting
    verdict: Verdict
    label: str
    reason: str
    remedy: str
    p: float | None = None
    p_adjusted: float | None = None
    q: float | None = None
    counter_p: float | None = None
    counter_p_adjusted: float | None = None
    against: bool = False
    estimate: float | None = None
    interval90: Interval | None = None
    interval95: Interval | None = None
    n: int = 0
    downgrades: tuple[Downgrade, ...] = ()
    analysis: Analysis | None = None

    @property
    def subject(self) -> str:
        """What was compared, in words."""
        contrast = self.contrast
        if contrast.type in CHECKS:
            return contrast.check
        if contrast.type == "ordering":
            names = " > ".join(contrast.arms) if contrast.expect != "worse" else " < ".join(contrast.arms)
            return f"{names} on {contrast.metric}"
        if contrast.type == "level":
            return f"{contrast.metric} of {contrast.test} {LEVEL_SIDES[contrast.better]} {contrast.margin:g}"
        if contrast.type == "slope":
            return f"{contrast.metric} against {contrast.against} over {', '.join(contrast.arms)}"
        return f"{contrast.test} against {contrast.base} on {contrast.metric}"

    @property
    def scope(self) -> str:
        """The comparison and its condition, for lists of where a claim holds."""
        return self.subject if self.condition == DEFAULT_CONDITION else f"{self.subject}, {self.condition}"

    @property
    def numbers(self) -> str:
        """Estimate, interval, seeds, p and divergences; empty when nothing was inferred."""
        return _numbers(self)

    @property
    def sentence(self) -> str:
        """The verdict as one sentence that names profile and scale."""
        parts = [
            f"At {self.setting.profile} scale ({self.setting.scale}), {self.scope}: {self.label}",
            self.numbers,
            self.reason,
            f"to settle it: {self.remedy}" if self.remedy and self.verdict == "inconclusive" else "",
        ]
        return "; ".join(part for part in parts if part).removesuffix(".") + "."


LEVEL_SIDES = {"lower": "below", "higher": "above"}
ESTIMATE_NAMES = {
    "superiority": "difference",
    "equivalence": "difference",
    "level": "mean",
    "catastrophe": "recovered fraction",
    "stability": "sensitivity ratio",
    "slope": "exponent",
    "ordering": "claimed best against worst",
}


def estimate_name(decision: Decision) -> str:
    """What the estimate of a comparison is; where runs diverged, the middle one stands for all."""
    name = ESTIMATE_NAMES.get(decision.contrast.type, "")
    if decision.analysis is None or not decision.analysis.median:
        return name
    return "median" if name == "mean" else f"median {name}"


def _numbers(decision: Decision) -> str:
    a, contrast = decision.analysis, decision.contrast
    if a is None or a.missing:
        return ""
    signed = "+" if ESTIMATE_NAMES[contrast.type] in ("difference", "claimed best against worst") else ""
    parts = []
    if a.estimate is not None:
        text = f"{estimate_name(decision)} {a.estimate:{signed}.4g}"
        if a.interval95:
            text += f" [{a.interval95[0]:{signed}.4g}, {a.interval95[1]:{signed}.4g}]"
        parts.append(text)
    p, adjusted = decision.p, decision.p_adjusted
    which = a.method
    if decision.against:
        p, adjusted, which = decision.counter_p, decision.counter_p_adjusted, "test against the claim"
    parts.append(f"{a.n} seeds, {which}, p = {p:.3g}, Holm p = {adjusted:.3g}")
    if a.rates and a.rates.counts:
        parts.append(f"diverged {a.rates.counts} (Fisher p = {a.rates.p:.3g})")
    elif a.lost:
        parts.append(f"diverged {a.lost}")
    if a.welch and a.rho is not None and a.rho <= 0:
        low, high = a.welch.interval()
        parts.append(f"pairing did not help (correlation {a.rho:.2f}), Welch's interval is [{low:+.4g}, {high:+.4g}]")
    return "; ".join(parts)


def judge_all(
    contrasts: Sequence[Contrast],
    evidence: Mapping[tuple[str, str], Evidence],
    setting: Setting,
    conditions: Sequence[str] = (DEFAULT_CONDITION,),
) -> list[Decision]:
    """The verdict on every contrast under each of its conditions, adjusted together.

    Holm (1979) runs over claim x condition: once for the p values of the claims, once for those against them (the two
    null hypotheses of a contrast exclude each other), and once for those that a part of what was learned is lost and a
    part left. What has not been run yet counts as p = 1, so a verdict given early can only be confirmed by what comes
    later. Exact and formula claims infer nothing and stay outside.

    Args:
      contrasts: all registered contrasts of one config.
      evidence: (contrast.hash, condition) -> evidence; missing keys are "not run".
      setting: profile, scale and declarations.
      conditions: the config's conditions, for contrasts that name none.

    Raises:
      ConfigError: a contrast that needs a direction states none.
    """
    compared = family(contrasts, conditions)
    found = [evidence.get((contrast.hash, name)) for contrast, name in compared]
    inferred = [i for i, (contrast, _) in enumerate(compared) if contrast.type in ANALYSES]
    analyses: dict[int, Analysis] = {}
    for i in inferred:
        known = found[i]
        analyses[i] = Analysis(missing="not run", remedy="run it") if known is None else analyse(compared[i][0], known)
    primary = np.array([analyses[i].primary.p for i in inferred])
    counter = np.array([analyses[i].counter.p for i in inferred])
    partial = np.array([analyses[i].partial.p for i in inferred])
    levels = zip(*map(holm, (primary, counter, partial)), strict=True)
    columns = zip(inferred, levels, benjamini_hochberg(primary), strict=True)
    adjusted = {i: (Adjusted(*map(float, level)), float(q)) for i, level, q in columns}
    return [
        _inferred(contrast, name, found[i] or Evidence(), setting, analyses[i], *adjusted[i])
        if i in analyses
        else _checked(contrast, name, found[i] or Evidence(), setting)
        for i, (contrast, name) in enumerate(compared)
    ]


def family(contrasts: Sequence[Contrast], conditions: Sequence[str]) -> list[tuple[Contrast, str]]:
    """Every comparison that is judged: a contrast under each of its conditions that is among `conditions`.

    What a check decides, no training condition changes: it is listed once.
    """
    once = (conditions[0] if len(conditions) == 1 else DEFAULT_CONDITION,)
    return [
        (contrast, name)
        for contrast in contrasts
        for name in (once if contrast.type in BY_CHECK else contrast.conditions or conditions)
        if name in conditions or contrast.type in BY_CHECK
    ]


def judge(contrast: Contrast, evidence: Evidence, setting: Setting, condition: str = DEFAULT_CONDITION) -> Decision:
    """One contrast under one condition on its own: `judge_all` with a family of one."""
    return judge_all([contrast], {(contrast.hash, condition): evidence}, setting, [condition])[0]


def _inferred(
    contrast: Contrast,
    condition: str,
    evidence: Evidence,
    setting: Setting,
    analysis: Analysis,
    adjusted: Adjusted,
    q: float,
) -> Decision:
    if analysis.missing:
        finding = Finding("inconclusive", "inconclusive", analysis.missing, analysis.remedy)
        return dataclasses.replace(
            _decision(contrast, condition, setting, finding, ()), n=analysis.n, analysis=analysis
        )
    finding = RULES[contrast.type](contrast, evidence, analysis, adjusted)
    void = downgrades(contrast, evidence, analysis, finding, setting)
    return dataclasses.replace(
        _decision(contrast, condition, setting, finding, void),
        p=analysis.primary.p,
        p_adjusted=adjusted.primary,
        q=q,
        counter_p=analysis.counter.p,
        counter_p_adjusted=adjusted.counter,
        estimate=analysis.estimate,
        interval90=analysis.interval90,
        interval95=analysis.interval95,
        n=analysis.n,
        analysis=analysis,
    )


def _checked(contrast: Contrast, condition: str, evidence: Evidence, setting: Setting) -> Decision:
    finding = CHECKS[contrast.type](contrast, evidence)
    return _decision(contrast, condition, setting, finding, downgrades(contrast, evidence, None, finding, setting))


def _decision(
    contrast: Contrast, condition: str, setting: Setting, finding: Finding, void: tuple[Downgrade, ...]
) -> Decision:
    if void:
        undecided = [(finding.reason, finding.remedy)] if finding.verdict == "inconclusive" else []
        reasons, remedies = zip(*undecided, *((cause.reason, cause.remedy) for cause in void), strict=True)
        finding = Finding("inconclusive", "inconclusive", "; ".join(reasons), "; ".join(dict.fromkeys(remedies)))
    return Decision(
        contrast=contrast,
        condition=condition,
        setting=dataclasses.replace(setting, scale=setting.scales.get(condition, setting.scale)),
        verdict=finding.verdict,
        label=finding.label,
        reason=finding.reason,
        remedy=finding.remedy,
        against=finding.against,
        downgrades=void,
    )


@dataclasses.dataclass(frozen=True)
class Overall:
    """One verdict over several conditions, or several contrasts of one claim.

    Attributes:
      verdict: one of the four.
      reason: where it holds and where not.
      scopes: verdict -> the comparisons and conditions that gave it.
      reduced: some of them were inconclusive, so the verdict covers only part of what was registered.
    """

    verdict: Verdict
    reason: str
    scopes: Mapping[Verdict, tuple[str, ...]]
    reduced: bool


def overall(decisions: Sequence[Decision]) -> Overall:
    """The verdict of all that were decided if they agree, else mixed with the list of where.

    Raises:
      ValueError: no decisions.
    """
    if not decisions:
        raise ValueError("An overall verdict needs at least one decision.")
    scopes: dict[Verdict, tuple[str, ...]] = {}
    for decision in decisions:
        scopes[decision.verdict] = (*scopes.get(decision.verdict, ()), decision.scope)
    decided = [verdict for verdict in scopes if verdict != "inconclusive"]
    verdict: Verdict = "inconclusive" if not decided else decided[0] if len(decided) == 1 else "mixed"
    reduced = bool(decided) and "inconclusive" in scopes
    if len(scopes) == 1:
        reason = decisions[0].reason if len(decisions) == 1 else f"{verdict} in all {len(decisions)} comparisons"
    else:
        reason = "; ".join(f"{name} for {', '.join(where)}" for name, where in scopes.items())
    return Overall(verdict, reason, scopes, reduced)
