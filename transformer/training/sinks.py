"""Sinks: views on a run that may fail without hurting it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol


def to_stderr(text: str) -> None:
    """Writes one line to standard error, in one piece."""
    print(text + "\n", end="", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What every sink is told about a run before its first row.

    Attributes:
      name: shown for the run.
      group: what the run is compared within (the config's name).
      job_type: its role there (the arm's name).
      config: the resolved config as nested plain data.
      hash: its `config_hash`.
      workdir: the run directory; sinks write below it only.
      total_steps: optimizer steps of the whole run.
      resumed_from: the checkpointed step this process continues from; 0 for a fresh start.
      attempt: `RunDirectory.attempt`.
    """

    name: str
    group: str
    job_type: str
    config: Mapping[str, Any]
    hash: str
    workdir: Path
    total_steps: int
    resumed_from: int = 0
    attempt: int = 1


class Sink(Protocol):
    """One view on a run. Calls come from one thread, in order, and return without waiting for a network."""

    def start(self, info: RunInfo) -> None:
        """Called once, before anything else."""

    def scalars(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl: `step`, `split`, numbers. NaN may come as None named in "nonfinite"."""

    def text(self, step: int, name: str, text: str) -> None:
        """Text for people: samples, tables."""

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """One event of events.jsonl."""

    def close(self, state: str, summary: Mapping[str, Any]) -> None:
        """Called once, at the end, with the state and the numbers of status.json."""


class Sinks:
    """Passes every call on to several sinks. One that raises is reported once and left out from then on.

    Args:
      sinks: in the order in which they are called; closed in the opposite order, so that a display that
        stands first outlives what the others still have to say.
      warn: takes one line of text.
    """

    def __init__(self, sinks: Iterable[Sink], warn: Callable[[str], None] = to_stderr):
        self._sinks = list(sinks)
        self._warn = warn

    def start(self, info: RunInfo) -> None:
        self._each(self._sinks, "start", info)

    def scalars(self, row: Mapping[str, Any]) -> None:
        self._each(self._sinks, "scalars", row)

    def text(self, step: int, name: str, text: str) -> None:
        self._each(self._sinks, "text", step, name, text)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        self._each(self._sinks, "event", kind, fields)

    def close(self, state: str, summary: Mapping[str, Any]) -> None:
        """Closes every sink that still works. Calling it again does nothing."""
        self._each(self._sinks[::-1], "close", state, summary)
        self._sinks = []

    def _each(self, sinks: list[Sink], method: str, *arguments: Any) -> None:
        for sink in list(sinks):
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:
                self._sinks.remove(sink)
                reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
                with contextlib.suppress(OSError, ValueError):  # standard error itself may be what broke
                    self._warn(f"warning: {type(sink).__name__} failed and is dropped ({reason}). The run goes on.")
