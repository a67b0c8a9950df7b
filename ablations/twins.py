"""Runs of a baseline that differ in nothing but their initial weights: the noise floor, and the negative control."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ablations import store
from ablations.cells import ArmCell
from ablations.gather import Results
from ablations.power import NoiseFloor, equivalence_seeds_needed, noise_floor
from ablations.schema import MORE_PAIRS, UNITS

OF_INTEREST = {"nats per token": 0.01, "points": 2.0}  # unit -> the smallest difference that twins should be free of
Row = dict[str, Any]


def noise(results: Results) -> list[Row]:
    """The baseline against its twins under each condition: same data, other initial weights."""
    rows = []
    for cell, records in results.arms:
        if cell.has_twins:
            twins = results.twins[cell.condition]
            about = {
                "condition": cell.condition,
                "arm": cell.hash[:10],
                "learning_rate": cell.best_learning_rate(store.scores(records, cell.metric)),
                "metric": cell.metric,
                "unit": UNITS.get(cell.metric, ""),
                "baseline": cell.arm,
            }
            rows.append(_measured(about, twins.pairs, twins.lost))
    return rows


def _measured(about: Mapping[str, Any], pairs: Mapping[int, tuple[float, float]], lost: Iterable[int]) -> Row:
    """A row of `noise`."""
    row = {
        **about,
        "pairs": {str(seed): list(pairs[seed]) for seed in sorted(pairs)},
        "lost": sorted(lost),
        "n": len(pairs),
    }
    if len(pairs) < 2:
        empty = dict.fromkeys(("sigma", "interval", "mean", "mean_interval"))
        return {**row, **empty, "read": "", "note": "needs at least two baseline twins"}
    floor = _floor(pairs)
    mean, read = floor.mean.mean, _read(floor, about["unit"])
    return {
        **row,
        "sigma": floor.sigma,
        "interval": list(floor.interval),
        "mean": mean,
        "mean_interval": list(floor.mean.interval(0.95)),
        "read": read,
        "note": f"{about['baseline']} against itself with other initial weights, on average {mean:+.2g}: {read}",
    }


def pooled(rows: Iterable[Row]) -> dict[tuple[str, float | None, str], Row]:
    """(arm, learning rate, metric) -> the row of `noise` over all pairs of that model, whichever question or
    repetition trained them."""
    known: dict[tuple[str, float | None, str], Row] = {}
    for row in rows:
        key = model_of(row)
        before = known.get(key, row)
        pairs = {int(seed): pair for seed, pair in {**before["pairs"], **row["pairs"]}.items()}
        known[key] = _measured(row, pairs, {*before["lost"], *row["lost"]})
    return known


def model_of(row: Row) -> tuple[str, float | None, str]:
    """What makes pairs of twins comparable: the arm, its learning rate, and what is measured."""
    return row["arm"], row["learning_rate"], row["metric"]


def _floor(pairs: Mapping[int, tuple[float, float]]) -> NoiseFloor:
    return noise_floor(*zip(*pairs.values(), strict=True))


def _read(floor: NoiseFloor, unit: str) -> str:
    """What the mean difference of twins, whose true value is zero, turned out to be."""
    least = OF_INTEREST.get(unit, 0.0)
    if floor.equivalent(least):
        return f"equivalent within {least:g}" if floor.centred else f"not zero, but equivalent within {least:g}"
    if floor.centred:
        return "consistent with zero" + (f", not shown to be within {least:g}" if least else "")
    return "not consistent with zero: the negative control failed"


def in_words(row: Row | None) -> str:
    """A row of `noise`: the mean difference of twins, and how it reads."""
    if row is None or row["mean"] is None:
        return "–"
    low, high = row["mean_interval"]
    lost = f", {len(row['lost'])} more lost to runs that diverged or failed" if row["lost"] else ""
    return f"{row['mean']:+.2g} [{low:+.2g}, {high:+.2g}] {row['unit']}, {row['n']} pairs{lost}: {row['read']}"


# --- How many it takes -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Needed:
    """What it takes to show that a baseline and its twins are equivalent, with a probability of 80%.

    Attributes:
      cell: the baseline, with as many pairs beyond its test seeds.
      said: how many and why; where they cannot be trained, what to do.
      possible: whether they can.
    """

    cell: ArmCell
    said: str
    possible: bool = True


def pairs_needed(results: Results, at_least: int = 0) -> list[Needed]:
    """For each condition with a margin, from the spread of the pairs there are.

    Args:
      at_least: pairs beyond the test seeds, whatever the spread asks for: to repeat a control that failed.

    Their mean has no say, so asking again once more have been trained favours neither answer; the spread is a little
    underestimated where it stops, which raises an error of 5% to some 6% (Wittes and Brittain 1990).
    """
    return [
        _needed(results, cell, OF_INTEREST[UNITS[cell.metric]], not store.todo(cell, records), at_least)
        for cell, records in results.arms
        if cell.has_twins and UNITS.get(cell.metric) in OF_INTEREST
    ]


def _needed(results: Results, cell: ArmCell, margin: float, is_run: bool, at_least: int) -> Needed:
    twins = results.twins[cell.condition]
    if not is_run:
        first = f"first: python -m ablations run {results.name} --profile={results.profile}"
        return Needed(cell, f"{cell.label}: not all its runs have ended, whose spread tells how many; {first}", False)
    if len(twins.pairs) < 2:
        return Needed(cell, f"{cell.label}: fewer than two pairs ended well; the others diverged or failed", False)
    sigma = _floor(twins.pairs).sigma
    needed = equivalence_seeds_needed(margin / sigma) if sigma else 2
    said = (
        f"{cell.label}: twins differ by {sigma:.2g} {UNITS[cell.metric]} (standard deviation); {needed:,} pairs show "
        f"with a probability of 80% that they are equivalent within {margin:g}, {len(twins.pairs)} are there"
    )
    tried = sum(seed in MORE_PAIRS for seed in (*twins.pairs, *twins.lost))
    more = max(at_least, tried + max(0, needed - len(twins.pairs)))
    if more > len(MORE_PAIRS):
        return Needed(cell, f"{said}, and seeds for {len(MORE_PAIRS)} more: train longer, or a larger model", False)
    return Needed(dataclasses.replace(cell, more_pairs=more), said)
