"""Members trained together are the runs they would be alone, whatever happens to their neighbours."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.test_pairs import PAIRS
from tests.tiny import BATCH, LENGTH, VOCAB, label, nested, tiny, tokens
from transformer import load, resolve
from transformer.config import replace
from transformer.data.batch import Batch
from transformer.errors import CheckpointError, UserError
from transformer.schema import Config
from transformer.training import population as room
from transformer.training.interrupts import PREEMPTED, Interrupts
from transformer.training.population import Population, pending, train_population
from transformer.training.run import make_program, train
from transformer.training.run_directory import RunDirectory, read_rows, read_status
from transformer.training.step import Program, flat_state

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
HUGE = 1e30
TINY: dict[str, Any] = {
    "data.source": "text",
    "data.sequence_length": 16,
    "model.d_model": 16,
    "model.num_layers": 1,
    "model.dropout": 0.1,
    "model.norm.kind": "batchnorm",
    "train.steps": STEPS,
    "train.batch_size": 4,
    "train.log_every": 1,
    "train.eval_every": 4,
    "train.checkpoint_every": 4,
    "train.steps_per_call": 2,
    "eval.tokens": 128,
    "wandb.mode": "disabled",
    "execution": "population",
}
MEMBERS = [(1e-2, 0), (3e-3, 0), (HUGE, 0), (1e-2, 1)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Config:
    """One layer with all that a member owns beside parameters: running statistics and dropout keys."""
    path = tmp_path_factory.mktemp("corpus") / "letters.txt"
    path.write_bytes(np.random.default_rng(0).integers(97, 113, 3000, dtype=np.uint8).tobytes())
    return resolve(nested({**TINY, "data.path": str(path)}))


def configs(base: Config, members=MEMBERS, **overrides: Any) -> list[Config]:
    return [replace(base, {"optimizer.learning_rate": rate, "seed": seed, **overrides}) for rate, seed in members]


def folder(root: Path, member: tuple[float, int]) -> Path:
    return root / f"lr{member[0]:g}-s{member[1]}"


def together(base: Config, root: Path, members=MEMBERS, **overrides: Any) -> dict[tuple[float, int], Any]:
    workdirs = [folder(root, member) for member in members]
    return dict(
        zip(members, train_population(configs(base, members, **overrides), workdirs, root / "shared"), strict=True)
    )


def numbers(path: Path) -> list[dict]:
    """All rows, without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_rows(path)]


def last(path: Path) -> dict[str, bytes]:
    return {name: np.asarray(leaf).tobytes() for name, leaf in flat_state(load(path).state).items()}


def check_same_end(root: Path, other: Path, members=MEMBERS) -> None:
    """Bit for bit: rows, and the last state of those that have one."""
    for member in members:
        left, right = folder(root, member), folder(other, member)
        assert numbers(left) == numbers(right)
        assert read_status(left)["state"] == read_status(right)["state"]
        if read_status(left)["state"] == "done":
            assert last(left) == last(right)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("population")
    outcomes = together(base, root)
    assert [outcome.state for outcome in outcomes.values()] == ["done", "done", "diverged", "done"]
    return root


# --- A member is a run -------------------------------------------------------------------------------------------


