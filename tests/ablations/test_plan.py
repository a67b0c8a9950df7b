"""What a plan says before anything starts: size, cost, what the seeds can show, and what a profile cannot afford."""

from __future__ import annotations

import dataclasses
import re

import pytest

from ablations import plan, probes, summary
from ablations.__main__ import main
from ablations.power import equivalence_margin_needed, minimum_detectable_effect
from ablations.profiles import LIMITS, STANDARD, check_limits, standard
from ablations.schema import Ablation, Arm, Condition, Contrast
from tests.ablations.lab import WORSE, ablation, arm, fill, put, write_config, write_text
from tests.tiny import declared
from transformer.errors import ConfigError
from transformer.training.run import datasets, make_program

MADE = ablation("no.txt", seeds=6)


@pytest.fixture
def make(tmp_path, configs):
    def make(made: Ablation = MADE, workers: int = 2) -> plan.Plan:
        write_config(configs, made)
        return plan.make("tiny", "tiny", tmp_path, workers)

    return make


# --- What it says ------------------------------------------------------------------------------------------------


def test_parameters_flops_and_tokens_are_those_of_the_arm(make):
    base, other = make().rows
    config = arm(MADE).config
    assert base.parameters == sum(int(size) for size in map(_size, declared(config).values()))
    assert base.parameters - other.parameters == 3 * 16  # the gains of the two norms of a block and the final one
    assert base.tokens == other.tokens == 24 * 8 * 16
    kernels = 12 * 16 * 16 + 256 * 16  # attention and feed-forward of one block; the tied logits
    assert base.flops_per_token >= 6 * kernels and base.flops_per_token == pytest.approx(
        6 * kernels + 12 * 16 * 16, 0.1
    )


def test_whoever_waits_for_the_counts_sees_how_far_they_are(make, tmp_path):
    labels, seen = [row.label for row in make().rows], []
    made = plan.make("tiny", "tiny", tmp_path, 2, lambda *told: seen.append(told))
    assert [row.label for row in made.rows] == [name for *_, names in seen for name in names] == labels
    assert [told[:2] for told in seen] == [(1, 2), (2, 2)]


def _size(entry) -> int:
    total = 1
    for width in entry[0]:
        total *= width
    return total


def test_the_counts_are_those_of_the_trained_model(make, tmp_path):
    """The plan declares a model without data; what is trained on the data is the same size."""
    made = ablation(write_text(tmp_path / "text.txt"))
    row = make(made).rows[0]
    cell = arm(made)
    program = make_program(cell.config, datasets.load(cell.config.data))
    shapes = plan.accounting.parameters_by_component(program.abstract_state.params)
    assert row.parameters == sum(shapes.values())


def test_a_task_is_counted_with_its_own_symbols(make):
    """Not with the 256 of the bytes."""
    task = Condition({"data.source": "task", "data.task": "xor", "data.path": ""})
    row = make(ablation("no.txt", conditions={"bits": task})).rows[0]
    assert row.parameters < 256 * 16


def test_runs_and_what_is_left_of_them(make, tmp_path):
    """The baseline has twins; a finished member is not to do, and the time falls with it."""
    first = make()
    assert [(row.members, row.missing) for row in first.rows] == [(2 + 6 + 6, 14), (2 + 6, 8)]
    fill(tmp_path, arm(MADE, "other"), lambda m: 1.0 + abs(m.learning_rate - 1e-2))
    second = make()
    assert [(row.members, row.missing) for row in second.rows] == [(14, 14), (3 + 6, 0)]
    assert second.rows[1].seconds == 0.0 and second.seconds < first.seconds
    alone, crowd = make(workers=1), make(workers=50)
    assert alone.seconds == sum(row.seconds for row in alone.rows)
    (base, _) = crowd.rows
    assert crowd.seconds == (base.seconds + 13 * plan.START_UP) / 14  # no more workers than members; each starts up
    population = make(ablation("no.txt", seeds=6, size={"execution": "population"}), workers=50)
    busy = [row.seconds for row in population.rows if row.missing]
    assert population.seconds == sum(busy) / len(busy)  # each is left to one process


def test_a_measured_run_replaces_the_estimate(make, tmp_path):
    before = make().rows[0].seconds
    cell = arm(MADE)
    put(tmp_path, cell, cell.members({})[0], 2.0, seconds=1000.0)
    assert make().rows[0].seconds > 13 * 1000 > before


def test_the_detectable_effect_is_the_power_tables(make, tmp_path):
    """Assumed before there are twins, measured after."""
    made = make()
    assert (made.sigma, made.measured, made.test_seeds) == (0.02, False, 6)
    assert made.detectable == pytest.approx(0.02 * minimum_detectable_effect(6))
    assert made.equivalence == pytest.approx(0.02 * equivalence_margin_needed(6))
    fill(tmp_path, arm(MADE), lambda m: 1.0 + abs(m.learning_rate - 1e-2) + 0.01 * ((m.seed + m.twin) % 3))
    measured = make()
    assert measured.measured and measured.sigma == summary.collect_noise("tiny", "tiny", tmp_path) != 0.02
    assert measured.detectable == pytest.approx(measured.sigma * minimum_detectable_effect(6))


