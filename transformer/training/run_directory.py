"""The run directory: what was run, what it measured, how it ended. It is the truth; sinks are views of it.

config.json    the resolved config, nested
env.json       where the newest attempt runs: code, versions, machine
metrics.jsonl  one strict-JSON row a line; NaN and infinities become null and are listed under "nonfinite"
events.jsonl   attempts, checkpoints, ends, each with wall time and attempt number
status.json    state and final numbers
checkpoints/   see `checkpoint.py`
lock           held while a process writes here; the kernel frees it whatever way that process ends
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import math
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from transformer.config import config_hash, flatten, is_view, resolve, run_identity, schema, to_dict
from transformer.errors import ConfigError, UserError
from transformer.schema import Config
from transformer.training.environment import environment
from transformer.training.jsonfiles import read_json, strict, write_json

STATES = ("planned", "running", "done", "diverged", "failed", "preempted", "interrupted")
FINISHED = ("done", "diverged")  # a divergence is a result: neither is ever trained again

_DIFFERENCES_SHOWN = 5


def default_path(config: Config, name: str, arm: str = "", **execution: str) -> Path:
    """`runs/<name>/<arm or "run">-s<seed>-<hash8>`: two different configs never share a folder.

    Args:
      name: name of the config.
      arm: name of the arm, if there are arms.
      execution: what else decides the numbers, as for `config_hash`.
    """
    name, arm = (re.sub(r"[^\w.,=+-]+", "-", part) for part in (name, arm or "run"))
    return Path("runs") / name / f"{arm}-s{config.seed}-{config_hash(config, **execution)[:8]}"


def read_config(path: Path | str) -> Config:
    """The config of the run in `path`.

    Raises:
      UserError: there is no run, or its config cannot be read.
      ConfigError: the stored config is no longer valid.
    """
    stored = _read_object(Path(path) / "config.json")
    if stored is None:
        raise UserError(f"{path} holds no run: it has no config.json. Give the --workdir of a run, or train one first.")
    return resolve(stored)


def read_rows(path: Path | str, split: str | None = None) -> list[dict[str, Any]]:
    """The metric rows of the run in `path`, of one split or all; an incomplete last line is left out.

    Raises:
      UserError: the file cannot be read, or a line in its middle is not JSON.
    """
    rows, _ = _read_lines(Path(path) / "metrics.jsonl")
    return [row for row in rows if split is None or row["split"] == split]


def read_status(path: Path | str) -> dict[str, Any]:
    """`{"state": one of STATES, ...}`; the state of a directory in which nothing has run is "planned".

    The state stays "running" after kill -9: only the lock tells whether a process is alive.
    """
    return _read_object(Path(path) / "status.json") or {"state": "planned"}


class RunDirectory:
    """Writes one run's files; for one process at a time, and one thread.

    Attributes:
      path: the directory.
      attempt: 1 for the first process that trains this run, one more for every later one.
      environment_changes: what in env.json differs from the attempt before, {name: (then, now)}. The event
        "attempt" keeps it, too.
    """

    def __init__(self, path: Path, config: Config, extra_env: Mapping[str, Any]):
        self.path = path
        self.attempt = 0
        self.environment_changes: dict[str, tuple[Any, Any]] = {}
        self._write_failed = False
        _make_directory(path)
        with self._writing(), contextlib.ExitStack() as held:
            lock = _acquire(path)
            if lock is not None:
                held.callback(os.close, lock)
            self._metrics = held.enter_context(contextlib.closing(_Lines(path / "metrics.jsonl")))
            self._events = held.enter_context(contextlib.closing(_Lines(path / "events.jsonl")))
            self._store_config(config)
            self._begin_attempt(extra_env)
            self._held = held.pop_all()

    @classmethod
    def open(cls, path: Path | str, config: Config, extra_env: Mapping[str, Any] | None = None) -> RunDirectory:
        """Creates the directory, or takes up the run in it. A finished run gets no further attempt.

        Args:
          path: the directory; parents are created.
          config: the resolved config; views (`config.is_view`) may differ from the stored ones.
          extra_env: joins env.json (devices, data fingerprint).

        Raises:
          ConfigError: the directory holds a run of another config.
          UserError: it is in use, is not a directory, or cannot be read and written.
        """
        return cls(Path(path), config, extra_env or {})

    def _store_config(self, config: Config) -> None:
        given = to_dict(config)
        _require_finite(given)
        given = json.loads(json.dumps(given))
        stored = _read_object(self.path / "config.json")
        if stored is not None:
            _check_same_run(self.path, stored, given)
        elif self._metrics.size:
            raise UserError(
                f"{self.path} holds metrics.jsonl but no config.json, so whose rows these are is unknown. "
                "Give another --workdir, or delete this directory."
            )
        if stored != given:
            write_json(self.path / "config.json", given)

    def _begin_attempt(self, extra_env: Mapping[str, Any]) -> None:
        self.attempt = sum(row["kind"] == "attempt" for row in self._events.read())
        if self.attempt and self.status()["state"] in FINISHED:
            return
        self.attempt += 1
        now = strict({**environment(), **extra_env})
        before = _read_object(self.path / "env.json")
        write_json(self.path / "env.json", {"started": _now(), **now})
        if before is not None:
            before.pop("started", None)
            self.environment_changes = _changes(before, now)
        self.event("attempt", changed=self.environment_changes)

    def append(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Writes one metric row. Rows of other splits than "train" are on the disk when this returns.

        Args:
          row: `step`, `split` and numbers; numpy and jax scalars are converted.

        Returns:
          The row as it was written.

        Raises:
          UserError: the disk is full, or the directory can no longer be written.
        """
        row = strict(row)
        with self._writing():
            self._metrics.append(row, sync=row["split"] != "train")
        return row

    def truncate_after(self, step: int) -> int:
        """Drops metric rows of steps after `step`, which a resumed run measures again; returns how many."""
        rows = self._metrics.read()
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            with self._writing():
                self._metrics.replace(kept)
        return len(rows) - len(kept)

    def rows(self) -> list[dict[str, Any]]:
        """All metric rows, in order."""
        return self._metrics.read()

    def event(self, kind: str, **fields: Any) -> None:
        """Records that something happened, with its time (UTC) and the number of the attempt."""
        row = strict({"time": _now(), "attempt": self.attempt, "kind": kind, **fields})
        with self._writing(last_words=True):
            self._events.append(row, sync=True)

    def set_status(self, state: str, **summary: Any) -> None:
        """Replaces status.json: the state, one of `STATES`, and what sums the run up."""
        if state not in STATES:
            raise ValueError(f"state={state!r} is not one of: {', '.join(STATES)}")
        status = strict({"state": state, "time": _now(), "attempt": self.attempt, **summary})
        with self._writing(last_words=True):
            write_json(self.path / "status.json", status)

    def unclaim(self) -> None:
        """Forgets the config where nothing has run: a slip in it claims no directory."""
        if self.status()["state"] == "planned":
            (self.path / "config.json").unlink()

    def status(self) -> dict[str, Any]:
        """See `read_status`."""
        return read_status(self.path)

    def close(self) -> None:
        """Closes the files and frees the lock. Calling it again does nothing."""
        self._held.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self, last_words: bool = False) -> Iterator[None]:
        """Turns a failed write into a UserError.

        After a full disk has been reported, recording how the run ended (`last_words`) is still tried, but a
        failure of that is no second error.
        """
        try:
            yield
        except OSError as error:
            if self._write_failed and last_words:
                return
            self._write_failed = True
            raise _unusable(self.path, error) from None


