"""One run from end to end: what it leaves behind, what changes its numbers, and what must not."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.tiny import nested
from transformer import load, resolve
from transformer.analysis import flops
from transformer.errors import CheckpointError, ConfigError, DataError, UserError
from transformer.inference.checks import open_subject
from transformer.schema import Config
from transformer.training import console_sink, loop
from transformer.training import run as run_module
from transformer.training.evaluation import add_up, evaluate
from transformer.training.interrupts import PREEMPTED, Interrupts
from transformer.training.loop import Loop
from transformer.training.member import Member
from transformer.training.run import Outcome, train
from transformer.training.run_directory import RunDirectory, read_rows, read_status
from transformer.training.step import Program, flat_state

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
TINY: dict[str, Any] = {
    "data.source": "text",
    "data.sequence_length": 16,
    "model.d_model": 16,
    "model.num_layers": 1,
    "model.dropout": 0.1,
    "optimizer.learning_rate": 0.01,
    "train.steps": STEPS,
    "train.batch_size": 4,
    "train.log_every": 1,
    "train.eval_every": 4,
    "train.checkpoint_every": 4,
    "eval.tokens": 128,
    "wandb.mode": "disabled",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Three thousand letters drawn at random: nothing to learn but their frequencies, ln 16 nats."""
    path = tmp_path_factory.mktemp("corpus") / "letters.txt"
    path.write_bytes(np.random.default_rng(0).integers(97, 113, 3000, dtype=np.uint8).tobytes())
    return path


@pytest.fixture(scope="module")
def configure(corpus):
    def configure(**overrides: Any) -> Config:
        """The tiny config; two underscores stand for a dot."""
        changes = {name.replace("__", "."): value for name, value in overrides.items()}
        return resolve(nested({**TINY, "data.path": str(corpus), **changes}))

    return configure


@pytest.fixture(scope="module")
def straight(configure, tmp_path_factory) -> Outcome:
    """The run that the others are compared with."""
    return train(configure(), tmp_path_factory.mktemp("straight") / "run", quiet=True)


def arrays(workdir: Path) -> str:
    """A digest over every parameter and moment of the newest checkpoint."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flat_state(load(workdir).state).items()):
        digest.update(name.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def numbers(workdir: Path) -> list[dict[str, Any]]:
    """All rows, without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_rows(workdir)]


def losses(workdir: Path) -> list[float]:
    return [row["loss"] for row in read_rows(workdir, "train")]


def check_same_end(workdir: Path, other: Path) -> None:
    assert numbers(workdir) == numbers(other)
    assert arrays(workdir) == arrays(other)


def command(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments], cwd=cwd, capture_output=True, text=True, timeout=240
    )


def flags(config: Config, **overrides: Any) -> list[str]:
    """The command line of a tiny config."""
    values = {**TINY, "data.path": config.data.path, **{k.replace("__", "."): v for k, v in overrides.items()}}
    return [f"--config={ROOT / 'configs/base.py'}", *(f"--config.{name}={value}" for name, value in values.items())]


# --- What a run writes ---------------------------------------------------------------------------------------


def test_a_run_is_done_and_evaluated(straight):
    status = read_status(straight.path)
    assert straight.state == status["state"] == "done"
    assert straight.exit_code == 0
    assert [row["step"] for row in read_rows(straight.path, "train")] == list(range(1, STEPS + 1))
    during = [row for row in read_rows(straight.path, "validation") if not row.get("final")]
    assert [row["step"] for row in during] == [4, 8, 12]
    final = [row for row in read_rows(straight.path) if row.get("final")]
    assert [(row["step"], row["split"]) for row in final] == [(STEPS, "validation")]
    assert final[0]["eval_tokens"] == 300 - 1  # a tenth of the corpus, all of it, but for its first token
    assert final[0]["loss"] == status["validation_loss"]
    assert status["initial_loss"] == losses(straight.path)[0]
    assert status["best_validation_loss"] == min(row["loss"] for row in during)


def test_a_row_is_the_mean_since_the_row_before_and_first_and_last_steps_have_one(configure, straight, tmp_path):
    train(configure(train__log_every=5, train__eval_every=0), tmp_path, quiet=True)
    single = losses(straight.path)
    rows = read_rows(tmp_path, "train")
    assert [row["step"] for row in rows] == [1, 5, 10, 12]
    expected = [single[0], np.mean(single[1:5]), np.mean(single[5:10]), np.mean(single[10:])]
    assert [row["loss"] for row in rows] == pytest.approx(expected, rel=1e-12)
    assert [row["step"] for row in read_rows(tmp_path, "validation")] == [STEPS, STEPS]  # subset and whole split
    train(configure(train__log_every=1000), tmp_path / "rare", quiet=True)
    assert [row["step"] for row in read_rows(tmp_path / "rare", "train")] == [1, STEPS]


