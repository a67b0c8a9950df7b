"""What is trained: grids that grow at their own edge, tuning before test seeds, twins, arms shared by hash."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from ablations import jobs, store
from ablations.cells import TUNING_SEED, ArmCell, Member, cells
from ablations.evidence import Outcome
from ablations.schema import Arm, Condition, Profile
from tests.ablations.lab import SIZE, ablation, arm, write_config
from transformer.errors import ConfigError
from transformer.model import data_seed, init_seed

RATES = (1e-3, 3e-3, 1e-2)


@pytest.fixture(scope="module")
def cell() -> ArmCell:
    """The baseline with three learning rates, one tuning seed and four test seeds."""
    return arm(ablation(rates=RATES, seeds=4))


def tuned(cell: ArmCell, **losses: float | None) -> dict[Member, Outcome]:
    """Scores of tuning members: `lr_0_001=2.0` is the loss at 0.001, None a divergence."""
    rates = {float(name.removeprefix("lr_").replace("_", ".")): loss for name, loss in losses.items()}
    return {Member(rate, TUNING_SEED): Outcome(loss) for rate, loss in rates.items()}


def play(cell: ArmCell, loss) -> dict[Member, Outcome]:
    """Scores after every member the arm asks for has been trained."""
    scores: dict[Member, Outcome] = {}
    while todo := [member for member in cell.members(scores) if member not in scores]:
        scores |= {member: Outcome(loss(member)) for member in todo}
    return scores


# --- The grid ----------------------------------------------------------------------------------------------------


def test_an_inner_best_rate_leaves_the_grid_alone(cell):
    scores = tuned(cell, lr_0_001=2.0, lr_0_003=1.0, lr_0_01=2.0)
    assert cell.grid(scores) == list(RATES)
    assert cell.best_learning_rate(scores) == 3e-3 and not cell.at_edge(scores)


def test_of_equally_good_rates_the_one_in_the_middle_is_chosen(cell):
    """A task that every rate solves is no reason to go to an edge."""
    solved = play(cell, lambda member: 1.0)
    assert cell.best_learning_rate(solved) == 3e-3 and cell.grid(solved) == list(RATES)


@pytest.mark.parametrize(
    ("optimum", "grid", "best", "edge"),
    [
        (1e-3, [0.0003333, 1e-3, 3e-3, 1e-2], 1e-3, False),
        (1e-2, [1e-3, 3e-3, 1e-2, 0.03], 1e-2, False),
        (3e-2, [1e-3, 3e-3, 1e-2, 0.03, 0.09], 0.03, False),
        (1e-9, [0.0001111, 0.0003333, 1e-3, 3e-3, 1e-2], 0.0001111, True),
        (1e9, [1e-3, 3e-3, 1e-2, 0.03, 0.09], 0.09, True),
    ],
)
def test_the_grid_grows_at_the_edge_by_two_at_most(cell, optimum, grid, best, edge):
    scores = play(cell, lambda member: abs(member.learning_rate - optimum))
    assert cell.grid(scores) == grid
    assert cell.best_learning_rate(scores) == best and cell.at_edge(scores) is edge
    # The larger budget shows in the number of members: a rate more for every tuning seed.
    assert cell.planned(scores) == len(cell.members(scores)) == len(grid) + 4 + 4
    assert cell.planned({}) == len(RATES) + 4 + 4


def test_higher_may_be_better(cell):
    upwards = dataclasses.replace(cell, metric="accuracy")
    scores = tuned(cell, lr_0_001=0.5, lr_0_003=0.9, lr_0_01=None)
    assert upwards.best_learning_rate(scores) == 3e-3
    assert cell.best_learning_rate(play(cell, lambda member: None if member.learning_rate > 2e-3 else 1.0)) < 1e-3


def test_a_divergence_never_wins_and_points_downwards(cell):
    assert cell.best_learning_rate(tuned(cell, lr_0_001=3.0, lr_0_003=2.0, lr_0_01=None)) == 3e-3
    scores = play(cell, lambda member: None)
    assert cell.grid(scores)[0] == 0.0001111 and cell.at_edge(scores)


def test_a_run_that_ended_broken_counts_as_what_it_ended_with(cell):
    """A rate at which some runs fail and the others do best is chosen, so that the failures are seen."""
    scores = tuned(cell, lr_0_001=2.0, lr_0_003=1.0, lr_0_01=2.0)
    broken = dataclasses.replace(scores[Member(3e-3, TUNING_SEED)], value=1.5, broken=True)
    assert cell.best_learning_rate({**scores, Member(3e-3, TUNING_SEED): broken}) == 3e-3


def test_an_extension_is_the_arms_own():
    made = ablation(rates=RATES)
    base, other = arm(made), arm(made, "other")
    at_edge = play(base, lambda member: member.learning_rate)
    assert len(base.grid(at_edge)) == 5 and other.grid({}) == list(RATES)


def test_one_rate_is_not_tuned():
    single = arm(ablation(rates=(1e-2,)), "other")
    assert [member.name for member in single.members({})] == ["lr0.01-s0", "lr0.01-s1"]
    assert not single.at_edge({}) and single.planned({}) == 2


def test_an_arm_may_fix_its_rate():
    """A rate among an arm's overrides is the arm's rate: it is not overwritten by the grid of the profile."""
    made = ablation(arms={"base": Arm(), "slow": Arm({"optimizer.learning_rate": 1e-3})})
    slow, base = arm(made, "slow"), arm(made)
    assert {member.learning_rate for member in slow.members({})} == {1e-3}
    assert {member.learning_rate for member in base.members({})} == {1e-2, 3e-2}
    assert slow.hash == base.hash  # one architecture: one directory, compiled once


# --- Members -----------------------------------------------------------------------------------------------------


def test_tuning_comes_first_and_test_seeds_at_the_best_rate(cell):
    assert [member.name for member in cell.members({})] == ["lr0.001-s1000", "lr0.003-s1000", "lr0.01-s1000"]
    scores = tuned(cell, lr_0_001=2.0, lr_0_003=1.0, lr_0_01=2.0)
    tests = cell.members(scores)[3:]
    assert {member.learning_rate for member in tests} == {3e-3}
    assert [(member.seed, member.twin) for member in tests] == [(s, twin) for twin in (False, True) for s in range(4)]


def test_an_unfinished_or_failed_tuning_run_leaves_the_arm_undecided(cell):
    """A failed member has no score: nothing is chosen without it, and nothing further is asked for."""
    scores = tuned(cell, lr_0_001=2.0, lr_0_003=1.0)
    assert cell.best_learning_rate(scores) is None
    assert all(member.is_tuning for member in cell.members(scores))
    assert cell.planned(scores) == 3 + 8


def test_the_members_are_a_pure_function_of_the_scores(cell):
    scores = play(cell, lambda member: member.learning_rate)
    shuffled = dict(sorted(scores.items(), key=lambda item: hash(item[0].name)))
    assert cell.members(scores) == cell.members(shuffled) == cell.members(dict(scores))
    names = [member.name for member in cell.members(scores)]
    assert len(set(names)) == len(names)


def test_tuning_and_test_seeds_are_disjoint(cell):
    seeds = {True: set(), False: set()}
    for member in play(cell, lambda member: 1.0):
        config = member.config(cell.config)
        seeds[member.is_tuning] |= {init_seed(config), data_seed(config)}
        assert config.optimizer.learning_rate == member.learning_rate
    assert seeds[True] == {1000} and seeds[False] == {*range(4), *range(2000, 2004)}


def test_a_repetition_is_the_same_arms_on_other_seeds():
    """`tiny@100` shares configs, hashes and records with `tiny`, and no member."""
    made = ablation(rates=RATES, seeds=4)
    (first, _), (again, _) = (cells("tiny", made, profile) for profile in ("tiny", "tiny@100"))
    assert first.hash == again.hash and first.config == again.config
    scores = play(first, lambda member: member.learning_rate)
    assert not set(again.members(scores)) & set(scores) and again.best_learning_rate(scores) is None
    repeated = set(play(again, lambda member: 1.0))
    assert {m.seed for m in repeated if not m.is_tuning} == {100, 101, 102, 103}
    assert {m.seed for m in repeated if m.is_tuning} == {1100} and len({m.learning_rate for m in repeated}) == 3


@pytest.mark.parametrize("profile", ["tiny@", "tiny@x", "tiny@-1", "tiny@1000", "other@100"])
def test_a_repetition_of_nothing_or_on_tuning_seeds_is_refused(profile):
    with pytest.raises(ConfigError, match=r"Unknown profile .*; it is one of: tiny"):
        cells("tiny", ablation(), profile)


@pytest.mark.parametrize(("first", "free"), [(1, False), (4, False), (5, True), (496, True), (497, False)])
def test_a_repetition_has_seeds_of_its_own(first, free):
    """Its test seeds are none of the first run's, and its tuning seeds neither."""
    made = ablation(rates=RATES, seeds=4, profile={"tuning_seeds": 5})
    if free:
        assert cells("tiny", made, f"tiny@{first}")
    else:
        with pytest.raises(ConfigError, match="on seeds of its own; choose a first seed from 5 to 496"):
            cells("tiny", made, f"tiny@{first}")


