"""Committed answers: records packed and unpacked, tables and pages written from them, byte for byte the same."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from ablations import catalog, committed, jobs, store, summary
from ablations.__main__ import main
from ablations.cells import Member, cells
from ablations.profiles import rank
from ablations.schema import ABOUT
from tests.ablations.lab import WORSE, ablation, arm, fill, put, write_config
from transformer.errors import UserError

MADE = ablation(rates=(1e-2,), seeds=8, contrasts=(dataclasses.replace(WORSE, note="a | bar"),))


def loss(member: Member, offset: float) -> float:
    return 2.0 + 0.05 * (member.seed % 4) + offset + 0.004 * ((7 * member.seed + member.twin) % 5)


@pytest.fixture
def trained(tmp_path, configs, monkeypatch):
    """Runs of both arms, and a folder in place of the committed answers."""
    monkeypatch.setattr(committed, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(committed, "ROOT", tmp_path)
    write_config(configs, MADE)
    for name, offset in (("base", 0.0), ("other", 0.1)):
        known = jobs.registered("tiny", MADE)
        fill(tmp_path / "runs", arm(MADE, name), lambda m, o=offset: loss(m, o), contrasts=known)
    return tmp_path


def kept(folder):
    return committed.keep("tiny", "tiny", folder / "runs", folder / "results")


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_packed_records_are_the_records(trained):
    folder = kept(trained)
    for name in ("base", "other"):
        cell = arm(MADE, name)
        assert store.read_arm(cell.directory(folder)) == store.read_arm(cell.directory(trained / "runs"))
    assert len(list(folder.glob("*.jsonl"))) == 2  # a file an arm, whatever the number of members


def test_a_number_changed_by_hand_in_a_packed_record_is_noticed(trained):
    folder = kept(trained)
    path = next(folder.glob("tiny-other-*.jsonl"))
    lines = path.read_text().splitlines()
    changed = json.loads(lines[2])
    changed["metrics"]["loss"] = 1.0
    path.write_text("\n".join([*lines[:2], json.dumps(changed), *lines[3:]]) + "\n")
    report = committed.data("tiny", "tiny", trained / "results")
    assert report["progress"]["tampered"] == [f"{path.name}, line 3"]
    assert report["decisions"][0]["verdict"] == "inconclusive"


def test_members_trained_elsewhere_add_up(trained):
    """Two machines keep their own members of one arm."""
    kept(trained)
    cell, elsewhere = arm(MADE, "base"), trained / "elsewhere"
    put(elsewhere, cell, Member(1e-2, 40), 3.0)
    committed.keep("tiny", "tiny", elsewhere, trained / "results")
    records, _ = store.read_arm(cell.directory(trained / "results" / "tiny" / "tiny" / "records"))
    assert len(records) == 17 and records[Member(1e-2, 40)].metrics["loss"] == 3.0


def test_what_was_measured_on_a_member_stays_kept(trained):
    """Where it was trained once more for another question, without the probe; another outcome counts all the same."""
    cell = arm(MADE, "other")
    folder = cell.directory(trained / "runs")
    (member, lost), first = sorted(store.read_arm(folder)[0])[-2:], store.read_arm(folder)[0]
    probed = dataclasses.replace(first[member], metrics={**first[member].metrics, "prefix_loss": 2.0})
    store.write_record(folder / member.name, probed)
    store.write_record(folder / lost.name, dataclasses.replace(first[lost], metrics={"loss": 1.0, "prefix_loss": 2.0}))
    kept(trained)
    diverged = dataclasses.replace(first[lost], state="diverged", metrics={})
    store.write_record(folder / member.name, first[member])
    store.write_record(folder / lost.name, diverged)
    records = store.read_arm(cell.directory(kept(trained)))[0]
    assert records[member] == probed and records[lost] == diverged


def test_an_arm_keeps_the_name_it_has(trained):
    """Wherever its next members were trained, and whatever it is called there."""
    folder = kept(trained)
    before = sorted(path.name for path in folder.glob("*.jsonl"))
    (found,) = (trained / "runs").glob(f"*-{arm(MADE, 'base').hash[:10]}")
    found.rename(found.with_name(found.name.replace("tiny-base", "another-name")))
    put(trained / "runs", arm(MADE, "base"), Member(1e-2, 40), 3.0)
    assert sorted(path.name for path in kept(trained).glob("*.jsonl")) == before
    assert Member(1e-2, 40) in store.read_arm(arm(MADE, "base").directory(folder))[0]


def test_nothing_to_keep_is_said(tmp_path, configs):
    write_config(configs, MADE)
    with pytest.raises(UserError, match="tiny has no finished run at the tiny profile"):
        committed.keep("tiny", "tiny", tmp_path / "none", tmp_path / "results")
    assert committed.kept(tmp_path / "results") == []  # and nothing is left that would be reported


def test_the_command_writes_the_same_bytes_each_time(trained, configs, capsys):
    assert main(["keep", "tiny", "--profile=tiny", f"--configs={configs}", f"--runs={trained / 'runs'}"]) == 0
    command = ["report", f"--configs={configs}", f"--out={trained / 'pages'}"]
    assert main(command) == 0
    first = files(trained / "results")
    assert {str(path) for path in first} >= {"README.md", "tiny/tiny/report.md", "tiny/tiny/verdicts.json"}
    assert any(path.suffix == ".svg" for path in first) and not any(path.suffix == ".html" for path in first)
    assert main(command) == 0
    assert files(trained / "results") == first
    assert (trained / "pages" / "tiny-tiny" / "report.html").is_file()
    table = first[next(path for path in first if path.name == "README.md" and len(path.parts) == 1)].decode()
    assert "other − base: +0.1" in table and "nats per token, supported" in table
    assert "**supported**" in table and ", 8 seeds |" in table
    assert "(tiny/tiny/report.md)" in table
    assert main(["report", "missing", f"--configs={configs}", f"--out={trained / 'pages'}"]) == 2
    assert "No answer of 'missing' is committed" in capsys.readouterr().err
    assert main(["report", "tiny", "--profile=full", f"--configs={configs}", f"--out={trained / 'pages'}"]) == 2
    assert "'tiny' at the full profile is committed; of it there are: tiny;" in capsys.readouterr().err


def test_a_repetition_stands_beside_the_first_estimates(trained, configs, capsys):
    """And changes neither the table of answers nor its picture."""
    kept(trained)
    command = ["report", f"--configs={configs}", f"--out={trained / 'pages'}"]
    assert main(command) == 0
    alone = files(trained / "results")
    for name, offset in (("base", 0.0), ("other", 0.2)):
        cell = next(cell for cell in cells("tiny", MADE, "tiny@100") if cell.arm == name)
        fill(trained / "runs", cell, lambda m, o=offset: loss(m, o), contrasts=jobs.registered("tiny", MADE))
    committed.keep("tiny", "tiny@100", trained / "runs", trained / "results")
    assert main(command) == 0
    both = files(trained / "results")
    capsys.readouterr()
    assert main([command[0], "tiny", "--profile=tiny@100", *command[1:]]) == 0
    assert capsys.readouterr().out.count("page: ") == 1  # the other is written, and not printed
    assert both[Path(committed.PICTURE)] == alone[Path(committed.PICTURE)]
    table, repeated = both[Path("README.md")].decode().split("\n## Repeated on other seeds\n")
    controls = "\n## Controls\n"
    assert table.split(controls)[0] == alone[Path("README.md")].decode().split(controls)[0]
    assert "| tiny, tiny<br>tiny, tiny@100 |" in table.split(controls)[1]  # the same made-up losses
    row = next(line for line in repeated.splitlines() if "tiny: other − base" in line).split("|")
    assert "+0.1 [" in row[2] and "+0.2 [" in row[3]
    assert "supported, 8 seeds<br>learning rates other 0.01, base 0.01" in row[3]
    assert "[tiny](tiny/tiny/report.md) and [tiny@100](tiny/tiny@100/report.md)" in row[5]
    assert row[4].strip() == "yes" and "In 1 of 1 comparisons the two 95% intervals do not overlap." in repeated


def test_a_repetition_that_blew_up_is_not_left_out(trained, configs):
    kept(trained)
    for name in ("base", "other"):
        cell = next(cell for cell in cells("tiny", MADE, "tiny@100") if cell.arm == name)
        lost = name == "other"
        fill(trained / "runs", cell, lambda m, lost=lost: loss(m, 0.0) if m.is_tuning or not lost else None)
    committed.keep("tiny", "tiny@100", trained / "runs", trained / "results")
    assert main(["report", f"--configs={configs}", f"--out={trained / 'pages'}"]) == 0
    repeated = (trained / "results" / "README.md").read_text().split("\n## Repeated on other seeds\n")[1]
    row = next(line for line in repeated.splitlines() if "tiny: other − base" in line).split("|")
    assert "+0.1 [" in row[2] and "the difference is as claimed<br>supported, 8 seeds" in row[3]


@pytest.mark.parametrize(("trained_as", "this_machine"), [("sequential", "population"), ("population", "sequential")])
def test_answers_are_read_as_they_were_trained_whatever_this_machine_would_do(
    tmp_path, configs, trained_as, this_machine
):
    write_config(configs, MADE)
    with catalog.executed(trained_as):
        for cell in cells("tiny", catalog.load("tiny"), "tiny"):
            fill(tmp_path / "runs", cell, lambda m, o=0.1 * (not cell.is_baseline): loss(m, o))
        committed.keep("tiny", "tiny", tmp_path / "runs", tmp_path / "results")
        expected = committed.data("tiny", "tiny", tmp_path / "results")
    with catalog.executed(this_machine):
        assert committed.data("tiny", "tiny", tmp_path / "results") == expected
    assert expected["decisions"][0]["verdict"] == "supported"


def test_records_that_no_arm_claims_are_not_reported_as_missing(trained, configs):
    """Else a changed config would overwrite an answer with "not run"."""
    kept(trained)
    write_config(configs, dataclasses.replace(MADE, base={"optimizer.beta1": 0.5}))
    with pytest.raises(UserError, match="belong to no arm that tiny has at the tiny profile; undo the change"):
        committed.data("tiny", "tiny", trained / "results")


def test_a_larger_profile_that_measured_nothing_hides_no_answer(trained, configs):
    small = committed.data("tiny", "tiny", kept(trained).parents[2])
    large = summary.summarize(summary.collect("tiny", "tiny", trained / "nowhere")) | {"profile": "full"}
    assert rank("full") < rank("tiny")
    (row,) = committed.answers([large, small])
    assert (row["profile"], row["verdict"]) == ("tiny", "supported")
    (row,) = committed.answers([large])
    assert (row["profile"], row["verdict"]) == ("full", "inconclusive")


def test_what_is_committed_here_is_what_the_command_writes(tmp_path, monkeypatch):
    """Every table, page and figure of this repository follows from the records beside it."""
    root, results = committed.ROOT, committed.RESULTS
    before = files(results)
    assert before, "no answer is committed"
    shutil.copytree(results, tmp_path / "results")
    shutil.copy(root / "README.md", tmp_path / "README.md")
    for path in (tmp_path / "results").rglob("*"):
        if path.is_file() and path.parent.name != "records":
            path.unlink()
    monkeypatch.setattr(committed, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(committed, "ROOT", tmp_path)
    assert main(["report", f"--out={tmp_path / 'pages'}"]) == 0
    assert files(tmp_path / "results") == before
    assert (tmp_path / "README.md").read_bytes() == (root / "README.md").read_bytes()
    assert not any(
        report["progress"]["tampered"] for report in map(lambda pair: committed.data(*pair), committed.kept())
    )


def test_a_committed_answer_explains_a_claim(trained, configs, capsys):
    kept(trained)
    assert main(["explain", "layernorm_removal", f"--configs={configs}", f"--runs={trained / 'nowhere'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tiny: supported" in said and "page: results/tiny/tiny/report.md" in said


def test_the_headline_stands_between_the_marks(trained):
    kept(trained)
    readme = trained / "README.md"
    readme.write_text(f"above\n{committed.MARKS[0]}\nold\n{committed.MARKS[1]}\nbelow\n")
    answered = list(committed.answers([committed.data("tiny", "tiny", trained / "results")]))
    committed.headline(answered, readme)
    text = readme.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    assert "(ablations/results/tiny/tiny/report.md)" in text
    committed.headline(answered, readme)
    assert readme.read_text() == text and "Prefix loss" not in text
    committed.headline([{**row, "metrics": ["loss", "prefix_loss"]} for row in answered], readme)
    assert f"*Prefix loss: {ABOUT['prefix_loss']}.*" in readme.read_text()  # what no reader knows by its name
