"""Runs of a baseline that differ in their initial weights alone: as many as it takes to call them equivalent."""

from __future__ import annotations

import dataclasses

import pytest

from ablations import commands, committed, jobs, store, summary
from ablations.__main__ import main
from ablations.cells import Member
from ablations.controls import noise, pairs_needed
from ablations.schema import Arm, Condition
from tests.ablations.lab import ablation, arm, fill, put, write_config
from transformer.errors import UserError

MADE = ablation("no.txt", rates=(1e-2,), seeds=4, arms={"base": Arm()})


def loss(member, sigma=0.001, shift=0.0):
    """Twins that are apart by `shift` on average, and by `sigma` more or less in turn."""
    return 2.0 + member.twin * (shift + sigma * (-1) ** member.seed)


def collected(folder, **changes):
    fill(folder, arm(MADE), lambda member: loss(member, **changes))
    return summary.collect("tiny", "tiny", folder)


@pytest.mark.parametrize(
    ("shift", "sigma", "read"),
    [
        (0.0, 0.001, "equivalent within 0.01"),
        (0.004, 0.001, "not zero, but equivalent within 0.01"),
        (0.004, 0.02, "consistent with zero, with too few pairs to show that it is within 0.01"),
        (0.02, 0.001, "not consistent with zero: the negative control failed"),
    ],
)
def test_what_twins_show_is_said(tmp_path, configs, shift, sigma, read):
    write_config(configs, MADE)
    (row,) = noise(collected(tmp_path, shift=shift, sigma=sigma))
    assert row["read"] == read and row["n"] == 4 and row["mean"] == pytest.approx(shift, abs=1e-9)


def test_points_are_held_to_two(tmp_path, configs):
    made = dataclasses.replace(MADE, primary_metric="accuracy")
    write_config(configs, made)
    for member in arm(made).members({}):
        scored = 90.0 + member.twin * (1.5 + 0.1 * (-1) ** member.seed)
        put(tmp_path, arm(made), member, 2.0, metrics={"accuracy": scored, "validation_accuracy": scored})
    (row,) = noise(summary.collect("tiny", "tiny", tmp_path))
    assert row["read"] == "not zero, but equivalent within 2" and row["unit"] == "points"


def test_the_noisier_the_more_pairs(tmp_path, configs):
    write_config(configs, MADE)
    needed = [pairs_needed(collected(tmp_path / str(s), sigma=s))[0].pairs for s in (0.0, 0.001, 0.01, 0.02)]
    assert needed[:2] == [2, 2] and 4 < needed[2] < needed[3] < 60


def test_the_mean_has_no_say_in_how_many_it_takes(tmp_path, configs):
    """Or training until the answer suits would be one command away."""
    write_config(configs, MADE)
    first, other = (
        pairs_needed(collected(tmp_path / str(shift), sigma=0.01, shift=shift))[0].pairs for shift in (0.0, 0.05)
    )
    assert first == other > 8


def test_verdicts_never_see_the_pairs_beyond_the_test_seeds(tmp_path, configs):
    write_config(configs, MADE)
    (needed,) = pairs_needed(collected(tmp_path, sigma=0.01))
    before = summary.summarize(summary.collect("tiny", "tiny", tmp_path))
    fill(tmp_path, needed.cell, lambda member: loss(member, sigma=0.01, shift=1.0))
    results = summary.collect("tiny", "tiny", tmp_path)
    assert len(results.pairs["default"]) == needed.pairs == noise(results)[0]["n"]
    assert {member.seed for member in results.arms[0][1]} == {0, 1, 2, 3}
    after = summary.summarize(results)
    assert {**after, "noise": []} == {**before, "noise": []}


def test_pairs_at_another_rate_or_without_a_partner_do_not_count(tmp_path, configs):
    write_config(configs, MADE)
    results = collected(tmp_path)
    put(tmp_path, arm(MADE), Member(1e-2, 7, twin=True), 2.0)
    for twin in (False, True):
        put(tmp_path, arm(MADE), Member(3e-2, 8, twin), 2.0)
        put(tmp_path, arm(MADE), Member(1e-2, 9, twin), None if twin else 2.0)  # it diverged
    assert summary.collect("tiny", "tiny", tmp_path).pairs == results.pairs


