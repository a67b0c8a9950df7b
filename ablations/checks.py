"""Exact claims are decided by property tests. A check is a test class with

* `test_holds`, which proves the claim, or `test_refuted`, which shows the counter-example its docstring states;
* `test_sabotage`, which breaks the mechanism on purpose and sees the property fail.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

from ablations.evidence import ExactCheck
from transformer.errors import UserError
from transformer.training.jsonfiles import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
STORED = "checks.json"


def run(checks: Iterable[str], runs: Path) -> dict[str, ExactCheck]:
    """Runs the test classes and stores their results beside the arms.

    Raises:
      UserError: a check names no test, or pytest is not installed.
    """
    wanted = sorted(set(checks))
    if not wanted:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *wanted]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.is_file():
            raise UserError(f"The checks could not be run: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
        found = {check: _read(report, check) for check in wanted}
    stored = _load(runs)
    stored.update({check: dataclasses.asdict(result) for check, result in found.items()})
    runs.mkdir(parents=True, exist_ok=True)
    write_json(runs / STORED, dict(sorted(stored.items())))
    return found


def results(runs: Path) -> dict[str, ExactCheck]:
    """What the last run of each check gave."""
    return {check: ExactCheck(**result) for check, result in _load(runs).items()}


def _load(runs: Path) -> dict[str, dict]:
    path = runs / STORED
    try:
        return read_json(path) if path.is_file() else {}
    except json.JSONDecodeError:
        return {}


def _read(report: Path, check: str) -> ExactCheck:
    """The outcome of one test class from a JUnit report."""
    file, _, name = check.partition("::")
    owner = f"{file.removesuffix('.py').replace('/', '.')}.{name}"
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.get("classname") != owner:
            continue
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        test = str(case.get("name")).partition("[")[0]
        outcomes[test] = outcomes.get(test) or ("" if problem is None else str(problem.get("message") or problem.tag))
    shown = {test: not problem for test, problem in outcomes.items()}
    if not {"test_holds", "test_refuted"} & set(shown):
        raise UserError(f"{check} has neither test_holds nor test_refuted: an exact claim needs one of them.")
    sabotage = shown.get("test_sabotage")
    if "test_refuted" in shown:
        # A passing refutation is the counter-example; a failing one leaves the claim standing but unproven.
        return ExactCheck(not shown["test_refuted"], sabotage, "shown by test_refuted")
    return ExactCheck(shown["test_holds"], sabotage, outcomes["test_holds"][:300])
