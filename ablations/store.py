"""Records: what a finished member leaves for the verdict, small enough to commit, sealed by a digest.

The directory of arms is also the queue: a member is done when its record exists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablations.cells import ArmCell, Member
from ablations.evidence import Outcome
from ablations.schema import PERCENT
from transformer.training.jsonfiles import read_json, write_json

RECORD = "record.json"
PACKED = ".jsonl"  # an arm's records in one file, a line each: what is committed
CURVE_POINTS = 100
RISEN = 1.5  # a loss so many times its own minimum has not recovered


@dataclasses.dataclass(frozen=True)
class Record:
    """One member, ended.

    Attributes:
      state: done, diverged or failed.
      metrics: metric -> final value, in the metric's unit, None where it is not finite; `loss` is on the test split
        where there is one.
      initial: loss of the first step.
      curve: [tokens, validation loss] during training; curves: the same for other metrics that were evaluated on the
        way, by name.
      train_curve: [tokens, train loss, gradient norm].
      contrasts: `ablation:claim:hash` of every contrast registered when its training began.
      probes: those that were asked of it, whether they found something to measure or not.
    """

    member: Member
    state: str
    arm_hash: str
    metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    initial: float | None = None
    diverged_at: int | None = None
    error: str = ""
    parameters: int = 0
    components: Mapping[str, int] = dataclasses.field(default_factory=dict)
    flops_per_token: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    curve: tuple[tuple[float, ...], ...] = ()
    curves: Mapping[str, tuple[tuple[float, ...], ...]] = dataclasses.field(default_factory=dict)
    train_curve: tuple[tuple[float, ...], ...] = ()
    references: Mapping[str, float] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    contrasts: tuple[str, ...] = ()
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    probes: tuple[str, ...] = ()

    def outcome(self, metric: str = "loss") -> Outcome:
        """How it ended, in a metric."""
        return Outcome(
            value=self.metrics.get(metric) if self.state == "done" else None,
            initial=self.before_training(metric),
            parameters=self.parameters,
            flops=self.flops_per_token * self.tokens,
            tokens=self.tokens,
            broken=metric in ("loss", "validation_loss") and self._broken(self.metrics.get(metric)),
        )

    def score(self, metric: str = "loss") -> Outcome | None:
        """What it says about its learning rate, on validation; None if it failed or was not measured: nothing."""
        name = f"validation_{metric}" if f"validation_{metric}" in self.metrics or metric == "loss" else metric
        if self.state == "failed" or (self.state == "done" and name not in self.metrics):
            return None
        return self.outcome(name)

    def before_training(self, metric: str) -> float | None:
        """The metric before training: the loss of the first step, or chance."""
        return self.references.get("chance") if metric.removeprefix("validation_") in PERCENT else self.initial

    def _broken(self, loss: float | None) -> bool:
        """Whether training failed although its loss stayed finite: it ended above the unigram entropy, or above 1.5
        times its own minimum over the last tenth of the run."""
        unigram = self.references.get("unigram")
        if loss is None or unigram is None:
            return False
        late = [point[1] for point in self.curve if point[0] >= 0.9 * self.tokens]
        risen = bool(late) and min(late) > RISEN * min(point[1] for point in self.curve)
        return loss > unigram or risen


class TamperedError(Exception):
    """A record is not what was written: its digest does not fit, or it belongs to another member or arm."""


def thin(points: list[tuple[float, ...]], most: int = CURVE_POINTS) -> tuple[tuple[float, ...], ...]:
    """At most `most` points, first and last among them."""
    if len(points) <= most:
        return tuple(points)
    return tuple(points[round(i * (len(points) - 1) / (most - 1))] for i in range(most))


def write_record(directory: Path, record: Record) -> None:
    """Seals and stores a record; its existence marks the member as finished."""
    write_json(directory / RECORD, _sealed(record))


def _sealed(record: Record) -> dict[str, Any]:
    content = dataclasses.asdict(record)
    return {**content, "digest": digest(content)}


def read_record(directory: Path) -> Record | None:
    """The record of the member trained in `directory`; None if it is unfinished, or the file is torn: train it again.

    Raises:
      TamperedError: the record was changed by hand, or moved here from somewhere else.
    """
    try:
        content = read_json(directory / RECORD)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.pop("digest", "") != digest(content):
        raise TamperedError(directory)
    record = _record(content)
    if record.member.name != directory.name or not _belongs(record, directory.parent):
        raise TamperedError(directory)
    return record


def _record(content: dict[str, Any]) -> Record:
    content["member"] = Member(**content["member"])
    for name in ("curve", "train_curve"):
        content[name] = tuple(tuple(point) for point in content[name])
    content["curves"] = {name: tuple(map(tuple, curve)) for name, curve in content.get("curves", {}).items()}
    content |= {name: tuple(content.get(name, ())) for name in ("contrasts", "probes")}
    return Record(**content)


def _belongs(record: Record, arm: Path) -> bool:
    return arm.name.endswith(f"-{record.arm_hash[:10]}")


def pack(records: Mapping[Member, Record], directory: Path) -> None:
    """Writes records of an arm into the one file that stands for its directory, each with its digest."""
    lines = [json.dumps(_sealed(records[member]), sort_keys=True) for member in sorted(records)]
    directory.with_name(directory.name + PACKED).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _unpack(directory: Path) -> tuple[dict[Member, Record], list[str]]:
    """The records of an arm that was packed; no records where it was not."""
    path, records, tampered = directory.with_name(directory.name + PACKED), {}, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else (), 1):
        content = json.loads(line)
        intact = content.pop("digest", "") == digest(content)
        record = _record(content) if intact else None
        if record is None or not _belongs(record, directory):
            tampered.append(f"{path.name}, line {number}")
        else:
            records[record.member] = record
    return records, tampered


def read_arm(directory: Path) -> tuple[dict[Member, Record], list[str]]:
    """(records of all finished members, names of those whose record was changed by hand).

    A changed record is not used: its member counts as missing. Records in folders and packed ones add up.
    """
    records, tampered = _unpack(directory)
    for path in sorted(directory.glob(f"*/{RECORD}")):
        try:
            record = read_record(path.parent)
        except TamperedError:
            tampered.append(f"{directory.name}/{path.parent.name}")
            continue
        if record is not None:
            records[record.member] = record
    return records, tampered


def scores(records: Mapping[Member, Record], metric: str = "loss") -> dict[Member, Outcome]:
    """What the finished members say about learning rates."""
    found = {member: record.score(metric) for member, record in records.items()}
    return {member: score for member, score in found.items() if score is not None}


@contextlib.contextmanager
def locked(path: Path, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Holds a file, made if missing, alone or together with other sharers; waits while it cannot be had.

    Raises:
      BlockingIOError: it cannot be had and is not to be waited for.
    """
    with open(path, "w") as file:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield


def todo(cell: ArmCell, records: Mapping[Member, Record]) -> list[Member]:
    """Members of an arm that can be trained now. None are while a failed one leaves its learning rate undecided."""
    return [member for member in cell.members(scores(records, cell.metric)) if member not in records]


def digest(content: Mapping[str, Any]) -> str:
    """Seals JSON-able content: another digest means that something was changed."""
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
