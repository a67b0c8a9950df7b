"""What each arm reached on its own, compared or not: the numbers behind every difference."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ablations.report import numbers
from ablations.report.members import Row, judged_by, judged_runs, titled
from ablations.report.numbers import listed
from ablations.schema import UNITS, spoken

BY_CHANCE = 2.0  # points above chance that a test split may give by luck
MARKS = ("unigram entropy", "bigram entropy", "chance")  # references that a model which learned beats


def reached(report: Row) -> list[dict[str, str]]:
    """One row per arm and metric: its learning rate, the metric over test seeds, and how many of them a simple
    predictor beats. Behind what the learning rate was chosen by comes what else was measured of it."""
    compared = {
        (name, decision["condition"])
        for decision in report["decisions"]
        for name in (decision["test"], decision["base"], *decision["arms"])
    }
    rows = []
    for arm in report["arms"]:
        judged, runs = judged_by(report, arm["condition"]), judged_runs(arm)
        alone = "" if (arm["arm"], arm["condition"]) in compared else " (not compared)"
        also = [metric for metric in report["measured"] if any(metric in run["metrics"] for run in runs)]
        for metric in dict.fromkeys((judged["metric"], *also)):
            found = [run["metrics"].get(metric) for run in runs if run["state"] == "done"]
            values = [value for value in found if value is not None]
            unit = judged["unit"] if metric == judged["metric"] else UNITS[metric]
            rows.append(
                {
                    "arm": titled(report, arm) + (" (baseline)" if arm["baseline"] else alone),
                    "metric": f"{spoken(metric)}{', ' + unit if unit else ''}",
                    "rate": numbers.rate(arm["learning_rate"]),
                    "seeds": f"{len(values)} of {len(runs)}",
                    "mean": _written(statistics.fmean(values), unit) if values else numbers.NOTHING,
                    "range": f"{_written(min(values), unit)} to {_written(max(values), unit)}" if values else "",
                    "beaten": _beaten(values, judged) if metric == judged["metric"] else "",
                }
            )
    return rows


def _written(value: float, unit: str) -> str:
    return numbers.fixed(value, 1 if unit == "points" else 3)


def _beaten(values: Sequence[float], judged: Row) -> str:
    """How many runs are no better than each simple predictor."""
    said = []
    for name, mark in judged["references"]:
        if name in MARKS and mark is not None:
            behind = sum(_no_better(value, mark, judged) for value in values)
            if behind:
                said.append(f"{behind} of {len(values)} no better than the {name} ({_written(mark, judged['unit'])})")
    return listed(said)


def _no_better(value: float, mark: float, judged: Row) -> bool:
    return value <= mark + BY_CHANCE if judged["better"] == "higher" else value >= mark
