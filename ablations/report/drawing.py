"""The parts all charts are made of: one look, and marks that remember which arm and seed they stand for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import altair as alt

from ablations.report.curves import Frame, Point, spread
from ablations.report.palette import ink
from ablations.report.svg import FONT, Mark, Panel, render

WIDTH, HEIGHT = 214, 150  # of the plot
LABEL_ROOM, AXIS_ROOM = 74, 44
PANEL_WIDTH = AXIS_ROOM + WIDTH + LABEL_ROOM + 8
LABEL_GAP = 12  # pixels between two direct labels
KEY_ROWS, KEY_GAP = 14, 11
Axis = Literal["linear", "log"]
KEY, LABEL = alt.Description("key:N"), alt.Text("label:N")


_QUIET = {"labelColor": ink("muted"), "titleColor": ink("muted"), "labelFontSize": 10, "titleFontSize": 10}
THEME: dict[str, Any] = {
    "background": None,
    "font": FONT,
    "padding": 2,
    "view": {"stroke": None},
    "text": {"fontSize": 10},
    "axis": {
        **_QUIET,
        "titleFontWeight": "normal",
        "domainColor": ink("axis"),
        "tickColor": ink("axis"),
        "gridColor": ink("grid"),
    },
    "axisX": {"grid": False, "titlePadding": 4, "labelFlush": False},
    # The title of the vertical axis lies flat above it: upright it would cost width, and necks.
    "axisY": {
        "domain": False,
        "ticks": False,
        "minExtent": AXIS_ROOM,
        "maxExtent": AXIS_ROOM,
        "titleAngle": 0,
        "titleAlign": "left",
        "titleAnchor": "start",
        "titleX": -AXIS_ROOM,
        "titleY": -8,
        "titleBaseline": "bottom",
    },
}


class Sheet:
    """One panel being drawn: layers from the back to the front, their data, and what their marks mean."""

    def __init__(self, x: alt.X, y_frame: Frame, y_title: str, y_axis: Axis = "linear"):
        self._x = x
        self._frame = y_frame
        self._log = y_axis == "log"
        self._y = alt.Y(
            "y:Q",
            scale=alt.Scale(type=y_axis, domain=[y_frame.low, y_frame.high], nice=False, zero=False),
            axis=alt.Axis(title=y_title, tickCount=5, format="~g" if self._log else alt.Undefined),
        )
        self._layers: list[dict[str, Any]] = []
        self._data: dict[str, list[dict[str, Any]]] = {}
        self._marks: dict[str, Mark] = {}

    def mark(self, title: str, arm: str, seed: int | None, kind: str, **more: str | int) -> str:
        """A new key for an element that stands for one arm, and for one seed unless it is a mean."""
        key = f"m{len(self._marks)}"
        data: dict[str, str | int] = {"arm": arm, "mark": kind, **more}
        if seed is not None:
            data["seed"] = seed
        self._marks[key] = Mark(title, data)
        return key

    def _add(self, layer: alt.Chart) -> None:
        self._layers.append(layer.to_dict(validate=False))  # its parts were checked when they were made

    def _layer(self, rows: list[dict[str, Any]]) -> alt.Chart:
        name = f"d{len(self._data)}"
        self._data[name] = rows
        return alt.Chart(alt.NamedData(name))

    def lines(
        self,
        curves: Sequence[tuple[str, Sequence[Point]]],
        color: str,
        width: float = 1.0,
        opacity: float = 1.0,
        dash: Sequence[int] = (1, 0),
    ) -> None:
        """One line per (key, points)."""
        rows = [{"x": x, "y": y, "key": key} for key, points in curves for x, y in points]
        if rows:
            drawn = self._layer(rows).mark_line(
                color=color, strokeWidth=width, opacity=opacity, strokeDash=list(dash), strokeCap="round"
            )
            self._add(drawn.encode(x=self._x, y=self._y, detail=alt.Detail("key:N"), description=KEY))

    def points(
        self,
        points: Sequence[tuple[str, float, float]],
        color: str,
        shape: str = "circle",
        size: float = 24,
        opacity: float = 0.85,
    ) -> None:
        """One filled point per (key, x, y)."""
        rows = [{"x": x, "y": y, "key": key} for key, x, y in points]
        if rows:
            drawn = self._layer(rows).mark_point(
                filled=True, color=color, shape=shape, size=size, opacity=opacity, strokeWidth=0
            )
            self._add(drawn.encode(x=self._x, y=self._y, description=KEY))

    def beyond(self, points: Sequence[tuple[str, float]], color: str) -> None:
        """Triangles at the edge of the frame, for what lies beyond it."""
        shape = "triangle-up" if self._frame.worse > 0 else "triangle-down"
        edge = [(key, x, self._frame.edge) for key, x in points]
        self.points(edge, color, shape, size=46, opacity=1.0)

    def level(self, value: float, label: str, color: str, dash: Sequence[int] = (2, 2)) -> None:
        """A labelled horizontal rule, when it lies inside the frame."""
        if not self._frame.low <= value <= self._frame.high:
            return
        key = self.mark(f"{label}: {value:.4g}", "", None, "reference")
        chart = self._layer([{"y": value, "key": key, "label": label}])
        self._add(chart.mark_rule(color=color, strokeDash=list(dash)).encode(y=self._y, description=KEY))
        self._add(
            chart.mark_text(align="left", baseline="bottom", dx=3, dy=-2, fontSize=9, color=color, limit=150).encode(
                x=alt.XValue(0), y=self._y, text=LABEL
            )
        )

    def upright(self, x: float, color: str, key: str) -> None:
        """A vertical rule."""
        chart = self._layer([{"x": x, "key": key}])
        self._add(chart.mark_rule(color=color, strokeDash=[3, 2]).encode(x=self._x, description=KEY))

    def labels(self, ends: Sequence[tuple[str, float, str]]) -> None:
        """Names beside the ends of lines, (name, y, colour), moved apart where they would collide."""
        low, high = (self._scaled(end) for end in (self._frame.low, self._frame.high))
        pixels = [HEIGHT * (high - self._scaled(y)) / (high - low) for _, y, _ in ends]
        for (name, _, color), y in zip(ends, spread(pixels, LABEL_GAP, HEIGHT), strict=True):
            chart = self._layer([{"label": name}])
            text = chart.mark_text(align="left", baseline="middle", dx=6, color=color, limit=LABEL_ROOM - 8)
            self._add(text.encode(x=alt.XValue(WIDTH), y=alt.YValue(round(y, 1)), text=LABEL))

    def key(self, names: Sequence[tuple[str, str, Sequence[int]]]) -> None:
        """Names, (name, colour, dash), with a piece of their line, for panels with too many lines to label."""
        shown = list(names[:KEY_ROWS])
        if len(names) > KEY_ROWS:
            shown[-1] = (f"and {len(names) - KEY_ROWS + 1} more", ink("muted"), (0, 1))
        for row, (name, color, dash) in enumerate(shown):
            chart, y = self._layer([{"label": name}]), alt.YValue(row * KEY_GAP)
            left, right = alt.XValue(WIDTH + 6), alt.X2Value(WIDTH + 20)
            line = chart.mark_rule(color=color, strokeWidth=1.8, strokeDash=list(dash))
            self._add(line.encode(x=left, x2=right, y=y))
            text = chart.mark_text(align="left", baseline="middle", color=color, limit=LABEL_ROOM - 22, fontSize=9)
            self._add(text.encode(x=alt.XValue(WIDTH + 23), y=y, text=LABEL))

    def below(self, names: Sequence[tuple[str, float, str]]) -> None:
        """Names under the plot, (name, centre as a share of the width, colour)."""
        for name, share, color in names:
            text = self._layer([{"label": name}]).mark_text(baseline="top", color=color, limit=WIDTH * 0.55)
            self._add(text.encode(x=alt.XValue(share * WIDTH), y=alt.YValue(HEIGHT + 8), text=LABEL))

    def _scaled(self, y: float) -> float:
        return math.log(y) if self._log else y

    def panel(self, title: str, subtitle: str, color: str, description: str) -> Panel:
        """The finished panel."""
        if not self._layers:
            self.points([("", 0, self._frame.low)], "transparent")
        heading = alt.TitleParams(
            text=title or " ", subtitle=subtitle or " ", color=color, subtitleColor=ink("muted"),
            limit=PANEL_WIDTH - 12, anchor="start", frame="bounds", fontSize=12, subtitleFontSize=10, offset=14,
        )  # fmt: skip
        spec = {
            "$schema": alt.SCHEMA_URL,
            "config": THEME,
            "width": WIDTH,
            "height": HEIGHT,
            "title": heading.to_dict(),
            "layer": self._layers,
            "datasets": self._data,
        }
        panel = render(spec, self._marks, description)
        return dataclasses.replace(panel, width=max(panel.width, PANEL_WIDTH))  # all alike, so that texts are too
