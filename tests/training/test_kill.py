"""A run that is killed, again and again, ends as the run that was left alone."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = 120
TINY = [
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=4",
    "--config.train.log_every=1",
    "--config.train.eval_every=20",
    "--config.train.checkpoint_every=10",
    "--config.train.steps_per_call=5",
    "--config.eval.tokens=64",
    "--config.eval.final=False",
    "--config.data.sequence_length=16",
    "--config.model.d_model=16",
    "--config.model.num_layers=1",
    "--config.model.dropout=0.1",
    "--config.wandb.mode=disabled",
]


def command(workdir: Path, *more: str) -> list[str]:
    return [sys.executable, "train.py", "--config=configs/base.py", f"--workdir={workdir}", *TINY, *more]


def start(workdir: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(workdir, *more), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(workdir: Path, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(workdir, *more), cwd=ROOT, capture_output=True, text=True, timeout=240)


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def numbers(workdir: Path) -> list[dict]:
    """The rows without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows(workdir)]


def final_parameters(workdir: Path) -> str:
    """A digest over every parameter and moment of the last checkpoint."""
    from transformer.training.run import load
    from transformer.training.step import flat_state

    digest = hashlib.sha256()
    for name, leaf in sorted(flat_state(load(workdir).state).items()):
        digest.update(name.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int, timeout: float = 120) -> bool:
    """Waits until a row of `step` is written; False if the process ended before."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        path = workdir / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    raise TimeoutError(f"step {step} was not reached")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = finish(workdir)
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir


def events(workdir: Path) -> list[str]:
    """The kinds of what happened, in order."""
    return [json.loads(line)["kind"] for line in (workdir / "events.jsonl").read_text().splitlines()]


def kill_repeatedly(workdir: Path, times: int, seed: int) -> int:
    """Kills the run `times` times, each at a random moment after some progress, then lets it finish.

    Returns:
      How many kills it took: fewer where the run ended first.
    """
    chance = random.Random(seed)
    kills = 0
    while kills < times:
        process = start(workdir)
        first = max((row["step"] for row in rows(workdir)), default=0) if (workdir / "metrics.jsonl").exists() else 0
        target = min(STEPS - 1, first + chance.randrange(1, max(2, STEPS // (times + 1) * 2)))
        if chance.random() < 0.25:  # any moment, start-up included
            time.sleep(chance.random() * 6)
        elif not wait_for_step(process, workdir, target):
            break
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    done = finish(workdir)
    assert done.returncode == 0, done.stdout + done.stderr
    return kills


def check_same_end(workdir: Path, undisturbed: Path) -> None:
    assert [row["step"] for row in rows(workdir) if row["split"] == "train"] == list(range(1, STEPS + 1))
    assert numbers(workdir) == numbers(undisturbed)
    assert final_parameters(workdir) == final_parameters(undisturbed)


def test_three_kills_change_nothing(tmp_path, undisturbed):
    kill_repeatedly(tmp_path / "run", times=3, seed=0)
    check_same_end(tmp_path / "run", undisturbed)


@pytest.mark.soak
def test_twenty_kills_change_nothing(tmp_path, undisturbed, record_property):
    record_property("kills", kill_repeatedly(tmp_path / "run", times=20, seed=1))
    check_same_end(tmp_path / "run", undisturbed)
    record_property("steps recorded once", STEPS)
    record_property("resumed", sum(kind == "resume" for kind in events(tmp_path / "run")))
    record_property("parameters as undisturbed", final_parameters(tmp_path / "run")[:16])


def test_another_seed_is_noticed(tmp_path, undisturbed):
    """The comparison above can fail: a run of another seed does not pass it."""
    assert finish(tmp_path / "run", "--config.seed=1").returncode == 0
    with pytest.raises(AssertionError):
        check_same_end(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    ("number", "code", "state"), [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "interrupted")]
)
def test_signals_save_and_resume(tmp_path, undisturbed, number, code, state):
    workdir = tmp_path / "run"
    process = start(workdir)
    assert wait_for_step(process, workdir, 7)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert json.loads((workdir / "status.json").read_text())["state"] == state
    assert "run the same command again to resume" in output
    assert finish(workdir).returncode == 0
    check_same_end(workdir, undisturbed)


def test_running_a_finished_run_again_says_so(undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    again = finish(undisturbed)
    assert again.returncode == 0
    assert "already done" in again.stderr
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_second_interrupt_stops_at_once(tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, "--config.train.steps=100000", "--config.train.checkpoint_every=0")
    assert wait_for_step(process, workdir, 2)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