# --- Files --------------------------------------------------------------------------------------------------


class _Lines:
    """An open .jsonl file. One write a line, so that a killed process leaves whole lines behind."""

    def __init__(self, path: Path):
        self.path = path
        _, self.size = _read_lines(path)
        self._file = self._open()
        if self._file.tell() > self.size:
            self._file.truncate(self.size)  # a torn last line

    def _open(self) -> BinaryIO:
        return open(self.path, "ab", buffering=0)

    def append(self, row: Mapping[str, Any], sync: bool) -> None:
        line = _encode(row)
        try:
            written = self._file.write(line)
            if written < len(line):  # hardly any space: writing the rest says so
                self._file.write(line[written:])
            if sync:
                os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self.size)
            raise
        self.size += len(line)

    def read(self) -> list[dict[str, Any]]:
        return _read_lines(self.path)[0]

    def replace(self, rows: list[dict[str, Any]]) -> None:
        data = b"".join(_encode(row) for row in rows)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self._file.close()
        self._file = self._open()
        self.size = len(data)

    def close(self) -> None:
        self._file.close()


def _encode(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The parsed lines of a .jsonl file and the bytes they span; a torn last line is in neither."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise _unusable(path, error) from None
    rows: list[dict[str, Any]] = []
    size = 0
    for line in data.splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if row is None:
            if size + len(line) == len(data):
                break
            raise UserError(
                f"{path}, line {len(rows) + 1}, is not JSON. Restore the file from a copy, or delete the run."
            )
        rows.append(row)
        size += len(line)
    return rows, size


def _read_object(path: Path) -> dict[str, Any] | None:
    """The content of a .json file, None where there is no such file."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}). Restore it from a copy, or delete the run.") from None


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{path} is a file, not a directory. Give another --workdir, or remove it.") from None
    except OSError as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: OSError) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"No space is left for {path}, so nothing more can be recorded. "
            "Free some, then run the same command again to resume."
        )
    return UserError(
        f"{path} cannot be read and written ({error.strerror or error}). "
        "Give another --workdir, or change its permissions."
    )


def _acquire(path: Path) -> int | None:
    """Takes the lock; None on a file system without locks.

    Raises:
      UserError: another process holds it.
    """
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(lock, 100).decode(errors="replace").strip() or "another process"
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise UserError(f"{path} is in use by {holder}. Wait for it, stop it, or give another --workdir.") from None
        print(
            f"warning: {path} cannot be locked ({error.strerror}): do not run it twice at once.",
            file=sys.stderr,
        )
        return None
    with contextlib.suppress(OSError):  # the holder's name only serves the message above
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {platform.node()}\n".encode())
    return lock


# --- Identity -----------------------------------------------------------------------------------------------


def _require_finite(config: Mapping[str, Any]) -> None:
    for name, value in flatten(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name}={value} cannot be stored. Give a finite number.")


def _check_same_run(path: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compares what makes a run this run, as `config.identity` does.

    A field that one side lacks counts as its default: it joined the schema later, or no chosen kind reads it.

    Raises:
      ConfigError: something differs.
    """
    defaults = {info.path: list(d) if isinstance(d := info.default, tuple) else d for info in schema()}
    then, now = flatten(stored), flatten(given)
    differing = []
    for name in sorted({**then, **now}):
        old, new = (side.get(name, defaults.get(name)) for side in (then, now))
        if name == "train.init_from" and old != new:  # the same run under another path
            old, new = run_identity(str(old)), run_identity(str(new))
        if old != new and not is_view(name):
            differing.append(f"{name}: {_short(old)} -> {_short(new)}")
    if differing:
        more = len(differing) - _DIFFERENCES_SHOWN
        raise ConfigError(
            f"{path} holds a run of another config (stored -> given):\n"
            f"  {', '.join(differing[:_DIFFERENCES_SHOWN])}{f', and {more} more' if more > 0 else ''}\n"
            "Give another --workdir, or delete this directory to start afresh."
        )


def _short(value: Any, width: int = 40) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else text[: width - 3] + "..."


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    left, right = flatten(before), flatten(now)
    names = sorted({**left, **right})
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