def check_same_run(path: Path, other: Path) -> None:
    """Rows, status and files; losses to 1e-5."""
    left, right = numbers(path), numbers(other)
    assert [(r["step"], r["split"], sorted(r)) for r in left] == [(r["step"], r["split"], sorted(r)) for r in right]
    for a, b in zip(left, right, strict=True):
        if a["loss"] is not None:
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    assert read_status(path)["state"] == read_status(other)["state"]
    assert set(read_status(path)) == set(read_status(other))
    assert {p.name for p in path.iterdir()} == {p.name for p in other.iterdir()}
    if read_status(path)["state"] == "done":
        mine, single = load(path), load(other)
        assert mine.step == single.step == STEPS
        for name, leaf in flat_state(mine.state).items():
            np.testing.assert_allclose(leaf, flat_state(single.state)[name], rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("member", MEMBERS[1:])
def test_a_member_is_the_run_it_would_be_alone(base, trained, tmp_path, member):
    (config,) = configs(base, [member], **{"execution": "sequential"})
    alone = train(config, tmp_path / "alone", quiet=True)
    check_same_run(folder(trained, member), alone.path)


@pytest.mark.parametrize("other", MEMBERS[1:])
def test_the_check_notices_another_seed_or_rate(trained, other):
    with pytest.raises(AssertionError):
        check_same_run(folder(trained, MEMBERS[0]), folder(trained, other))


DECODERS = [o for o in PAIRS if tiny(o).model.family == "decoder" and tiny(o).model.head.kind == "lm"]
WINDOW = Batch(tokens(BATCH, LENGTH + 1))


def compiled(function, *arguments):
    """Without much ado."""
    return jax.jit(function).lower(*arguments).compile(compiler_options={"xla_backend_optimization_level": 0})


def check_mapped_step(overrides: dict[str, Any], settings_of: tuple[int, int] = (0, 1)) -> None:
    """One step of two members that differ in seed and rate, mapped and one after the other; `settings_of`: whose rate
    each of the mapped ones gets."""
    config = tiny({**overrides, "model.num_layers": 1})
    program = Program(config, VOCAB, np.ones(VOCAB, np.int32))
    states = [program.init(seed) for seed in (0, 1)]
    settings = [program.hyperparameters(replace(config, {"optimizer.learning_rate": rate})) for rate in (1e-2, 3e-3)]

    def step(state, hyper):
        return program.train_step(state, WINDOW, jnp.int32(0), hyper)[1]

    stacked = [jax.tree.map(lambda *x: jnp.stack(x), *x) for x in (states, [settings[i] for i in settings_of])]
    together = compiled(jax.vmap(step), *stacked)(*stacked)
    alone = compiled(step, states[0], settings[0])
    for member in (0, 1):
        for name, value in alone(states[member], settings[member]).items():
            np.testing.assert_allclose(together[name][member], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("overrides", DECODERS[:4], ids=label)
def test_a_mapped_step_of_any_variant_is_the_step_alone(overrides):
    check_mapped_step(overrides)


def test_the_check_notices_shared_settings():
    with pytest.raises(AssertionError):
        check_mapped_step({}, settings_of=(0, 0))


def test_members_of_one_seed_see_one_order_of_data(base):
    dataset = room.load_dataset(base)
    chunk = Population(make_program(base, dataset), 4).feed(configs(base), dataset).chunk(3, 2)
    assert chunk.shape == (2, 4, 4)
    np.testing.assert_array_equal(chunk[:, 0], chunk[:, 1])
    assert (chunk[:, 0] != chunk[:, 3]).any()


@pytest.mark.parametrize(("rate", "state"), [(1e-2, "done"), (HUGE, "diverged")])
def test_a_population_of_one_is_what_train_makes_of_such_a_config(base, tmp_path, rate, state):
    """And one that diverges as a whole stops."""
    (config,) = configs(base, [(rate, 0)])
    outcome = train(config, tmp_path / "run", quiet=True)
    assert outcome.state == state and not (tmp_path / "run" / "population").exists()
    assert (read_rows(outcome.path)[-1]["step"] == STEPS) is (state == "done")
    assert train(config, tmp_path / "run", quiet=True).state == state
    assert json.loads((tmp_path / "run" / "env.json").read_text())["population"] == 1


def test_windows_from_the_host_are_those_the_device_cuts(base):
    dataset = room.load_dataset(base)
    population = Population(make_program(base, dataset), 4)
    starts = population.feed(configs(base), dataset).chunk(3, 2)
    other = Population(make_program(replace(base, {"data.feed": "grain"}), dataset), 4)
    cut = other.feed(configs(base), dataset).chunk(3, 2)
    np.testing.assert_array_equal(cut, dataset.splits["train"][starts[..., None] + np.arange(17)])


# --- Divergence --------------------------------------------------------------------------------------------------


def test_a_divergence_leaves_its_neighbours_bit_identical(base, trained, tmp_path):
    """The same population with a rate that does not diverge in the place of the one that does."""
    others = [(rate if rate != HUGE else 1e-3, seed) for rate, seed in MEMBERS]
    together(base, tmp_path, others)
    check_same_end(tmp_path, trained, [member for member in MEMBERS if member[0] != HUGE])
    status, rows = read_status(folder(trained, MEMBERS[2])), read_rows(folder(trained, MEMBERS[2]))
    assert status["state"] == "diverged" and 1 < status["diverged_at"] < STEPS
    assert rows[-1]["loss"] is None and rows[-1]["step"] == status["diverged_at"]


# --- Resuming ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stopping_at(step: int, monkeypatch) -> Iterator[None]:
    """A request to stop comes when the rows of this step are written."""
    asked, append = Interrupts(), RunDirectory.append

    def watch(self: RunDirectory, row: dict[str, Any]) -> dict[str, Any]:
        if row["step"] >= step:
            asked.exit_code = PREEMPTED
        return append(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append", watch)
        patch.setattr(room, "Interrupts", lambda: asked)
        yield


def interrupt_at(base: Config, root: Path, monkeypatch, step: int) -> None:
    with stopping_at(step, monkeypatch):
        outcomes = together(base, root)
    assert {outcome.state for outcome in outcomes.values()} == {"preempted", "diverged"}


def test_members_resume_together(base, trained, tmp_path, monkeypatch):
    interrupt_at(base, tmp_path, monkeypatch, step=6)
    assert pending(tmp_path / "shared") == [folder(tmp_path, member).name for member in MEMBERS]
    together(base, tmp_path)
    check_same_end(tmp_path, trained)
    assert not (tmp_path / "shared").exists() and pending(tmp_path / "shared") == []
    events = [json.loads(line)["kind"] for line in (folder(tmp_path, MEMBERS[0]) / "events.jsonl").open()]
    assert events.count("resume") == 1 and events.count("start") == 1


def test_a_run_that_was_renamed_goes_on(base, tmp_path, monkeypatch):
    (config,) = configs(base, [(1e-2, 0)])
    with stopping_at(6, monkeypatch):
        assert train(config, tmp_path / "run", quiet=True).state == "preempted"
    with pytest.raises(CheckpointError, match=r"let train\.py reach the end"):
        load(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "other")
    assert train(config, tmp_path / "other", quiet=True).state == "done"


def test_a_forgotten_state_would_be_noticed(base, trained, tmp_path, monkeypatch):
    interrupt_at(base, tmp_path, monkeypatch, step=6)
    stack = Population.stack
    monkeypatch.setattr(Population, "stack", lambda self, states: stack(self, [states[0], *states[:-1]]))
    together(base, tmp_path)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        check_same_end(tmp_path, trained)


KILLED = """
import sys
from pathlib import Path
from transformer.config import resolve, replace
from transformer.training.jsonfiles import read_json
from tests.training.test_population import together
together(resolve(read_json(Path(sys.argv[1]))), Path(sys.argv[2]))
"""


def test_a_kill_changes_nothing(base, trained, tmp_path):
    from transformer.config import to_dict

    (tmp_path / "config.json").write_text(json.dumps(to_dict(base)))
    root, path = tmp_path / "runs", folder(tmp_path / "runs", MEMBERS[0]) / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "config.json"), str(root)], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not path.is_file() or '"step": 7,' not in path.read_text():
        assert time.monotonic() < deadline
        if process.poll() is not None:
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    together(base, root)
    check_same_end(root, trained)


# --- Memory ------------------------------------------------------------------------------------------------------


def test_too_many_members_are_refused_with_the_number_that_fits(base, tmp_path, monkeypatch):
    program = make_program(base, room.load_dataset(base))
    one = room.bytes_per_member(program)
    monkeypatch.setattr(room, "available_bytes", lambda: [math.ceil(3.5 * one / room.USABLE_MEMORY)])
    assert room.members_that_fit(program) == 3
    room.check_memory(program, 3)
    with pytest.raises(
        UserError, match=r"A population of 4 members needs about .* GiB are free: train groups of at most 3"
    ):
        together(base, tmp_path)
    monkeypatch.setattr(room, "available_bytes", lambda: [2.9 * one / room.USABLE_MEMORY] * 4)
    assert room.members_that_fit(program) == 8  # whole ones on each device
    monkeypatch.setattr(room, "available_bytes", lambda: [one // 2])
    with pytest.raises(UserError, match="use a smaller model or batch"):
        room.check_memory(program, 1)


def test_the_estimate_grows_with_the_model_and_covers_the_state(base):
    program = make_program(base, room.load_dataset(base))
    wide = make_program(replace(base, {"model.d_model": 64}), room.load_dataset(base))
    state = sum(x.nbytes for x in jax.tree.leaves(program.init(0)))
    assert state < room.bytes_per_member(program) < room.bytes_per_member(wide)
    assert min(room.available_bytes()) > 2**28
