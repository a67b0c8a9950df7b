"""Runs of a baseline that differ in their initial weights alone: as many as it takes to call them equivalent."""

from __future__ import annotations

import dataclasses

import pytest

from ablations import commands, committed, jobs, store, summary
from ablations.__main__ import main
from ablations.cells import Member, cells
from ablations.schema import MORE_PAIRS, Arm, Condition
from ablations.twins import in_words, noise, pairs_needed
from tests.ablations.lab import ablation, arm, fill, put, write_config
from transformer.errors import ConfigError

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
        (0.004, 0.02, "consistent with zero, not shown to be within 0.01"),
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


def how_many(results):
    """Pairs of the only condition, once those that are asked for are there."""
    (needed,) = pairs_needed(results)
    return len(needed.cell.twin_seeds)


def test_the_noisier_the_more_pairs(tmp_path, configs):
    write_config(configs, MADE)
    found = [how_many(collected(tmp_path / str(sigma), sigma=sigma)) for sigma in (0.0, 0.001, 0.01, 0.02)]
    assert found[:2] == [4, 4] and 4 < found[2] < found[3] < 60


def test_the_mean_has_no_say_in_how_many_it_takes(tmp_path, configs):
    """Or training until the answer suits would be one command away."""
    write_config(configs, MADE)
    first, other = (how_many(collected(tmp_path / str(shift), sigma=0.01, shift=shift)) for shift in (0.0, 0.05))
    assert first == other > 8


def test_verdicts_never_see_the_pairs_beyond_the_test_seeds(tmp_path, configs):
    write_config(configs, MADE)
    (needed,) = pairs_needed(collected(tmp_path, sigma=0.01))
    before = summary.summarize(summary.collect("tiny", "tiny", tmp_path))
    fill(tmp_path, needed.cell, lambda member: loss(member, sigma=0.01, shift=1.0))
    results = summary.collect("tiny", "tiny", tmp_path)
    assert noise(results)[0]["n"] == len(needed.cell.twin_seeds)
    assert {member.seed for member in results.arms[0][1]} == {0, 1, 2, 3}
    after = summary.summarize(results)
    assert {**after, "noise": []} == {**before, "noise": []}


def test_no_repetition_tests_on_the_seeds_of_more_pairs(tmp_path, configs):
    write_config(configs, MADE)
    (needed,) = pairs_needed(collected(tmp_path, sigma=0.01))
    assert set(needed.cell.twin_seeds) - set(needed.cell.test_seeds) <= set(MORE_PAIRS)
    last = MORE_PAIRS.start - len(needed.cell.test_seeds)
    assert MADE.profile(f"tiny@{last}")
    for first, said in ((last + 1, f"choose a first seed from 4 to {last}"), (MORE_PAIRS.start, "Unknown profile")):
        with pytest.raises(ConfigError, match=said):
            MADE.profile(f"tiny@{first}")


def test_pairs_at_another_rate_or_without_a_partner_do_not_count(tmp_path, configs):
    write_config(configs, MADE)
    results = collected(tmp_path)
    put(tmp_path, arm(MADE), Member(1e-2, 7, twin=True), 2.0)
    for twin in (False, True):
        put(tmp_path, arm(MADE), Member(3e-2, 8, twin), 2.0)
    assert summary.collect("tiny", "tiny", tmp_path).twins == results.twins


def test_pairs_that_diverged_are_told_and_made_up_for(tmp_path, configs):
    write_config(configs, MADE)
    (first,) = pairs_needed(collected(tmp_path, sigma=0.01))
    fill(tmp_path, first.cell, lambda m: None if m.twin and 501 <= m.seed <= 504 else loss(m, sigma=0.01))
    results = summary.collect("tiny", "tiny", tmp_path)
    (row,) = noise(results)
    assert row["lost"] == [501, 502, 503, 504] and "4 more lost to runs that diverged" in in_words(row)
    assert how_many(results) > len(first.cell.twin_seeds)


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


@pytest.fixture
def twins(tmp_path, configs):
    """The command."""
    return lambda *more: main(["twins", "tiny", "--profile=tiny", f"--configs={configs}", f"--runs={tmp_path}", *more])


def test_the_command_trains_what_is_missing_and_says_what_came_out(tmp_path, configs, trained, twins, capsys):
    """In as many rounds as the spread asks for."""
    write_config(configs, MADE)
    collected(tmp_path, sigma=0.01)
    before = set(store.read_arm(arm(MADE).directory(tmp_path))[0])
    assert twins() == 0
    said = capsys.readouterr()
    numbers = [len(job.cell.twin_seeds) for job in trained]
    assert 4 < numbers[0] < numbers[-1] and numbers == sorted(numbers)
    for number in numbers:
        assert f"{number} pairs show with a probability of 80% that they are equivalent within 0.01" in said.err
    assert f" nats per token, {numbers[-1]} pairs: equivalent within 0.01" in said.out
    assert "python -m ablations keep tiny --profile=tiny" in said.out
    after = set(store.read_arm(arm(MADE).directory(tmp_path))[0])
    assert len(after) == 2 * numbers[-1] and min(m.seed for m in after - before) == MORE_PAIRS.start
    assert twins() == 0 and len(trained) == len(numbers)  # there is nothing left to do
    assert "equivalent within 0.01" in capsys.readouterr().out


