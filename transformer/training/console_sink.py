"""The run on the screen, on standard error: a progress bar on a terminal, plain lines in a pipe or a file."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from transformer.training.sinks import RunInfo, to_stderr

_UNTOLD_EVENTS = ("start", "checkpoint")  # the passing steps tell as much
_FINAL = ("loss", "bits_per_byte")  # what the last line repeats from the summary
_FRAME = 0.25  # least seconds between two pictures of the bar


class ConsoleSink:
    """Shows step, loss, bits per byte, tokens/s and time left.

    The time left follows from the tokens/s in the rows: training alone, without compilation and evaluation.

    Args:
      quiet: shows nothing at all.
      interval: least seconds between two plain lines of the train split. Its first and its last row, and rows
        of other splits, always have a line.
    """

    def __init__(self, quiet: bool = False, interval: float = 2.0):
        self._quiet = quiet
        self._interval = interval
        self._bar: _Bar | None = None
        self._total = 0
        self._shown = float("-inf")
        self._began = 0.0

    def start(self, info: RunInfo) -> None:
        if self._quiet:
            return
        self._total = info.total_steps
        self._began = time.monotonic()
        if _on_terminal():
            self._bar = _Bar(info.total_steps, info.resumed_from)

    def scalars(self, row: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        train = row["split"] == "train"
        if self._bar and train:
            self._bar.update(row["step"], self._numbers(row), last=row["step"] >= self._total)
            return
        now = time.monotonic()
        if train and now - self._shown < self._interval and row["step"] < self._total:
            return
        if train:
            self._shown = now
        split = {} if train else {"split": f"{row['split']}{' (whole)' if row.get('final') else ''}"}
        to_stderr(_line({"step": f"{row['step']}/{self._total}", **split, **self._numbers(row)}))

    def text(self, step: int, name: str, text: str) -> None:
        if not self._quiet:
            to_stderr(f"--- {name}, step {step}\n{text.rstrip()}\n---")

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        if not self._quiet and kind not in _UNTOLD_EVENTS:
            plain = {k: _number(v) for k, v in fields.items() if isinstance(v, int | float | str)}
            to_stderr(_line({"event": kind, **plain}))

    def close(self, state: str, summary: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        if self._bar:
            self._bar.close()
        numbers = {k: _number(v) for k, v in summary.items() if k.endswith(_FINAL) and isinstance(v, float)}
        passed = _duration(time.monotonic() - self._began)
        to_stderr(f"{state} after {passed}{': ' if numbers else ''}{_line(numbers)}")

    def _numbers(self, row: Mapping[str, Any]) -> dict[str, str]:
        """What a line shows of a row, formatted."""
        numbers = {name: _number(row[name]) for name in ("loss", "bits_per_byte") if name in row}
        if row["split"] != "train":
            return numbers
        speed = row.get("tokens_per_second")
        if speed:
            tokens_left = (self._total - row["step"]) * row["tokens"] / max(row["step"], 1)
            numbers |= {"tokens/s": f"{speed:.0f}", "eta": _duration(tokens_left / speed)}
        return numbers


class _Bar:
    """A rich progress bar below everything else that is printed or logged.

    It is drawn when a row arrives, not by a thread that would compete with training for the interpreter.
    """

    def __init__(self, total: int, done: int):
        from rich import progress
        from rich.console import Console
        from rich.table import Column

        def text(template: str) -> progress.TextColumn:
            return progress.TextColumn(template, markup=False, table_column=Column(no_wrap=True))

        stderr = sys.stderr
        console = Console(file=stderr, force_terminal=True, highlight=False, soft_wrap=True)
        self._progress = progress.Progress(
            text("{task.completed}/{task.total}"),
            progress.BarColumn(bar_width=max(10, min(40, console.width - 70))),
            text("{task.fields[numbers]}"),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what goes to a file stays there
        )
        self._task = self._progress.add_task("", total=total, completed=done, numbers="")
        self._drawn = float("-inf")
        self._progress.start()
        console.show_cursor(True)  # a killed process could not bring it back
        # Handlers made before hold the bare stream; they would write into the middle of the bar.
        self._handlers = list(_handlers_on(stderr))
        self._stderr = stderr
        for handler in self._handlers:
            handler.setStream(sys.stderr)

    def update(self, step: int, numbers: Mapping[str, str], last: bool) -> None:
        self._progress.update(self._task, completed=step, numbers=_line(numbers))
        if last or time.monotonic() - self._drawn >= _FRAME:
            self._drawn = time.monotonic()
            self._progress.refresh()

    def close(self) -> None:
        for handler in self._handlers:
            handler.setStream(self._stderr)
        self._progress.stop()


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def _handlers_on(stream: Any) -> Iterator[logging.StreamHandler]:
    """All logging handlers that write to `stream`; absl keeps its own inside another handler."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):  # a placeholder has none
            handler = getattr(handler, "python_handler", handler)
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                yield handler


def _line(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _number(value: Any) -> str:
    """Four decimals for ordinary sizes, scientific notation beyond; None is what a row writes for NaN."""
    if value is None:
        return "nan"
    if isinstance(value, float) and value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    """`45s`, `3m20s`, `5h07m`."""
    if not math.isfinite(seconds):
        return "?"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m{seconds:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
