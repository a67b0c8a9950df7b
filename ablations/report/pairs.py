"""Figures of paired runs: each comparison seed by seed, and the baseline against its twin."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from ablations.report import numbers
from ablations.report.curves import frame
from ablations.report.drawing import Sheet
from ablations.report.figures import styles_of
from ablations.report.members import (
    Ending,
    Row,
    ending,
    find,
    judged_by,
    paired_ending,
    titled,
    worse_sign,
    worst_start,
)
from ablations.report.palette import ink
from ablations.report.svg import Figure, Panel

PLACES = (0.25, 0.75)  # of the two sides, as shares of the width
Pair = tuple[int, Ending, Ending]


def paired_slopes(report: Row) -> Figure | None:
    """Final metric of each pair of seeds: a panel per comparison, baseline left, tested arm right."""
    panels = []
    for decision in report["decisions"]:
        base, test = (find(report, name, decision["condition"]) for name in sides(decision))
        if base is None or test is None:
            continue
        pairs = [
            (
                pair["seed"],
                paired_ending(base, pair["seed"], pair["base"]),
                paired_ending(test, pair["seed"], pair["test"]),
            )
            for pair in decision["paired"]
        ]
        if not any(_drawn(end) for _, *ends in pairs for end in ends):
            continue
        same_metric = decision["metric"] == judged_by(report, decision["condition"])["metric"]
        runs = [*base["members"], *test["members"]] if same_metric else []
        title = f"{titled(report, test)} against {base['label']}"
        panels.append(_panel(report, title, decision["label"], (base, test), pairs, runs, decision))
    if not panels:
        return None
    return Figure(
        "paired_slopes",
        "Seed by seed",
        "Each line joins the two runs of one seed: same batches, same initial value of every parameter both arms "
        "have. The thick line joins the means of the pairs that finished. A triangle at the edge is a run whose "
        "loss was not finite, or that ended worse than it began.",
        tuple(panels),
    )


def sides(decision: Row) -> tuple[str, str]:
    """(base, test) of a comparison; for an ordering its last and its first arm."""
    if decision["test"] or not decision["arms"]:
        return decision["base"], decision["test"]
    return decision["arms"][-1], decision["arms"][0]


def noise_floor(report: Row) -> Figure | None:
    """The baseline against its twin of the same data and other initial weights, seed by seed."""
    panels = []
    for arm in report["arms"]:
        twins, own = ({m["seed"]: m for m in arm["members"] if m["twin"] is twin} for twin in (True, False))
        seeds = [seed for seed in sorted(twins) if seed in own]
        judged = judged_by(report, arm["condition"])
        pairs = [(s, ending(own[s], judged["metric"]), ending(twins[s], judged["metric"])) for s in seeds]
        if any(_drawn(end) for _, *ends in pairs for end in ends):
            twin = {**arm, "label": "twin"}
            title = f"{titled(report, arm)} against its twin"
            panels.append(_panel(report, title, "same data, other start", (arm, twin), pairs, arm["members"], judged))
    if not panels:
        return None
    return Figure(
        "noise_floor",
        "Noise floor, seed by seed",
        "The baseline against a twin that sees the same batches but starts from other weights, for the test seeds. "
        "Differences of this size mean nothing.",
        tuple(panels),
    )


def _drawn(end: Ending) -> bool:
    value, state = end
    return value is not None or state == "diverged"


def _panel(
    report: Row,
    title: str,
    subtitle: str,
    arms: tuple[Row, Row],
    pairs: Sequence[Pair],
    runs: Sequence[Row],
    judged: Row,
) -> Panel:
    """One panel; `runs` give the value before training, `judged` the metric and which way is better."""
    metric, worse = judged["metric"], worse_sign(judged["better"])
    cap = worst_start(runs, worse)
    values = [value for _, *ends in pairs for value, state in ends if value is not None and state == "done"]
    past = [value for value in values if cap is not None and worse * (value - cap) > 0]
    diverged = any(state == "diverged" for _, *ends in pairs for _, state in ends)
    within = frame(values, bool(past) or diverged, cap, worse)
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, 1], nice=False))
    unit = f" ({judged['unit']})" if judged["unit"] else ""
    sheet = Sheet(x, within, metric + unit)
    style = styles_of(report)[arms[1]["arm"]]
    color = ink("base-seed") if arms[1]["baseline"] else style.color
    paths, points, lost = [], [], []
    for seed, *ends in pairs:
        said = [
            f"{arm['label']} {state if value is None or state == 'diverged' else numbers.significant(value, 4)}"
            for arm, (value, state) in zip(arms, ends, strict=True)
        ]
        key = sheet.mark(
            f"seed {seed}: {', '.join(said)}", arms[1]["arm"], seed, "pair", condition=arms[1]["condition"]
        )
        placed = [
            (place, None if state == "diverged" else value)
            for place, (value, state) in zip(PLACES, ends, strict=True)
            if _drawn((value, state))
        ]
        paths.append((key, [(place, within.place(value)) for place, value in placed]))
        points += [(key, place, value) for place, value in placed if value is not None and within.holds(value)]
        lost += [(key, place) for place, value in placed if not within.holds(value)]
    sheet.lines(paths, color, 1.0, 0.7)
    sheet.points(points, color, style.shape, 18)
    sheet.beyond(lost, color)
    whole = [
        (base, test)
        for _, (base, before), (test, after) in pairs
        if before == after == "done" and base is not None and test is not None
    ]
    if whole:
        key = sheet.mark(f"mean of {numbers.plural(len(whole), 'pair')}", arms[1]["arm"], None, "mean")
        means = [within.place(sum(column) / len(whole)) for column in zip(*whole, strict=True)]
        sheet.lines([(key, list(zip(PLACES, means, strict=True)))], style.color, 2.6)
    colors = styles_of(report)[arms[0]["arm"]].color, style.color
    sheet.below([(arm["label"], place, c) for arm, place, c in zip(arms, PLACES, colors, strict=True)])
    description = f"{title}: {metric} of {numbers.plural(len(pairs), 'pair')} of runs, one line a seed"
    return sheet.panel(title, subtitle, style.color, description)
