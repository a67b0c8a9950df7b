"""The claims are complete, distinct and well-formed, and a damaged file is refused with a sentence."""

from __future__ import annotations

import collections
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablations import claims
from transformer.errors import UserError


@pytest.fixture(scope="module")
def rows() -> list[claims.Claim]:
    return list(claims.load().values())


def test_totals(rows):
    assert len(rows) == 244
    assert collections.Counter(row.kind for row in rows) == {
        "exact": 64,
        "training": 76,
        "inference": 45,
        "accounting": 43,
        "performance": 16,
    }
    assert collections.Counter(row.prior for row in rows) == {
        "supported": 152,
        "mixed": 56,
        "refuted": 31,
        "inconclusive": 5,
    }
    assert sum(row.surprise for row in rows) == 52
    assert len({row.ablation for row in rows}) == 43
    assert len({row.section for row in rows}) == 15


def test_no_two_claims_say_the_same(rows):
    said = collections.Counter(row.statement.casefold() for row in rows)
    assert [text for text, count in said.items() if count > 1] == []


def test_rows_are_fit_to_print(rows):
    for row in rows:
        for text in (row.statement, row.measure):
            assert text.endswith("."), row.id
            assert "\n" not in text and "  " not in text, row.id
        assert row.seeds and all(re.fullmatch(r"S[0-4] \S+", seed) for seed in row.seeds), row.id
        assert re.fullmatch(r"[a-z0-9_]+", row.id), row.id
        assert not row.ablation.startswith("ablation_"), row.id


def test_an_unexpected_verdict_is_explained(rows):
    unexplained = [row.id for row in rows if row.prior != "supported" and not row.prior_note]
    assert unexplained == []


def test_callers_cannot_damage_the_cached_rows():
    claims.load().clear()
    assert len(claims.load()) == 244


def test_get_returns_the_row_and_suggests_the_nearest_id():
    assert claims.get("rank_collapse").ablation == "no_residual"
    with pytest.raises(KeyError) as caught:
        claims.get("rank_colapse")
    assert isinstance(caught.value, UserError)
    assert str(caught.value) == 'Unknown claim "rank_colapse". Did you mean "rank_collapse"?'


SABOTAGE = {
    "unknown prior": ('prior = "supported"', 'prior = "suported"', 'Did you mean "supported"?'),
    "unknown kind": ('kind = "exact"', 'kind = "proof"', "kind = 'proof'; it is one of: exact, training"),
    "unknown status": (
        'status = "read"',
        'status = "checked"',
        "status = 'checked'; it is one of: read, memory",
    ),
    "missing key": ("surprise = false\n", "", "lacks surprise"),
    "misspelt key": ("confounds =", "confound =", "lacks confounds"),
    "extra key": ("surprise = false", "surprise = false\nwidth = 3", 'unknown key "width"'),
    "wrong type": ("surprise = false", 'surprise = "no"', "it must be true or false"),
    "empty statement": (
        re.compile(r'statement = """.*?"""', re.DOTALL),
        'statement = ""',
        "statement = ''; it must be a line of text",
    ),
    "broken file": ("[[claim]]", "[[claim]", "is not valid TOML"),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_damaged_file_is_refused_by_name(name, tmp_path):
    old, new, message = SABOTAGE[name]
    file = _copy(tmp_path) / "d_residual.toml"
    text = file.read_text(encoding="utf-8")
    pattern = old if isinstance(old, re.Pattern) else re.compile(re.escape(old))
    damaged = pattern.sub(new, text, count=1)
    assert damaged != text
    file.write_text(damaged, encoding="utf-8")
    with pytest.raises(claims.ClaimError, match=re.escape(message)) as caught:
        claims.load(tmp_path)
    assert "d_residual.toml" in str(caught.value)
    if name != "broken file":
        assert re.search(r'the claim "\w+"', str(caught.value))


def test_a_duplicate_id_names_both_files(tmp_path):
    file = _copy(tmp_path) / "i_padding.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"padding_loss_mask"', '"rank_collapse"'), encoding="utf-8")
    with pytest.raises(claims.ClaimError) as caught:
        claims.load(tmp_path)
    for part in ("i_padding.toml", "d_residual.toml", '"rank_collapse"'):
        assert part in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(claims.ClaimError, match="No claims"):
        claims.load(tmp_path)


def test_loading_is_quick_and_needs_no_jax():
    code = (
        "import sys, time\n"
        "from ablations import claims\n"
        "start = time.process_time()\n"
        "claims.load()\n"
        "print(time.process_time() - start, 'jax' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(claims.__file__).parents[2],
    )
    seconds, has_jax = done.stdout.split()
    assert float(seconds) < 0.5
    assert has_jax == "False"


def _copy(folder: Path) -> Path:
    for path in claims.FOLDER.glob("*.toml"):
        shutil.copy(path, folder)
    return folder
