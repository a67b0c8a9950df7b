"""The figures of a report, one function each: report data in, small static panels out.

Every function returns None while there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt

from ablations.report import numbers
from ablations.report.curves import Frame, Point, enter, frame, mean_curve
from ablations.report.drawing import Sheet
from ablations.report.members import (
    Row,
    What,
    baseline_of,
    conditions,
    curve,
    finished_curves,
    judged_by,
    judged_runs,
    titled,
    with_curves,
    worse_sign,
    worst_start,
)
from ablations.report.palette import ArmStyle, arm_styles, ink
from ablations.report.svg import Figure, Panel

DIRECT_LABELS = 6  # more lines than this get a key instead of names at their ends
WINDOW = 0.25  # panels of one arm frame what happens after this share of the tokens
UNLUCKY = (("diverged", "diverged"), ("failed", "failed"), ("missing", "not run yet"))
WILD_NORM = 1e4  # gradient norms above this are not framed while no run has finished


def styles_of(report: Row) -> dict[str, ArmStyle]:
    """Arm name -> style, the same in every figure and on the page."""
    return arm_styles((arm["arm"], arm["baseline"]) for arm in report["arms"])


def learning_rate_curves(report: Row) -> Figure | None:
    """Tuning results against learning rate: a panel per arm, its baseline behind."""
    styles = styles_of(report)
    tuned = [arm for arm in report["arms"] if _tuning(arm)]
    if not tuned:
        return None
    return Figure(
        "learning_rate_curves",
        "Learning-rate curves",
        "What the tuning runs ended with, against the learning rate. Each point is one run, the "
        "line their mean; the baseline is grey and dashed behind it. The upright line marks the rate that was "
        "chosen. A triangle at the edge is a run whose loss was not finite, or that ended worse than it began; in the "
        "mean it counts as the value before training.",
        tuple(_learning_rate_panel(report, arm, styles) for arm in tuned),
    )


def _tuning(arm: Row) -> list[Row]:
    """The tuning runs that ended, one way or the other."""
    return [
        row
        for row in arm["tuning"]
        if row["learning_rate"] and (row["state"] == "diverged" or row["value"] is not None)
    ]


def _learning_rate_panel(report: Row, arm: Row, styles: Mapping[str, ArmStyle]) -> Panel:
    judged, base = judged_by(report, arm["condition"]), baseline_of(report, arm)
    worse = worse_sign(judged["better"])
    shown = [arm] if base is None else [base, arm]
    runs = [row for one in shown for row in _tuning(one)]
    cap = worst_start(runs, worse)
    fine = [row["value"] for row in runs if not _lost(row, cap, worse)]
    within = frame(fine, len(fine) < len(runs), cap, worse)
    rates = sorted({row["learning_rate"] for row in runs})
    axis = alt.Axis(title="learning rate", values=rates, format=".0e", labelOverlap=True)
    scale = alt.Scale(type="log", domain=[rates[0] / 1.3, rates[-1] * 1.3], nice=False)
    sheet = Sheet(alt.X("x:Q", scale=scale, axis=axis), within, _metric_title(judged))
    ends = []
    for one in shown:
        style, name = styles[one["arm"]], titled(report, one)
        point_color = style.color if one is arm else ink("base-seed")
        means = _means_by_rate(_tuning(one), cap, worse, within)
        key = sheet.mark(f"{name}: mean of the tuning runs", one["arm"], None, "mean")
        sheet.lines([(key, means)], style.color, 1.5, dash=style.dash)
        if one is arm and arm["learning_rate"]:
            chosen = sheet.mark(f"chosen for {name}: {numbers.rate(arm['learning_rate'])}", one["arm"], None, "chosen")
            sheet.upright(arm["learning_rate"], style.color, chosen)
        keyed = [(_tuning_mark(sheet, one, row, name), row) for row in _tuning(one)]
        inside = [(k, row["learning_rate"], row["value"]) for k, row in keyed if not _lost(row, cap, worse)]
        sheet.points(inside, point_color, style.shape)
        sheet.beyond([(k, row["learning_rate"]) for k, row in keyed if _lost(row, cap, worse)], point_color)
        ends += [(one["label"], means[-1][1], style.color)] if means else []
    sheet.labels(ends)
    subtitle = f"chosen {numbers.rate(arm['learning_rate'])}" if arm["learning_rate"] else "no rate chosen yet"
    subtitle += ", at the edge of the grid" if arm["edge"] else ""
    description = f"{titled(report, arm)}: {judged['metric']} of {len(runs)} tuning runs by learning rate, {subtitle}"
    return sheet.panel(titled(report, arm), subtitle, styles[arm["arm"]].color, description)


def _lost(row: Row, cap: float | None, worse: int) -> bool:
    """Diverged, or worse than before training."""
    value = row["value"]
    return row["state"] == "diverged" or value is None or (cap is not None and worse * (value - cap) > 0)


def _means_by_rate(rows: Sequence[Row], cap: float | None, worse: int, within: Frame) -> list[Point]:
    lost = cap if cap is not None else within.edge
    by_rate: dict[float, list[float]] = {}
    for row in rows:
        by_rate.setdefault(row["learning_rate"], []).append(lost if _lost(row, cap, worse) else row["value"])
    return [(rate, within.place(sum(values) / len(values))) for rate, values in sorted(by_rate.items())]


def _tuning_mark(sheet: Sheet, arm: Row, row: Row, name: str) -> str:
    ended = "diverged" if row["state"] == "diverged" else numbers.significant(row["value"], 4)
    ended += ", which counts as diverged" if row["broken"] else ""
    title = f"{name}, seed {row['seed']}, learning rate {numbers.rate(row['learning_rate'])}: {ended}"
    return sheet.mark(title, arm["arm"], row["seed"], "tuning", condition=arm["condition"])


def learning_curves(report: Row) -> Figure | None:
    """The metric on validation against tokens: all means from the start, then each arm against its baseline."""
    styles = styles_of(report)
    panels: list[Panel] = []
    for condition in conditions(report):
        arms = [arm for arm in report["arms"] if arm["condition"] == condition and with_curves(arm, "metric")]
        if len(arms) > 1:
            overview = _overview(report, arms, styles)
            panels += [overview] if overview else []
        panels += [_curve_panel(report, arm, "metric", styles) for arm in _in_panels(arms)]
    if not panels:
        return None
    return Figure(
        "learning_curves",
        "Learning curves",
        "What is measured on the validation data, against training tokens. Thin lines are single seeds, thick lines "
        "the mean of those that finished; the baseline is grey and dashed. A panel titled “All arms” shows the means "
        "from the start on one scale. The others frame the last three quarters of training, each on its own scale, so "
        "curves enter them from outside. A triangle at the edge is a run whose loss was not finite, or a value beyond "
        "the frame.",
        tuple(panels),
    )


def gradient_norms(report: Row) -> Figure | None:
    """Gradient norm against tokens on a logarithmic scale, each arm against its baseline."""
    styles = styles_of(report)
    panels = []
    for condition in conditions(report):
        arms = [arm for arm in report["arms"] if arm["condition"] == condition and with_curves(arm, "gradient norm")]
        panels += [_curve_panel(report, arm, "gradient norm", styles) for arm in _in_panels(arms)]
    if not panels:
        return None
    return Figure(
        "gradient_norms",
        "Gradient norms",
        "Norm of the gradient against training tokens, on a logarithmic scale. Thin lines are single seeds, thick "
        "lines the mean of those that finished; the baseline is grey and dashed. A triangle at the upper edge is a "
        "run whose loss was not finite, or a norm above the frame.",
        tuple(panels),
    )


def _in_panels(arms: Sequence[Row]) -> Sequence[Row]:
    """A baseline stands behind every other arm; it needs a panel of its own only when it is alone."""
    return [arm for arm in arms if not arm["baseline"]] or arms


def _overview(report: Row, arms: Sequence[Row], styles: Mapping[str, ArmStyle]) -> Panel | None:
    """The means of all arms under one condition; None while no run has finished."""
    means = [(arm, [point for point in mean_curve(finished_curves(arm, "metric")) if point[0] > 0]) for arm in arms]
    means = [(arm, points) for arm, points in means if points]
    if not means:
        return None
    judged = judged_by(report, arms[0]["condition"])
    worse, initial = worse_sign(judged["better"]), _initial(judged, arms)
    references = [value for _, value in judged["references"] if value is not None]
    within = frame([*(y for _, points in means for _, y in points), *references], False, initial, worse)
    sheet = Sheet(_log_tokens_axis([points for _, points in means]), within, _curve_title(judged))
    drawn = [(arm, enter(points, within)) for arm, points in means]
    for arm, points in sorted(drawn, key=lambda pair: not pair[0]["baseline"]):
        style = styles[arm["arm"]]
        key = sheet.mark(f"{arm['label']}: mean", arm["arm"], None, "mean", condition=arm["condition"])
        sheet.lines([(key, points)], style.color, 1.8, dash=style.dash)
    _references(sheet, judged)
    drawn.sort(key=lambda pair: -pair[1][-1][1])
    if len(drawn) <= DIRECT_LABELS:
        sheet.labels([(arm["label"], points[-1][1], styles[arm["arm"]].color) for arm, points in drawn])
    else:
        sheet.key([(arm["label"], styles[arm["arm"]].color, styles[arm["arm"]].dash) for arm, _ in drawn])
    condition = arms[0]["condition"]
    title = "All arms" if len(conditions(report)) < 2 else f"All arms, {condition}"
    description = f"{title}: mean validation {judged['metric']} of {len(drawn)} arms against tokens"
    return sheet.panel(title, "means, from the start of training", ink("ink"), description)


def _curve_panel(report: Row, arm: Row, what: What, styles: Mapping[str, ArmStyle]) -> Panel:
    """Every seed thin and every mean thick, the baseline behind; runs that diverged end in a triangle."""
    base, judged = baseline_of(report, arm), judged_by(report, arm["condition"])
    shown = [arm] if base is None else [base, arm]
    if what == "metric":
        within = _late_frame(judged, shown)
        sheet = Sheet(_tokens_axis(shown), within, _curve_title(judged))
    else:
        within = _norm_frame(shown)
        sheet = Sheet(_tokens_axis(shown), within, "gradient norm", "log")
    ends = []
    for one in shown:
        style = styles[one["arm"]]
        seed_color = ink("base-seed") if one["baseline"] else style.color
        paths, lost = [], []
        for member in with_curves(one, what):
            title = f"{titled(report, one)}, seed {member['seed']}: {member['state']}"
            key = sheet.mark(title, one["arm"], member["seed"], "seed", condition=one["condition"])
            points = curve(member, what)
            paths.append((key, enter(points, within)))
            if member["state"] == "diverged" or not within.holds(points[-1][1]):
                lost.append((key, points[-1][0]))
        sheet.lines(paths, seed_color, 0.8, 0.6)
        sheet.beyond(lost, seed_color)
        mean = enter(mean_curve(finished_curves(one, what)), within)
        if mean:
            key = sheet.mark(f"{titled(report, one)}: mean", one["arm"], None, "mean", condition=one["condition"])
            sheet.lines([(key, mean)], style.color, 2.2, dash=style.dash)
            ends.append((one["label"], mean[-1][1], style.color))
    if what == "metric":
        _references(sheet, judged)
    sheet.labels(ends)
    states = [member["state"] for member in judged_runs(arm)]
    unlucky = [f"{states.count(state)} {word}" for state, word in UNLUCKY if state in states]
    subtitle = ", ".join([f"{numbers.plural(states.count('done'), 'seed')} finished", *unlucky])
    name = titled(report, arm)
    shown_is = judged["metric"] if what == "metric" else what
    return sheet.panel(name, subtitle, styles[arm["arm"]].color, f"{name}: {shown_is} against tokens, {subtitle}")


def _late_frame(judged: Row, arms: Sequence[Row]) -> Frame:
    """Around every finished curve after the first quarter of the tokens."""
    worse = worse_sign(judged["better"])
    everything = [(member["state"], curve(member, "metric")) for arm in arms for member in with_curves(arm, "metric")]
    start = WINDOW * max((x for _, points in everything for x, _ in points), default=0)
    late = [(state, y) for state, points in everything for x, y in points if x >= start]
    done = [y for state, y in late if state == "done" and y is not None]
    framed = done or [y for _, y in late if y is not None]
    lost = any(state == "diverged" for state, _ in everything)
    worst = max(framed, key=lambda y: worse * y, default=0.0)
    beyond = lost or any(y is None or worse * (y - worst) > 0 for _, y in late)
    return frame(framed, beyond, _initial(judged, arms), worse)


def _norm_frame(arms: Sequence[Row]) -> Frame:
    done = [y for arm in arms for points in finished_curves(arm, "gradient norm") for _, y in points if y]
    members = [member for arm in arms for member in with_curves(arm, "gradient norm")]
    every = [y for member in members for _, y in curve(member, "gradient norm")]
    framed = done or [y for y in every if y and y < WILD_NORM]
    lost = any(member["state"] == "diverged" for member in members)
    return frame(framed, lost or any(y is None or y > max(framed, default=y) for y in every), log=True)


def _initial(judged: Row, arms: Sequence[Row]) -> float | None:
    """The metric before training: as recorded, else read off the first point of the curves."""
    worse, runs = worse_sign(judged["better"]), [run for arm in arms for run in with_curves(arm, "metric")]
    recorded = worst_start(runs, worse)
    if recorded is not None:
        return recorded
    starts = [curve(run, "metric")[0][1] for run in runs]
    return max((y for y in starts if y is not None), key=lambda y: worse * y, default=None)


def _tokens_axis(arms: Sequence[Row]) -> alt.X:
    seen = [row[0] for arm in arms for run in judged_runs(arm) for row in (*run["curve"], *run["train_curve"])]
    axis = alt.Axis(title="tokens", format="~s", tickCount=4, labelExpr="datum.value == 0 ? '0' : datum.label")
    return alt.X("x:Q", scale=alt.Scale(domain=[0, max(seen)], nice=False), axis=axis)


def _log_tokens_axis(curves: Sequence[Sequence[Point]]) -> alt.X:
    seen = [x for points in curves for x, _ in points]
    axis = alt.Axis(title="tokens, logarithmic", format="~s", tickCount=4, labelOverlap=True)
    return alt.X("x:Q", scale=alt.Scale(type="log", domain=[min(seen), max(seen)], nice=False), axis=axis)


def _references(sheet: Sheet, judged: Row) -> None:
    for label, value in judged["references"]:
        if value is not None:
            sheet.level(value, label, ink("reference"))


def _curve_title(judged: Row) -> str:
    return f"validation {_metric_title(judged)}"


def _metric_title(judged: Row) -> str:
    return f"{judged['metric']} ({judged['unit']})" if judged["unit"] else str(judged["metric"])
