"""Writes benchmarks/RESULTS.md from the JSON files in benchmarks/results/.

    python -m benchmarks.results            # only writes
    python -m benchmarks.results --run      # first runs every script that needs no accelerator
    python -m benchmarks.results --run=arm,population

Writing twice gives the same file: everything in it comes from the JSON files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.reporting import Table

FOLDER = Path(__file__).parent
# Script -> arguments `--run` gives it. Those for an accelerator run on one only, by hand.
ON_CPU: dict[str, list[str]] = {
    "train_step": ["--compile"],
    "arm": [],
    "attention_memory": [],
    "norm": [],
    "population": [],
    "step_parts": [],
}
HEAD = """# Results

Written by `python -m benchmarks.results` from the files in `results/`; `make bench` measures the CPU ones again first.
Ratios hold within one run on one machine; speeds of different runs are not comparable. How each number is measured
stands at the top of its script.
"""


def document(reports: list[dict[str, Any]]) -> str:
    """RESULTS.md of the stored reports, ordered by name."""
    return "\n".join([HEAD, *map(_section, sorted(reports, key=lambda report: report["benchmark"]))])


def _section(report: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if key != "processor")
    tables = [Table(t["title"], tuple(t["columns"]), tuple(map(tuple, t["rows"])), t["note"]) for t in report["tables"]]
    place = " on an accelerator" if "accelerator" in report["machine"] and report["benchmark"] in ON_CPU else ""
    parts = [
        f"## {report['benchmark']}{place}: {report['question']}",
        f"{report['date']}, {report['machine']['processor']}, {machine}; `{report['command']}`",
        *(table.markdown() for table in tables),
    ]
    return "\n\n".join(parts) + "\n"


def write(folder: Path = FOLDER) -> Path:
    """Reads `folder/results/*.json`, writes `folder/RESULTS.md`."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "results").glob("*.json"))]
    path = folder / "RESULTS.md"
    path.write_text(document(reports), encoding="utf-8")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Runs what is asked for and writes the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="?", const=",".join(ON_CPU), default="", help="scripts to run first")
    names = [name for name in parser.parse_args(arguments).run.split(",") if name]
    if unknown := [name for name in names if name not in ON_CPU]:
        parser.error(f"--run={unknown[0]} is not one of: {', '.join(ON_CPU)}")
    failed = []
    for name in names:
        command = [sys.executable, "-m", f"benchmarks.{name}", *ON_CPU[name]]
        command.append(f"--json={FOLDER / 'results' / name}.json")
        if subprocess.run(command, cwd=FOLDER.parent).returncode:
            failed.append(name)
    print(write())
    if failed:
        print(f"error: failed: {', '.join(failed)}; their old numbers stand", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
