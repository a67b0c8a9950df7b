"""Exact claims are decided by property tests. A check is a test class with

* `test_holds`, which proves the claim, or `test_refuted`, which shows the counter-example its docstring states;
* `test_sabotage`, which breaks the mechanism on purpose and sees the property fail.
"""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablations import store
from ablations.evidence import ExactCheck
from transformer.errors import UserError
from transformer.training.jsonfiles import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
STORED = "checks.json"
RAN = (0, 1, 5)  # exit codes of pytest: all passed, some failed, nothing collected


def run(checks: Iterable[str], runs: Path) -> dict[str, ExactCheck]:
    """Runs the test classes and stores their results beside the arms.

    Returns:
      The result of each check; none for one whose tests were skipped.

    Raises:
      UserError: a check names no test or cannot be run, or pytest is not installed.
    """
    wanted = sorted(set(checks))
    if not wanted:
        return {}
    for check in wanted:
        file, separator, name = check.partition("::")
        if not (separator and name and (ROOT / file).is_file()):
            raise UserError(f"The check {check!r} is not FILE::CLASS with a test file of this repository.")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *wanted]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.is_file() or done.returncode not in RAN:
            raise UserError(_problem(done.stdout + done.stderr, wanted))
        read = {check: _read(report, check) for check in wanted}
    found = {check: result for check, result in read.items() if result is not None}
    stored = {check: result for check, result in _load(runs).items() if check not in read}
    for check, result in found.items():
        content = dataclasses.asdict(result)
        stored[check] = {**content, "digest": store.digest({"check": check, **content})}
    runs.mkdir(parents=True, exist_ok=True)
    write_json(runs / STORED, dict(sorted(stored.items())))
    return found


def results(runs: Path) -> dict[str, ExactCheck]:
    """What the last run of each check gave; one changed by hand counts as not run."""
    found = {}
    for check, content in _load(runs).items():
        if content.pop("digest", "") == store.digest({"check": check, **content}):
            found[check] = ExactCheck(**content)
    return found


def _problem(output: str, wanted: list[str]) -> str:
    """Why pytest did not get as far as running the tests, in one line."""
    for check in wanted:
        if f"not found: {ROOT / check}" in output:
            return f"The check {check} does not exist: its file has no such class."
    lines = [line for line in output.splitlines() if line.strip()]
    cause = next((line for line in reversed(lines) if line.startswith("E ")), lines[-1] if lines else "no output")
    return f"The checks could not be run: {_line(cause.removeprefix('E '))}"


def _load(runs: Path) -> dict[str, dict[str, Any]]:
    try:
        return read_json(runs / STORED)
    except (OSError, ValueError):
        return {}


def _read(report: Path, check: str) -> ExactCheck | None:
    """The outcome of one test class from a JUnit report; None if the test that decides was skipped."""
    file, _, name = check.partition("::")
    owner = f"{file.removesuffix('.py').replace('/', '.')}.{name}"
    problems: dict[str, dict[str, str]] = {}  # test -> kind of problem -> first message
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.get("classname") != owner:
            continue
        found = problems.setdefault(str(case.get("name")).partition("[")[0], {})
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                found.setdefault(child.tag, str(child.get("message") or child.tag))
    decides = next((test for test in ("test_refuted", "test_holds") if test in problems), None)
    if decides is None:
        raise UserError(f"{check} has neither test_holds nor test_refuted: an exact claim needs one of them.")
    for test, found in problems.items():
        if "error" in found:
            raise UserError(f"{check}: {test} could not be run: {_line(found['error'])}.")
    if "skipped" in problems[decides]:
        return None
    passed = "failure" not in problems[decides]
    sabotage = problems.get("test_sabotage")
    caught = None if sabotage is None or "skipped" in sabotage else "failure" not in sabotage
    if decides == "test_refuted":
        # A passing refutation is the counter-example; a failing one leaves the claim standing, and unproven.
        return ExactCheck(False, caught, _counterexample(check)) if passed else ExactCheck(True, None)
    return ExactCheck(passed, caught, _line(problems[decides].get("failure", "")))


def _counterexample(check: str) -> str:
    """The docstring of `test_refuted`, which states it."""
    file, _, name = check.partition("::")
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for test in node.body:
                if isinstance(test, ast.FunctionDef) and test.name == "test_refuted" and ast.get_docstring(test):
                    return " ".join(str(ast.get_docstring(test)).split())
    return "shown by test_refuted"


def _line(message: str) -> str:
    return " ".join(message.split())[:300]
