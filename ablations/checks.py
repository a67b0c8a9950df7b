"""Exact claims are decided by property tests, accounting claims by a test or a formula (`ablations/formulas.py`).

A check is a test class with

* `claim = "<id>"`, the claim it decides; by it the class is found;
* `test_holds`, which proves the claim, or `test_refuted`, which shows the counter-example its docstring states;
* `test_sabotage`, which breaks the mechanism on purpose and sees the property fail.

Any of them may be several, told apart by what follows (`test_holds_after_training`): then all of them count.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablations import formulas, store
from ablations.evidence import Evidence, ExactCheck, FormulaCheck, Number, Setting
from ablations.progress import Show
from ablations.schema import Contrast
from ablations.verdict import Decision, Overall, judge, overall
from transformer.errors import UserError
from transformer.training.jsonfiles import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
STORED = "checks.json"
PARTS = ("test_refuted", "test_holds", "test_sabotage")
RAN = (0, 1, 5)  # exit codes of pytest: all passed, some failed, nothing collected


Result = ExactCheck | FormulaCheck


def discover(root: Path | None = None) -> dict[str, list[str]]:
    """Claim id -> what decides it: every test class that names the claim, and the formula of that name."""
    found: dict[str, list[str]] = {}
    root = root or ROOT
    for path in sorted((root / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "claim = " not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and (claim := _claim_of(node)):
                found.setdefault(claim, []).append(f"{path.relative_to(root).as_posix()}::{node.name}")
    for name in formulas.FORMULAS:
        found.setdefault(name, []).append(name)
    return found


def _claim_of(node: ast.ClassDef) -> str:
    for line in node.body:
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
            names = [target.id for target in line.targets if isinstance(target, ast.Name)]
            if "claim" in names:
                return str(line.value.value)
    return ""


def run(checks: Iterable[str], runs: Path, show: Show = lambda *_: None) -> dict[str, Result]:
    """Runs the test classes, evaluates the formulas and stores the results beside the arms.

    Args:
      show: is told how many tests have ended, how many there are, and the class of the last.

    Returns:
      The result of each check; none for one whose tests were skipped.

    Raises:
      UserError: a check names no test and no formula or cannot be run, or pytest is not installed.
    """
    wanted = sorted(set(checks))
    evaluated = {name: formulas.evaluate(name) for name in wanted if "::" not in name and "/" not in name}
    found: dict[str, Result] = {**evaluated, **_run_tests([c for c in wanted if c not in evaluated], show)}
    known = {check: result for check, result in stored(runs).items() if check not in wanted}
    for check, result in found.items():
        content = dataclasses.asdict(result)
        known[check] = {**content, "digest": store.digest({"check": check, **content})}
    if wanted:
        runs.mkdir(parents=True, exist_ok=True)
        write_json(runs / STORED, dict(sorted(known.items())))
    return found


def _run_tests(wanted: list[str], show: Show) -> dict[str, ExactCheck]:
    if not wanted:
        return {}
    for check in wanted:
        file, separator, name = check.partition("::")
        if not (separator and name and (ROOT / file).is_file()):
            raise UserError(
                f"The check {check!r} is not FILE::CLASS with a test file of this repository, nor the name of a "
                "formula."
            )
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--junit-xml={report}", *wanted]
        code, output = _watched(command, show)
        if not report.is_file() or code not in RAN:
            raise UserError(_problem(output, wanted))
        read = {check: _read(report, check) for check in wanted}
    return {check: result for check, result in read.items() if result is not None}


def _watched(command: list[str], show: Show) -> tuple[int, str]:
    """Exit code and output of pytest, which prints a line for each test that ended."""
    lines, ended, known = [], 0, 0
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PY_COLORS": "0"}, **pipes) as process:
        try:
            for line in process.stdout or ():
                lines.append(line)
                if found := re.search(r"\bcollected (\d+) item", line):
                    known = int(found[1])
                    show(0, known, [])
                elif found := re.match(r"\S+::(\w+)::.*\[ *\d+%\]$", line):
                    ended += 1
                    show(ended, known, [found[1]])
        except BaseException:
            process.kill()
            raise
    return process.returncode, "".join(lines)


def results(runs: Path) -> dict[str, Result]:
    """What the last run of each check gave; one changed by hand counts as not run."""
    found: dict[str, Result] = {}
    for check, content in stored(runs).items():
        if content.pop("digest", "") == store.digest({"check": check, **content}):
            formula = "numbers" in content
            found[check] = _formula_check(content) if formula else ExactCheck(**content)
    return found


def _formula_check(content: dict[str, Any]) -> FormulaCheck:
    numbers = ({**number, "interval": tuple(number.get("interval", ()))} for number in content["numbers"])
    return FormulaCheck(tuple(Number(**number) for number in numbers))


def decide(claim: str, check: str, result: Result | None) -> Decision:
    """The verdict of one check on one claim."""
    formula = "::" not in check
    contrast = Contrast(claim, "formula" if formula else "exact", check=check)
    evidence = Evidence(formula=result) if isinstance(result, FormulaCheck) else Evidence(exact=result)
    return judge(contrast, evidence, Setting("checks", "no training"))


def sabotage(result: Result | None) -> str:
    """Whether the deliberately broken variant failed: `caught`, `not caught`, `not run`, or `-` for a formula."""
    if isinstance(result, FormulaCheck):
        return "-"
    if result is None or result.sabotage_caught is None:
        return "not run"
    return "caught" if result.sabotage_caught else "not caught"


def settled(runs: Path) -> dict[str, Overall]:
    """Claim id -> the joint verdict of every check of it that was run."""
    found = results(runs)
    ran = {claim: [check for check in named if check in found] for claim, named in discover().items()}
    return {
        claim: overall([decide(claim, check, found[check]) for check in named]) for claim, named in ran.items() if named
    }


def as_row(result: Result) -> dict[str, Any]:
    """A result as the report shows it."""
    if isinstance(result, ExactCheck):
        return {
            "passed": result.passed,
            "sabotage_caught": result.sabotage_caught,
            "detail": result.counterexample,
        }
    shown = (f"{n.what}: {n.claimed:g} claimed, {n.measured:.6g} {n.unit}".rstrip() for n in result.numbers)
    passed = all(number.agrees for number in result.numbers)
    return {"passed": passed, "sabotage_caught": None, "kind": "formula", "detail": "; ".join(shown)}


def _problem(output: str, wanted: list[str]) -> str:
    """Why pytest did not get as far as running the tests, in one line."""
    for check in wanted:
        if f"not found: {ROOT / check}" in output:
            return f"The check {check} does not exist: its file has no such class."
    lines = [line for line in output.splitlines() if line.strip()]
    cause = next((line for line in reversed(lines) if line.startswith("E ")), lines[-1] if lines else "no output")
    return f"The checks could not be run: {_line(cause.removeprefix('E '))}"


def stored(runs: Path) -> dict[str, dict[str, Any]]:
    """Check -> its result as it was written, with the digest that seals it."""
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
        name = str(case.get("name")).partition("[")[0]
        found = problems.setdefault(next((part for part in PARTS if name.startswith(part)), name), {})
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
                if isinstance(test, ast.FunctionDef) and test.name.startswith(PARTS[0]) and ast.get_docstring(test):
                    return " ".join(str(ast.get_docstring(test)).split())
    return "shown by test_refuted"


def _line(message: str) -> str:
    return " ".join(message.split())[:300]
