"""What a baseline had to manage before it judges others, and how its twins compare with it."""

from __future__ import annotations

import dataclasses

import pytest

from ablations import committed, jobs, summary
from ablations.report.contract import complete
from ablations.report.reached import reached
from ablations.report.words import explained, noise_sentences
from ablations.schema import Arm, Condition, Contrast, Profile
from tests.ablations.lab import ablation, arm, fill, write_config
from transformer.errors import ConfigError

MADE = ablation(rates=(1e-2,), seeds=8)
REFERENCES = {"unigram": 3.0, "bigram": 2.5, "floor": 2.0, "chance": 50.0}


def run(folder, configs, made, loss=lambda member: 2.04, **changes):
    """Records of both arms; the report data made of them."""
    write_config(configs, made)
    for name, offset in (("base", 0.0), ("other", 0.1)):
        known = jobs.registered("tiny", made)
        about = {"contrasts": known, "references": REFERENCES, **changes}
        fill(folder, arm(made, name), lambda member, o=offset: shifted(loss(member), o), **about)
    return summary.summarize(summary.collect("tiny", "tiny", folder))


def shifted(value, offset):
    return None if value is None else value + offset


@pytest.mark.parametrize(
    ("control", "loss", "passed"),
    [
        ("bigram", 2.4, True),
        ("bigram", 2.6, False),
        ("unigram", 2.6, True),
        ("floor", 2.04, True),
        ("floor", 2.06, False),
    ],
)
def test_a_loss_is_held_to_an_entropy_or_to_the_floor(tmp_path, configs, control, loss, passed):
    made = dataclasses.replace(MADE, positive_control=control)
    (row,) = run(tmp_path, configs, made, lambda member: loss)["conditions"]
    assert row["passed"] is passed and f"baseline {loss:.3f} against" in row["control"]


def test_a_baseline_of_which_some_runs_ended_broken_judges_nobody(tmp_path, configs):
    """Although its mean still beats the entropy."""
    made = dataclasses.replace(MADE, positive_control="unigram")
    data = run(tmp_path, configs, made, lambda member: 3.5 if member.seed < 3 and not member.twin else 1.5)
    (row,) = data["conditions"]
    assert row["passed"] is False and "3 of its 8 runs diverged" in row["control"]
    (noise,) = complete(data)["noise"]
    assert noise["n"] == 5 and "3 more pairs lost to runs that diverged or failed" in noise_sentences(complete(data))[0]


@pytest.mark.parametrize(
    ("control", "score", "passed"), [("chance", 60, True), ("solved", 60, False), ("solved", 96, True)]
)
def test_a_task_is_held_to_chance_or_to_its_solution(tmp_path, configs, control, score, passed):
    made = dataclasses.replace(MADE, positive_control=control, primary_metric="accuracy", contrasts=())
    metrics = {"accuracy": float(score), "validation_accuracy": float(score)}
    (row,) = run(tmp_path, configs, made, metrics=metrics)["conditions"]
    assert row["passed"] is passed


def test_a_profile_may_hold_a_baseline_to_less(tmp_path, configs):
    """And a condition's own control is eased as well."""
    for condition in (Condition(), Condition(positive_control="bigram")):
        made = dataclasses.replace(MADE, positive_control="bigram", conditions={"default": condition})
        assert made.control_under("default", "tiny") == "bigram"
        tiny = dataclasses.replace(made.profiles["tiny"], eased={"bigram": "unigram"})
        made = dataclasses.replace(made, profiles={"tiny": tiny})
        assert made.control_under("default", "tiny") == made.control_under("default", "tiny@100") == "unigram"
    (row,) = run(tmp_path, configs, made, lambda member: 2.6)["conditions"]
    assert row["passed"] and "unigram" in row["control"]


def test_the_committed_table_lists_controls_and_twins(tmp_path, configs, monkeypatch):
    made = dataclasses.replace(MADE, positive_control="bigram")
    report = run(tmp_path, configs, made, lambda member: 2.4 + 0.001 * member.seed)
    table = committed._controls([report])
    (line,) = [line for line in table.splitlines() if line.startswith("| tiny, tiny ")]
    assert "beats the bigram entropy (baseline 2.403 against bigram entropy 2.500): **passed**" in line
    assert "8 pairs: equivalent within 0.01" in line
    again = {**report, "name": "other question"}
    (line,) = [line for line in committed._controls([report, again]).splitlines() if line.startswith("| tiny, tiny")]
    assert line.startswith("| tiny, tiny<br>other question, tiny |")  # the same runs stand there once
    bare = committed._controls([run(tmp_path / "other", configs, MADE)])
    assert "| tiny, tiny | – | +0 [+0, +0] nats per token, 8 pairs" in bare
    report["noise"][0]["pairs"] = {}  # too few twins so far
    assert "**passed** | – |" in committed._controls([report])
    assert committed._controls([]) == ""


