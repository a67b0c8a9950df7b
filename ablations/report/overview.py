"""One picture of everything that was compared so far: each difference in units of its margin, each fraction left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ablations.report.members import of_a_table
from ablations.report.numbers import significant
from ablations.report.palette import ink
from ablations.report.svg import Figure, Panel, render

VERDICTS = {"supported": "arm2", "refuted": "arm1", "mixed": "arm3", "inconclusive": "muted"}
ROW, WIDTH = 19, 420
TITLES = {
    "difference": "difference / smallest that matters (logarithmic beyond 1)",
    "recovered fraction": "share of what the baseline learned that is left",
}
Row = Mapping[str, Any]


def overview(reports: Sequence[Row]) -> Figure | None:
    """Every comparison of two arms with its 95% interval, coloured by its verdict; None while there is none."""
    shown = [(name, title, rows) for name, title in TITLES.items() if (rows := _rows(reports, name))]
    if not shown:
        return None
    panels = tuple(_panel(*arguments, with_legend=i == 0) for i, arguments in enumerate(shown))
    return Figure(
        "answers",
        "What was compared so far",
        "Dots are estimates, lines 95% intervals; a hollow dot is a median, without an interval since runs diverged. A "
        "difference inside the grey band is too small to matter; a fraction left of it means that the part is "
        "essential, right of it that it is dispensable; upright ticks are what a bigram table comes to. Green: the "
        "claim is supported; orange: refuted; purple: mixed; grey: undecided.",
        panels,
        columns=1,
    )


def _rows(reports: Sequence[Row], name: str) -> list[dict[str, Any]]:
    found = []
    for report in reports:
        for decision in report["decisions"]:
            if decision["estimate_name"] != name or decision["estimate"] is None or not decision["margin"]:
                continue
            scale = decision["margin"] if name == "difference" else 1.0
            low, high = decision["interval95"] or (decision["estimate"], decision["estimate"])
            where = "" if decision["condition"] == "default" else f", {decision['condition']}"
            where += "" if decision["metric"] == "loss" else f" ({decision['metric']})"
            what = f"{report['name']}: {decision['test']} − {decision['base']}"
            if name != "difference":
                what = f"{report['name']}: {decision['test']}"
            found.append(
                {
                    "what": (what + where).replace("_", " "),
                    "estimate": decision["estimate"] / scale,
                    "low": low / scale,
                    "high": high / scale,
                    "median": decision["median"],
                    "verdict": decision["verdict"],
                    "table": of_a_table(report, decision),
                    "said": f"{significant(decision['estimate'], 2)} {decision['unit'] or name}",
                }
            )
    found = [row for i, row in enumerate(found) if row not in found[:i]]  # two claims about one comparison
    seen: dict[str, int] = {}
    for row in found:  # two contrasts of the same arms that came out otherwise are two rows
        seen[row["what"]] = seen.get(row["what"], 0) + 1
        row["what"] += f" ({seen[row['what']]})" if seen[row["what"]] > 1 else ""
    return found


def _panel(name: str, title: str, rows: list[dict[str, Any]], with_legend: bool) -> Panel:
    band = (-1.0, 1.0) if name == "difference" else (0.25, 0.75)
    scale: dict[str, Any] = {"type": "symlog", "constant": 1} if name == "difference" else {"domain": [-0.1, 1.2]}
    axis: dict[str, Any] = {
        "title": title,
        "gridColor": ink("grid"),
        "labelColor": ink("muted"),
        "titleColor": ink("ink"),
    }
    if name == "difference":
        axis["values"] = [-1000, -100, -10, -1, 0, 1, 10, 100, 1000]
    x = {"type": "quantitative", "scale": scale, "axis": axis}
    order = [row["what"] for row in rows]
    y = {
        "field": "what",
        "type": "nominal",
        "sort": order,
        "axis": {"title": None, "labelLimit": 420, "labelColor": ink("ink"), "domain": False, "ticks": False},
    }
    color = {
        "field": "verdict",
        "type": "nominal",
        "scale": {"domain": list(VERDICTS), "range": [ink(color) for color in VERDICTS.values()]},
        "legend": {"title": None, "orient": "top", "symbolType": "circle", "labelColor": ink("ink")}
        if with_legend
        else None,
    }
    table = {
        "data": {"values": [row for row in rows if row["table"] is not None]},
        "mark": {"type": "tick", "thickness": 2, "size": ROW - 5, "color": ink("ink"), "clip": True},
        "encoding": {"x": {**x, "field": "table"}, "y": y},
    }
    spec = {
        "data": {"values": rows},
        "width": WIDTH,
        "height": {"step": ROW},
        "config": {"view": {"stroke": None}, "font": "Liberation Sans", "background": "transparent"},
        "layer": [
            {
                "data": {"values": [{"from": band[0], "to": band[1]}]},
                "mark": {"type": "rect", "color": ink("margin")},
                "encoding": {"x": {**x, "field": "from"}, "x2": {"field": "to"}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 1.6, "clip": True},
                "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, "color": color},
            },
            *(
                {
                    "data": {"values": [row for row in rows if row["median"] is hollow]},
                    "mark": {"type": "point", "filled": not hollow, "size": 46, "opacity": 1, "clip": True},
                    "encoding": {"x": {**x, "field": "estimate"}, "y": y, "color": color},
                }
                for hollow in (False, True)
            ),
            *([table] if any(row["table"] is not None for row in rows) else []),
        ],
    }
    described = "; ".join(f"{row['what']} {row['said']}, {row['verdict']}" for row in rows)
    return render(spec, {}, f"{title}: {described}")
