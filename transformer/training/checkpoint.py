"""Checkpoints that survive a crash, a full disk and a flipped bit.

Orbax commits a step atomically, but reads a flipped bit of an array back without noticing. So every
checkpoint holds two items, committed together: `state`, the arrays by path, and `record`, which has the
SHA-256 of every array, the caller's metadata and metric, and a digest of itself. What does not match is never
handed back.

Reading never changes the directory, so a run can be evaluated while it trains. The first save after opening
removes what a killed save left behind and sets damaged checkpoints aside.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer.errors import CheckpointError

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back and verified.

    Attributes:
      step: completed steps.
      state: a tree like the abstract state it was restored into, on the devices that one names.
      metadata: what `save` was given, as JSON gives it back (tuples become lists).
    """

    step: int
    state: Any
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the one with the lowest metric.

    One process writes; any number may read. A save that fails is reported by the next call of any method, and
    leaves the checkpoints before it as they were.

    Args:
      directory: where they live, one folder per step; made by the first save.
      keep: how many of the newest to keep, at least 1.
      warn: receives one sentence for each damaged checkpoint; printed to standard error by default.
    """

    def __init__(self, directory: Path, keep: int, warn: Callable[[str], None] | None = None):
        if keep < 1:
            raise CheckpointError(f"train.keep_checkpoints is {keep}; it must be at least 1.")
        self.directory = Path(directory).absolute()  # Orbax takes no other
        self._keep = keep
        self._warn = warn or (lambda line: print(f"warning: {line}", file=sys.stderr, flush=True))
        self._damaged: set[int] = set()  # found by this object and still in place
        self._metrics: dict[int, float | None] = {}  # by step; what the preservation policy looks at
        self._checkpointer: Any = None  # opened by the first save, used on the worker thread alone
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- writing ------------------------------------------------------------------------------------------

    def save(self, step: int, state: Any, metadata: dict[str, Any], metric: float | None = None) -> None:
        """Copies the state to host memory and writes it in the background; the caller may donate it at once.

        Args:
          step: completed steps; each is saved once.
          state: tree of arrays, all addressable by this process.
          metadata: anything that JSON can hold.
          metric: lower is better. None, or a number that is not finite, is never the best.

        Raises:
          CheckpointError: this step is already saved, or the save before this one failed.
        """
        if step in self.steps():
            raise CheckpointError(f"Step {step} is already saved in {self.directory}; save each step once.")
        leaves = _by_path(state)
        for leaf in leaves.values():
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()
        # A copy, not a view: a view of a CPU buffer would silently keep the next step from reusing it.
        arrays = {path: np.array(leaf) for path, leaf in leaves.items()}
        metric = float(metric) if metric is not None and math.isfinite(metric) else None
        metadata = json.loads(json.dumps(metadata))
        self._pending = self._worker.submit(self._write, step, arrays, metadata, metric)

    def wait(self) -> None:
        """Returns once the last save is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._pending is None:
            return
        error = self._pending.exception()  # interrupted here, the save stays pending
        self._pending = None
        if error is not None:
            raise error

    def close(self) -> None:
        """Waits for the last save and lets go of the directory.

        Raises:
          CheckpointError: the last save could not be written.
        """
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            self._discard_checkpointer()

    def _write(self, step: int, arrays: dict[str, np.ndarray], metadata: dict[str, Any], metric: float | None) -> None:
        """The background half of `save`."""
        record = _make_record(step, arrays, metadata, metric)
        try:
            if self._damaged or self._checkpointer is None:
                self._reopen()
            self._metrics[step] = metric
            # `force`, because Orbax would silently skip a step below the newest whatever the policy says.
            self._checkpointer.save_checkpointables(step, {"state": arrays, "record": record}, force=True)
        except Exception as error:
            # Opening afresh removes what this save left, and finds the steps it was to delete once committed.
            self._discard_checkpointer()
            raise CheckpointError(
                f"The checkpoint of step {step} could not be written to {self.directory} ({_reason(error)}); "
                "make room or mend access there and run the same command again."
            ) from error

    def _reopen(self) -> None:
        """Sets damaged checkpoints aside and opens the directory for writing."""
        ocp = _orbax()
        self._discard_checkpointer()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._metrics = {step: record["metric"] for step, record in self._intact_records().items()}
        for step in sorted(self._damaged):
            self._set_aside(step)
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            context=_context(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(self._keep), _PreserveBest(self._metrics)]
            ),
            cleanup_tmp_directories=True,
        )

    def _set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, so that its step can be saved again and nothing is lost."""
        targets = (self.directory / f"{step}.damaged-{number}" for number in itertools.count(1))
        with contextlib.suppress(FileNotFoundError):  # the preservation policy was faster
            self._folder(step).rename(next(path for path in targets if not path.exists()))
        self._damaged.remove(step)

    def _discard_checkpointer(self) -> None:
        checkpointer, self._checkpointer = self._checkpointer, None
        if checkpointer is not None:
            with contextlib.suppress(Exception):  # repeats the error of the save that failed
                checkpointer.close()

    # --- reading ------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The saved steps in ascending order, without those found damaged so far."""
        self.wait()
        return [step for step in self._steps_on_disk() if step not in self._damaged]

    def best_step(self) -> int | None:
        """The step with the lowest metric, the earlier of two equals; None if no checkpoint has a metric."""
        return next(iter(self._from_best()), None)

    def restore(self, abstract_state: Any) -> Restored | None:
        """The newest intact checkpoint, or None if there is none at all.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct`; a leaf with no sharding goes to the default device.

        Raises:
          CheckpointError: the checkpoint belongs to another state, or every one is damaged.
        """
        self.wait()
        return self._first_intact(self._steps_on_disk()[::-1], abstract_state)

    def restore_best(self, abstract_state: Any) -> Restored | None:
        """As `restore`, but from the lowest metric upwards; checkpoints without a metric do not count."""
        return self._first_intact(self._from_best() or sorted(self._damaged), abstract_state)

    def _from_best(self) -> list[int]:
        self.wait()
        return _ranked({step: record["metric"] for step, record in self._intact_records().items()})

    def _first_intact(self, steps: Sequence[int], abstract_state: Any) -> Restored | None:
        abstract = _by_path(abstract_state)
        for step in steps:
            try:
                record = self._read_record(step)
                _check_fits(record, abstract, self._folder(step))
                arrays = self._read_arrays(step, record)
            except _Damaged as damage:
                self._report(step, damage)
                continue
            leaves = [jax.device_put(arrays[path], getattr(leaf, "sharding", None)) for path, leaf in abstract.items()]
            state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
            return Restored(step, state, record["metadata"])
        if steps:
            raise CheckpointError(
                f"No checkpoint in {self.directory} is intact (damaged: {', '.join(map(str, steps))}); "
                "bring the directory back from a copy, or delete it to start from the beginning."
            )
        return None

    def _report(self, step: int, damage: _Damaged) -> None:
        if step not in self._damaged:
            self._damaged.add(step)
            folder = self._folder(step)
            self._warn(f"The checkpoint of step {step} in {folder} is damaged and passed over: {damage}.")

    def _folder(self, step: int) -> Path:
        return self.directory / str(step)

    def _steps_on_disk(self) -> list[int]:
        """Committed steps, ascending; a save in progress and a checkpoint set aside have longer names."""
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir())
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))

    def _intact_records(self) -> dict[int, Record]:
        records = {}
        for step in self._steps_on_disk():
            try:
                records[step] = self._read_record(step)
            except _Damaged as damage:
                self._report(step, damage)
        return records

    def _read_record(self, step: int) -> Record:
        try:
            record = _load(self._folder(step), "record")
        except Exception as error:
            raise _Damaged(f"its record cannot be read ({_reason(error)})") from error
        if not isinstance(record, dict) or record.pop("sha256", None) != _digest_of_record(record):
            raise _Damaged("its record does not match its own digest")
        if record["step"] != step:
            raise _Damaged(f"it was written as step {record['step']}")
        return record

    def _read_arrays(self, step: int, record: Record) -> dict[str, np.ndarray]:
        """Reads to host memory, so that a full or missing device is never taken for a damaged file."""
        try:
            arrays = _load(self._folder(step), "state")
        except Exception as error:
            raise _Damaged(f"its arrays cannot be read ({_reason(error)})") from error
        for path, expected in record["arrays"].items():
            if path not in arrays or _describe(arrays[path]) != expected:
                raise _Damaged(f"array {path} does not match its digest")
        return arrays