def test_what_each_arm_reached_is_told_run_by_run(tmp_path, configs):
    """Two groups of runs show, whatever their mean; so does an arm that nothing compares."""
    arms = {"base": Arm(), "other": Arm({"model.norm.kind": "none"}), "third": Arm({"model.ffn.kind": "none"})}
    made = ablation(rates=(1e-2,), seeds=8, arms=arms)
    write_config(configs, made)
    for name in arms:
        stuck = 6 if name == "other" else 9
        values = {"references": REFERENCES, "contrasts": jobs.registered("tiny", made)}
        fill(tmp_path, arm(made, name), lambda m, s=stuck: 3.01 if m.seed >= s else 2.0 + 0.01 * m.seed, **values)
    report = complete(summary.summarize(summary.collect("tiny", "tiny", tmp_path)))
    base, other, third = reached(report)
    assert (base["arm"], base["mean"], base["range"], base["beaten"]) == (
        "base (baseline)",
        "2.035",
        "2.000 to 2.070",
        "",
    )
    assert other["range"] == "2.000 to 3.010" and other["seeds"] == "8 of 8" and other["rate"] == "1e−2"
    assert other["beaten"] == (
        "2 of 8 no better than the unigram entropy (3.000) and 2 of 8 no better than the bigram entropy (2.500)"
    )
    assert third["arm"] == "third (not compared)"
    for run in (run for row in report["arms"] for run in row["members"]):
        run["metrics"] |= {"prefix_loss": 4.0 + run["seed"], "exposure_gap": 0.1}  # the latter for another question
    report["measured"] = ["prefix_loss"]
    rows = reached(report)
    assert [row["arm"] for row in rows] == [row["arm"] for row in (base, other, third) for _ in range(2)]
    assert rows[0] == base and (rows[1]["metric"], rows[1]["mean"], rows[1]["range"], rows[1]["beaten"]) == (
        "prefix loss, nats per token",
        "7.500",
        "4.000 to 11.000",
        "",
    )


def test_a_fraction_stands_beside_what_a_table_of_pairs_would_give(tmp_path, configs):
    lost = Contrast("layernorm_removal", "catastrophe", test="other", base="base")
    made = dataclasses.replace(MADE, contrasts=(lost,))
    report = complete(run(tmp_path, configs, made, lambda member: 2.0 + 0.001 * member.seed))
    assert "bigram entropy, comes to 0.50 under default" in explained(report)  # (3.0 - 2.5) / (3.0 - 2.0)
    assert "bigram" not in explained(complete(run(tmp_path / "other", configs, MADE)))


def test_a_baseline_that_diverges_or_was_not_run_passes_nothing(tmp_path, configs):
    made = dataclasses.replace(MADE, positive_control="bigram")
    diverging = run(tmp_path, configs, made, lambda member: 2.0 if member.seed == 7 else None)["conditions"][0]
    assert diverging["passed"] is False and "7 of its 8 runs diverged" in diverging["control"]
    write_config(configs, made)
    fill(tmp_path / "lone", arm(made, "other"), lambda member: 2.0, references=REFERENCES)
    (row,) = summary.summarize(summary.collect("tiny", "tiny", tmp_path / "lone"))["conditions"]
    assert row["passed"] is False and "no run of it has ended" in row["control"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"positive_control": "bigrams"},
            "Unknown positive control 'bigrams'; it is one of: unigram, bigram, floor, chance, solved",
        ),
        ({"positive_control": "solved"}, "'solved' of condition 'default' is about points, but its primary metric is"),
        ({"conditions": {"default": Condition(positive_control="chance")}}, "is about points"),
        ({"profiles": {"tiny": Profile(eased={"bigram": "nothing"})}}, "Unknown positive control 'nothing'"),
    ],
)
def test_a_control_that_means_nothing_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(MADE, **changes)