@pytest.mark.parametrize(
    ("changes", "has"),
    [
        ({"model__family": "encoder_decoder", "objective__kind": "span"}, False),  # sentinels stand for no text
        ({"model__family": "encoder_decoder", "objective__kind": "denoise"}, True),
        ({"model__family": "encoder", "model__head__kind": "classify", "objective__kind": "next_sentence"}, False),
        ({"model__family": "encoder"}, True),
    ],
    ids=["span", "denoise", "next_sentence", "mlm"],
)
def test_rows_of_training_have_bits_per_byte_where_targets_are_text(configure, tmp_path, changes, has):
    train(configure(train__steps=1, eval__final=False, **changes), tmp_path, quiet=True)
    (row,) = read_rows(tmp_path, "train")
    assert ("bits_per_byte" in row) is has


def check_traced_once(config: Config, workdir: Path, monkeypatch) -> None:
    """Counting operations for the plan on the screen and compiling the loop share one trace of the step."""
    traced, once = [], Program.train_step

    def train_step(*arguments: Any) -> Any:
        traced.append(1)
        return once(*arguments)

    monkeypatch.setattr(Program, "train_step", train_step)
    train(config, workdir)
    assert len(traced) == 1


def test_a_step_is_traced_once(configure, tmp_path, monkeypatch, capfd):
    check_traced_once(configure(), tmp_path, monkeypatch)
    assert "FLOPs" in capfd.readouterr().err


def test_a_step_that_is_traced_again_would_be_noticed(configure, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.accounting, "train_operations", _counted_apart)
    with pytest.raises(AssertionError, match="2 == 1"):
        check_traced_once(configure(), tmp_path, monkeypatch)


def _counted_apart(program: Program) -> Any:
    hyper = program.hyperparameters(program.config)
    return flops.count(program.train_step, program.abstract_state, program.abstract_batch, np.int32(0), hyper)


def test_quiet_prints_nothing(configure, tmp_path, capfd):
    train(configure(), tmp_path, quiet=True)
    assert capfd.readouterr() == ("", "")


