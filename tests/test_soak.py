"""What the tests that take minutes leave behind: a result each, and the committed file knows them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import soak
from transformer.training.jsonfiles import read_json

ROOT = Path(__file__).resolve().parents[1]


def report(name: str, outcome: str = "passed", **counts) -> SimpleNamespace:
    about = {"nodeid": name, "outcome": outcome, "duration": 61.27, "user_properties": list(counts.items())}
    return SimpleNamespace(**about, when="call", keywords={"soak": 1}, skipped=outcome == "skipped")


def test_a_result_replaces_only_its_own(tmp_path):
    path = tmp_path / "soak.json"
    soak.record(report("b", kills=20), path)
    soak.record(report("a", "failed"), path)
    soak.record(report("b", kills=19), path)
    results = read_json(path)
    assert list(results) == ["a", "b"]
    assert results["a"]["outcome"] == "failed" and results["b"]["counts"] == {"kills": 19}
    assert results["b"]["seconds"] == 61.3 and set(results["b"]["packages"]) == set(soak.PACKAGES)


@pytest.mark.parametrize(("change", "kept"), [({}, 1), ({"when": "setup"}, 0), ({"keywords": {}}, 0)])
def test_what_is_recorded(monkeypatch, change, kept):
    seen = []
    monkeypatch.setattr(soak, "record", seen.append)
    soak.Recorder().pytest_runtest_logreport(SimpleNamespace(**{**vars(report("a")), **change}))
    assert len(seen) == kept


def test_the_committed_results_are_of_tests_that_exist():
    """And each of them passed; a new soak test is missing here until `make soak` has run."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "soak", "tests"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120).stdout
    existing = {line for line in listed.splitlines() if "::" in line}
    results = read_json(soak.RESULTS)
    assert results.keys() <= existing
    assert {result["outcome"] for result in results.values()} == {"passed"}
