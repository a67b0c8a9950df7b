"""One process trains the members of an arm: compiled once, each as if it were alone, whatever its neighbours do."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy

from ablations import jobs, probes, store, worker
from ablations.cells import Member
from ablations.jobs import Job
from ablations.schema import ABOUT, UNITS, Arm
from ablations.worker import run_arm
from tests.ablations.lab import SIZE, ablation, arm, quick_run, write_text
from transformer.analysis.lenses import residual_writes
from transformer.config import replace
from transformer.errors import ConfigError, UserError
from transformer.schema import Config
from transformer.training import run as training
from transformer.training.interrupts import Interrupts
from transformer.training.run_directory import read_rows, read_status
from transformer.training.step import flat_state

ROOT = Path(__file__).resolve().parents[2]
HUGE = 1e30
ABOUT_TEXT = ("prefix_loss", "exposure")  # probes that no ablation of a task names
COMPILED = re.compile(r"Compiling (?:jit\()?(_train_steps|_evaluate|losses)\b")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def make_job(folder: Path, text: Path, name: str = "base", **changes) -> Job:
    """A job for one arm, stored."""
    cell = arm(ablation(text, **changes), name)
    job = Job(cell.directory(folder), (cell,), ("tiny:a:1",))
    job.write()
    return job


def single(folder: Path, text: Path, **changes) -> Job:
    """A job of one member."""
    return make_job(folder, text, "other", **{"rates": (1e-2,), "seeds": 1, **changes})


def events(path: Path, kind: str) -> int:
    return sum(json.loads(line)["kind"] == kind for line in (path / "events.jsonl").read_text().splitlines())


def numbers(path: Path) -> list[dict]:
    """The metric rows without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_rows(path)]


