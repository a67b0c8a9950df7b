"""From records to the report data: evidence, verdicts, arms, noise, provenance. Nothing is typed by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations import catalog, checks, claims, confounds, probes, store
from ablations.cells import ArmCell, Member
from ablations.evidence import Evidence, Setting
from ablations.gather import Results, collect, evidence_for, named_arms, positive_control
from ablations.schema import ABOUT, PERCENT, UNITS, Contrast, better
from ablations.store import Record
from ablations.twins import noise
from ablations.verdict import ESTIMATE_NAMES, Decision, estimate_name, family, judge_all, overall
from transformer.config import to_flat


def collect_noise(name: str, profile: str, runs: Path) -> float | None:
    """The measured spread of twin differences under the first condition, or None with fewer than two pairs."""
    found = noise(collect(name, profile, runs))
    return found[0]["sigma"] if found else None


def summarize(results: Results) -> dict[str, Any]:
    """The report data of an ablation at a profile (see `ablations/report/`)."""
    ablation, settings = results.ablation, results.ablation.profile(results.profile)
    scales = {cell.condition: _scale(cell) for cell in _baselines(results)}
    setting = Setting(
        profile=results.profile,
        scale=scales[results.arms[0][0].condition],
        scales=scales,
        verdicts=settings.verdicts,
        test_seeds=settings.test_seeds,
        tuning_seeds=settings.tuning_seeds,
        may_differ=frozenset(q for q in ("parameters", "flops", "tokens") if q not in ablation.matched),
    )
    conditions = settings.conditions or tuple(ablation.conditions)
    evidence = {
        (contrast.hash, condition): found
        for contrast, condition in family(ablation.contrasts, conditions)
        if (found := evidence_for(results, contrast, condition)) is not None
    }
    decisions = judge_all(ablation.contrasts, evidence, setting, conditions)
    arms = [_arm(results, cell, records) for cell, records in results.arms]
    by_claim = [*_claims(decisions), *_unanswered(ablation.unanswered)]
    return {
        "name": results.name,
        "question": ablation.question,
        "profile": results.profile,
        "scale": _scales(results),
        "conditions": [
            {
                "condition": name,
                "note": ablation.conditions[name].note,
                "scale": scale,
                "metric": ablation.metric_under(name),
                "better": better(ablation.metric_under(name)),
                "unit": UNITS.get(ablation.metric_under(name), ""),
                "references": _references(results, name),
                **_control(results, name),
            }
            for name, scale in scales.items()
        ],
        "verdicts": settings.verdicts,
        "matched": list(ablation.matched),
        "measured": [metric for metric in ABOUT if metric in probes.metrics(ablation.probes)],
        "headline": _headline(by_claim, results),
        "progress": progress(results),
        "claims": by_claim,
        "decisions": [_decision(d, results, evidence) for d in decisions],
        "arms": arms,
        "noise": noise(results),
        "checks": _checks(results),
        "provenance": _provenance(results),
    }


# --- report data -------------------------------------------------------------------------------------------------


def _control(results: Results, condition: str) -> dict[str, Any]:
    """What the baseline had to manage, and whether it did."""
    found = positive_control(results, condition)
    if found is None:
        return {"control": "", "passed": None}
    return {"control": f"{found.name} ({found.detail})", "passed": found.passed}


def _claims(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys(d.contrast.claim for d in decisions):
        indices = [i for i, d in enumerate(decisions) if d.contrast.claim == name]
        joined = overall([decisions[i] for i in indices])
        judged = {"verdict": joined.verdict, "reduced": joined.reduced, "sentence": joined.reason}
        proved, contrast = all(decisions[i].contrast.type == "exact" for i in indices), decisions[indices[0]].contrast
        about = {**_claim(name, contrast.note, contrast.prior), "proved": proved}
        rows.append({**about, **judged, "decisions": indices})
    return rows


def _unanswered(reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            **_claim(name),
            "proved": False,
            "verdict": "inconclusive",
            "reduced": False,
            "sentence": f"not asked: {reason}",
            "decisions": [],
        }
        for name, reason in reasons.items()
    ]


def _claim(name: str, note: str = "", prior: str = "inconclusive") -> dict[str, Any]:
    """What the claims' files say; a control, which stands in none, is stated by its contrast's note and prior."""
    claim = claims.load().get(name)
    return {
        "claim": name,
        "statement": claim.statement if claim else note,
        "departure": claim.departure if claim else "",
        "kind": claim.kind if claim else "training",
        "prior": claim.prior if claim else prior,
        "surprise": bool(claim and claim.surprise),
        "literature": [dataclasses.asdict(entry) for entry in claim.literature] if claim else [],
    }


def _decision(d: Decision, results: Results, evidence: Mapping[tuple[str, str], Evidence]) -> dict[str, Any]:
    contrast, a = d.contrast, d.analysis
    found = evidence.get((contrast.hash, d.condition))
    paired = []
    if found is not None and found.test is not None and found.base is not None:
        for seed in sorted(set(found.test.outcomes) | set(found.base.outcomes)):
            values = [arm.outcomes.get(seed) for arm in (found.test, found.base)]
            paired.append({"seed": seed, "test": values[0] and values[0].value, "base": values[1] and values[1].value})
    return {
        "claim": contrast.claim,
        "condition": d.condition,
        "type": contrast.type,
        "test": contrast.test,
        "base": contrast.base,
        "arms": list(contrast.arms),
        "metric": contrast.metric,
        "unit": UNITS.get(contrast.metric, ""),
        "margin": contrast.margin,
        "better": contrast.better,
        "expect": contrast.expect,
        "note": contrast.note,
        "verdict": d.verdict,
        "label": d.label,
        "reason": d.reason,
        "remedy": d.remedy,
        "sentence": d.sentence,
        "estimate": d.estimate,
        "estimate_name": ESTIMATE_NAMES.get(contrast.type, ""),
        "estimate_title": estimate_name(d),
        "interval90": list(d.interval90) if d.interval90 else None,
        "interval95": list(d.interval95) if d.interval95 else None,
        "n": d.n,
        "p": d.p,
        "p_adjusted": d.p_adjusted,
        "q": d.q,
        "counter_p": d.counter_p,
        "counter_p_adjusted": d.counter_p_adjusted,
        "against": d.against,
        "method": a.method if a else "",
        "sd": a.sd if a else None,
        "rho": a.rho if a else None,
        "detectable": a.detectable if a else None,
        "diverged": a.diverged if a else "",
        "median": a is not None and a.median,
        "downgrades": [{"reason": cause.reason, "remedy": cause.remedy} for cause in d.downgrades],
        "prior": contrast.prior,
        "contrast_hash": contrast.hash,
        "registered": _registration(results, contrast, d.condition),
        "check": contrast.check,
        "paired": paired,
    }


def _registration(results: Results, contrast: Contrast, condition: str) -> str:
    """Whether the contrast stood as it is now in every record it reads under a condition: `before its data`, `edited
    after its data`, `after its data`; or `unknown`, where a run was trained for other questions, of which alone its
    record tells."""
    asked, prefix = f"{results.name}:", f"{results.name}:{contrast.claim}:"
    late = [
        record.contrasts
        for cell, records in results.arms
        if cell.arm in named_arms(contrast) and cell.condition == condition
        for record in records.values()
        if prefix + contrast.hash not in record.contrasts
    ]
    if any(entry.startswith(prefix) for known in late for entry in known):
        return "edited after its data"
    if any(not known or any(entry.startswith(asked) for entry in known) for known in late):
        return "after its data"
    return "unknown" if late else "before its data"


def _arm(results: Results, cell: ArmCell, records: dict[Member, Record]) -> dict[str, Any]:
    scores = store.scores(records, cell.metric)
    best = cell.best_learning_rate(scores)
    sample = next((r for r in records.values() if r.parameters), None)
    base = next(c for c, _ in results.arms if c.is_baseline and c.condition == cell.condition)
    tuning, members = [], []
    for member in sorted(cell.members(scores), key=lambda m: (m.seed, m.twin, m.learning_rate)):
        record = records.get(member)
        if member.is_tuning:
            score = record.score(cell.metric) if record else None
            tuning.append(
                {
                    "learning_rate": member.learning_rate,
                    "seed": member.seed,
                    "value": score.value if score else None,
                    "state": record.state if record else "missing",
                    "broken": score is not None and score.broken,
                    "initial": record.before_training(cell.metric) if record else None,
                }
            )
        else:
            members.append(_member(member, record, cell.metric))
    arm = results.ablation.arms[cell.arm]
    return {
        "arm": cell.arm,
        "condition": cell.condition,
        "label": cell.arm,
        "note": arm.note,
        "baseline": cell.is_baseline,
        "overrides": dict(arm.overrides),
        "parameters": sample.parameters if sample else None,
        "components": dict(sample.components) if sample else {},
        "flops_per_token": sample.flops_per_token if sample else None,
        "tokens": cell.tokens,
        "learning_rate": best,
        "edge": cell.at_edge(scores),
        "tuning": sorted(tuning, key=lambda t: (t["learning_rate"], t["seed"])),
        "members": members,
        "confounds": confounds.compare(base.config, cell.config),
    }


def _member(member: Member, record: Record | None, metric: str) -> dict[str, Any]:
    return {
        "seed": member.seed,
        "twin": member.twin,
        "learning_rate": member.learning_rate,
        "state": record.state if record else "missing",
        "broken": record is not None and record.outcome(metric).broken,
        "error": record.error if record else "",
        "diverged_at": record.diverged_at if record else None,
        "metrics": dict(record.metrics) if record else {},
        "initial": record.before_training(metric) if record else None,
        "seconds": record.seconds if record else None,
        "tokens_per_second": record.tokens / record.seconds if record and record.seconds else None,
        "curve": [list(point) for point in record.curves.get(metric, record.curve)] if record else [],
        "train_curve": [list(point) for point in record.train_curve] if record else [],
    }


def progress(results: Results) -> dict[str, Any]:
    """How many members are planned, and how they ended; an arm shared with other ablations counts here too."""
    states: dict[str, int] = {"done": 0, "diverged": 0, "failed": 0}
    planned = 0
    for cell, records in results.arms:
        planned += cell.planned(store.scores(records, cell.metric))
        for record in records.values():
            states[record.state] += 1
    return {"planned": planned, **states, "missing": planned - sum(states.values()), "tampered": results.tampered}


def _references(results: Results, condition: str) -> list[list[Any]]:
    """What simple predictors score: [name, value], in the unit of the condition's metric."""
    percent = results.ablation.metric_under(condition) in PERCENT
    for cell, records in results.arms:
        for record in records.values() if cell.condition == condition else ():
            if record.references:
                wanted = {name: v for name, v in record.references.items() if (name == "chance") == percent}
                return [
                    [name if percent else f"{name} entropy", value]
                    for name, value in sorted(wanted.items(), reverse=True)
                ]
    return []


