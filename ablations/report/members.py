"""Reading runs out of the report's data: whose baseline, which curves, what a run ended with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Row = Mapping[str, Any]
Curve = list[tuple[float, float | None]]
What = Literal["metric", "gradient norm"]
Ending = tuple[float | None, str]  # final value, state


def conditions(report: Row) -> list[str]:
    """Names of the conditions, in order of first appearance."""
    return list(dict.fromkeys(arm["condition"] for arm in report["arms"]))


def judged_by(report: Row, condition: str) -> Row:
    """The metric of a condition, which way it is better, its unit, and what simple predictors score."""
    return next(row for row in report["conditions"] if row["condition"] == condition)


def is_measured(report: Row, claim: Row) -> bool:
    """Whether anything ran for the claim: a comparison with a p value, a check, or a verdict that was reached."""
    judged = [report["decisions"][i] for i in claim["decisions"] if i in range(len(report["decisions"]))]
    inferred = any(decision["p"] is not None or decision["verdict"] != "inconclusive" for decision in judged)
    return inferred or any(check["claim"] == claim["claim"] for check in report["checks"])


def titled(report: Row, arm: Row) -> str:
    """The arm's label, with its condition where there are several and the label does not say it."""
    condition = arm["condition"]
    if len(conditions(report)) < 2 or condition in arm["label"]:
        return str(arm["label"])
    return f"{arm['label']}, {condition}"


def find(report: Row, arm: str, condition: str) -> Row | None:
    return next((a for a in report["arms"] if a["arm"] == arm and a["condition"] == condition), None)


def baseline_of(report: Row, arm: Row) -> Row | None:
    """The baseline under the arm's condition; None for a baseline itself."""
    if arm["baseline"]:
        return None
    return next((a for a in report["arms"] if a["baseline"] and a["condition"] == arm["condition"]), None)


def judged_runs(arm: Row) -> list[Row]:
    """The runs of the test seeds, without the twins that measure the noise floor."""
    return [member for member in arm["members"] if not member["twin"]]


def curve(member: Row, what: What) -> Curve:
    """(tokens, value) of one run; None where the value was not finite. Gradient norms of zero are left out."""
    if what == "metric":
        return [(tokens, value) for tokens, value in member["curve"]]
    return [(tokens, norm) for tokens, _, norm in member["train_curve"] if norm is None or norm > 0]


def with_curves(arm: Row, what: What) -> list[Row]:
    """The runs that have anything to draw."""
    return [member for member in judged_runs(arm) if curve(member, what)]


def finished_curves(arm: Row, what: What) -> list[Curve]:
    """The curves of the runs that finished."""
    return [curve(member, what) for member in with_curves(arm, what) if member["state"] == "done"]


def worst_start(runs: Sequence[Row], worse: int) -> float | None:
    """The metric before training, the worst over `runs`; None where no run recorded it."""
    starts = [run["initial"] for run in runs if run["initial"] is not None]
    if not starts:
        return None
    return float(max(starts) if worse > 0 else min(starts))


def ending(member: Row | None, metric: str) -> Ending:
    """What a run ended with, and its state; a missing run has no value."""
    if member is None:
        return None, "missing"
    return member["metrics"].get(metric), member["state"]


def paired_ending(arm: Row, seed: int, value: float | None) -> Ending:
    """The state behind one side of a pair: a value means done; without one, the run's own record says why."""
    if value is not None:
        return value, "done"
    member = next((m for m in judged_runs(arm) if m["seed"] == seed and m["state"] != "done"), None)
    return None, member["state"] if member else "missing"


def worse_sign(better: str) -> int:
    """1 where larger values are worse, -1 where smaller ones are."""
    return 1 if better == "lower" else -1


def of_a_table(report: Row, decision: Row) -> float | None:
    """What fraction a predictor that knows the last token alone, the bigram table, would recover; None where no
    fraction of a loss is asked for."""
    base = [pair["base"] for pair in decision["paired"] if pair["base"] is not None]
    if decision["type"] != "catastrophe" or not base:
        return None
    marks = dict(judged_by(report, decision["condition"])["references"])
    unigram, bigram = marks.get("unigram entropy"), marks.get("bigram entropy")
    if unigram is None or bigram is None:
        return None
    learned = unigram - sum(base) / len(base)
    return (unigram - bigram) / learned if learned > 0 else None
