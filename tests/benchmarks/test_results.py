"""RESULTS.md is made of the JSON files alone."""

from __future__ import annotations

import importlib
import json

import pytest

from benchmarks import reporting, results
from benchmarks.reporting import Table

TABLE = Table("two sides", ("", "tokens/s", "ratio"), (("ours", "12", "1.20"), ("a|b", "10", "1.00")), "Idle machine.")


def stored(folder, name: str, table: Table = TABLE) -> None:
    reporting.store(folder / "results" / f"{name}.json", name, f"How fast is {name}?", [table], {"raw": [1, 2]})


def test_a_table_is_aligned_on_the_screen_and_a_table_in_markdown():
    lines = TABLE.text().splitlines()
    assert lines[0] == "two sides" and len({len(line) for line in lines[1:4]}) == 1 and "Idle" in lines[-1]
    assert "| a\\|b | 10 | 1.00 |" in TABLE.markdown() and "| --- | ---: | ---: |" in TABLE.markdown()


def test_the_page_holds_every_report_and_is_the_same_when_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--rounds=3", f"--json={tmp_path}/a.json", f"data.path={tmp_path}/a.txt"])
    stored(tmp_path, "beta")
    stored(tmp_path, "alpha")
    page = results.write(tmp_path).read_text()
    assert page.index("## alpha: How fast is alpha?") < page.index("## beta")
    assert "`python -m benchmarks.alpha --rounds=3 data.path=DATA.PATH`" in page and str(tmp_path) not in page
    about = json.loads((tmp_path / "results" / "alpha.json").read_text())
    assert about["date"] in page and about["machine"]["jax"] in page and about["numbers"] == {"raw": [1, 2]}
    assert results.write(tmp_path).read_text() == page


def test_another_number_in_a_file_shows_on_the_page(tmp_path):
    stored(tmp_path, "alpha")
    before = results.write(tmp_path).read_text()
    stored(tmp_path, "alpha", Table("two sides", ("", "tokens/s"), (("ours", "13"),)))
    assert results.write(tmp_path).read_text() != before


def test_the_committed_page_is_what_its_files_say():
    page, files = results.FOLDER / "RESULTS.md", sorted((results.FOLDER / "results").glob("*.json"))
    assert page.is_file() is bool(files)
    if files:
        assert page.read_text() == results.document([json.loads(path.read_text()) for path in files])


@pytest.mark.parametrize("name", results.ON_CPU)
def test_every_listed_script_can_be_run(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def test_an_unknown_script_is_refused(capsys):
    with pytest.raises(SystemExit):
        results.main(["--run=speed"])
    assert "--run=speed is not one of: train_step" in capsys.readouterr().err
