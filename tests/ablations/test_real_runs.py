"""The lab on models that are really trained: planted effects come out with their sign, identical arms with none.

Here members are trained by the compiled steps alone, and their losses stored as records; `test_worker.py` shows that a
worker's member ends with the same number to the last bit. The versions marked soak go through the command.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import scipy.stats

from ablations import catalog, summary
from ablations.cells import Member
from ablations.evidence import ArmResult, Evidence, Outcome, Setting
from ablations.schema import Ablation, Arm, Contrast
from ablations.verdict import Decision, judge, judge_all
from tests.ablations.lab import ablation, arm, fill, quick_run, write_config, write_text

ROOT = Path(__file__).resolve().parents[2]
RATE, SEEDS, STEPS = 1e-2, 6, 120
PLANTED = {"half": "width halved", "slow": "a tenth of the learning rate", "noisy": "5% of the letters wrong"}
BETTER = Contrast("layernorm_removal", "superiority", test="twin", base="base", expect="better", margin=0.01)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> tuple[Path, Path]:
    """The made-up text, and the same with wrong letters in what is trained on."""
    folder = tmp_path_factory.mktemp("texts")
    return write_text(folder / "clean.txt", 9000), write_text(folder / "noisy.txt", 9000, noise=0.05)


def planted(texts: Sequence[Path], expect: str = "worse", seeds: int = SEEDS, **changes) -> Ablation:
    """Three arms that must come out worse than the baseline, each for its own reason."""
    arms = {
        "base": Arm(),
        "half": Arm({"model.d_model": 16}),
        "slow": Arm({"optimizer.learning_rate": RATE / 10}),
        "noisy": Arm({"data.path": str(texts[1])}),
    }
    contrasts = tuple(
        Contrast("layernorm_removal", "superiority", test=name, base="base", expect=expect, margin=0.02, note=note)
        for name, note in PLANTED.items()
    )
    size = {"model.d_model": 32, "data.sequence_length": 32, "train.steps": STEPS, **changes.pop("size", {})}
    return ablation(
        texts[0], arms=arms, contrasts=contrasts, rates=(RATE,), seeds=seeds, size=size, matched=("tokens",), **changes
    )


# --- Planted effects ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def effects(texts, tmp_path_factory) -> Callable[[str], dict]:
    """Report data of the planted ablation under either expectation, from one set of runs."""
    folder = tmp_path_factory.mktemp("lab")
    made = planted(texts)
    for name in made.arms:
        cell = arm(made, name)
        size = sum(quick_size(cell.config))
        fill(
            folder / "runs",
            cell,
            lambda member, cell=cell: quick_run(cell, member),
            parameters=size,
            tokens=STEPS * 256,
        )

    def judged(expect: str) -> dict:
        write_config(folder / "configs", planted(texts, expect))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(catalog, "_folder", folder / "configs")
            return summary.summarize(summary.collect("tiny", "tiny", folder / "runs"))

    return judged


def quick_size(config) -> list[int]:
    """Sizes of the parameters."""
    from tests.tiny import declared

    sizes = []
    for shape, _ in declared(config).values():
        size = 1
        for width in shape:
            size *= width
        sizes.append(size)
    return sizes


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_effect_is_found_with_its_sign(effects, name):
    decision = next(d for d in effects("worse")["decisions"] if d["test"] == name)
    assert decision["verdict"] == "supported" and decision["n"] == SEEDS, decision["sentence"]
    assert decision["estimate"] > 0.02 and decision["interval95"][0] > 0
    assert all(pair["test"] > pair["base"] for pair in decision["paired"])


def test_the_opposite_claim_is_refuted(effects):
    verdicts = {d["test"]: (d["verdict"], d["label"]) for d in effects("better")["decisions"]}
    assert verdicts == dict.fromkeys(PLANTED, ("refuted", "refuted, reversed"))


def test_the_effects_stand_far_above_the_noise(effects):
    data = effects("worse")
    (noise,) = data["noise"]
    assert noise["n"] == SEEDS and 0 < noise["sigma"] < 0.05
    assert all(d["estimate"] > 2 * noise["sigma"] for d in data["decisions"])


# --- Identical arms ----------------------------------------------------------------------------------------------


def families(losses: Callable[[Member], float], count: int, seeds: int) -> list[list[tuple[float, float]]]:
    """`count` families of (twin, base) losses: the same arm with the same data from other initial weights."""
    return [
        [
            (losses(Member(RATE, seed, twin=True)), losses(Member(RATE, seed)))
            for seed in range(i * seeds, (i + 1) * seeds)
        ]
        for i in range(count)
    ]


def verdict(family: Sequence[tuple[float, float]], shift: float = 0.0) -> Decision:
    """Judges one family of pairs, the twin moved by `shift`."""
    twin, base = ({s: Outcome(pair[side]) for s, pair in enumerate(family)} for side in (0, 1))
    twin = {seed: Outcome(outcome.value + shift) for seed, outcome in twin.items()}
    evidence = Evidence(test=ArmResult("twin", twin), base=ArmResult("base", base))
    return judge(BETTER, evidence, Setting("tiny", "real runs", test_seeds=len(family)))


def states_a_difference(decision: Decision) -> bool:
    return decision.label in ("supported", "supported, negligible", "refuted, reversed")


def most_by_chance(count: int) -> int:
    """False verdicts that `count` families may show at 5% each, but for one chance in a hundred."""
    return int(scipy.stats.binom.ppf(0.99, count, 0.05))


@pytest.fixture(scope="module")
def identical(texts) -> list[list[tuple[float, float]]]:
    cell = arm(ablation(texts[0], rates=(RATE,), size={"train.steps": 40}))
    return families(lambda member: quick_run(cell, member), count=5, seeds=SEEDS)


def test_identical_arms_are_seldom_called_different(identical):
    assert most_by_chance(5) == 2
    assert sum(states_a_difference(verdict(family)) for family in identical) <= most_by_chance(5)
    values = [value for family in identical for pair in family for value in pair]
    assert len(set(values)) == 2 * 5 * SEEDS  # these are different runs


def test_the_same_families_moved_apart_are_called_different(identical):
    """What keeps the rate low is the data, not a verdict that never comes."""
    spread = max(abs(twin - base) for family in identical for twin, base in family)
    for side, label in ((-1, "supported"), (1, "refuted, reversed")):
        assert [verdict(family, side * 3 * spread).label for family in identical] == [label] * 5


# --- The same at length ------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_planted_effects_through_the_command(texts, tmp_path, configs, record_property):
    """Own learning rates, eight seeds, twins, workers, a verdict and a page."""
    made = planted(texts, seeds=8, size={"train.steps": 200, "train.eval_every": 50})
    write_config(configs, made)
    command = [sys.executable, "-m", "ablations", "run", "tiny", "--profile=tiny", f"--configs={configs}"]
    done = subprocess.run(
        [*command, f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    data = summary.summarize(summary.collect("tiny", "tiny", tmp_path / "runs"))
    assert {d["test"]: d["verdict"] for d in data["decisions"]} == dict.fromkeys(PLANTED, "supported")
    assert {d["registered"] for d in data["decisions"]} == {"before its data"}
    assert data["progress"]["done"] == data["progress"]["planned"] == 5 * 8
    record_property("runs", data["progress"]["done"])
    for decision in data["decisions"]:
        low, high = decision["interval95"]
        text = f"{decision['estimate']:+.4f} [{low:+.4f}, {high:+.4f}] {data['unit']}"
        record_property(f"{PLANTED[decision['test']]}: {decision['verdict']}", text)


@pytest.mark.soak
def test_identical_arms_at_length(texts, record_property):
    """Sixty families of eight pairs, and as many families of three contrasts each as they give."""
    cell = arm(ablation(texts[0], rates=(RATE,), size={"train.steps": 40}))
    found = families(lambda member: quick_run(cell, member), count=60, seeds=8)
    alone = sum(states_a_difference(verdict(family)) for family in found)
    record_property("false verdicts of 60 single contrasts", alone)
    assert alone <= most_by_chance(60)
    wrong = 0
    for first in range(0, 60, 3):
        contrasts = [Contrast(f"same_{i}", "superiority", test="twin", base="base", expect="better") for i in range(3)]
        evidence = {
            (contrast.hash, "default"): Evidence(
                test=ArmResult("twin", {s: Outcome(pair[0]) for s, pair in enumerate(family)}),
                base=ArmResult("base", {s: Outcome(pair[1]) for s, pair in enumerate(family)}),
            )
            for contrast, family in zip(contrasts, found[first : first + 3], strict=True)
        }
        wrong += any(states_a_difference(d) for d in judge_all(contrasts, evidence, Setting("tiny", "real runs")))
    record_property("false verdicts of 20 families of three contrasts", wrong)
    assert wrong <= most_by_chance(20)