def worded(claim: Mapping[str, Any]) -> str:
    """The verdict of a claim, and that some of its comparisons are undecided."""
    return f"{claim['verdict']}{', in part' if claim.get('reduced') else ''}"


def _headline(rows: Sequence[Mapping[str, Any]], results: Results) -> str:
    if not rows:
        return "No contrast is registered for this question yet."
    decided = [row for row in rows if row["verdict"] != "inconclusive"]
    if not decided:
        return f"At {results.profile} scale nothing could be decided yet; each row says what is missing."
    # What was measured makes the headline; what tests prove is counted behind it, unless there is nothing else.
    measured = [row for row in decided if not row["proved"]]
    proved = len(decided) - len(measured) if measured else 0
    said = "; ".join(f"{row['statement'].rstrip('.')}: {worded(row)}" for row in measured or decided)
    counted = f" {proved} {'claim was' if proved == 1 else 'claims were'} settled by tests." if proved else ""
    return f"{said} ({_scales(results)}).{counted}{_left_out(results)}"


def _left_out(results: Results) -> str:
    """That a profile asks under some of the conditions only."""
    ran, every = results.ablation.profile(results.profile).conditions, results.ablation.conditions
    if not ran or len(ran) == len(every):
        return ""
    return f" Asked under {len(ran)} of {len(every)} conditions."


