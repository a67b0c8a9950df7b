"""Records: what a finished member leaves for the verdict, small enough to commit, sealed by a digest.

The directory of arms is also the queue: a member is done when its record exists.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablations.cells import Member, Score
from transformer.training.jsonfiles import read_json, write_json

RECORD = "record.json"
CURVE_POINTS = 100


@dataclasses.dataclass(frozen=True)
class Record:
    """One member, ended.

    Attributes:
      state: done, diverged or failed.
      metrics: metric -> final value, in the metric's unit; `loss` is on the test split where there is one.
      tuning_value: the primary metric on validation.
      initial: loss of the first step.
      curve: [tokens, validation loss] during training.
      train_curve: [tokens, train loss, gradient norm].
      contrasts: `ablation:claim:hash` of every contrast registered when it was trained.
    """

    member: Member
    state: str
    arm_hash: str
    metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    tuning_value: float | None = None
    initial: float | None = None
    diverged_at: int | None = None
    error: str = ""
    parameters: int = 0
    components: Mapping[str, int] = dataclasses.field(default_factory=dict)
    flops_per_token: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    curve: tuple[tuple[float, ...], ...] = ()
    train_curve: tuple[tuple[float, ...], ...] = ()
    references: Mapping[str, float] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    contrasts: tuple[str, ...] = ()
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def score(self) -> Score | None:
        """What it says about its learning rate; None if it failed, which says nothing."""
        return None if self.state == "failed" else Score(self.tuning_value)


def thin(points: list[tuple[float, ...]], most: int = CURVE_POINTS) -> tuple[tuple[float, ...], ...]:
    """At most `most` points, first and last among them."""
    if len(points) <= most:
        return tuple(points)
    return tuple(points[round(i * (len(points) - 1) / (most - 1))] for i in range(most))


def write_record(directory: Path, record: Record) -> None:
    """Seals and stores a record; its existence marks the member as finished."""
    content = dataclasses.asdict(record)
    write_json(directory / RECORD, {**content, "digest": _digest(content)})


def read_record(directory: Path) -> tuple[Record, bool] | None:
    """(record, whether its digest fits its content), or None if the member is unfinished."""
    path = directory / RECORD
    if not path.is_file():
        return None
    try:
        content = read_json(path)
    except (OSError, json.JSONDecodeError):
        return None  # torn by something other than us: train it again
    digest = content.pop("digest", "")
    intact = digest == _digest(content)
    content["member"] = Member(**content["member"])
    for name in ("curve", "train_curve"):
        content[name] = tuple(tuple(point) for point in content[name])
    content["contrasts"] = tuple(content["contrasts"])
    return Record(**content), intact


def read_arm(directory: Path) -> tuple[dict[Member, Record], list[str]]:
    """(records of all finished members, names of those whose record was changed by hand).

    A changed record is not used: its member counts as missing.
    """
    records, tampered = {}, []
    for path in sorted(directory.glob(f"*/{RECORD}")):
        found = read_record(path.parent)
        if found is None:
            continue
        record, intact = found
        if intact:
            records[record.member] = record
        else:
            tampered.append(f"{directory.name}/{path.parent.name}")
    return records, tampered


def scores(records: Mapping[Member, Record]) -> dict[Member, Score]:
    """What the finished members say about learning rates."""
    found = {member: record.score for member, record in records.items()}
    return {member: score for member, score in found.items() if score is not None}


def _digest(content: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
