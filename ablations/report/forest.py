"""The estimate of one comparison as a small picture: interval, zero line and margin, on a scale its rows share.

Small enough to stand in a table cell, so it is drawn by hand: no chart library lays out a single row this tight.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ablations.analyses.stability import AS_STABLE
from ablations.decide import KEPT, LOST
from ablations.report.numbers import fixed, significant

WIDTH, HEIGHT = 200, 34
LEFT, RIGHT, MIDDLE = 8, WIDTH - 8, 11
AT_MOST = 3  # a scale ends at this many times the middle row's reach; what lies beyond gets an arrow
DIFFERENCES = ("difference", "claimed best against worst")
SAME_SENSITIVITY = (1 / AS_STABLE, AS_STABLE)
PARTLY_LOST = (LOST, KEPT)


@dataclasses.dataclass(frozen=True)
class Scale:
    """A shared horizontal axis.

    Attributes:
      low, high: its ends, in units of the estimate.
      ticks: labelled values.
      log: ratios are drawn on a logarithmic axis.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def x(self, value: float) -> float:
        """Pixels from the left edge, held inside the frame."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, 1e-9))
        share = min(1.0, max(0.0, (at - low) / (high - low)))
        return LEFT + share * (RIGHT - LEFT)


def scales(decisions: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Scale]:
    """(estimate name, metric) -> the axis that all its rows share; kinds without any estimate are left out."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for decision in decisions:
        if decision["estimate"] is not None:
            groups.setdefault((decision["estimate_name"], decision["metric"]), []).append(decision)
    return {key: _scale(key[0], rows) for key, rows in groups.items()}


def _scale(name: str, rows: Sequence[Mapping[str, Any]]) -> Scale:
    if name == "recovered fraction":
        return Scale(-0.25, 1.25, (0.0, 0.5, 1.0))
    reaches = [[*_ends(row), *_stated(row)] for row in rows]
    if name == "sensitivity ratio":
        reach = _capped([max(abs(math.log(max(end, 1e-9))) for end in ends) for ends in reaches])
        limit = math.exp(max(reach, math.log(2)) * 1.1)
        return Scale(1 / limit, limit, (1 / limit, 1.0, limit), log=True)
    if name in DIFFERENCES:
        margins = [row["margin"] for row in rows if row["margin"]]
        reach = max(_capped([max(map(abs, ends)) for ends in reaches]), 2 * max(margins, default=0.0), 1e-9)
        limit = _round_up(reach * 1.05)
        return Scale(-limit, limit, (-limit, 0.0, limit))
    low, high = min(min(ends) for ends in reaches), max(max(ends) for ends in reaches)
    pad = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    return Scale(low - pad, high + pad, (low, high) if high > low else (low,))


def _ends(row: Mapping[str, Any]) -> list[float]:
    return [row["estimate"], *(row["interval95"] or ()), *(row["interval90"] or ())]


def _stated(row: Mapping[str, Any]) -> list[float]:
    """The value that a level has to reach."""
    return [row["margin"]] if row["estimate_name"] == "mean" and row["margin"] is not None else []


def _capped(reaches: Sequence[float]) -> float:
    return min(max(reaches), AT_MOST * statistics.median(reaches))


def _round_up(number: float) -> float:
    """The next 1, 1.5, 2, 3, 5 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(number))
    return next((step * power for step in (1, 1.5, 2, 3, 5, 8) if step * power >= number), 10 * power)


def band(decision: Mapping[str, Any]) -> tuple[float, float] | None:
    """The values that count as no difference, or, for a recovered fraction, as partly lost."""
    name = decision["estimate_name"]
    if name in DIFFERENCES:
        margin = decision["margin"]
        return (-margin, margin) if margin else None
    return {"recovered fraction": PARTLY_LOST, "sensitivity ratio": SAME_SENSITIVITY}.get(name)


def cell(decision: Mapping[str, Any], scale: Scale, role: str) -> str:
    """The picture as SVG text: band, reference line, 95% interval thin, 90% thick, estimate as a dot."""
    shapes = []
    shaded = band(decision)
    if shaded:
        left, right = scale.x(shaded[0]), scale.x(shaded[1])
        shapes.append(
            f'<rect class="f-margin" data-mark="margin" x="{left:.1f}" y="1" '
            f'width="{max(right - left, 1.0):.1f}" height="20"/>'
        )
    if decision["estimate_name"] != "exponent":
        known = {"recovered fraction": 0.5, "sensitivity ratio": 1.0}.get(decision["estimate_name"], 0.0)
        reference = next(iter(_stated(decision)), known)
        shapes.append(_line(scale.x(reference), scale.x(reference), "axis", 1, y1=0, y2=22))
    for interval, width in ((decision["interval95"], 1.5), (decision["interval90"], 4)):
        if interval:
            shapes.append(_line(scale.x(interval[0]), scale.x(interval[1]), role, width))
            shapes += [_arrow(scale, end, role) for end in interval if width < 4 and _outside(scale, end)]
    estimate = decision["estimate"]
    filled = f'class="f-{role}"' if not decision["median"] else f'class="s-{role}" fill="none" stroke-width="1.5"'
    shapes.append(
        _arrow(scale, estimate, role)
        if _outside(scale, estimate)
        else f'<circle {filled} data-mark="estimate" cx="{scale.x(estimate):.1f}" cy="{MIDDLE}" r="3.6"/>'
    )
    shapes += [_tick(scale, tick, decision["estimate_name"] in DIFFERENCES) for tick in scale.ticks]
    title = escape(describe(decision))
    return (
        f'<svg class="forest" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{''.join(shapes)}</svg>"
    )


def describe(decision: Mapping[str, Any]) -> str:
    """The picture in words, for those who cannot see it."""
    text = f"{decision['estimate_title']} {significant(decision['estimate'])}"
    for level, key in ((95, "interval95"), (90, "interval90")):
        if decision[key]:
            low, high = decision[key]
            text += f", {level}% interval {significant(low)} to {significant(high)}"
    shaded = band(decision)
    return text + (f"; shaded from {significant(shaded[0])} to {significant(shaded[1])}" if shaded else "")


def _outside(scale: Scale, value: float) -> bool:
    return not scale.low <= value <= scale.high


def _line(x1: float, x2: float, role: str, width: float, y1: float = MIDDLE, y2: float = MIDDLE) -> str:
    return (
        f'<line class="s-{role}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1}" y2="{y2}" stroke-width="{width}" '
        'stroke-linecap="butt"/>'
    )


def _arrow(scale: Scale, value: float, role: str) -> str:
    """A head at the end of the frame that `value` lies beyond."""
    x, back = (RIGHT + 7, -8) if value > scale.high else (LEFT - 7, 8)
    return f'<path class="f-{role}" data-mark="beyond" d="M{x},{MIDDLE}l{back},-5v10z"/>'


def _tick(scale: Scale, value: float, signed: bool) -> str:
    x = scale.x(value)
    anchor = "start" if x < WIDTH * 0.2 else "end" if x > WIDTH * 0.8 else "middle"
    x = 1 if anchor == "start" else WIDTH - 1 if anchor == "end" else x
    text = significant(value, 2)
    if signed and value > 0:
        text = "+" + text
    if scale.log:
        text = fixed(value, 1 if value >= 1 else 2) + "×"
    return f'<text class="f-muted" x="{x:.1f}" y="32" font-size="10" text-anchor="{anchor}">{text}</text>'