class _Damaged(Exception):
    """What is wrong with one checkpoint."""


class _PreserveBest:
    """Orbax preservation policy: the checkpoint with the lowest metric.

    The metrics come from our own records, not from Orbax's metrics file, which no digest covers.
    """

    def __init__(self, metrics: dict[int, float | None]):
        self._metrics = metrics

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = _ranked({info.step: self._metrics.get(info.step) for info in checkpoints})[:1]
        return [info.step in best for info in checkpoints]


def _ranked(metrics: dict[int, float | None]) -> list[int]:
    """Steps from the lowest metric to the highest, without those that have none."""
    return [step for _, step in sorted((m, step) for step, m in metrics.items() if m is not None)]


def _by_path(tree: Any) -> dict[str, Any]:
    """The leaves by name, such as `params.blocks.0.attention.query.kernel`."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


# --- the record -------------------------------------------------------------------------------------------


def _make_record(step: int, arrays: dict[str, np.ndarray], metadata: dict[str, Any], metric: float | None) -> Record:
    described = {path: _describe(array) for path, array in arrays.items()}
    record = {"step": step, "metric": metric, "metadata": metadata, "arrays": described}
    return {**record, "sha256": _digest_of_record(record)}


def _describe(array: np.ndarray) -> dict[str, Any]:
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    digest = hashlib.sha256(content.data).hexdigest()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}


def _digest_of_record(record: Record) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _check_fits(record: Record, abstract: dict[str, Any], folder: Path) -> None:
    """Raises CheckpointError for the first leaf, in path order, that is not the same on both sides."""
    saved = {path: f"{about['dtype']}{about['shape']}" for path, about in record["arrays"].items()}
    wanted = {path: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in abstract.items()}
    for path in sorted(saved.keys() | wanted.keys()):
        there, here = saved.get(path, "absent"), wanted.get(path, "absent")
        if there != here:
            raise CheckpointError(
                f"The checkpoint {folder} belongs to another state: {path} is {there} in it and {here} in "
                "this run; use the config it was written with, or another directory."
            )


# --- Orbax ------------------------------------------------------------------------------------------------


def _orbax() -> Any:
    """Imports Orbax where it is used, which takes half a second, and keeps its notes off the terminal."""
    from absl import logging as absl_logging

    absl_logging.get_absl_logger().addFilter(_not_from_orbax)
    logging.getLogger("asyncio").addFilter(_not_from_orbax)
    if not isinstance(sys.unraisablehook, _WithoutLateWrites):
        sys.unraisablehook = _WithoutLateWrites(sys.unraisablehook)
    from orbax.checkpoint import v1

    return v1


def _not_from_orbax(entry: logging.LogRecord) -> bool:
    """Drops what Orbax logs, and asyncio about its abandoned writes: what matters to the user is raised as well.

    A write that fails after the first one of its save is known by its error, which names TensorStore's settings
    while the array is opened, and the database of the checkpoint (OCDBT) afterwards.
    """
    from_orbax = f"{os.sep}orbax{os.sep}checkpoint{os.sep}" in entry.pathname
    return not (from_orbax or any(mark in entry.getMessage() for mark in ("tensorstore_spec", "OCDBT database")))


class _WithoutLateWrites:
    """`sys.unraisablehook` that passes over writes which end after their save has failed.

    Orbax gathers the writes of all arrays on an event loop of its own and closes it at the first error. TensorStore,
    which cannot be told, still reports each of the others to that loop when it ends, from a thread of its own, where
    the closed loop's refusal has no caller to go to. The error that matters was raised by the save.
    """

    def __init__(self, previous: Callable[[Any], object]):
        self._previous = previous

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        late = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not (late and unraisable.object is None):  # Python's own reports name the object they come from
            self._previous(unraisable)


def _context() -> Any:
    """Orbax's settings for our two items."""
    ocp = _orbax()
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="record")  # else its numbers become arrays
    context = ocp.Context()
    context.checkpointables.registry = registry
    # Free on the worker thread. Otherwise, where a folder cannot be made, threads wait for it that keep the
    # process from exiting for five minutes.
    context.asynchronous.create_directories_asynchronously = False
    context.array.saving.use_compression = False  # twice as fast; weights and moments shrink by 8% at best
    return context


def _load(folder: Path, item: str) -> Any:
    with _context():
        return _orbax().load_checkpointables(folder, {item: None})[item]


def _reason(error: BaseException) -> str:
    """What went wrong at the bottom of an Orbax error, which starts with its caller and ends in settings."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r" \[\w+=.*", "", str(error) or type(error).__name__, flags=re.DOTALL)
    return " ".join(": ".join(text.split(": ")[-2:]).split()).rstrip(".")
