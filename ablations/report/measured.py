"""The figure of what was measured beside what learning rates are chosen by: run by run, an arm beside the other."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from ablations.report import numbers
from ablations.report.curves import frame
from ablations.report.drawing import Sheet
from ablations.report.figures import styles_of
from ablations.report.members import Row, conditions, judged_by, judged_runs
from ablations.report.svg import Figure, Panel
from ablations.schema import UNITS, spoken

BAR = 0.3  # half the width of a mean, as a share of the room an arm has


def also_measured(report: Row) -> Figure | None:
    """A panel per condition and metric."""
    panels = [
        _panel(report, condition, metric, arms)
        for condition in conditions(report)
        for metric in report["measured"]
        if metric != judged_by(report, condition)["metric"] and (arms := _with(report, condition, metric))
    ]
    if not panels:
        return None
    return Figure(
        "also_measured",
        "What else was measured",
        "Each point is one run of a test seed at its arm's best learning rate, each bar the mean of an arm, whether or "
        "not a comparison asks for it.",
        tuple(panels),
    )


def _values(arm: Row, metric: str) -> list[tuple[int, float]]:
    """(seed, value) of the runs that have it."""
    found = [(run["seed"], run["metrics"].get(metric)) for run in judged_runs(arm) if run["state"] == "done"]
    return [(seed, value) for seed, value in found if value is not None]


def _with(report: Row, condition: str, metric: str) -> list[Row]:
    """The arms of a condition in which it was measured."""
    return [arm for arm in report["arms"] if arm["condition"] == condition and _values(arm, metric)]


def _panel(report: Row, condition: str, metric: str, arms: Sequence[Row]) -> Panel:
    styles, several = styles_of(report), len(conditions(report)) > 1
    within = frame([value for arm in arms for _, value in _values(arm, metric)], beyond=False)
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-0.5, len(arms) - 0.5], nice=False))
    sheet, ends = Sheet(x, within, f"{metric} ({UNITS[metric]})"), []
    for place, arm in enumerate(arms):
        style, runs = styles[arm["arm"]], _values(arm, metric)
        mean = sum(value for _, value in runs) / len(runs)
        said = f"{arm['label']}: mean of {numbers.plural(len(runs), 'run')} {numbers.significant(mean, 3)}"
        key = sheet.mark(said, arm["arm"], None, "mean", condition=condition)
        sheet.lines([(key, [(place - BAR, mean), (place + BAR, mean)])], style.color, 2.6, dash=style.dash)
        keyed = [
            (sheet.mark(f"{arm['label']}, seed {seed}: {value:.4g}", arm["arm"], seed, "run"), place, value)
            for seed, value in runs
        ]
        sheet.points(keyed, style.color, style.shape)
        ends.append((arm["arm"], mean, style.color))
    sheet.labels(ends)
    name = spoken(metric)
    description = f"{name} of {numbers.plural(len(arms), 'arm')}, one point a run"
    return sheet.panel(f"{name}, {condition}" if several else name, "", styles[arms[0]["arm"]].color, description)