def test_the_command_prints_all_of_it(make, tmp_path, configs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    made = make()
    assert main(["plan", "tiny", "--profile=tiny", f"--runs={tmp_path}", f"--configs={configs}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    row = made.rows[0]
    assert f"base │ {row.parameters:,} │ {row.flops_per_token:.2g} │ 3,072 │ 14 │ 14 │" in said
    assert f"6 test seeds detect differences from {made.detectable:.3g}, and can show equivalence within" in said
    assert "assumed, no twins trained yet" in said and re.search(r"about \d+ s on \d+ workers", said)
    assert made.question in said and "signs decide" not in said


def test_too_few_seeds_for_signs_are_told(make, tmp_path, configs, capsys, monkeypatch):
    """Where runs diverge, six signs all alike have p = 0.016: enough for three comparisons, not for four."""
    monkeypatch.setenv("COLUMNS", "200")
    proof = Contrast("clm_generates", "exact", check="tests/claims/test_causal_mask.py::TestGenerates")
    for count, told in ((3, False), (4, True)):
        several = [dataclasses.replace(WORSE, margin=0.01 * i) for i in range(1, count + 1)]
        assert make(ablation("no.txt", seeds=6, contrasts=(*several, proof))).comparisons == count
        assert main(["plan", "tiny", "--profile=tiny", f"--runs={tmp_path}", f"--configs={configs}"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert ("for one of 4 comparisons 6 test seeds are too few, even all alike; 7 are not" in said) is told


# --- What a profile cannot afford --------------------------------------------------------------------------------

TOO_MUCH = {
    "arms": ({"arms": {f"a{i}": Arm({"model.num_layers": 1 + i} if i else {}) for i in range(9)}}, "9 arms", "8"),
    "conditions": (
        {
            "conditions": {f"c{i}": Condition({"train.steps": 3900 + i}) for i in range(10)},
            "size": {"model.num_layers": 8},
        },
        "320 million tokens times layers over all runs",
        "268",
    ),
    "rates": ({"profile": {"learning_rates": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}}, "5 learning rates", "4"),
    "runs": (
        {"size": {"train.steps": 4000, "model.num_layers": 8}, "profile": {"tuning_seeds": 32}},
        "541 million tokens times layers over all runs",
        "268",
    ),
    "seeds": ({"seeds": 13}, "13 test seeds", "12"),
    "tokens": ({"size": {"train.steps": 4097}}, "524,416 tokens", "524,288"),
    "tokens of one arm": ({"arms": {"a": Arm(), "b": Arm({"train.batch_size": 4096})}}, "1,572,864 tokens", "524,288"),
    "width": ({"size": {"model.d_model": 68}}, "68 d_model", "64"),
}


def at(name: str, **changes) -> Ablation:
    """The tiny ablation with its profile under another name, whose limits then hold."""
    made = ablation("no.txt", **changes)
    return dataclasses.replace(made, profiles={name: made.profiles["tiny"]})


@pytest.mark.parametrize(("changes", "asked", "allowed"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_quick_refuses_more_than_it_affords_and_names_the_number(changes, asked, allowed):
    with pytest.raises(ConfigError) as refused:
        check_limits("tiny", at("quick", **changes), "quick")
    assert f"The profile quick of tiny asks for {asked}, but quick allows {allowed};" in str(refused.value)
    check_limits("tiny", at("full", **changes), "full")  # an accelerator affords it


def test_what_a_profile_affords_passes():
    check_limits("tiny", at("quick", seeds=12, rates=(1e-4, 3e-4, 1e-3, 3e-3)), "quick")
    check_limits("tiny", at("demo", seeds=6), "demo")
    check_limits("tiny", at("quick", profile={"tuning_seeds": 8}), "quick")  # few arms may compare stability


def test_smoke_may_not_judge():
    with pytest.raises(ConfigError, match="smoke of tiny cannot give verdicts: set verdicts=False"):
        check_limits("tiny", at("smoke"), "smoke")
    check_limits("tiny", at("smoke", profile={"verdicts": False}), "smoke")


def test_the_plan_refuses_too(tmp_path, configs, capsys):
    write_config(configs, at("quick", seeds=13))
    assert main(["plan", "tiny", f"--configs={configs}", f"--runs={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "13 test seeds, but quick allows 12" in said and said.count("\n") == 1


def test_an_unknown_profile_is_refused():
    with pytest.raises(ConfigError, match="Unknown profile 'fll'; it is one of: full"):
        check_limits("tiny", at("full"), "fll")


def test_the_standard_profiles_are_within_their_limits():
    assert set(STANDARD) == set(LIMITS) == {"smoke", "demo", "quick", "full"}
    made = Ablation(question="?", arms={"a": Arm(), "b": Arm({"model.norm.kind": "none"})}, profiles=standard())
    for profile in STANDARD:
        check_limits("standard", made, profile)
    changed = standard("demo", overrides={"model.d_model": 16}, demo={"test_seeds": 4})
    assert list(changed) == ["demo"] and changed["demo"].test_seeds == 4
    assert changed["demo"].overrides["model.d_model"] == 16 and STANDARD["demo"].overrides["model.d_model"] == 32


def test_metrics_known_to_lint_are_those_of_the_probes():
    assert probes.metrics(()) == ("loss", "validation_loss", "accuracy", "exact_match")
    with pytest.raises(ConfigError, match='Did you mean "prefix_loss"'):
        probes.metrics(("prefix_los",))
