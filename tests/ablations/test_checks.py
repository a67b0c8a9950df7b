"""Exact claims: what a test class says is read as it is meant, and an unseen sabotage stops a run."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ablations import checks, commands, summary
from ablations.__main__ import main
from ablations.evidence import ExactCheck
from ablations.schema import Contrast
from tests.ablations.lab import ablation, write_config
from transformer.errors import UserError

PROBE = '''
import pytest

class TestHolds:
    @pytest.mark.parametrize("size", [1, 2])
    def test_holds(self, size): assert size > 0
    def test_sabotage(self):
        with pytest.raises(AssertionError):
            assert 1 > 2

class TestBroken:
    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_holds(self, size): assert size != 2, "the second <one> leaks"
    def test_sabotage(self): pass

class TestRefuted:
    def test_refuted(self): """Even numbers are not odd."""
    def test_sabotage(self): pass

class TestSeveral:
    def test_holds_here(self): pass
    def test_holds_there(self): assert False, "not there"
    def test_sabotage_of_one(self): pass

class TestRefutationFails:
    def test_refuted(self): assert False
    def test_sabotage(self): pass

class TestBlind:
    def test_holds(self): pass
    def test_sabotage(self):
        with pytest.raises(AssertionError): pass

class TestNoSabotage:
    def test_holds(self): pass

class TestSkipped:
    def test_holds(self): pytest.skip("needs an accelerator")
    def test_sabotage(self): pass

class TestSabotageSkipped:
    def test_holds(self): pass
    def test_sabotage(self): pytest.skip("needs an accelerator")
'''
WRONG = """
import pytest

class TestNothing:
    def test_other(self): pass

class TestFixture:
    @pytest.fixture
    def model(self): raise RuntimeError("no model")
    def test_holds(self, model): pass
"""
NAMES = [line.split()[1].rstrip(":") for line in PROBE.splitlines() if line.startswith("class")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A repository with test classes of every kind."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "tests").mkdir()
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    (folder / "tests" / "test_probe.py").write_text(PROBE)
    (folder / "tests" / "test_wrong.py").write_text(WRONG)
    (folder / "tests" / "test_syntax.py").write_text("import nothing_of_this_name\n\nclass TestA: pass\n")
    return folder


@pytest.fixture(autouse=True)
def here(root, monkeypatch):
    monkeypatch.setattr(checks, "ROOT", root)


@pytest.fixture(scope="module")
def ran(root, tmp_path_factory):
    """All probes, run once: class -> result, and the folder they are stored in."""
    runs = tmp_path_factory.mktemp("runs") / "deep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "ROOT", root)
        found = checks.run([f"tests/test_probe.py::{name}" for name in (*NAMES, *NAMES)], runs)
    return {check.rsplit("::")[-1]: result for check, result in found.items()}, runs


def test_a_property_that_holds_and_a_sabotage_that_is_caught(ran):
    assert ran[0]["TestHolds"] == ExactCheck(passed=True, sabotage_caught=True)


def test_a_property_that_fails_leaves_its_counterexample(ran):
    result = ran[0]["TestBroken"]
    assert not result.passed and result.sabotage_caught
    assert "the second <one> leaks" in result.counterexample and "\n" not in result.counterexample


def test_every_part_of_a_property_counts(ran):
    result = ran[0]["TestSeveral"]
    assert (result.passed, result.sabotage_caught) == (False, True) and "not there" in result.counterexample


def test_a_refutation_that_passes_is_the_counterexample(ran):
    assert ran[0]["TestRefuted"] == ExactCheck(False, True, "Even numbers are not odd.")


def test_a_refutation_that_fails_proves_nothing(ran):
    """The claim stands, but nobody has shown it: without a caught sabotage there is no verdict."""
    assert ran[0]["TestRefutationFails"] == ExactCheck(passed=True, sabotage_caught=None)


def test_a_blind_check_is_told_from_one_without_sabotage(ran):
    assert ran[0]["TestBlind"] == ExactCheck(passed=True, sabotage_caught=False)
    assert ran[0]["TestNoSabotage"] == ran[0]["TestSabotageSkipped"] == ExactCheck(passed=True, sabotage_caught=None)


def test_a_skipped_check_decides_nothing(ran):
    """It is no counter-example."""
    assert "TestSkipped" not in ran[0] and len(ran[0]) == len(NAMES) - 1


def test_results_are_stored_and_sealed(ran, tmp_path):
    found, runs = ran
    stored = {check.rsplit("::")[-1]: result for check, result in checks.results(runs).items()}
    assert stored == found
    content = json.loads((runs / checks.STORED).read_text())
    content["tests/test_probe.py::TestBroken"]["passed"] = True
    content["tests/test_probe.py::TestBlind"] = content["tests/test_probe.py::TestHolds"]
    (tmp_path / checks.STORED).write_text(json.dumps(content))
    left = {check.rsplit("::")[-1] for check in checks.results(tmp_path)}
    assert left == set(found) - {"TestBroken", "TestBlind"}  # changed by hand: as if never run
    assert checks.results(tmp_path / "nowhere") == {} and checks.run([], tmp_path) == {}
    (tmp_path / checks.STORED).write_text("{")
    assert checks.results(tmp_path) == {}


def test_whoever_waits_sees_each_test_end(tmp_path, monkeypatch):
    """Also where everything is asked to be coloured."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    seen: list[tuple[int, int, list[str]]] = []
    wanted = [f"tests/test_probe.py::{name}" for name in ("TestHolds", "TestSkipped")]
    checks.run(wanted, tmp_path, lambda *told: seen.append(told))
    names = ["TestHolds"] * (len(seen) - 3) + ["TestSkipped"] * 2
    assert len(names) > 2 and seen == [(0, len(names), []), *((1 + i, len(names), [n]) for i, n in enumerate(names))]


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("tests/test_probe.py::TestMissing", "tests/test_probe.py::TestMissing does not exist: its file has no such"),
        ("tests/test_missing.py::TestA", "'tests/test_missing.py::TestA' is not FILE::CLASS with a test file"),
        ("tests/test_probe.py", "'tests/test_probe.py' is not FILE::CLASS"),
        ("tests/test_wrong.py::TestNothing", "TestNothing has neither test_holds nor test_refuted"),
        ("tests/test_wrong.py::TestFixture", "test_holds could not be run: .*no model"),
        ("tests/test_syntax.py::TestA", "The checks could not be run: .*No module named 'nothing_of_this_name'"),
    ],
)
def test_a_check_that_cannot_be_run_says_so_by_name(tmp_path, check, message):
    """Also when a good one is asked for beside it, and stands first in the alphabet."""
    with pytest.raises(UserError, match=message) as refused:
        checks.run(["tests/test_probe.py::TestHolds", check], tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / checks.STORED).exists()


