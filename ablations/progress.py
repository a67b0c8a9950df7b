"""How far a run of the lab is, on a terminal or in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

Show = Callable[[int, int, list[str]], None]
"""Is told how many have ended, how many there are, and what is under way."""


class Progress:
    """Progress over a whole plan: a bar with ETA on a terminal, a line now and then elsewhere.

    Args:
      unit: what is counted.
    """

    def __init__(self, unit: str = "members") -> None:
        self.unit = unit
        self.started, self.first, self.last_line = 0.0, -1, 0.0
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        """Starts the clock and the bar."""
        self.started = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.fields[eta]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=1, eta="")
        return self

    def show(self, ended: int, known: int, running: list[str]) -> None:
        """Shows how far the plan is."""
        if self.first < 0:
            self.first = ended
        elapsed, fresh = time.monotonic() - self.started, ended - self.first
        eta = "ETA --"
        if fresh:
            eta = f"{fresh / elapsed:.2g} {self.unit}/s  ETA {_clock(elapsed / fresh * (known - ended))}"
        if self.bar is not None:
            self.bar.update(self.task, completed=ended, total=known, description=", ".join(running), eta=eta)
        elif time.monotonic() - self.last_line > 5 or ended == known:
            if ended == known and self.last_line == float("inf"):
                return
            self.last_line = float("inf") if ended == known else time.monotonic()
            print(f"{self.unit} {ended}/{known}  {eta}  {', '.join(running)}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.stop()


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
