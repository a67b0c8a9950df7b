"""What stands behind every verdict: what the baseline had to manage, and how far chance alone moves it."""

from __future__ import annotations

import math
from typing import Any

from ablations import store
from ablations.cells import ArmCell, Member
from ablations.gather import Results, positive_control
from ablations.power import NoiseFloor, noise_floor
from ablations.schema import UNITS


def noise(results: Results) -> list[dict[str, Any]]:
    """The baseline against its twins under each condition: same data, other initial weights."""
    rows: list[dict[str, Any]] = []
    for cell, records in results.arms:
        if not cell.has_twins:
            continue
        rows.append(
            {"condition": cell.condition, "unit": UNITS.get(cell.metric, ""), "n": 0}
            | dict.fromkeys(("sigma", "interval", "mean", "mean_interval"))
            | {"read": "", "note": "needs at least two baseline twins"}
        )
        best = cell.best_learning_rate(store.scores(records, cell.metric))
        pairs = []
        for seed in cell.test_seeds:
            both = [records.get(Member(best or 0.0, seed, twin)) for twin in (False, True)]
            values = [r.metrics.get(cell.metric) for r in both if r and r.state == "done"]
            if len(values) == 2 and all(isinstance(v, float) and math.isfinite(v) for v in values):
                pairs.append((float(values[0] or 0.0), float(values[1] or 0.0)))
        if len(pairs) < 2:
            continue
        floor = noise_floor([p[0] for p in pairs], [p[1] for p in pairs])
        read = _read(floor, _margin(results, cell))
        rows[-1] |= {
            "sigma": floor.sigma,
            "interval": list(floor.interval),
            "n": floor.n,
            "mean": floor.mean.mean,
            "mean_interval": list(floor.mean.interval(0.95)),
            "read": read,
            "note": f"{cell.arm} against itself with other initial weights; their mean difference is {read}",
        }
    return rows


def _margin(results: Results, cell: ArmCell) -> float:
    """The smallest difference that any contrast under the condition treats as one; zero without any."""
    margins = [
        contrast.margin
        for contrast in results.ablation.contrasts
        if contrast.metric == cell.metric
        and contrast.type in ("superiority", "equivalence")
        and cell.condition in (contrast.conditions or results.ablation.conditions)
    ]
    return min(margins, default=0.0)


def _read(floor: NoiseFloor, margin: float) -> str:
    """What the mean difference of twins, whose true value is zero, turned out to be."""
    if floor.centred:
        return "consistent with zero"
    if floor.negligible(margin):
        return f"not zero, but too small to matter (less than {margin:g})"
    return "not consistent with zero: the negative control failed"


def control(results: Results, condition: str) -> dict[str, Any]:
    """What the baseline had to manage, and whether it did."""
    found = positive_control(results, condition)
    if found is None:
        return {"control": "", "passed": None}
    return {"control": f"{found.name} ({found.detail})", "passed": found.passed}
