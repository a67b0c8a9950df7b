"""The verdict comes from records and registered contrasts alone: every way to bend it shows."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from ablations import catalog, checks, jobs, store, summary
from ablations.cells import Member, cells
from ablations.evidence import ExactCheck
from ablations.report import words, write_report
from ablations.report.contract import complete
from ablations.schema import Arm, Condition, Contrast
from tests.ablations.lab import WORSE, ablation, arm, fill, put, write_config
from transformer.errors import ConfigError

MADE = ablation(rates=(1e-2,), seeds=8)
EXACT = Contrast("clm_generates", "exact", check="tests/claims/test_causal_mask.py::TestGenerates")
OFFSET = 0.1  # nats by which the arm `other` is worse


def loss(member: Member, offset: float = 0.0) -> float:
    """Seeds differ, twins differ a little from them, and the arm by its offset and a little."""
    wobble = 0.004 * ((7 * member.seed) % 5) - 0.008
    return 2.0 + 0.05 * (member.seed % 4) + offset * (1 + wobble) + (wobble if member.twin else 0.0)


@pytest.fixture
def lab(tmp_path, configs):
    """Writes the ablation, and records for both arms as if they had been trained with it as it stands."""

    def make(made=MADE, offset: float = OFFSET, names=("base", "other")) -> Path:
        write_config(configs, made)
        for name in names:
            known = jobs.registered("tiny", made)
            fill(tmp_path, arm(made, name), lambda m, n=name: loss(m, offset * (n == "other")), contrasts=known)
        return tmp_path

    return make


def judged(runs: Path) -> dict:
    return summary.summarize(summary.collect("tiny", "tiny", runs))


def decide(runs: Path, index: int = 0) -> dict:
    return judged(runs)["decisions"][index]


# --- The verdict and what it rests on ----------------------------------------------------------------------------


def test_the_verdict_follows_the_records(lab):
    runs = lab()
    data = judged(runs)
    (decision,) = data["decisions"]
    assert (decision["verdict"], decision["n"]) == ("supported", 8)
    assert decision["estimate"] == pytest.approx(OFFSET, rel=0.02)
    assert [pair["test"] - pair["base"] > 0.09 for pair in decision["paired"]] == [True] * 8
    assert data["claims"][0]["verdict"] == "supported" and "layernorm_removal" in data["claims"][0]["claim"]
    assert data["headline"].startswith(data["claims"][0]["statement"].rstrip("."))


@pytest.mark.parametrize(
    ("expect", "offset", "verdict"),
    [
        ("worse", OFFSET, "supported"),
        ("better", OFFSET, "refuted"),
        ("better", -OFFSET, "supported"),
        ("worse", -OFFSET, "refuted"),
    ],
)
def test_flipping_the_expectation_flips_the_verdict(lab, expect, offset, verdict):
    runs = lab(ablation(rates=(1e-2,), seeds=8, contrasts=(dataclasses.replace(WORSE, expect=expect),)), offset)
    assert decide(runs)["verdict"] == verdict


def test_other_numbers_give_another_verdict(lab):
    assert decide(lab(offset=1e-5))["verdict"] != "supported"


@pytest.mark.parametrize("deleted", [1, 3])
def test_deleting_seeds_leaves_nothing_decided(lab, deleted):
    """One is enough, even where the seven others are beyond doubt."""
    runs = lab()
    for seed in range(deleted):
        shutil.rmtree(arm(MADE, "other").directory(runs) / f"lr0.01-s{seed}")
    decision = decide(runs)
    assert decision["verdict"] == "inconclusive"
    assert decision["downgrades"][0]["reason"] == f"{8 - deleted} of 8 declared seeds so far"


def test_the_headline_says_what_was_measured_and_counts_what_was_proved(lab, monkeypatch):
    """Where nothing was measured, the proofs are the headline."""
    passed = {EXACT.check: ExactCheck(passed=True, sabotage_caught=True)}
    monkeypatch.setattr(checks, "results", lambda runs: passed)
    both = judged(lab(dataclasses.replace(MADE, contrasts=(WORSE, EXACT))))
    measured, proved = (claim["statement"].rstrip(".") for claim in both["claims"])
    assert measured in both["headline"] and proved not in both["headline"]
    assert both["headline"].endswith(" 1 claim was settled by tests.")
    alone = judged(lab(dataclasses.replace(MADE, contrasts=(EXACT,))))["headline"]
    assert proved in alone and "settled by tests" not in alone


def test_a_profile_that_asks_under_some_conditions_says_so(lab):
    conditions = {"default": Condition(), "deep": Condition({"model.num_layers": 2})}
    made = dataclasses.replace(
        MADE, conditions=conditions, contrasts=(dataclasses.replace(WORSE, conditions=("default",)),)
    )
    tiny = dataclasses.replace(made.profiles["tiny"], conditions=("default",))
    headline = judged(lab(dataclasses.replace(made, profiles={"tiny": tiny})))["headline"]
    assert headline.endswith("Asked under 1 of 2 conditions.") and "Asked" not in judged(lab())["headline"]


def test_deleting_an_arm_leaves_nothing_run(lab):
    runs = lab(names=("base",))
    assert decide(runs)["verdict"] == "inconclusive" and decide(runs)["reason"] == "not run"
    assert judged(runs)["headline"].startswith("At tiny scale nothing could be decided yet")


def test_seeds_beyond_the_profile_do_not_count(lab):
    """An ablation that shares the arm asked for more seeds; this one registered eight."""
    runs = lab()
    for name, offset in (("base", 0.0), ("other", -5.0)):
        for seed in (8, 9):
            put(runs, arm(MADE, name), Member(1e-2, seed), loss(Member(1e-2, seed), offset))
    assert decide(runs)["n"] == 8 and decide(runs)["verdict"] == "supported"
    assert judged(runs)["progress"]["done"] == 8 + 8 + 8


def test_a_metric_that_was_not_measured_is_no_divergence(lab):
    made = dataclasses.replace(MADE, contrasts=(dataclasses.replace(WORSE, metric="prefix_loss"),))
    decision = decide(lab(made))
    assert decision["verdict"] == "inconclusive" and decision["reason"] == "not run" and not decision["paired"]


# --- Registration ------------------------------------------------------------------------------------------------


def test_a_contrast_is_registered_before_its_data(lab):
    assert decide(lab())["registered"] == "before its data"


def test_with_no_data_yet_everything_is_before_it(lab):
    assert decide(lab(names=()))["registered"] == "before its data"


@pytest.mark.parametrize(
    "change", [{"expect": "better"}, {"margin": 0.2}, {"metric": "validation_loss"}, {"note": "!"}]
)
def test_an_edit_after_the_data_shows(lab, configs, change):
    runs = lab()
    write_config(configs, dataclasses.replace(MADE, contrasts=(dataclasses.replace(WORSE, **change),)))
    assert decide(runs)["registered"] == "edited after its data"
    write_config(configs, MADE)
    assert decide(runs)["registered"] == "before its data"  # the edit undone is the contrast as it was


def test_a_contrast_added_after_the_data_shows(lab, configs):
    runs = lab(dataclasses.replace(MADE, contrasts=()))
    write_config(configs, MADE)
    assert decide(runs)["registered"] == "after its data"


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (("another:claim:0123",), "unknown"),  # shared with another question, which alone its records name
        (("another:claim:0123", "tiny:other_claim:0123"), "after its data"),
        (("another:claim:0123", f"tiny:{WORSE.claim}:0123"), "edited after its data"),
        ((), "after its data"),
    ],
)
def test_runs_that_another_question_trained_accuse_nobody(lab, known, said):
    runs = lab()
    for member in arm(MADE).members({}):
        put(runs, arm(MADE), member, loss(member), contrasts=known)
    assert decide(runs)["registered"] == said


def test_each_condition_answers_for_its_own_runs(tmp_path, configs):
    made = dataclasses.replace(MADE, conditions={"early": Condition(), "late": Condition({"model.num_layers": 2})})
    write_config(configs, made)
    for condition, known in (("early", jobs.registered("tiny", made)), ("late", ())):
        for name in ("base", "other"):
            fill(tmp_path, arm(made, name, condition), loss, contrasts=known)
    found = {decision["condition"]: decision["registered"] for decision in judged(tmp_path)["decisions"]}
    assert found == {"early": "before its data", "late": "after its data"}


def test_one_record_of_before_the_edit_is_enough(lab, configs):
    runs = lab()
    edited = dataclasses.replace(MADE, contrasts=(dataclasses.replace(WORSE, margin=0.02),))
    write_config(configs, edited)
    for member in arm(MADE).members({}):
        if member.seed:
            put(runs, arm(MADE), member, loss(member), contrasts=jobs.registered("tiny", edited))
    assert decide(runs)["registered"] == "edited after its data"


def test_a_condition_added_later_has_a_contrast_of_its_own(tmp_path, configs):
    """What was seen under one condition does not make a question about another one late."""
    first = dataclasses.replace(MADE, contrasts=(dataclasses.replace(WORSE, conditions=("default",)),))
    later = dataclasses.replace(
        first,
        conditions={"default": Condition(), "deep": Condition({"model.num_layers": 2})},
        contrasts=(*first.contrasts, dataclasses.replace(WORSE, conditions=("deep",))),
    )
    for made, condition in ((first, "default"), (later, "deep")):
        write_config(configs, made)
        for name in ("base", "other"):
            fill(tmp_path, arm(made, name, condition), loss, contrasts=jobs.registered("tiny", made))
    assert [decision["registered"] for decision in judged(tmp_path)["decisions"]] == ["before its data"] * 2
    wider = dataclasses.replace(later, contrasts=(WORSE,))  # one question about both is another one than was asked
    write_config(configs, wider)
    assert judged(tmp_path)["decisions"][0]["registered"] == "edited after its data"


# --- Arms, progress, noise, controls -----------------------------------------------------------------------------


def test_members_are_listed_as_what_they_are(lab):
    runs = lab()
    cell = arm(MADE, "other")
    put(runs, cell, Member(1e-2, 1), None, diverged_at=17)
    put(runs, cell, Member(1e-2, 2), 2.0, state="failed", metrics={}, error="out of memory")
    shutil.rmtree(cell.directory(runs) / "lr0.01-s3")
    data = judged(runs)
    rows = {row["seed"]: row for row in data["arms"][1]["members"]}
    assert [rows[seed]["state"] for seed in range(5)] == ["done", "diverged", "failed", "missing", "done"]
    assert rows[1]["diverged_at"] == 17 and rows[2]["error"] == "out of memory"
    progress = {k: v for k, v in data["progress"].items() if k != "tampered"}
    assert progress == {"planned": 24, "done": 21, "diverged": 1, "failed": 1, "missing": 1}
    pairs = {pair["seed"]: pair["test"] for pair in data["decisions"][0]["paired"]}
    assert pairs[1] is None and pairs[2] is None and pairs[0] is not None
    assert data["decisions"][0]["n"] == 6  # failed and missing are no results; the divergence is one


def test_a_run_that_ended_broken_says_so(lab):
    """It is done, with a number, and yet counts as diverged."""
    made = ablation(rates=(1e-3, 3e-3, 1e-2), seeds=8)
    runs = lab(made)
    cell, about = arm(made, "other"), {"contrasts": jobs.registered("tiny", made), "references": {"unigram": 3.0}}
    assert "diverged" not in words.certainty(complete(judged(runs)))
    for member in (Member(3e-3, 2), Member(1e-3, 1000), Member(1e-2, 1000)):
        put(runs, cell, member, 3.5, **about)
    data = judged(runs)
    other = data["arms"][1]
    assert [m["seed"] for m in other["members"] if m["broken"]] == [2]
    assert [t["learning_rate"] for t in other["tuning"] if t["broken"]] == [1e-3, 1e-2]
    decision = data["decisions"][0]
    assert decision["diverged"] == "1 of 8 against 0 of 8" and "sign test" in decision["method"]
    assert decision["estimate_title"] == "median difference" and "median difference" in decision["sentence"]
    assert {m["state"] for m in other["members"]} == {"done"} and data["progress"]["diverged"] == 0
    sure = words.certainty(complete(data))
    assert "3 runs diverged, all with a finite loss that ended above the unigram entropy" in sure
    put(runs, cell, Member(3e-3, 3), None, **about)
    assert "4 runs diverged, 3 with a finite loss" in words.certainty(complete(judged(runs)))


def test_tuning_shows_with_its_extension(tmp_path, configs):
    """The lower of two rates is the better one, so a third and a fourth were tried: the budget is in the report."""
    made = ablation(rates=(1e-3, 1e-2), seeds=2)
    write_config(configs, made)
    for name in ("base", "other"):
        known = jobs.registered("tiny", made)
        fill(tmp_path, arm(made, name), lambda member: loss(member) + member.learning_rate, contrasts=known)
    data = judged(tmp_path)
    tried = [(t["learning_rate"], t["state"]) for t in data["arms"][0]["tuning"]]
    assert tried == [(0.00001, "done"), (0.0001, "done"), (0.001, "done"), (0.01, "done")]
    assert data["arms"][0]["learning_rate"] == 1e-5 and data["arms"][0]["edge"]
    assert "edge of its grid" in data["decisions"][0]["sentence"]


def test_a_failed_tuning_run_decides_nothing(lab):
    made = ablation(rates=(1e-3, 1e-2), seeds=2)
    runs = lab(made, names=("base",))
    cell = arm(made, "other")
    put(runs, cell, Member(1e-3, 1000), 2.0)
    put(runs, cell, Member(1e-2, 1000), None, state="failed", error="no")
    row = judged(runs)["arms"][1]
    assert row["learning_rate"] is None and not row["members"] and not row["edge"]
    assert [t["state"] for t in row["tuning"]] == ["done", "failed"]
    assert judged(runs)["progress"]["missing"] == 2


def test_the_noise_floor_is_the_baseline_against_its_twins(lab):
    (noise,) = judged(lab())["noise"]
    assert noise["n"] == 8 and 0.003 < noise["sigma"] < 0.01
    assert noise["note"].endswith(": equivalent within 0.01")
    assert summary.collect_noise("tiny", "tiny", lab()) == noise["sigma"]


def test_no_twins_no_noise_floor(lab):
    (noise,) = judged(lab(names=("other",)))["noise"]
    assert noise["sigma"] is None and noise["n"] == 0


@pytest.mark.parametrize(("bound", "decided"), [(2.5, "supported"), (1.9, "inconclusive")])
def test_the_baseline_must_have_learned_something(lab, configs, bound, decided):
    made = dataclasses.replace(MADE, positive_control="bigram")
    write_config(configs, made)
    runs = lab(made)
    path = arm(made).directory(runs)
    for member in store.read_arm(path)[0]:
        put(runs, arm(made), member, loss(member), references={"unigram": 3.0, "bigram": bound})
    assert decide(runs)["verdict"] == decided
    assert judged(runs)["conditions"][0]["references"] == [["unigram entropy", 3.0], ["bigram entropy", bound]]


def test_a_baseline_that_diverged_judges_nobody(lab):
    made = dataclasses.replace(MADE, positive_control="bigram")
    runs = lab(made)
    for member in arm(made).members({}):
        put(runs, arm(made), member, None, references={"bigram": 2.5})
    decision = decide(runs)
    assert decision["verdict"] == "inconclusive" and "positive control" in decision["sentence"]


def test_smoke_gives_no_verdict(lab):
    runs = lab(ablation(rates=(1e-2,), seeds=8, profile={"verdicts": False}))
    assert decide(runs)["verdict"] == "inconclusive" and "gives no verdicts" in decide(runs)["sentence"]


def test_conditions_are_judged_one_by_one(tmp_path, configs):
    """Worse when shallow, better when deep: the claim is mixed, and the report says where."""
    made = ablation(
        rates=(1e-2,), seeds=8, conditions={"shallow": Condition(), "deep": Condition({"model.num_layers": 2})}
    )
    write_config(configs, made)
    for name in ("base", "other"):
        for condition, sign in (("shallow", 1), ("deep", -1)):
            offset = sign * OFFSET * (name == "other")
            fill(tmp_path, arm(made, name, condition), lambda m, offset=offset: loss(m, offset))
    data = judged(tmp_path)
    assert [(d["condition"], d["verdict"]) for d in data["decisions"]] == [
        ("shallow", "supported"),
        ("deep", "refuted"),
    ]
    assert data["claims"][0]["verdict"] == "mixed" and "shallow" in data["claims"][0]["sentence"]


def test_an_arm_that_fixes_its_rate_reads_its_own_records(tmp_path, configs):
    """It shares the baseline's directory; neither takes the other's members for its own."""
    arms = {"base": Arm(), "slow": Arm({"optimizer.learning_rate": 1e-3})}
    contrast = Contrast("postln_needs_warmup", "superiority", test="slow", base="base", expect="worse", min_seeds=2)
    made = ablation(arms=arms, contrasts=(contrast,), rates=(1e-2, 3e-2, 1e-1), seeds=8)
    write_config(configs, made)
    best = lambda m: loss(m) + 10 * abs(m.learning_rate - 3e-2)  # noqa: E731
    fill(tmp_path, arm(made), best)
    fill(tmp_path, arm(made, "slow"), best)
    data = judged(tmp_path)
    base, slow = data["arms"]
    assert (base["learning_rate"], slow["learning_rate"]) == (3e-2, 1e-3)
    assert len(base["tuning"]) == 3 and not slow["tuning"]
    assert (len(base["members"]), len(slow["members"])) == (16, 8)
    assert data["decisions"][0]["verdict"] == "supported"
    assert data["progress"]["planned"] == 3 + 16 + 8 and data["progress"]["missing"] == 0


# --- Tasks: accuracy in points, chance instead of an entropy ------------------------------------------------------


def task(test: float, base: float, chance: float | None = 10.0, contrast: Contrast | None = None, **changes):
    """Writes an ablation judged by accuracy, and records with these accuracies, in points."""

    def write(runs: Path) -> None:
        made = ablation(
            rates=(3e-3, 1e-2, 3e-2),
            seeds=8,
            primary_metric="accuracy",
            positive_control="chance",
            contrasts=(contrast or dataclasses.replace(WORSE, metric="accuracy", better="higher", margin=2.0),),
            **changes,
        )
        write_config(catalog._folder, made)
        for name, level in (("base", base), ("other", test)):
            cell = arm(made, name)
            while todo := store.todo(cell, store.read_arm(cell.directory(runs))[0]):
                for member in todo:
                    # The rate in the middle is the best one by accuracy, the highest by loss.
                    value = level + loss(member) - 2.0 - 5.0 * (member.learning_rate != 1e-2)
                    metrics = {"accuracy": value, "validation_accuracy": value, "loss": member.learning_rate**-1}
                    bounds = {} if chance is None else {"chance": chance}
                    known = jobs.registered("tiny", made)
                    put(runs, cell, member, 1.0, metrics=metrics, references=bounds, contrasts=known)

    return write


def test_accuracy_is_judged_in_points(tmp_path, configs):
    task(test=60.0, base=90.0)(tmp_path)
    data = judged(tmp_path)
    (decision,) = data["decisions"]
    assert decision["verdict"] == "supported", decision["sentence"]
    assert decision["estimate"] == pytest.approx(-30.0, abs=0.5)
    (condition,) = data["conditions"]
    assert (condition["unit"], condition["better"]) == ("points", "higher")
    assert condition["references"] == [["chance", 10.0]]
    assert {a["learning_rate"] for a in data["arms"]} == {1e-2}
    assert data["arms"][0]["tuning"][0]["initial"] == 10.0  # before training it guesses


def test_a_text_and_a_task_in_one_question(tmp_path, configs):
    """Each condition has its own metric, control, arms and scale, and its own noise floor."""
    task_contrast = dataclasses.replace(WORSE, metric="accuracy", better="higher", margin=2.0, conditions=("puzzle",))
    made = ablation(
        seeds=8,
        rates=(3e-3, 1e-2, 3e-2),
        arms={"base": Arm(), "other": Arm({"model.norm.kind": "none"}), "third": Arm({"model.ffn.kind": "none"})},
        conditions={
            "text": Condition(note="a language model"),
            "puzzle": Condition(
                {"data.source": "task", "data.task": "copy", "data.path": ""},
                arms=("other",),
                primary_metric="accuracy",
                positive_control="chance",
            ),
        },
        contrasts=(dataclasses.replace(WORSE, conditions=("text",)), task_contrast, EXACT),
    )
    write_config(configs, made)
    for cell in cells("tiny", made, "tiny"):
        percent, other = cell.metric == "accuracy", cell.arm != "base"
        while todo := store.todo(cell, store.read_arm(cell.directory(tmp_path))[0]):
            for member in todo:
                value = loss(member) + 0.2 * other if not percent else 90.0 - 40.0 * other + loss(member)
                value += (5.0 if percent else -1.0) * (member.learning_rate == 1e-2)
                metrics = {cell.metric: value, f"validation_{cell.metric}": value}
                put(tmp_path, cell, member, value, metrics=metrics, references={"chance": 10.0} if percent else {})
    data = judged(tmp_path)
    assert [(a["arm"], a["condition"]) for a in data["arms"]] == [
        *((name, "text") for name in ("base", "other", "third")),
        *((name, "puzzle") for name in ("base", "other")),
    ]
    assert {a["learning_rate"] for a in data["arms"]} == {1e-2}  # lowest loss, highest accuracy
    text, puzzle, exact = data["decisions"]
    assert (text["verdict"], text["unit"], text["estimate"] > 0) == ("supported", "nats per token", True)
    assert (puzzle["verdict"], puzzle["unit"], puzzle["estimate"] < -30) == ("supported", "points", True)
    assert "of the task copy" in puzzle["sentence"] and "of text" in text["sentence"]
    assert exact["condition"] == "default"  # once, not under every condition
    assert [(n["condition"], n["unit"], n["n"]) for n in data["noise"]] == [
        ("text", "nats per token", 8),
        ("puzzle", "points", 8),
    ]
    write_report(data, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "left of the line (for loss) or right of the line (for accuracy)" in page
    assert "text: a language model; puzzle" in page and "accuracy (points)" in page


def test_a_condition_is_refused_arms_it_leaves_out(tmp_path):
    left_out = {"default": Condition(arms=("base",))}
    with pytest.raises(ConfigError, match="reads the arm 'other' under the condition 'default', which leaves it out"):
        ablation(conditions=left_out)
    with pytest.raises(ConfigError, match=r"Condition 'default' names the arm 'othr', which does not exist.*other"):
        ablation(conditions={"default": Condition(arms=("othr",))})


def test_a_baseline_at_chance_may_not_judge(tmp_path, configs):
    task(test=5.0, base=9.0)(tmp_path)
    assert "the baseline beats chance" in judged(tmp_path)["decisions"][0]["reason"]


def test_a_control_that_was_never_recorded_is_not_passed(tmp_path, configs):
    task(test=60.0, base=90.0, chance=None)(tmp_path)
    assert "recorded no chance" in judged(tmp_path)["decisions"][0]["reason"]


@pytest.mark.parametrize(
    ("test", "base", "verdict"),
    [(12.0, 95.0, "supported"), (94.0, 95.0, "refuted"), (15.0, 25.0, "inconclusive")],
    ids=["lost", "kept", "too little to lose"],
)
def test_a_catastrophe_is_measured_from_chance(tmp_path, configs, test, base, verdict):
    registered = Contrast(
        "layernorm_removal", "catastrophe", test="other", base="base", metric="accuracy", better="higher"
    )
    task(test, base, contrast=registered)(tmp_path)
    decision = judged(tmp_path)["decisions"][0]
    assert decision["verdict"] == verdict, decision["sentence"]


# --- Slopes and levels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("claimed", "verdict"), [(-0.5, "supported"), (-1.0, "refuted")])
def test_a_slope_is_judged_against_the_claimed_exponent(tmp_path, configs, claimed, verdict):
    steps = {"base": 24, "double": 48, "four": 96}
    made = ablation(
        rates=(1e-2,),
        seeds=8,
        arms={name: Arm({"train.steps": n} if n > 24 else {}) for name, n in steps.items()},
        contrasts=(Contrast("layernorm_removal", "slope", arms=tuple(steps), against="train.steps", exponent=claimed),),
        matched=(),
    )
    write_config(configs, made)
    for name, n in steps.items():
        fill(tmp_path, arm(made, name), lambda m, n=n: loss(m) * n**-0.5, tokens=n * 128)
    (decision,) = judged(tmp_path)["decisions"]
    assert decision["verdict"] == verdict, decision["sentence"]
    assert decision["estimate"] == pytest.approx(-0.5, abs=0.02)
    tokens = dataclasses.replace(made.contrasts[0], against="tokens")
    write_config(configs, dataclasses.replace(made, contrasts=(tokens,)))
    assert judged(tmp_path)["decisions"][0]["estimate"] == pytest.approx(decision["estimate"])


def test_a_slope_against_what_is_no_number_is_refused(tmp_path, configs):
    arms = {"base": Arm(), "b": Arm({"train.steps": 48}), "c": Arm({"train.steps": 96})}
    odd = Contrast("layernorm_removal", "slope", arms=tuple(arms), against="model.norm.kind", exponent=1.0)
    made = ablation(rates=(1e-2,), seeds=8, arms=arms, contrasts=(odd,))
    write_config(configs, made)
    for name in arms:
        fill(tmp_path, arm(made, name), loss)
    with pytest.raises(ConfigError, match=r"'model\.norm\.kind'"):
        judged(tmp_path)


@pytest.mark.parametrize(("level", "verdict"), [(2.3, "supported"), (2.0, "refuted")])
def test_a_level_needs_one_arm(lab, level, verdict):
    contrast = Contrast("layernorm_removal", "level", test="other", margin=level)
    runs = lab(dataclasses.replace(MADE, contrasts=(contrast,)))
    decision = decide(runs)
    assert decision["verdict"] == verdict and decision["estimate"] == pytest.approx(2.17, abs=0.05)
    assert decision["registered"] == "before its data"


def test_the_report_data_is_strict_json(lab):
    data = judged(lab())
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_numbers_come_from_records_only(lab):
    """Nothing but the records moves the estimate: shift every loss of one arm, and it moves by as much."""
    first = decide(lab(), 0)["estimate"]
    runs = lab()
    cell = arm(MADE, "other")
    for member, record in store.read_arm(cell.directory(runs))[0].items():
        put(runs, cell, member, record.metrics["loss"] + 0.25)
    assert decide(runs)["estimate"] == pytest.approx(first + 0.25)
