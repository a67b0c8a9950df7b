"""Records: sealed, read back as written, and not believed when somebody changed them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import pytest

from ablations import store, summary
from ablations.cells import Member
from ablations.store import RECORD, Record, TamperedError, read_arm, read_record, thin, todo
from tests.ablations.lab import ablation, arm, fill, put, write_config

MADE = ablation(rates=(1e-2,), seeds=6)


@pytest.fixture
def cell():
    return arm(MADE)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    for name, offset in (("base", 0.0), ("other", 0.5)):
        fill(runs, arm(MADE, name), lambda m, offset=offset: 2.0 + offset + 0.01 * (m.seed % 3) + 0.002 * m.twin)
    return runs


@pytest.fixture
def filled(original, tmp_path, configs):
    """A store in which the arm without a norm is worse by 0.5 for each of six seeds."""
    write_config(configs, MADE)
    return Path(shutil.copytree(original, tmp_path / "runs"))


def change(path: Path, **fields) -> None:
    """Edits a stored record by hand."""
    content = json.loads(path.read_text())
    for name, value in fields.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


def verdict(runs: Path) -> dict:
    return summary.summarize(summary.collect("tiny", "tiny", runs))


def test_a_record_is_read_back_as_it_was_written(tmp_path, cell):
    written = put(
        tmp_path,
        cell,
        Member(1e-2, 0),
        1 / 3,
        curve=((128, 5.5), (256, None)),
        train_curve=((128, 5.5, 1e-9),),
        components={"ffn": 7},
        references={"unigram": 2.5},
        contrasts=("tiny:a:b",),
        environment={"git": {"sha": "0"}},
        error='"\\ñ\n',
    )
    directory = cell.directory(tmp_path)
    assert read_record(directory / "lr0.01-s0") == written
    assert read_arm(directory) == ({written.member: written}, [])
    assert read_record(directory / "lr0.01-s1") is None


def test_a_number_changed_by_hand_shows_and_costs_the_verdict(filled, cell):
    """The changed seed is missing, so the declared number of seeds is not reached."""
    assert verdict(filled)["claims"][0]["verdict"] == "supported"
    path = cell.directory(filled) / "lr0.01-s3" / RECORD
    change(path, metrics={"loss": 1.9})
    records, tampered = read_arm(cell.directory(filled))
    assert tampered == [f"{cell.directory(filled).name}/lr0.01-s3"] and Member(1e-2, 3) not in records
    data = verdict(filled)
    assert data["claims"][0]["verdict"] == "inconclusive" and "5 of 6 declared seeds" in data["claims"][0]["sentence"]
    assert data["progress"]["tampered"] == tampered and data["progress"]["missing"] == 1
    assert [m["state"] for m in data["arms"][0]["members"] if m["seed"] == 3] == ["missing", "done"]
    assert todo(cell, records) == [Member(1e-2, 3)]


def test_the_same_edit_with_a_fitting_digest_would_pass(filled, cell):
    """What the test above sees is the digest, and nothing else: sealed anew, the edited record is believed."""
    path = cell.directory(filled) / "lr0.01-s3" / RECORD
    change(path, metrics={"loss": 1.9})
    content = json.loads(path.read_text())
    content.pop("digest")
    path.write_text(json.dumps({**content, "digest": store.digest(content)}))
    assert read_record(path.parent).metrics["loss"] == 1.9


@pytest.mark.parametrize("fields", [{"state": "diverged"}, {"digest": ""}, {"member": {"seed": 4}}, {"arm_hash": "0"}])
def test_no_field_can_be_changed(filled, cell, fields):
    path = cell.directory(filled) / "lr0.01-s3" / RECORD
    change(path, **fields)
    with pytest.raises(TamperedError):
        read_record(path.parent)


def test_layout_is_no_content(filled, cell):
    path = cell.directory(filled) / "lr0.01-s3" / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert read_record(path.parent) is not None


def test_a_record_counts_only_where_it_belongs(filled, cell):
    """A good record of another seed, or of another arm, does not fill a gap."""
    mine, other = cell.directory(filled), arm(MADE, "other").directory(filled)
    for source in (mine / "lr0.01-s2" / RECORD, other / "lr0.01-s3" / RECORD):
        shutil.copy(source, mine / "lr0.01-s3" / RECORD)
        records, tampered = read_arm(mine)
        assert tampered == [f"{mine.name}/lr0.01-s3"] and Member(1e-2, 3) not in records


@pytest.mark.parametrize("keep", [0, 1, 100, -5])
def test_a_torn_record_is_as_good_as_none(filled, cell, keep):
    path = cell.directory(filled) / "lr0.01-s3" / RECORD
    path.write_bytes(path.read_bytes()[:keep])
    records, tampered = read_arm(cell.directory(filled))
    assert not tampered and todo(cell, records) == [Member(1e-2, 3)]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"null", b"[]", b'"text"', b"{}"])
def test_what_is_no_record_breaks_nothing(filled, cell, content):
    path = cell.directory(filled) / "lr0.01-s3" / RECORD
    path.write_bytes(content)
    assert todo(cell, read_arm(cell.directory(filled))[0]) == [Member(1e-2, 3)]


def test_numbers_that_are_not_finite_are_refused(tmp_path, cell):
    with pytest.raises(ValueError):
        put(tmp_path, cell, Member(1e-2, 0), float("nan"))
    assert read_record(cell.directory(tmp_path) / "lr0.01-s0") is None


def test_what_a_record_says_about_its_rate():
    def score(**fields):
        record = Record(Member(1e-2, 1000), **{"state": "done", "arm_hash": "", **fields})
        return record.score(), record.score("accuracy")

    metrics = {"loss": 1.0, "validation_loss": 2.0, "accuracy": 0.5}
    validation, accuracy = score(metrics=metrics)
    assert validation.value == 2.0 and accuracy.value == 0.5  # chosen on validation, judged on the test split
    diverged, _ = score(state="diverged")
    assert diverged.value is None
    assert score(state="failed") == (None, None)
    assert score(metrics={"validation_loss": 2.0})[1] is None  # not measured is not diverged
    before = score(metrics=metrics, initial=4.0, references={"chance": 25.0})
    assert [outcome.initial for outcome in before] == [4.0, 25.0]


@pytest.mark.parametrize(
    ("loss", "curve", "broken"),
    [
        (3.2, [4.0, 3.2], True),  # worse than the unigram entropy, 3.1
        (3.0, [4.0, 3.0], False),
        (3.05, [2.0, 3.05, 3.05], True),  # far above what it had reached, to the end
        (2.9, [2.0, 3.1, 2.9], False),  # recovering
        (None, [4.0, 3.0], False),  # no value at all is told apart
    ],
)
def test_a_broken_run_is_known_by_its_loss(loss, curve, broken):
    points = tuple((100 * (i + 1) / len(curve), value) for i, value in enumerate(curve))
    known = {"tokens": 100, "curve": points, "references": {"unigram": 3.1}}
    metrics = {"loss": loss, "validation_loss": loss, "accuracy": 50.0}
    record = Record(Member(1e-2, 1000), "done", "h", metrics, **known)
    assert record.score().broken is record.outcome().broken is broken
    assert record.outcome().diverged is (broken or loss is None)
    assert not record.outcome("accuracy").diverged
    assert not dataclasses.replace(record, references={}).score().broken  # a task
    other = dataclasses.replace(record, metrics={"loss": 3.2, "validation_loss": 3.0}, curve=())
    assert other.outcome().broken and not other.score().broken  # each by its own number


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 150, 1234])
def test_thin_keeps_first_and_last(count):
    points = [(float(i), float(-i)) for i in range(count)]
    thinned = thin(points)
    assert len(thinned) == min(count, 100)
    assert list(thinned) == sorted(set(thinned)) and set(thinned) <= set(points)
    assert not points or (thinned[0], thinned[-1]) == (points[0], points[-1])
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(thinned)]
    assert not gaps or max(gaps) - min(gaps) <= 1