def _scales(results: Results) -> str:
    """The scale of every condition, or how many there are."""
    scales = list(dict.fromkeys(map(_scale, _baselines(results))))
    return scales[0] if len(scales) == 1 else f"{len(scales)} scales and tasks"


def _baselines(results: Results) -> list[ArmCell]:
    return [cell for cell, _ in results.arms if cell.is_baseline]


def _scale(cell: ArmCell) -> str:
    """Words for what was trained."""
    config = cell.config
    source = config.data.source if config.data.source != "task" else f"the task {to_flat(config)['data.task']}"
    amount = f"{cell.tokens / 1e6:.2g}M tokens of {source} a run"
    layers = f"{config.model.num_layers} layer{'' if config.model.num_layers == 1 else 's'}"
    return f"{layers}, {config.model.d_model} wide, {amount}"


def _checks(results: Results) -> list[dict[str, Any]]:
    rows = []
    for contrast in results.ablation.contrasts:
        result = results.checks.get(contrast.check)
        if result is not None:
            rows.append({"claim": contrast.claim, "name": contrast.check, **checks.as_row(result)})
    return rows


def _provenance(results: Results) -> dict[str, Any]:
    records = [r for _, found in results.arms for r in found.values()]
    env: Mapping[str, Any] = next((r.environment for r in records if r.environment), {})
    commits = [r.environment.get("git") or {} for r in records if r.environment]
    known = (f"{str(git['sha'])[:12]}{' (modified)' if git.get('dirty') else ''}" for git in commits if git.get("sha"))
    wanted = ("jax", "flax", "optax", "numpy")
    return {
        "command": f"python -m ablations {catalog.run_command(results.name)} --profile={results.profile}",
        "git": ", ".join(dict.fromkeys(known)),
        "python": env.get("python"),
        "packages": {k: v for k, v in (env.get("packages") or {}).items() if k in wanted},
        "device": " ".join(filter(None, dict.fromkeys((env.get("platform"), env.get("device"))))),
        "fingerprint": ", ".join(sorted({r.fingerprint for r in records if r.fingerprint})),
        "data": ", ".join(dict.fromkeys(cell.config.data.source for cell in _baselines(results))),
        "member_seconds": sum(r.seconds for r in records),
    }
