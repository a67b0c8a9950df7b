"""From records to evidence: what one contrast needs of the runs that are finished."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from ablations import catalog, checks, store
from ablations.cells import ArmCell, Member, cells
from ablations.evidence import (
    QUANTITIES,
    ArmResult,
    Control,
    Evidence,
    ExactCheck,
    FormulaCheck,
    Outcome,
)
from ablations.schema import Ablation, Contrast, better
from ablations.store import Record
from transformer.config import to_flat
from transformer.errors import ConfigError

ENTROPIES = ("unigram", "bigram")
SOLVED = 95.0  # points
NEAR = 0.05  # nats above the least loss that a task allows


@dataclasses.dataclass(frozen=True)
class Twins:
    """Runs of a baseline at its learning rate and their twins, of any seed, whichever ablation or repetition trained
    them.

    Attributes:
      pairs: seed -> what the two reached in the primary metric.
      lost: seeds of which one or both ended otherwise: diverged or failed.
    """

    pairs: Mapping[int, tuple[float, float]]
    lost: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything found on disk for one ablation at one profile.

    Attributes:
      arms: each arm with the records of its own members; others, of ablations that share the arm, are left out.
      twins: condition -> pairs of the baseline and its twins.
      tampered: records whose digest does not fit; they count as missing.
      checks: results of the tests and formulas of exact and accounting claims.
    """

    name: str
    ablation: Ablation
    profile: str
    arms: list[tuple[ArmCell, dict[Member, Record]]]
    twins: Mapping[str, Twins]
    tampered: list[str]
    checks: Mapping[str, ExactCheck | FormulaCheck]


def collect(name: str, profile: str, runs: Path) -> Results:
    """Reads all records of an ablation at a profile."""
    ablation = catalog.load(name)
    arms, twins, tampered = [], {}, []
    for cell in cells(name, ablation, profile):
        records, changed = store.read_arm(cell.directory(runs))
        needed = cell.members(store.scores(records, cell.metric))
        arms.append((cell, {member: records[member] for member in needed if member in records}))
        if cell.has_twins:
            twins[cell.condition] = _twins(cell, records)
        tampered += [name for name in changed if name not in tampered]
    return Results(name, ablation, profile, arms, twins, tampered, checks.results(runs))


def _twins(cell: ArmCell, records: Mapping[Member, Record]) -> Twins:
    rate = cell.best_learning_rate(store.scores(records, cell.metric))
    pairs, lost = {}, set()
    for member in sorted(records):
        own = dataclasses.replace(member, twin=False)
        if member.twin and member.learning_rate == rate and own in records:
            one, two = (records[m].outcome(cell.metric) for m in (own, member))
            if one.value is None or two.value is None or one.diverged or two.diverged:
                lost.add(member.seed)
            else:
                pairs[member.seed] = (one.value, two.value)
    return Twins(pairs, frozenset(lost))


def _find(results: Results, arm: str, condition: str) -> tuple[ArmCell, dict[Member, Record]] | None:
    return next(((c, r) for c, r in results.arms if c.arm == arm and c.condition == condition), None)


def evidence_for(results: Results, contrast: Contrast, condition: str) -> Evidence | None:
    if contrast.check:
        checked = results.checks.get(contrast.check)
        if isinstance(checked, FormulaCheck):
            return Evidence(formula=checked)
        return Evidence(exact=checked) if checked is not None else None
    names = named_arms(contrast)
    found = [_arm_result(results, name, condition, contrast.metric) for name in names]
    if any(arm is None for arm in found):
        return None
    arms = [arm for arm in found if arm is not None]
    control = positive_control(results, condition)
    controls = (control,) if control else ()
    if contrast.type == "ordering":
        return Evidence(arms=tuple(arms), controls=controls)
    if contrast.type == "slope":
        points = {_size(results, contrast.against, arm, condition): _values(arm) for arm in arms}
        return Evidence(arms=tuple(arms), controls=controls, points=points, claimed=contrast.exponent)
    if contrast.type == "level":
        return Evidence(test=arms[0], controls=controls)
    base, trivial = _find(results, contrast.base, condition), None
    if base is not None and contrast.type == "catastrophe":
        trivial = _reference(base[1], "unigram" if contrast.better == "lower" else "chance")
    return Evidence(test=arms[0], base=arms[1], trivial=trivial, controls=controls)


