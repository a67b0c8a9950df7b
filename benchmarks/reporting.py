"""What every benchmark script shares: tables on the screen, the same tables and all numbers in one JSON file.

A script asks one question. It calls `finish` with the tables it has; `python -m benchmarks.results` makes RESULTS.md of
the JSON files, so that no number there is typed by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch")


class BenchmarkError(Exception):
    """The sides do not do the same work, one of them stopped, or the machine lacks what is measured."""


@dataclasses.dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
      title: what its rows have in common.
      columns: headings; the first column names the row.
      rows: cells, as text.
      note: what a reader must know, in one or two sentences.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def text(self) -> str:
        """Aligned columns for the screen."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        aligned = []
        for first, *rest in lines:
            cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
            aligned.append("  " + "  ".join(cells))
        return "\n".join([self.title, *aligned, *([f"  {self.note}"] if self.note else [])])

    def markdown(self) -> str:
        """The same for RESULTS.md."""
        rows = [self.columns, ("---", *("---:" for _ in self.columns[1:])), *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([f"**{self.title}**", "", *lines, *(["", self.note] if self.note else [])])


def parser(doc: str) -> argparse.ArgumentParser:
    """A command line with `--json=FILE`; the script's docstring is its help."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="where to store all numbers")
    return made


def machine() -> dict[str, Any]:
    """What the numbers are measured on: processor, cores, accelerator if one is in use, versions."""
    found: dict[str, Any] = {"processor": _processor(), "cores": cores(), "python": platform.python_version()}
    jax = sys.modules.get("jax")
    if jax is not None and jax.default_backend() != "cpu":
        found["accelerator"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def finish(name: str, question: str, tables: list[Table], numbers: dict[str, Any], path: Path | None) -> None:
    """Prints the tables, and stores them with everything measured.

    Args:
      name: the script, as in `python -m benchmarks.NAME`.
      question: what it answers, in one sentence.
      numbers: whatever the tables were made of; JSON-able.
      path: None stores nothing.
    """
    print("\n\n".join(table.text() for table in tables), flush=True)
    if path is not None:
        store(path, name, question, tables, numbers)


def store(path: Path, name: str, question: str, tables: list[Table], numbers: dict[str, Any]) -> None:
    """Writes the JSON file of one script."""
    content = {
        "benchmark": name,
        "question": question,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python -m", f"benchmarks.{name}", *_shown(sys.argv[1:])]),
        "machine": machine(),
        "tables": [dataclasses.asdict(table) for table in tables],
        "numbers": numbers,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _shown(arguments: list[str]) -> list[str]:
    """Arguments without the place of the JSON file and without absolute paths, which are nobody's business."""
    kept = [a for i, a in enumerate(arguments) if not a.startswith("--json") and arguments[i - 1 : i] != ["--json"]]
    return [re.sub(r"^(-*)([\w.]+)=/.*", lambda found: f"{found[1]}{found[2]}={found[2].upper()}", a) for a in kept]


def _processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