def test_a_twin_has_the_same_data_and_other_initial_weights(cell):
    member, twin = (Member(1e-3, 3, twin).config(cell.config) for twin in (False, True))
    assert data_seed(member) == data_seed(twin) == 3
    assert init_seed(member) == 3 and init_seed(twin) == 2003


def test_only_a_baseline_that_may_judge_has_twins():
    made = ablation()
    assert arm(made).has_twins and not arm(made, "other").has_twins
    assert not arm(ablation(profile={"verdicts": False})).has_twins


# --- Cells -------------------------------------------------------------------------------------------------------


def test_cells_are_arms_times_conditions_the_baseline_first():
    conditions = {"shallow": Condition(), "deep": Condition({"model.num_layers": 3})}
    made = ablation(conditions=conditions, profile={"arms": ("other", "base")})
    found = cells("tiny", made, "tiny")
    assert [(cell.condition, cell.arm) for cell in found] == [
        ("shallow", "base"),
        ("shallow", "other"),
        ("deep", "base"),
        ("deep", "other"),
    ]
    assert [cell.config.model.num_layers for cell in found] == [1, 1, 3, 3]
    assert found[3].label == "tiny/other@deep" and len({cell.hash for cell in found}) == 4


def test_a_profile_that_cannot_be_run_is_refused():
    with pytest.raises(ConfigError, match="Unknown profile 'tinny'"):
        cells("tiny", ablation(), "tinny")
    with pytest.raises(ConfigError, match="leaves out the baseline 'base'"):
        cells("tiny", ablation(profile={"arms": ("other",)}), "tiny")
    for wrong in ({"learning_rates": ()}, {"test_seeds": 0}, {"tuning_seeds": 0, "learning_rates": (1e-3, 1e-2)}):
        with pytest.raises(ConfigError, match="needs at least one"):
            Profile(SIZE, **wrong)