def named_arms(contrast: Contrast) -> tuple[str, ...]:
    """Every arm a contrast reads, the reference last."""
    return contrast.arms or tuple(filter(None, (contrast.test, contrast.base)))


def _values(arm: ArmResult) -> dict[int, float | None]:
    return {seed: None if run.diverged else run.value for seed, run in arm.outcomes.items()}


def _size(results: Results, against: str, arm: ArmResult, condition: str) -> float:
    """What a slope is drawn against: a quantity of the runs, or a config field of the arm.

    Raises:
      ConfigError: no such field, or it is not a number.
    """
    if against in QUANTITIES:
        return float(arm.mean(against) or math.nan)
    found = _find(results, arm.name, condition)
    value = to_flat(found[0].config).get(against) if found else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"A slope against {against!r} needs parameters, flops, tokens or a config field with a number."
        )
    return float(value)


def _reference(records: Mapping[Member, Record], name: str) -> float | None:
    """What is known of the validation data: what a simple predictor scores on it, or the least loss possible."""
    return next((r.references[name] for r in records.values() if name in r.references), None)


def _arm_result(results: Results, arm: str, condition: str, metric: str) -> ArmResult | None:
    """One arm's outcomes at its own best learning rate; None while it has none."""
    found = _find(results, arm, condition)
    if found is None:
        return None
    cell, records = found
    scores = store.scores(records, cell.metric)
    best = cell.best_learning_rate(scores)
    usable = {m: r for m, r in records.items() if r.state != "failed" and not m.twin}
    measured = {m: r for m, r in usable.items() if r.state == "diverged" or metric in r.metrics}
    outcomes = {m.seed: r.outcome(metric) for m, r in measured.items() if not m.is_tuning}
    curve: dict[float, dict[int, Outcome]] = {}
    for member, score in scores.items():
        if member.is_tuning:
            curve.setdefault(member.learning_rate, {})[member.seed] = score
    if not outcomes:
        return None
    return ArmResult(arm, outcomes, best, curve, edge=cell.at_edge(scores))


def positive_control(results: Results, condition: str) -> Control | None:
    """Whether the baseline learned enough to judge others by; None if nothing is asked of it."""
    ablation = results.ablation
    asked = ablation.control_under(condition, results.profile)
    if not asked:
        return None
    metric = "loss" if asked in (*ENTROPIES, "floor") else ablation.metric_under(condition)
    name, needed = {
        "solved": ("solves its task", "the needed"),
        "floor": (f"comes within {NEAR:g} nats of the least loss possible", "the least possible"),
        "chance": ("beats chance", "chance"),
    }.get(asked, (f"beats the {asked} entropy", f"{asked} entropy"))
    found = _find(results, ablation.baseline, condition)
    base = _arm_result(results, ablation.baseline, condition, metric)
    if found is None or base is None:
        return Control(f"the baseline {name}", False, "no run of it has ended")
    reference = SOLVED if asked == "solved" else _reference(found[1], asked)
    if reference is None:
        return Control(f"the baseline {name}", False, f"its runs recorded no {asked}")
    values = [o.value for o in base.outcomes.values() if o.value is not None and not o.diverged]
    if diverged := len(base.outcomes) - len(values):
        return Control(f"the baseline {name}", False, f"{diverged} of its {len(base.outcomes)} runs diverged")
    mean, bound = sum(values) / len(values), reference + NEAR if asked == "floor" else reference
    passed = mean < bound if better(metric) == "lower" else mean > bound
    return Control(f"the baseline {name}", passed, f"baseline {mean:.3f} against {needed} {reference:.3f}")
