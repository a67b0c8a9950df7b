"""The generic tests, which run for every entry of a registry without being asked, and the planted defect that each of
them is seen to catch."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent

# File -> what its generic tests check -> the test in that file which hands the check something broken.
PLANTED = {
    "model/test_variants.py": {
        "check_does_something": "test_the_check_notices_a_switch_that_does_nothing",
        "check_changes_the_step": "test_the_check_notices_a_field_that_changes_no_step",
        "check_every_leaf_learns": "test_the_check_notices_a_dead_leaf",
        "check_parameter_count": "test_the_check_notices_a_matrix_too_many",
    },
    "model/test_causality.py": {
        "check_no_future": "test_the_check_notices_a_back_end_that_forgets_the_mask",
        "check_causal": "test_the_check_notices_a_lost_past",
    },
    "model/test_segments.py": {
        "check_packed": "test_the_checks_notice_missing_segments",
        "check_padding": "test_the_checks_notice_missing_segments",
    },
    "model/test_cache.py": {"check_cached_equals_full": "test_the_check_notices_a_lost_key"},
    "model/test_attention.py": {
        "check_against_loops": "test_the_check_notices_another_formula",
        "check_finite_without_keys": "test_the_check_notices_hiding_by_minus_infinity",
    },
    "model/test_attention_backends.py": {"check_equal": "test_the_check_notices_a_broken_back_end"},
    "model/test_attention_switches.py": {"check_number_formats": "test_the_check_notices_a_model_in_single_precision"},
    "analysis/test_flops.py": {"check_costs": "test_the_check_notices_an_operation_that_is_not_counted"},
    "training/test_population.py": {
        "check_same_run": "test_the_check_notices_another_seed_or_rate",
        "check_mapped_step": "test_the_check_notices_shared_settings",
    },
}
CHECKS = {check for planted in PLANTED.values() for check in planted}


# --- The planted defects -----------------------------------------------------------------------------------------


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in parsed(path).body if isinstance(node, ast.FunctionDef)}


def called(node: ast.AST) -> set[str]:
    """Names of the functions called in a piece of code."""
    return {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}


def caught(test: ast.FunctionDef) -> set[str]:
    """Functions that a test calls where it expects an AssertionError."""
    found: set[str] = set()
    for node in ast.walk(test):
        if isinstance(node, ast.With):
            expected = [ast.unparse(item.context_expr) for item in node.items]
            if any(text.startswith("pytest.raises(AssertionError") for text in expected):
                found |= called(node)
    return found


@pytest.mark.parametrize(
    ("file", "check", "defect"),
    [(file, *pair) for file, planted in PLANTED.items() for pair in planted.items()],
    ids=lambda name: name if name.startswith("check_") else "",
)
def test_a_check_must_fail_on_its_planted_defect(file, check, defect):
    there = functions(ROOT / file)
    assert check in there
    assert check in caught(there[defect])


# --- No generic test is without one ------------------------------------------------------------------------------

ROOMS = ("model", "training", "inference", "analysis")
ALL_ENTRIES = {"one_switch", "schema"}  # what tells a test the entries of all registries


def used(node: ast.AST) -> set[str]:
    """Names that appear in a piece of code."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def defined(node: ast.AST) -> set[str]:
    """Names that a statement of a test file defines, tests not counted."""
    if isinstance(node, ast.FunctionDef):
        return {node.name} if not node.name.startswith("test_") else set()
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


@functools.cache
def entries(path: Path) -> set[str]:
    """Names in a test file that stand for entries of registries, or for what was made of them."""
    found = set(ALL_ENTRIES)
    for node in parsed(path).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tests."):
            source = ROOT.joinpath(*node.module.split(".")[1:]).with_suffix(".py")
            there = entries(source) if source.is_file() else set()
            found |= {alias.asname or alias.name for alias in node.names if alias.name in there}
    statements = [(defined(node), used(node)) for node in parsed(path).body]
    while True:
        more = set().union(*(names for names, made_of in statements if made_of & found)) - found
        if not more:
            return found
        found |= more


def generic_tests(path: Path) -> list[ast.FunctionDef]:
    """The tests of a file that run once for each of many entries."""
    return [
        function
        for name, function in functions(path).items()
        if name.startswith("test_")
        and any(
            used(decorator) & entries(path)
            for decorator in function.decorator_list
            if "parametrize" in ast.unparse(decorator)
        )
    ]


def without_a_check(path: Path) -> list[str]:
    return [test.name for test in generic_tests(path) if not called(test) & CHECKS]


def test_every_generic_test_makes_one_of_these_checks():
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("test_*.py"))]
    assert sum(len(generic_tests(path)) for path in files) >= 20
    missing = {path.name: names for path in files if (names := without_a_check(path))}
    assert not missing, f"generic tests without a check in the table: {missing}"


def test_the_walk_notices_a_test_without_a_check(tmp_path):
    path = tmp_path / "test_new.py"
    path.write_text(
        "from tests.model.test_causality import BY_TOKEN, check_causal\n"
        "CHOSEN: list = [o for o in BY_TOKEN if o]\n"
        "@pytest.mark.parametrize('overrides', CHOSEN)\n"
        "def test_unchecked(overrides): assert overrides\n"
        "@pytest.mark.parametrize('overrides', [{}, *CHOSEN])\n"
        "def test_checked(overrides): check_causal(overrides)\n"
        "@pytest.mark.parametrize('overrides', [{}])\n"
        "def test_of_its_own(overrides): assert overrides\n"
    )
    assert [test.name for test in generic_tests(path)] == ["test_unchecked", "test_checked"]
    assert without_a_check(path) == ["test_unchecked"]