@pytest.fixture
def trained(monkeypatch):
    """Jobs that the command hands to its workers, each done with made-up losses after a trip through its file. Later
    pairs are further apart than the first."""
    asked = []

    def run(pool, given):
        for job in given:
            job.write()
            asked.append(read := jobs.read(job.directory))
            fill(job.directory.parent, read.cell, lambda member: loss(member, sigma=0.012))
        return 0

    monkeypatch.setattr(commands.Pool, "run", run)
    return asked


def test_the_command_trains_what_is_missing_and_says_what_came_out(tmp_path, configs, trained, capsys):
    """In as many rounds as the spread asks for."""
    write_config(configs, MADE)
    collected(tmp_path, sigma=0.01)
    before = set(store.read_arm(arm(MADE).directory(tmp_path))[0])
    command = ["twins", "tiny", "--profile=tiny", f"--configs={configs}", f"--runs={tmp_path}"]
    assert main(command) == 0
    said = capsys.readouterr()
    numbers = [len(job.cell.twin_seeds) for job in trained]
    assert 4 < numbers[0] < numbers[-1] and numbers == sorted(numbers)
    for number in numbers:
        assert f"so that it takes {number} pairs to show that they are equivalent within 0.01" in said.err
    assert f" nats per token, {numbers[-1]} pairs: equivalent within 0.01" in said.out
    after = set(store.read_arm(arm(MADE).directory(tmp_path))[0])
    assert {m.seed for m in after - before} == set(range(4, numbers[-1])) and len(after) == 2 * numbers[-1]
    assert main(command) == 0 and len(trained) == len(numbers)  # there is nothing left to do
    assert "equivalent within 0.01" in capsys.readouterr().out


def test_twins_wait_for_the_run_that_says_how_many(tmp_path, configs, capsys):
    write_config(configs, MADE)
    put(tmp_path, arm(MADE), Member(1e-2, 0), 2.0)
    command = ["twins", "tiny", "--profile=tiny", f"--configs={configs}", f"--runs={tmp_path}"]
    assert main(command) == 2
    assert "tiny/base has not ended all runs whose spread tells how many" in (said := capsys.readouterr().err)
    assert "first: python -m ablations run tiny --profile=tiny" in said


def test_more_pairs_than_there_are_seeds_are_refused(tmp_path, configs):
    write_config(configs, MADE)
    with pytest.raises(UserError, match=r"it takes [\d,]+ pairs .* there are only 1,000 test seeds"):
        pairs_needed(collected(tmp_path, sigma=1.0))


def test_questions_with_the_same_baseline_share_its_pairs(tmp_path, configs):
    """Each stands in the table with as many as any of them has; another learning rate is another model."""
    write_config(configs, MADE)
    collected(tmp_path / "few", sigma=0.02)
    few = summary.summarize(summary.collect("tiny", "tiny", tmp_path / "few"))
    (needed,) = pairs_needed(summary.collect("tiny", "tiny", tmp_path / "few"))
    fill(tmp_path / "many", needed.cell, lambda member: loss(member, sigma=0.02))
    many = {**summary.summarize(summary.collect("tiny", "tiny", tmp_path / "many")), "name": "other"}
    table = committed._controls([few, many])
    assert "| tiny, tiny<br>other, tiny | – | +0 [" in table and f"{needed.pairs} pairs: equivalent" in table
    few["noise"][0]["learning_rate"] = 3e-2
    assert "4 pairs: consistent with zero" in committed._controls([few, many])


def test_conditions_have_pairs_of_their_own(tmp_path, configs):
    made = dataclasses.replace(MADE, conditions={"wide": Condition(), "deep": Condition({"model.num_layers": 2})})
    write_config(configs, made)
    for condition, sigma in (("wide", 0.001), ("deep", 0.02)):
        fill(tmp_path, arm(made, "base", condition), lambda member, s=sigma: loss(member, sigma=s))
    wide, deep = pairs_needed(summary.collect("tiny", "tiny", tmp_path))
    assert (wide.cell.condition, wide.pairs) == ("wide", 2) and deep.pairs > 30
