"""What the tests that take minutes leave behind: a result each, and the committed file knows them all."""

from __future__ import annotations

import ast
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


def marked() -> set[str]:
    """The tests marked soak, by reading."""
    found = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body if "mark.soak" in text else ():
            if isinstance(node, ast.FunctionDef) and any("mark.soak" in ast.unparse(d) for d in node.decorator_list):
                found.add(f"{path.relative_to(ROOT).as_posix()}::{node.name}")
    return found


def test_the_committed_results_are_of_tests_that_exist():
    """And each of them passed; a new soak test is missing here until `make soak` has run."""
    results = read_json(soak.RESULTS)
    assert results and {name.partition("[")[0] for name in results} <= marked()
    assert {result["outcome"] for result in results.values()} == {"passed"}