def test_the_commands_agree_with_each_other_and_with_wandb(configure, tmp_path):
    config = configure(wandb__mode="offline")
    done = command("train.py", *flags(config, wandb__mode="offline"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (workdir,) = (tmp_path / "runs" / "base").iterdir()
    assert workdir.name.startswith("run-s0-")
    assert f"run directory: runs/base/{workdir.name}" in done.stdout
    check_wandb_record(workdir)

    evaluated = command("eval.py", f"--workdir=runs/base/{workdir.name}", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    measured = json.loads((workdir / "eval.json").read_text())
    assert measured["loss"]["loss"] == read_status(workdir)["validation_loss"]
    assert measured["generate"]["new_tokens"] == 200


def check_wandb_record(workdir: Path) -> None:
    """W&B's own reader finds the rows of metrics.jsonl, in order, number for number."""
    (record,) = workdir.glob("wandb/offline-run-*/*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)]
    lines = subprocess.run(inspect, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    items = [entry["history"]["item"] for entry in map(json.loads, lines) if entry["type"] == "history"]
    logged = [{k: v for k, v in item.items() if not k.startswith("_") and k != "attempt"} for item in items]
    expected = []
    for row in read_rows(workdir):
        shared = {name: row.pop(name) for name in ("step", "tokens")}
        split = row.pop("split")
        expected.append({**shared, **{f"{split}/{name}": value for name, value in row.items()}})
    assert len(expected) == STEPS + 4
    assert logged == expected


# --- What changes the numbers ----------------------------------------------------------------------------------


class TestViews:
    """Optimized, as what users compile: another loop around the step, or another feed, rounds alike only then."""

    @pytest.fixture(autouse=True, scope="class")
    def optimized(self) -> Iterator[None]:
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", False)
        yield
        jax.config.update("jax_disable_most_optimizations", before)

    @pytest.fixture(scope="class")
    def straight(self, optimized, configure, tmp_path_factory) -> Outcome:
        return train(configure(), tmp_path_factory.mktemp("straight") / "run", quiet=True)

    @pytest.mark.parametrize(
        "views",
        [
            {"data__feed": "grain"},
            {"train__steps_per_call": 2, "train__checkpoint_every": 0},
            {"train__profile_step": 3, "train__profile_steps": 4},
        ],
        ids=lambda views: next(iter(views)),
    )
    def test_a_view_changes_no_number(self, configure, straight, tmp_path, views):
        train(configure(**views), tmp_path, quiet=True)
        check_same_end(tmp_path, straight.path)
        if "train__profile_step" in views:
            (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
            assert trace.stat().st_size > 1000


@pytest.mark.parametrize("changed", [{"data__sampling": "replacement"}, {"data_seed": 1}, {"init_seed": 1}])
def test_another_order_of_windows_and_another_seed_do(configure, straight, tmp_path, changed):
    train(configure(**changed), tmp_path, quiet=True)
    with pytest.raises(AssertionError):
        check_same_end(tmp_path, straight.path)


def test_microbatches_add_up_to_the_batch(configure, tmp_path):
    for accumulate in (1, 4):
        config = configure(train__accumulate=accumulate, model__dropout=0.0)
        train(config, tmp_path / str(accumulate), quiet=True)
    whole = losses(tmp_path / "1")
    np.testing.assert_allclose(losses(tmp_path / "4"), whole, rtol=1e-4)
    assert not np.allclose(whole[1:], whole[:-1], rtol=1e-3)  # the tolerance can tell one step from the next


def test_one_batch_can_be_learned_by_heart_and_random_letters_cannot(configure, tmp_path):
    for overfit in (True, False):
        config = configure(
            train__overfit_one_batch=overfit,
            train__steps=150,
            train__log_every=50,
            train__batch_size=2,
            model__d_model=32,
            model__dropout=0.0,
        )
        train(config, tmp_path / str(overfit), quiet=True)
    assert losses(tmp_path / "True")[-1] < 0.5
    assert losses(tmp_path / "False")[-1] > 0.9 * math.log(16)


# --- How a run ends ----------------------------------------------------------------------------------------------


def test_a_divergence_is_a_result(configure, tmp_path):
    workdir = tmp_path / "run"
    config = configure(optimizer__learning_rate=1e30)
    done = command("train.py", *flags(config, optimizer__learning_rate=1e30), f"--workdir={workdir}", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    status = read_status(workdir)
    rows = read_rows(workdir, "train")
    assert status["state"] == "diverged"
    assert status["diverged_at"] == rows[-1]["step"] < STEPS
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["loss"] > 0 for row in rows[:-1])
    assert rows[-1]["loss"] is None
    assert "loss" in rows[-1]["nonfinite"]

    before = (workdir / "metrics.jsonl").read_bytes()
    said: list[str] = []
    assert train(config, workdir, say=said.append).exit_code == 3
    assert said == [f"already diverged: {workdir}"]
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_last_update_that_destroys_the_model_is_a_divergence(configure, tmp_path):
    """No later step notices it; the evaluation does."""
    huge = {"optimizer__learning_rate": 3e38, "optimizer__warmup_steps": 0, "optimizer__schedule": "constant"}
    outcome = train(configure(train__steps=1, **huge), tmp_path / "run", quiet=True)
    assert outcome.state == "diverged" and outcome.summary["diverged_at"] == 1
    assert outcome.summary["best_validation_loss"] is None
    (row,) = read_rows(tmp_path / "run", "train")
    assert row["loss"] > 0 and read_rows(tmp_path / "run", "validation")[-1]["loss"] is None


def test_what_breaks_after_a_divergence_hides_it_not(configure, tmp_path, monkeypatch):
    def broken(self, state):
        raise OSError("no space left")

    monkeypatch.setattr(run_module._RunStore, "finish", broken)
    with pytest.raises(OSError, match="no space left"):
        train(configure(optimizer__learning_rate=1e30), tmp_path, quiet=True)
    assert read_status(tmp_path)["state"] == "diverged"


def test_a_divergence_is_told_to_the_views(configure, tmp_path, capfd):
    train(configure(optimizer__learning_rate=1e30, train__profile_step=1), tmp_path)
    assert "event=diverged step=" in capfd.readouterr().err
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))  # the trace was closed, too


def test_a_failing_view_does_not_hurt(configure, straight, tmp_path, monkeypatch, capfd):
    def fail(*arguments):
        raise RuntimeError("the screen is on fire")

    monkeypatch.setattr(console_sink.ConsoleSink, "scalars", fail)
    assert train(configure(), tmp_path).state == "done"
    check_same_end(tmp_path, straight.path)
    warnings = [line for line in capfd.readouterr().err.splitlines() if "fire" in line]
    assert warnings == [
        "warning: ConsoleSink failed and is dropped (RuntimeError: the screen is on fire). The run goes on."
    ]


def test_no_view_fails_on_a_terminal(configure, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(console_sink, "_on_terminal", lambda: True)
    train(configure(), tmp_path)
    assert "dropped" not in capfd.readouterr().err


def test_a_crash_is_recorded_and_its_run_can_go_on(configure, straight, tmp_path, monkeypatch):
    def crash(*arguments):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_evaluate", crash)
        with pytest.raises(RuntimeError, match="out of luck"):
            train(configure(), tmp_path, quiet=True)
    assert read_status(tmp_path)["state"] == "failed"
    assert '"kind": "failed"' in (tmp_path / "events.jsonl").read_text()
    assert train(configure(), tmp_path, quiet=True).state == "done"
    check_same_end(tmp_path, straight.path)


def test_steps_are_timed_where_starting_a_call_waits_for_its_end(configure, tmp_path, monkeypatch):
    make = Program.__init__

    def on_a_gpu(self: Program, *arguments: Any) -> None:
        make(self, *arguments)
        start = self.train_steps

        def wait(*arguments: Any) -> Any:
            returned = jax.block_until_ready(start(*arguments))
            time.sleep(0.2 * int(arguments[4]))  # the number of steps
            return returned

        self.train_steps = wait

    monkeypatch.setattr(Program, "__init__", on_a_gpu)
    train(configure(train__steps_per_call=2), tmp_path, quiet=True)
    rows = read_rows(tmp_path, "train")
    speeds, fastest = [row["tokens_per_second"] for row in rows], rows[0]["tokens"] / 0.2
    # A busy machine makes a step slower, never faster.
    assert len(speeds) == STEPS and max(speeds) <= fastest < 1.5 * np.median(speeds)


# --- Resuming ----------------------------------------------------------------------------------------------------


def interrupted(config: Config, workdir: Path, monkeypatch, step: int) -> Outcome:
    """Trains until `step` is recorded; real signals are the business of test_kill.py."""
    asked, append = Interrupts(), RunDirectory.append

    def watch(self: RunDirectory, row: dict[str, Any]) -> dict[str, Any]:
        if row["step"] >= step:
            asked.exit_code = PREEMPTED
        return append(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append", watch)
        patch.setattr(run_module, "Interrupts", lambda: asked)
        return train(config, workdir, quiet=True)


RESUMED = {"train__log_every": 5, "train__steps_per_call": 2}  # the interruption falls between two rows


@pytest.fixture(scope="module")
def uninterrupted(configure, tmp_path_factory) -> Path:
    return train(configure(**RESUMED), tmp_path_factory.mktemp("uninterrupted"), quiet=True).path


def test_an_interrupted_run_ends_as_one_that_was_not(configure, uninterrupted, tmp_path, monkeypatch):
    config = configure(**RESUMED)
    outcome = interrupted(config, tmp_path, monkeypatch, step=5)
    assert (outcome.state, outcome.exit_code) == ("preempted", 75)
    assert 5 < read_status(tmp_path)["step"] < STEPS
    assert train(config, tmp_path, quiet=True).state == "done"
    check_same_end(tmp_path, uninterrupted)


@pytest.mark.parametrize("forgotten", ["optimizer", "loss_sum"])
def test_a_forgotten_part_would_be_noticed(configure, uninterrupted, tmp_path, monkeypatch, forgotten):
    """The comparison above can fail."""
    config = configure(**RESUMED)
    interrupted(config, tmp_path, monkeypatch, step=5)
    unflat, progress = run_module.unflat_state, run_module.Progress
    if forgotten == "optimizer":

        def without_moments(like, flat):
            state = unflat(like, flat)
            return state._replace(optimizer=jax.tree.map(lambda x: 0 * x, state.optimizer))

        monkeypatch.setattr(run_module, "unflat_state", without_moments)
    else:
        monkeypatch.setattr(run_module, "Progress", lambda **known: progress(**{**known, "loss_sum": 0.0}))
    train(config, tmp_path, quiet=True)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        check_same_end(tmp_path, uninterrupted)


def test_a_final_evaluation_that_was_measured_is_not_measured_again(configure, straight, tmp_path):
    """As after a kill between the last row and the word "done"."""
    workdir = shutil.copytree(straight.path, tmp_path / "run")
    (workdir / "status.json").write_text('{"state": "running"}')
    again = train(configure(), workdir, quiet=True)
    assert again.summary["validation_loss"] == straight.summary["validation_loss"]
    check_same_end(workdir, straight.path)


@pytest.mark.parametrize(
    ("tokens", "final", "reused", "measured"),
    [(128, 0, 2, 299), (127, 0, 0, 299), (128, 200, 2, 200), (128, 128, 2, 128), (128, 64, 0, 64)],
)
def test_the_final_evaluation_goes_on_where_the_last_subset_ended(
    configure, tmp_path, monkeypatch, tokens, final, reused, measured
):
    """The whole split has five batches of 64 tokens. A subset that ends within a batch is no beginning of it."""
    starts = []
    monkeypatch.setattr(loop, "add_up", lambda *a, begun=None: starts.append(begun) or add_up(*a, begun=begun))
    outcome = train(configure(eval__tokens=tokens, eval__final_tokens=final), tmp_path, quiet=True)
    assert [0 if begun is None else begun.batches for begun in starts] == [0, 0, 0, reused]
    run = load(tmp_path)
    again = evaluate(run.program, run.state, run_module.load_dataset(run.config), "validation", final or None)
    assert again["eval_tokens"] == measured and again["loss"] == outcome.summary["validation_loss"]


def test_a_changed_corpus_is_noticed(configure, corpus, tmp_path, monkeypatch, capsys):
    """Training does not go on with it; an evaluation says so."""
    mine = tmp_path / "mine.txt"
    shutil.copy(corpus, mine)
    config = configure(data__path=str(mine))
    interrupted(config, tmp_path / "run", monkeypatch, step=5)
    mine.write_bytes(corpus.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match="corpus changed"):
        train(config, tmp_path / "run", quiet=True)
    shutil.copy(corpus, mine)
    assert train(config, tmp_path / "run", quiet=True).state == "done"
    capsys.readouterr()
    open_subject(load(tmp_path / "run"), "validation")
    assert capsys.readouterr().err == ""
    mine.write_bytes(corpus.read_bytes()[:-1] + b"a")
    open_subject(load(tmp_path / "run"), "validation")
    assert "not the corpus the run was trained on: its fingerprint was" in capsys.readouterr().err


def test_a_slip_in_the_data_claims_no_directory(configure, tmp_path):
    for _ in range(2):
        with pytest.raises(DataError, match="matches no file"):
            train(configure(data__path=str(tmp_path / "leters.txt")), tmp_path, quiet=True)
    with pytest.raises(ConfigError, match="smaller than the vocabulary"):
        train(configure(model__vocab_size=100), tmp_path, quiet=True)
    with pytest.raises(UserError, match="holds no run"):
        train(configure(train__init_from=str(tmp_path / "rnu")), tmp_path, quiet=True)
    with pytest.raises(ConfigError, match="smaller than the vocabulary"):
        train(configure(model__vocab_size=100, execution="population"), tmp_path, quiet=True)
    with pytest.raises(UserError, match="holds no run"):
        train(configure(train__init_from=str(tmp_path / "rnu"), execution="population"), tmp_path, quiet=True)
    assert train(configure(), tmp_path, quiet=True).state == "done"
    with pytest.raises(ConfigError, match="another config"):
        train(configure(seed=1), tmp_path, quiet=True)


# --- A run opened again --------------------------------------------------------------------------------------------


def test_a_run_opens_as_in_a_notebook(straight):
    logits = []
    for _ in range(2):
        run = load(str(straight.path))
        logits.append(np.asarray(run.model(run.vocabulary.encode("abacus")[None])))
    assert logits[0].shape == (1, 6, 260)
    assert np.isfinite(logits[0]).all()
    np.testing.assert_array_equal(logits[0], logits[1])
    assert run.step == STEPS
    best = min(
        (row for row in read_rows(straight.path, "validation") if not row.get("final")), key=lambda row: row["loss"]
    )
    assert load(straight.path, "best").step == best["step"]


def test_a_run_never_evaluated_has_no_best_checkpoint(configure, tmp_path, monkeypatch):
    """And says which one to open instead."""
    monkeypatch.setattr(Member, "metric", None)
    train(configure(train__steps=2), tmp_path / "run", quiet=True)
    assert load(tmp_path / "run").step == 2
    with pytest.raises(CheckpointError, match="has a validation loss yet: open the last one"):
        load(tmp_path / "run", "best")
