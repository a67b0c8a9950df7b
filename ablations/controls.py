"""What stands behind every verdict: what the baseline had to manage, and how far chance alone moves it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ablations import store
from ablations.cells import ArmCell, Member
from ablations.gather import Results, positive_control
from ablations.power import NoiseFloor, equivalence_seeds_needed, noise_floor
from ablations.schema import MAX_SEED, UNITS
from ablations.store import Record
from transformer.errors import UserError

OF_INTEREST = {"nats per token": 0.01, "points": 2.0}  # unit -> the smallest difference that twins should be free of


def noise(results: Results) -> list[dict[str, Any]]:
    """The baseline against its twins under each condition: same data, other initial weights."""
    rows: list[dict[str, Any]] = []
    for cell, records in _baselines(results):
        unit, pairs = UNITS.get(cell.metric, ""), results.pairs[cell.condition]
        rate = cell.best_learning_rate(store.scores(records, cell.metric))
        rows.append(
            {"condition": cell.condition, "unit": unit, "n": 0, "arm": cell.hash[:10], "learning_rate": rate}
            | dict.fromkeys(("sigma", "interval", "mean", "mean_interval"))
            | {"read": "", "note": "needs at least two baseline twins"}
        )
        if len(pairs) < 2:
            continue
        floor = _floor(pairs)
        read = _read(floor, unit)
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


def _baselines(results: Results) -> list[tuple[ArmCell, dict[Member, Record]]]:
    return [(cell, records) for cell, records in results.arms if cell.has_twins]


def _floor(pairs: Mapping[int, tuple[float, float]]) -> NoiseFloor:
    return noise_floor(*zip(*pairs.values(), strict=True))


def _read(floor: NoiseFloor, unit: str) -> str:
    """What the mean difference of twins, whose true value is zero, turned out to be."""
    least = OF_INTEREST.get(unit, 0.0)
    if floor.equivalent(least):
        return f"equivalent within {least:g}" if floor.centred else f"not zero, but equivalent within {least:g}"
    if floor.centred:
        return "consistent with zero" + (f", with too few pairs to show that it is within {least:g}" if least else "")
    return "not consistent with zero: the negative control failed"


def in_words(row: Mapping[str, Any] | None) -> str:
    """A row of `noise`: the mean difference of twins, and how it reads."""
    if row is None or row["mean"] is None:
        return "–"
    low, high = row["mean_interval"]
    return f"{row['mean']:+.2g} [{low:+.2g}, {high:+.2g}] {row['unit']}, {row['n']} pairs: {row['read']}"


@dataclasses.dataclass(frozen=True)
class Needed:
    """How many pairs of a baseline and its twin show that they are equivalent, with 80% power."""

    cell: ArmCell
    sigma: float
    margin: float
    pairs: int

    def __str__(self) -> str:
        unit = UNITS[self.cell.metric]
        return (
            f"{self.cell.label}: twins differ by {self.sigma:.2g} {unit} (standard deviation), so that it takes "
            f"{self.pairs} pairs to show that they are equivalent within {self.margin:g}"
        )


def pairs_needed(results: Results) -> list[Needed]:
    """For each condition, from the spread of the pairs there are. Their mean has no say, so asking again once more have
    been trained does not favour an answer (Wittes and Brittain 1990).

    Raises:
      UserError: not all runs of a baseline have ended; or its twins differ so much that there are not enough seeds.
    """
    found = []
    for cell, records in _baselines(results):
        margin = OF_INTEREST.get(UNITS.get(cell.metric, ""))
        if margin is None:
            continue
        pairs = results.pairs[cell.condition]
        if store.todo(cell, records) or len(pairs) < 2:
            raise UserError(
                f"{cell.label} has not ended all runs whose spread tells how many pairs of twins it takes; first: "
                f"python -m ablations run {results.name} --profile={results.profile}"
            )
        sigma = _floor(pairs).sigma
        needed = equivalence_seeds_needed(margin / sigma) if sigma else 2
        if cell.settings.first_seed + needed > MAX_SEED:
            raise UserError(
                f"{cell.label}: twins differ by {sigma:.2g}, so that it takes {needed:,} pairs to show that they are "
                f"equivalent within {margin:g}; there are only {MAX_SEED:,} test seeds. Train longer or a larger model."
            )
        found.append(Needed(dataclasses.replace(cell, pairs=needed), sigma, margin, needed))
    return found


def control(results: Results, condition: str) -> dict[str, Any]:
    """What the baseline had to manage, and whether it did."""
    found = positive_control(results, condition)
    if found is None:
        return {"control": "", "passed": None}
    return {"control": f"{found.name} ({found.detail})", "passed": found.passed}