# --- Before a run ------------------------------------------------------------------------------------------------


def exact(name: str, prior: str = "supported") -> Contrast:
    return Contrast("causal_mask_blocks_future", "exact", check=f"tests/test_probe.py::{name}", prior=prior)


@pytest.mark.parametrize(
    ("name", "prior", "message"),
    [
        ("TestBlind", "supported", "did not notice its sabotage; mend the test first"),
        ("TestBlind", "refuted", "did not notice its sabotage"),
        ("TestBroken", "supported", r"failed \(.*the second <one> leaks.*\); mend the model first"),
        ("TestBroken", "refuted", ""),
        ("TestHolds", "supported", ""),
        ("TestRefuted", "refuted", ""),
        ("TestSkipped", "supported", ""),
    ],
)
def test_what_stops_a_run(tmp_path, ran, monkeypatch, name, prior, message):
    found = {f"tests/test_probe.py::{name}": ran[0][name]} if name in ran[0] else {}
    monkeypatch.setattr(checks, "run", lambda *_: found)
    made = ablation(contrasts=(exact(name, prior),))
    if not message:
        commands.run_checks("tiny", made, tmp_path)
    else:
        with pytest.raises(UserError, match=message):
            commands.run_checks("tiny", made, tmp_path)


def test_a_blind_check_stops_the_command_before_anything_is_trained(tmp_path, configs, capsys):
    write_config(configs, ablation("no.txt", contrasts=(exact("TestBlind"),)))
    runs = tmp_path / "runs"
    assert main(["run", "tiny", "--profile=tiny", f"--configs={configs}", f"--runs={runs}"]) == 2
    assert "did not notice its sabotage" in capsys.readouterr().err
    assert [path.name for path in runs.iterdir()] == [checks.STORED]


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("TestHolds", "supported"),
        ("TestRefuted", "refuted"),
        ("TestRefutationFails", "inconclusive"),
        ("TestNoSabotage", "inconclusive"),
        ("TestSkipped", "inconclusive"),
    ],
)
def test_the_verdict_on_an_exact_claim(ran, configs, name, verdict):
    write_config(configs, ablation("no.txt", contrasts=(exact(name),)))
    data = summary.summarize(dataclasses.replace(summary.collect("tiny", "tiny", ran[1])))
    assert data["claims"][0]["verdict"] == verdict
    assert [row["name"] for row in data["checks"]] == ([] if name == "TestSkipped" else [exact(name).check])