def test_a_control_is_repeated_with_as_many_pairs_as_one_likes(tmp_path, configs, trained, twins, capsys):
    """A failed one, for instance, on seeds of its own."""
    write_config(configs, MADE)
    collected(tmp_path)
    assert twins() == 0 and not trained
    assert twins("--pairs=6") == 0 and "10 pairs: " in capsys.readouterr().out
    assert {m.seed for m in store.read_arm(arm(MADE).directory(tmp_path))[0]} == {*range(4), *range(500, 506)}
    assert twins("--pairs=501") == 2 and "seeds for 500 more" in capsys.readouterr().err


def test_a_failed_twin_is_trained_again_on_request(tmp_path, configs, trained, twins):
    write_config(configs, MADE)
    collected(tmp_path)
    put(tmp_path, arm(MADE), Member(1e-2, 3, twin=True), None, state="failed", error="no")
    assert twins() == 0 and not trained  # the pairs that are left are enough
    assert twins("--retry-failed") == 0 and len(trained) == 1


@pytest.mark.parametrize(("code", "told"), [(1, True), (130, False)])
def test_the_command_ends_as_its_workers_do(tmp_path, configs, twins, monkeypatch, capsys, code, told):
    write_config(configs, MADE)
    collected(tmp_path, sigma=0.01)
    monkeypatch.setattr(commands.Pool, "run", lambda pool, given: code)
    assert twins() == code
    assert ("4 pairs: consistent with zero" in capsys.readouterr().out) is told


def test_twins_wait_for_the_run_that_says_how_many(tmp_path, configs, twins, capsys):
    write_config(configs, MADE)
    put(tmp_path, arm(MADE), Member(1e-2, 0), 2.0)
    assert twins() == 2
    assert "tiny/base: not all its runs have ended" in (said := capsys.readouterr().err)
    assert "first: python -m ablations run tiny --profile=tiny" in said


def test_more_pairs_than_there_are_seeds_are_refused(tmp_path, configs, twins, capsys):
    write_config(configs, MADE)
    collected(tmp_path, sigma=1.0)
    assert twins() == 2
    assert "4 are there, and seeds for 500 more: train longer, or a larger model" in capsys.readouterr().err


def test_a_profile_without_verdicts_has_no_twins(tmp_path, configs, twins, capsys):
    write_config(configs, ablation("no.txt", rates=(1e-2,), profile={"verdicts": False}))
    assert twins() == 2
    assert "--profile=tiny has no twins, since it gives no verdicts" in capsys.readouterr().err


def test_questions_and_repetitions_with_the_same_baseline_pool_its_pairs(tmp_path, configs):
    """Another learning rate or another metric is another matter."""
    write_config(configs, MADE)
    first = summary.summarize(collected(tmp_path / "first", sigma=0.01))
    (again,) = (cell for cell in cells("tiny", MADE, "tiny@100") if cell.is_baseline)
    fill(tmp_path / "again", again, lambda member: loss(member, sigma=0.01))
    second = summary.summarize(summary.collect("tiny", "tiny@100", tmp_path / "again"))
    assert second["noise"][0]["n"] == 4 and list(second["noise"][0]["pairs"]) == ["100", "101", "102", "103"]
    other = {**first, "name": "other"}
    table = committed._controls([first, second, other])
    assert "| tiny, tiny<br>tiny, tiny@100<br>other, tiny | – | " in table and "8 pairs: equivalent" in table
    for changed in ({"learning_rate": 3e-2}, {"metric": "accuracy"}):
        apart = {**second, "noise": [{**second["noise"][0], **changed}]}
        assert "4 pairs: consistent with zero" in committed._controls([first, apart])


def test_what_can_be_trained_is_trained_before_what_cannot_is_told(tmp_path, configs, trained, twins, capsys):
    depths = {"wide": 1, "deep": 2, "lone": 3}
    conditions = {name: Condition({"model.num_layers": layers}) for name, layers in depths.items()}
    made = dataclasses.replace(MADE, conditions=conditions)
    write_config(configs, made)
    for condition, sigma in (("wide", 0.001), ("deep", 0.01)):
        fill(tmp_path, arm(made, "base", condition), lambda member, s=sigma: loss(member, sigma=s))
    assert twins() == 2
    said = capsys.readouterr()
    assert {job.cell.condition for job in trained} == {"deep"}
    assert "tiny, wide: " in said.out and "tiny, deep: " in said.out
    assert "tiny/base@lone: not all its runs have ended" in said.err and "base@wide" not in said.err