def test_views_and_rates_are_no_part_of_an_arms_identity(cell):
    other = arm(ablation(rates=(5e-3,), size={"train.log_every": 1, "train.eval_every": 3}))
    assert other.hash == cell.hash
    assert arm(ablation(size={"model.dropout": 0.1})).hash != cell.hash


# --- Arms shared by two ablations --------------------------------------------------------------------------------


def test_equal_arms_of_two_ablations_share_a_directory_and_a_job(tmp_path, configs):
    first = ablation()
    second = ablation(arms={"base": Arm(), "rms": Arm({"model.norm.kind": "rmsnorm"})}, rates=RATES, seeds=3)
    write_config(configs, first, "first")
    write_config(configs, second, "second")
    runs = tmp_path / "runs"
    found = jobs.collect(["first", "second"], "tiny", runs)
    assert [job.cell.label for job in found] == ["first/base", "first/other", "second/rms"]
    assert len({job.directory for job in found}) == 3
    shared = found[0]
    assert [cell.label for cell in shared.cells] == ["first/base", "second/base"]
    # What either asks for is trained, and what both ask for once.
    rates = [member.learning_rate for member in shared.todo({})]
    assert sorted(rates) == [1e-3, 3e-3, 1e-2, 3e-2]
    assert shared.progress() == jobs.Progress(ended=0, known=4 + 2 * 2 + 2 * 3, todo=4)
    for job in found:
        job.write()
        assert jobs.read(job.directory) == job
    # The directory keeps the name it got first, whoever asks.
    assert jobs.collect(["second"], "tiny", runs)[0].directory == shared.directory


def test_two_commands_that_start_together_share_a_directory_too(tmp_path, configs):
    """Neither has written a job yet when the other looks."""
    write_config(configs, ablation(), "first")
    write_config(configs, ablation(), "second")
    one, other = (jobs.collect([name], "tiny", tmp_path / "runs")[0] for name in ("first", "second"))
    assert one.directory == other.directory and one.directory.is_dir() and "first" in one.directory.name
    with store.locked(tmp_path / "runs" / "lock"):
        waiting = threading.Thread(target=jobs.collect, args=(["second"], "tiny", tmp_path / "runs"))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()  # until the other has looked and made what it needs
    waiting.join(60)
    assert not waiting.is_alive()


def test_the_contrasts_of_both_are_registered_with_the_shared_arm(tmp_path, configs):
    write_config(configs, ablation(), "first")
    write_config(configs, ablation(), "second")
    (shared, _) = jobs.collect(["first", "second"], "tiny", tmp_path)
    (hashed,) = {contrast.rsplit(":", 1)[1] for contrast in shared.contrasts}
    assert shared.contrasts == (f"first:layernorm_removal:{hashed}", f"second:layernorm_removal:{hashed}")
