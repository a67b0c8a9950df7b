"""Accounting claims: each formula is about a claim, gives the verdict literature leads to expect, and can fail."""

from __future__ import annotations

import ast
import dataclasses

import pytest

from ablations import checks, claims, formulas
from ablations.evidence import FormulaCheck
from ablations.formulas import FORMULAS
from transformer.errors import UserError

MEASURED = ("rmsnorm_speed",)  # on a machine, by a benchmark whose numbers are committed


def verdict(name: str, check: FormulaCheck) -> str:
    return checks.decide(name, name, check).verdict


@pytest.fixture(scope="module")
def evaluated() -> dict[str, FormulaCheck]:
    return {name: formulas.evaluate(name) for name in FORMULAS}


@pytest.mark.parametrize("name", [name for name in FORMULAS if name not in MEASURED])
def test_a_formula_says_what_is_known(evaluated, name):
    """The prior of these claims was worked out by hand, before any of this was written."""
    claim = claims.get(name)
    assert claim.kind == "accounting"
    assert verdict(name, evaluated[name]) == claim.prior, checks.as_row(evaluated[name])["detail"]


@pytest.mark.parametrize("name", FORMULAS)
def test_another_number_changes_the_verdict(evaluated, name):
    """Every number counts: stated otherwise, or come out otherwise, each is noticed."""
    check = evaluated[name]
    for i, number in enumerate(check.numbers):
        off = max(3 * number.tolerance, 0.01 * abs(number.claimed), 1e-6)
        moved = dataclasses.replace(number, measured=number.claimed + off)
        others = check.numbers[:i] + check.numbers[i + 1 :]
        changed = FormulaCheck((*others, moved))
        agree = sum(n.agrees for n in others)
        expected = "refuted" if not agree else "mixed"
        assert verdict(name, changed) == expected, number.what


def test_an_unknown_formula_is_named():
    with pytest.raises(UserError, match=r"no formula 'zero3_shares'.*Did you mean .zero3_share."):
        formulas.evaluate("zero3_shares")


def test_formulas_run_as_checks_and_are_sealed(tmp_path):
    found = checks.run(["zero3_share", "allreduce_volume"], tmp_path)
    assert checks.results(tmp_path) == found
    assert [verdict(name, check) for name, check in found.items()] == ["refuted", "supported"]
    stored = (tmp_path / checks.STORED).read_text()
    (tmp_path / checks.STORED).write_text(stored.replace('"claimed": 350', '"claimed": 175'))
    assert set(checks.results(tmp_path)) == {"allreduce_volume"}  # changed by hand: as if never run


def test_what_is_discovered_names_claims_that_exist():
    """A claim has one formula, or tests, maybe several; each must be about a claim."""
    found = checks.discover()
    assert set(found) <= set(claims.load())
    assert all(len(deciding) == len(set(deciding)) for deciding in found.values())
    decided_twice = [claim for claim in FORMULAS if found[claim] != [claim]]
    assert not decided_twice, f"these have a formula and a test: {decided_twice}"
    assert "tests/claims/test_causal_mask.py::TestGenerates" in found["clm_generates"]


def test_every_class_that_names_a_claim_can_decide_it():
    """Otherwise `list --run` has to refuse them all."""
    for check in (check for deciding in checks.discover().values() for check in deciding if "::" in check):
        file, _, name = check.partition("::")
        tree = ast.parse((checks.ROOT / file).read_text(encoding="utf-8"))
        owner = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        tests = [node.name for node in owner.body if isinstance(node, ast.FunctionDef)]
        assert any(test.startswith(("test_holds", "test_refuted")) for test in tests), check