class Compilations(logging.Handler):
    """Collects what jax says about compiling our functions."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def emit(self, record):
        if match := COMPILED.match(record.getMessage()):
            self.names.append(match[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text):
    """An arm with three rates, one of them absurd, two test seeds, their twins and a probe; and what was compiled."""
    cell = arm(ablation(text, rates=(1e-3, 1e-2, HUGE), seeds=2, probes=("prefix_loss",), size={"train.steps": 12}))
    job = Job(cell.directory(tmp_path_factory.mktemp("runs")), (cell,), ("tiny:a:1",), ("prefix_loss",))
    job.write()
    seen = Compilations()
    logging.getLogger("jax").addHandler(seen)
    try:
        with jax.log_compiles():
            assert run_arm(job.directory) == 0
    finally:
        logging.getLogger("jax").removeHandler(seen)
    return job, store.read_arm(job.directory)[0], seen.names


# --- An arm ------------------------------------------------------------------------------------------------------


def test_an_arm_ends_with_a_record_for_every_member(trained):
    job, records, _ = trained
    assert [member.name for member in sorted(records, key=lambda m: (m.seed < 1000, m.seed, m.learning_rate))] == [
        "lr0.001-s1000",
        "lr0.01-s1000",
        "lr1e+30-s1000",
        "lr0.01-s0",
        "lr0.01-s0-twin",
        "lr0.01-s1",
        "lr0.01-s1-twin",
    ]
    assert job.progress() == jobs.Progress(ended=7, known=7, todo=0)
    assert all(events(job.directory / member.name, "attempt") == 1 for member in records)


def test_all_members_share_one_compilation(trained):
    """Seven runs, and the probe of four at eight prefix lengths: each program once."""
    counts = collections.Counter(trained[2])
    assert counts["_train_steps"] == counts["_evaluate"] == counts["losses"] == 1


def test_a_second_arm_is_compiled_anew(tmp_path, text):
    """The count above sees compilations: a program of its own for every member would show."""
    seen = Compilations()
    logging.getLogger("jax").addHandler(seen)
    try:
        with jax.log_compiles():
            assert run_arm(single(tmp_path, text, size={"train.steps": 1}).directory) == 0
    finally:
        logging.getLogger("jax").removeHandler(seen)
    assert seen.names == ["_train_steps", "_evaluate"]


def test_a_record_sums_up_the_run(trained, text):
    job, records, _ = trained
    member = Member(1e-2, 1)
    record, path = records[member], job.directory / member.name
    rows = read_rows(path)
    final = next(row for row in rows if row.get("final"))
    assert record.state == "done" and record.arm_hash == job.cell.hash
    assert record.metrics["loss"] == record.metrics["validation_loss"] == final["loss"]
    assert record.initial == rows[0]["loss"] and record.tokens == 12 * 8 * 16
    assert record.parameters == sum(record.components.values())
    assert [list(point) for point in record.train_curve] == [
        [row["tokens"], row["loss"], row["grad_norm"]] for row in rows if row["split"] == "train"
    ]
    assert record.curve == ((12 * 8 * 16, next(r["loss"] for r in rows if r["split"] == "validation")),)
    assert set(record.references) == {"unigram", "bigram"} and record.contrasts == ("tiny:a:1",)
    assert {"python", "packages", "device", "git"} <= set(record.environment)


def test_only_test_members_are_probed_and_keep_their_weights(trained):
    job, records, _ = trained
    for member, record in records.items():
        assert ("prefix_loss" in record.metrics) is (not member.is_tuning)
        assert (job.directory / member.name / "checkpoints").exists() is (not member.is_tuning)
        if not member.is_tuning:  # a causal model scores the same with the future absent
            assert record.metrics["prefix_loss"] == pytest.approx(record.metrics["teacher_forced_loss"], abs=1e-4)


@pytest.mark.parametrize("overrides", [{"model.attention.mask": "none"}, {"model.position.kind": "learned"}])
def test_prefix_loss_is_that_of_each_prefix_given_alone(text, overrides):
    """Also where the model would look ahead: what follows the prefix is padding, and is not seen."""
    config = replace(Config(), {**SIZE, "data.path": str(text), "model.init.std": 0.5, **overrides})
    dataset = training.datasets.load(config.data)
    program = training.make_program(config, dataset)
    state, length = program.init(0), config.data.sequence_length
    found = probes.measure(("prefix_loss",), config=config, program=program, state=state, dataset=dataset)

    forward = jax.jit(program.model(state))
    windows = np.asarray(dataset.splits["validation"], np.int32)
    windows = windows[: min(64, len(windows) // (length + 1)) * (length + 1)].reshape(-1, length + 1)
    losses = []
    for n in np.unique(np.linspace(1, length - 1, 8).astype(int)):
        scores = scipy.special.log_softmax(forward(windows[:, :n])[:, -1], axis=-1)
        losses.append(-np.take_along_axis(scores, windows[:, n, None], 1).mean())
    assert found["prefix_loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    sees_ahead = overrides.get("model.attention.mask") == "none"
    assert (abs(found["prefix_loss"] - found["teacher_forced_loss"]) > 1e-2) is sees_ahead


@pytest.mark.parametrize("arrangement", ["sequential", "parallel"])
def test_writes_are_measured_against_the_stream_they_are_added_to(text, arrangement):
    """Which here is the sum of the embedding and all writes before, in a parallel block those before the block."""
    changes = {"model.num_layers": 3, "model.init.std": 0.3, "model.residual.arrangement": arrangement}
    config = replace(Config(), {**SIZE, "data.path": str(text), **changes})
    dataset = training.datasets.load(config.data)
    program = training.make_program(config, dataset)
    found = probes.measure(("writes",), config=config, program=program, state=program.init(0), dataset=dataset)

    batch = next(iter(dataset.batches("validation", 64)))
    stream, *written = residual_writes(program.model(program.init(0)), batch.tokens_BL[:, :-1]).values()
    sizes, read = [], stream
    for i, x in enumerate(written):
        read = stream if arrangement == "sequential" or i % 2 == 0 else read
        sizes.append(np.linalg.norm(x) / np.linalg.norm(read))
        stream = stream + x
    assert found == pytest.approx({"largest_write": max(sizes), "largest_late_write": max(sizes[3:])}, rel=1e-4)
    assert max(sizes[:3]) > 1.1 * max(sizes[3:])  # or the two could be confused

    bare = replace(config, {"model.residual.attention.skip_gain": 0.0, "model.residual.ffn.skip_gain": 0.0})
    program = training.make_program(bare, dataset)
    assert not probes.measure(("writes",), config=bare, program=program, state=program.init(0), dataset=dataset)


@pytest.mark.parametrize("name", probes.PROBES)
def test_a_probe_measures_what_it_declares(text, name):
    """Whatever the registry holds: its traits are the metrics that lint lets a contrast read. It has them on a text or
    on a task, all or none."""
    task = {"data.source": "task", "data.task": "copy", "data.task_length": 3}
    measured = set()
    for data in ({"data.path": str(text)}, task):
        config = replace(Config(), {**SIZE, **data})
        dataset = training.datasets.load(config.data)
        program = training.make_program(config, dataset)
        found = {}
        if data is not task or name not in ABOUT_TEXT:
            found = probes.measure((name,), config=config, program=program, state=program.init(0), dataset=dataset)
        assert set(found) in (set(), probes.PROBES[name].traits), data
        assert all(np.isfinite(value) for value in found.values())
        measured |= set(found)
    assert probes.metrics((name,)) == (*probes.ALWAYS, *sorted(measured))
    assert all(metric in UNITS and metric in ABOUT for metric in measured)  # pages say what they are, and in what unit


@pytest.mark.parametrize("kind", ["rope", "none"])
def test_longer_windows_score_the_tokens_that_shorter_ones_scored(text, kind):
    config = replace(Config(), {**SIZE, "data.path": str(text), "model.init.std": 0.5, "model.position.kind": kind})
    dataset = training.datasets.load(config.data)
    program = training.make_program(config, dataset)
    state, length = program.init(0), config.data.sequence_length
    found = probes.measure(("longer_text",), config=config, program=program, state=state, dataset=dataset)

    forward = jax.jit(program.model(state))
    tokens = np.asarray(dataset.splits["validation"], np.int32)
    places = min(64, len(tokens) // (8 * length + 1))
    windows = tokens[: places * (8 * length + 1)].reshape(places, -1)
    losses = {}
    for n in (1, 2, 4, 8):
        scores = scipy.special.log_softmax(forward(windows[:, -n * length - 1 : -1]), axis=-1)
        wanted = np.take_along_axis(scores[:, -length // 2 :], windows[:, -length // 2 :, None], 2)
        losses[n] = -wanted.mean()
    assert found == pytest.approx({f"rise_{n}x": losses[n] - losses[1] for n in (2, 4, 8)}, abs=1e-4)
    assert max(map(abs, found.values())) > 1e-3

    short = dataclasses.replace(dataset, splits={**dataset.splits, "validation": tokens[: 8 * length]})
    assert not probes.measure(("longer_text",), config=config, program=program, state=state, dataset=short)


def test_a_member_is_the_run_it_would_be_alone(trained, tmp_path):
    """Byte for byte, although its neighbours ran before it in the same process, one of them into infinity."""
    job, records, _ = trained
    member = Member(1e-2, 1)
    alone = training.train(member.config(job.cell.config), tmp_path / "alone", quiet=True)
    assert numbers(alone.path) == numbers(job.directory / member.name)
    left, right = (flat_state(training.load(path).state) for path in (alone.path, job.directory / member.name))
    assert all(np.asarray(left[name]).tobytes() == np.asarray(right[name]).tobytes() for name in left)
    assert quick_run(job.cell, member) == records[member].metrics["loss"]
    assert numbers(job.directory / "lr0.01-s0") != numbers(alone.path)  # another seed would show


def test_lost_records_are_made_again_from_their_runs(trained, tmp_path):
    """One torn, one changed by hand: neither is believed, and as both runs are finished nothing is trained."""
    job, records, _ = trained
    again = dataclasses.replace(job, directory=Path(shutil.copytree(job.directory, tmp_path / job.directory.name)))
    torn, changed = Member(1e-3, 1000), Member(1e-2, 1000)
    path = again.directory / torn.name / store.RECORD
    path.write_bytes(path.read_bytes()[:100])
    path = again.directory / changed.name / store.RECORD
    path.write_text(path.read_text().replace('"state": "done"', '"state": "diverged"'))
    assert again.todo(store.read_arm(again.directory)[0]) == [torn, changed]
    assert run_arm(again.directory) == 0
    assert store.read_arm(again.directory) == (records, [])
    assert all(events(again.directory / member.name, "attempt") == 1 for member in records)


# --- Members that do not end well --------------------------------------------------------------------------------


def test_a_diverging_member_is_recorded_as_such(trained):
    job, records, _ = trained
    record = records[Member(HUGE, 1000)]
    assert record.state == "diverged" and 1 < record.diverged_at < 6 and not record.metrics
    assert record.initial == pytest.approx(5.5, abs=0.2)
    assert record.train_curve[-1][1] is None  # the row of the step that was not finite
    assert read_status(job.directory / "lr1e+30-s1000")["state"] == "diverged"
    assert sum(record.state == "done" for record in records.values()) == 6


def test_a_member_that_cannot_start_is_recorded_with_its_sentence(tmp_path):
    job = single(tmp_path, tmp_path / "missing.txt")
    assert run_arm(job.directory) == 0
    (record,) = job.failed().values()
    assert record.state == "failed" and "missing.txt' matches no file" in record.error
    assert record.error.startswith("data.path") and "Traceback" not in record.error
    assert "Traceback" in (job.directory / record.member.name / "error.txt").read_text()
    assert job.progress().todo == 0  # not tried again unasked
    assert run_arm(job.directory) == 0 and job.failed()
    write_text(tmp_path / "missing.txt")
    assert run_arm(job.directory, retry_failed=True) == 0
    (record,) = store.read_arm(job.directory)[0].values()
    assert record.state == "done" and not (job.directory / record.member.name / "error.txt").exists()


def test_a_member_that_breaks_takes_no_neighbour_with_it(tmp_path, text, monkeypatch):
    real = training.train

    def train(config, *arguments, **named):
        if config.seed == 0:
            raise RuntimeError("out of <memory>")
        return real(config, *arguments, **named)

    monkeypatch.setattr(training, "train", train)
    job = single(tmp_path, text, seeds=2, size={"train.steps": 2})
    assert run_arm(job.directory) == 0
    records = store.read_arm(job.directory)[0]
    assert [(m.seed, r.state, r.error) for m, r in sorted(records.items())] == [
        (0, "failed", "RuntimeError: out of <memory>"),
        (1, "done", ""),
    ]


def test_a_failed_tuning_run_leaves_the_arm_undecided(tmp_path):
    job = make_job(tmp_path, tmp_path / "missing.txt", "other")
    assert run_arm(job.directory) == 0
    assert job.progress() == jobs.Progress(ended=2, known=4, todo=0)
    assert job.cell.best_learning_rate(store.scores(store.read_arm(job.directory)[0])) is None


def test_a_run_that_ends_without_a_number_is_a_result(tmp_path, text, monkeypatch):
    """Its weights broke in the last step, or on one window of the evaluation: as a file says it, and as its worst."""
    real = training.train

    def train(config, path, **named):
        outcome = real(config, path, **named)
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        broken = [{**row, "loss": None} if row.get("final") else row for row in lines]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in broken))
        return outcome

    monkeypatch.setattr(training, "train", train)
    job = single(tmp_path, text, size={"train.steps": 2})
    assert run_arm(job.directory) == 0
    (record,) = store.read_arm(job.directory)[0].values()
    assert record.state == "done" and record.metrics["loss"] is record.metrics["validation_loss"] is None
    assert record.score().value is None and job.progress().todo == 0


def test_what_another_question_trained_is_measured_later(trained, tmp_path):
    """Its weights are there; only the probe runs."""
    job, records, _ = trained
    again = dataclasses.replace(job, directory=Path(shutil.copytree(job.directory, tmp_path / job.directory.name)))
    asked, alike = Member(1e-2, 0), Member(1e-2, 1)
    bare = {name: v for name, v in records[asked].metrics.items() if name in probes.ALWAYS}
    for member in (asked, alike):
        unprobed = dataclasses.replace(records[member], metrics=bare, probes=())
        store.write_record(again.directory / member.name, unprobed)
    shutil.rmtree(again.directory / alike.name / "checkpoints")  # nothing left to measure
    assert dataclasses.replace(again, probes=()).progress().todo == 0
    assert again.todo(store.read_arm(again.directory)[0]) == [asked]
    assert run_arm(again.directory) == 0
    assert store.read_arm(again.directory)[0][asked] == records[asked]
    assert events(again.directory / asked.name, "attempt") == 1


def test_a_probe_that_finds_nothing_to_measure_is_asked_once(tmp_path, text):
    """`exposure` has nothing to say of a model that sees the future, which cannot write."""
    changed = {"arms": {"base": Arm({"model.attention.mask": "none"})}, "contrasts": ()}
    made = dataclasses.replace(ablation(text, rates=(1e-2,), seeds=1, size={"train.steps": 2}), **changed)
    cell = arm(made)
    job = Job(cell.directory(tmp_path), (cell,), probes=("exposure",))
    job.write()
    assert run_arm(job.directory) == 0
    (record, *_) = store.read_arm(job.directory)[0].values()
    assert record.state == "done" and record.probes == ("exposure",) and "exposure_gap" not in record.metrics


def test_a_run_that_ended_is_not_trained_again_because_measuring_it_failed(trained, tmp_path):
    job, records, _ = trained
    again = dataclasses.replace(job, directory=Path(shutil.copytree(job.directory, tmp_path / job.directory.name)))
    member = Member(1e-2, 0)
    failed = store.Record(member, "failed", job.cell.hash, error="out of memory")
    store.write_record(again.directory / member.name, failed)
    (again.directory / member.name / "error.txt").touch()
    assert run_arm(again.directory) == 0 and store.read_arm(again.directory)[0][member] == failed
    assert run_arm(again.directory, retry_failed=True) == 0
    assert store.read_arm(again.directory)[0] == records
    assert events(again.directory / member.name, "attempt") == 1
    assert not (again.directory / member.name / "error.txt").exists()


def test_numbers_that_are_not_finite_are_no_numbers(tmp_path, text):
    """A run whose every training loss was finite may still have lost its model in the last step."""
    made = worker._Arm(single(tmp_path, text))
    rows = final(validation={"loss": float("nan")}, test={"loss": 2.0})
    assert made._metrics(Member(1e-2, 0), tmp_path, rows) == {"loss": 2.0, "validation_loss": None}
    with pytest.raises(ConfigError, match=r"'loss' is not measured; there are: none, since eval\.final=False"):
        made._metrics(Member(1e-2, 0), tmp_path, rows[:1])


def final(**splits: dict) -> list[dict]:
    """Rows of a run: one on the way, and the final one of each split."""
    on_the_way = {"split": "validation", "tokens": 100, "loss": 9.0, "accuracy": 0.25}
    return [on_the_way, *({"split": split, "tokens": 200, "final": True, **row} for split, row in splits.items())]


def test_shares_become_points(tmp_path, text):
    """Whatever a final evaluation measures is there under its name; the rate is chosen on validation."""
    made = worker._Arm(Job(tmp_path, (arm(ablation(text, primary_metric="accuracy")),)))
    rows = final(validation={"loss": 1.0, "accuracy": 0.5, "exact_match": 0.125}, test={"loss": 1.5, "accuracy": 0.75})
    found = made._metrics(Member(1e-2, 0), tmp_path, rows)
    assert found == {
        **{"loss": 1.5, "accuracy": 75.0, "exact_match": 12.5},
        **{"validation_loss": 1.0, "validation_accuracy": 50.0, "validation_exact_match": 12.5},
    }
    record = store.Record(Member(1e-2, 0), "done", "h", metrics=found)
    assert record.score("accuracy").value == 50.0 and record.score("loss").value == 1.0
    assert worker._curve(rows, "accuracy") == ((100, 25.0),) and worker._curve(rows, "loss") == ((100, 9.0),)
    with pytest.raises(ConfigError, match="'accuracy' is not measured"):
        made._metrics(Member(1e-2, 0), tmp_path, final(validation={"loss": 1.0}))


def test_chance_is_recorded_in_points(tmp_path, text):
    cell = arm(ablation(text, size={"data.source": "task", "data.task": "role", "data.path": ""}))
    made = worker._Arm(Job(tmp_path, (cell,)))
    made._prepare(Member(1e-2, 0))
    assert made._references() == {"chance": 50.0}


@pytest.mark.parametrize(("metric", "tuning_is_probed"), [("loss", False), ("prefix_loss", True)])
def test_tuning_runs_are_probed_when_a_probe_chooses_the_rate(tmp_path, text, monkeypatch, metric, tuning_is_probed):
    monkeypatch.setattr(probes, "measure", lambda names, **_: {"prefix_loss": 3.0})
    monkeypatch.setattr(training, "load", lambda path, program: type("Loaded", (), {"state": None}))
    cell = arm(ablation(text, probes=("prefix_loss",), primary_metric=metric))
    made = worker._Arm(Job(tmp_path, (cell,), (), ("prefix_loss",)))
    rows = final(validation={"loss": 2.0})
    found = made._metrics(Member(1e-2, 1000), tmp_path, rows)
    assert ("prefix_loss" in found) is tuning_is_probed
    assert "prefix_loss" in made._metrics(Member(1e-2, 0), tmp_path, rows)


def test_a_directory_without_an_arm_is_a_users_slip(tmp_path):
    with pytest.raises(UserError, match=r"holds no arm\.json"):
        run_arm(tmp_path)


# --- Requests to stop --------------------------------------------------------------------------------------------


def test_a_preempted_worker_is_resumed_by_the_same_command(tmp_path, text):
    """And what was registered when a member began stays with it, whatever was edited meanwhile."""
    size = {"train.steps": 500, "train.steps_per_call": 5, "train.eval_every": 0}
    job = single(tmp_path, text, seeds=2, size=size)
    path = job.directory / "lr0.01-s0"
    process = subprocess.Popen([sys.executable, "-m", "ablations.worker", f"--arm={job.directory}"], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (path / "metrics.jsonl").is_file() or not (path / "metrics.jsonl").read_text().count("\n") > 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert read_status(path)["state"] == "preempted" and not (path / store.RECORD).exists()

    dataclasses.replace(job, contrasts=("tiny:a:2",)).write()
    assert run_arm(job.directory) == 0
    records = store.read_arm(job.directory)[0]
    assert [record.contrasts for _, record in sorted(records.items())] == [("tiny:a:1",), ("tiny:a:2",)]
    assert (events(path, "attempt"), events(path, "start"), events(path, "resume")) == (2, 1, 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_request_that_comes_too_late_for_a_run_stops_the_next(tmp_path, text, monkeypatch, number, code):
    """A run in its last evaluation ends as if nothing had been asked; its worker must still stop."""
    started = []

    def train(config, path, **_):
        started.append(config.seed)
        with Interrupts():
            os.kill(os.getpid(), number)
        return training.Outcome("done", {}, path)

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(worker._Arm, "_record", lambda self, member, *_: store.Record(member, "done", ""))
    job = single(tmp_path, text, seeds=3)
    before = signal.getsignal(number)
    assert run_arm(job.directory) == code and started == [0]
    assert signal.getsignal(number) == before


def test_a_request_between_two_runs_ends_the_process(tmp_path, text, monkeypatch):
    monkeypatch.setattr(worker._Arm, "train", lambda self, member: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run_arm(single(tmp_path, text).directory)
    assert ended.value.code == 75


# --- Two workers -------------------------------------------------------------------------------------------------


def test_a_second_worker_waits_and_trains_nothing_twice(tmp_path, text):
    job = single(tmp_path, text, seeds=2, size={"train.steps": 2})
    codes: list[int] = []
    workers = [threading.Thread(target=lambda: codes.append(run_arm(job.directory))) for _ in range(2)]
    with store.locked(job.directory / "lock"):
        for thread in workers:
            thread.start()
        time.sleep(0.5)
        assert not list(job.directory.glob("lr*"))  # both wait for whoever holds the arm
    for thread in workers:
        thread.join(timeout=120)
    assert codes == [0, 0] and job.progress().ended == 2
    assert [events(path, "attempt") for path in job.directory.glob("lr*")] == [1, 1]


def in_threads(count, job, **named):
    """Workers of this process, started; and what they end with."""
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(run_arm(job.directory, **named))) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, codes


def test_workers_share_an_arm_member_by_member(tmp_path, text):
    """While one trains a member, the other trains the next; who finds none left waits, then ends too."""
    job = single(tmp_path, text, seeds=3, size={"train.steps": 2})
    with worker._Arm(job)._held(Member(1e-2, 0)):
        (thread,), codes = in_threads(1, job)
        deadline = time.monotonic() + 120
        while job.progress().ended < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        assert not codes and {m.seed for m in store.read_arm(job.directory)[0]} == {1, 2}
    thread.join(timeout=120)
    assert codes == [0] and job.progress().ended == 3
    assert [events(path, "attempt") for path in job.directory.glob("lr*")] == [1, 1, 1]


def test_workers_share_the_choice_of_the_learning_rate(tmp_path, text):
    """The test seeds begin when the last tuning run has ended, whoever trained it."""
    job = make_job(tmp_path, text, "other", rates=(3e-3, 1e-2, 3e-2), seeds=2, size={"train.steps": 2})
    threads, codes = in_threads(2, job)
    for thread in threads:
        thread.join(timeout=120)
    records = store.read_arm(job.directory)[0]
    assert codes == [0, 0] and not job.progress().todo
    assert sum(not member.is_tuning for member in records) == 2
    assert {events(path, "attempt") for path in job.directory.glob("lr*")} == {1}


def test_a_member_that_was_finished_before_it_was_held_is_left_alone(tmp_path, text):
    job = single(tmp_path, text)
    made = worker._Arm(job)
    (todo,) = made.todo()
    path = job.directory / todo.name
    path.mkdir()
    store.write_record(path, store.Record(todo, "done", job.cell.hash, metrics={"loss": 2.0}))
    with made.claim([todo]) as mine:
        assert mine == []


def test_a_population_has_its_arm_to_itself(tmp_path, text):
    job = single(tmp_path, text, seeds=2, size={"train.steps": 2, "execution": "population"})
    with store.locked(job.directory / "lock", shared=True):
        (thread,), codes = in_threads(1, job)
        time.sleep(1.0)
        assert not codes and not list(job.directory.glob("lr*"))
    thread.join(timeout=120)
    assert codes == [0] and job.progress().ended == 2


def test_two_workers_that_retry_what_failed_train_it_once(tmp_path, text, monkeypatch):
    """The second finds it begun again, or done, and does not delete it."""
    job = single(tmp_path, text, seeds=1, size={"train.steps": 2})
    (member,) = job.todo({})
    (job.directory / member.name).mkdir()
    failed = store.Record(member, "failed", job.cell.hash, error="out of memory")
    store.write_record(job.directory / member.name, failed)
    both, look, seen = threading.Barrier(2), Job.failed, set()

    def together(self):
        found = look(self)
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            both.wait(timeout=60)  # each has seen the failure before either deletes it
        return found

    monkeypatch.setattr(Job, "failed", together)
    threads, codes = in_threads(2, job, retry_failed=True)
    for thread in threads:
        thread.join(timeout=120)
    assert codes == [0, 0] and events(job.directory / member.name, "attempt") == 1
