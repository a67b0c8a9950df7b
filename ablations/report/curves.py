"""What the figures need to know about curves: where the frame ends, what is drawn at its edge, means, labels.

A frame holds every value of the runs that finished, so the spread over seeds is always in sight. What is worse than
that, a diverged run above all, is drawn at the edge of the frame and marked: it may not flatten everything else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

Point = tuple[float, float]
PAD, EDGE = 0.06, 0.13  # of the span: beside the values, and room for the edge where something is drawn there


@dataclasses.dataclass(frozen=True)
class Frame:
    """The vertical range of a panel.

    Attributes:
      low, high: its ends.
      edge: the worst value drawn in its place; what is worse, or not a number, is drawn here.
      worse: 1 where larger is worse, -1 where smaller is.
    """

    low: float
    high: float
    edge: float
    worse: int = 1

    def holds(self, value: float | None) -> bool:
        """Whether the value is drawn in its place."""
        return value is not None and self.worse * (value - self.edge) <= 0

    def place(self, value: float | None) -> float:
        """The value, or the edge for what is beyond it or not a number."""
        return value if value is not None and self.holds(value) else self.edge


def frame(values: Iterable[float], beyond: bool, cap: float | None = None, worse: int = 1, log: bool = False) -> Frame:
    """A frame around `values`, without those worse than `cap`.

    Args:
      beyond: something will be drawn at the edge.
      cap: the value before training: nothing worse than that is drawn in its place.
      log: the axis is logarithmic and the values are positive.
    """
    kept = [value for value in values if cap is None or worse * (value - cap) <= 0]
    if not kept:
        kept = [cap if cap is not None else 1.0]
    if log:
        inner = frame([math.log(value) for value in kept], beyond, None, worse)
        return Frame(math.exp(inner.low), math.exp(inner.high), math.exp(inner.edge), worse)
    low, high = min(kept), max(kept)
    span = (high - low) or abs(high) * 0.1 or 1.0
    best, worst = (low, high) if worse > 0 else (high, low)
    edge = worst + worse * span * (EDGE if beyond else 0.0)
    low, high = sorted((best - worse * span * PAD, edge + worse * span * PAD))
    return Frame(low, high, edge, worse)


def enter(points: Sequence[tuple[float, float | None]], within: Frame) -> list[Point]:
    """The curve inside the frame: from where it comes in, and along the edge where it leaves again."""
    first = next((i for i, (_, y) in enumerate(points) if within.holds(y)), None)
    if first is None:
        return [(x, within.edge) for x, _ in points]
    entry = []
    if first > 0:
        (x0, y0), (x1, y1) = points[first - 1], points[first]
        if y0 is not None and y1 is not None:
            entry = [(x0 + (x1 - x0) * (within.edge - y0) / (y1 - y0), within.edge)]
    return [*entry, *((x, within.place(y)) for x, y in points[first:])]


def mean_curve(curves: Sequence[Sequence[tuple[float, float | None]]]) -> list[Point]:
    """The mean where every curve has a finite value; empty without curves."""
    if not curves:
        return []
    tables = [dict(curve) for curve in curves]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    means = []
    for x in common:
        values = [value for table in tables if (value := table[x]) is not None]
        if len(values) == len(tables):
            means.append((x, math.fsum(values) / len(values)))
    return means


def spread(values: Sequence[float], gap: float, end: float) -> list[float]:
    """The values, moved apart as little as needed so that neighbours are `gap` apart, between 0 and `end`.

    The order is kept.
    """
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    clusters: list[list[int]] = []
    for i in order:
        clusters.append([i])
        while len(clusters) > 1 and _start(clusters[-1], values, gap) - _start(clusters[-2], values, gap) < gap * len(
            clusters[-2]
        ):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    moved = list(values)
    for cluster in clusters:
        for rank, i in enumerate(cluster):
            moved[i] = _start(cluster, values, gap) + rank * gap
    limit = end
    for i in reversed(order):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    limit = 0.0
    for i in order:
        moved[i] = max(moved[i], limit)
        limit = moved[i] + gap
    return moved


def _start(cluster: Sequence[int], values: Sequence[float], gap: float) -> float:
    """The smallest place of a cluster that is centred on its values."""
    return math.fsum(values[i] for i in cluster) / len(cluster) - gap * (len(cluster) - 1) / 2
