"""The run directory keeps what it is given, whatever way the process ends, and belongs to one run."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from transformer.config import default_config, is_view, replace, resolve, schema
from transformer.errors import ConfigError, UserError
from transformer.training import jsonfiles, run_directory
from transformer.training.environment import environment
from transformer.training.run_directory import (
    RunDirectory,
    default_path,
    read_config,
    read_rows,
    read_status,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config():
    return resolve(default_config())


def row(step: int, split: str = "train", **more) -> dict:
    return {"step": step, "tokens": 10 * step, "split": split, "loss": 1 / (step + 1), **more}


def strict_lines(path: Path) -> list[dict]:
    """The objects of a .jsonl file, read as a reader that knows no NaN would."""

    def refuse(name: str):
        raise AssertionError(f"bare {name}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


# --- Rows ---------------------------------------------------------------------------------------------------


def test_rows_come_back(tmp_path, config):
    written = [row(1), row(2), row(2, "validation", bits_per_byte=3.5)]
    with RunDirectory.open(tmp_path / "run", config) as directory:
        for one in written:
            directory.append(one)
        assert directory.rows() == written
    assert read_rows(tmp_path / "run") == written
    assert read_rows(tmp_path / "run", split="validation") == written[2:]


def test_rows_are_strict_json(tmp_path, config):
    with RunDirectory.open(tmp_path, config) as directory:
        returned = directory.append(
            row(1) | {"loss": np.float32("nan"), "grad_norm": -np.inf, "scale": np.ones(2), "n": np.int64(3)}
        )
        directory.event("diverged", loss=float("inf"))
        directory.set_status("diverged", loss=float("nan"), nested={"x": [1.0, float("inf")]})
    (stored,) = strict_lines(tmp_path / "metrics.jsonl")
    assert stored == returned
    assert stored["loss"] is None and stored["grad_norm"] is None
    assert stored["nonfinite"] == ["loss", "grad_norm"]
    assert stored["scale"] == [1.0, 1.0] and stored["n"] == 3
    assert strict_lines(tmp_path / "events.jsonl")[-1]["nonfinite"] == ["loss"]
    assert read_status(tmp_path)["nonfinite"] == ["loss", "nested.x.1"]


def test_rows_of_other_splits_are_synced(tmp_path, config, monkeypatch):
    synced = []
    with RunDirectory.open(tmp_path, config) as directory:
        monkeypatch.setattr(os, "fsync", lambda file: synced.append(file))
        directory.append(row(1))
        assert not synced
        directory.append(row(1, "validation"))
        assert len(synced) == 1


def test_truncate_after_drops_later_steps_only(tmp_path, config):
    with RunDirectory.open(tmp_path, config) as directory:
        for one in (row(1), row(2), row(2, "validation"), row(3), row(4, "validation")):
            directory.append(one)
        assert directory.truncate_after(2) == 2
        assert directory.truncate_after(2) == 0
        directory.append(row(3))
    assert [(r["step"], r["split"]) for r in read_rows(tmp_path)] == [
        (1, "train"),
        (2, "train"),
        (2, "validation"),
        (3, "train"),
    ]


@pytest.mark.parametrize("torn", ['{"step": 3, "spl', '{"step": 3, "split": "train"}', "\0\0\0", '{"st\n'])
def test_a_torn_last_line_is_dropped(tmp_path, config, torn):
    with RunDirectory.open(tmp_path, config) as directory:
        directory.append(row(1))
        directory.append(row(2))
    for name in ("metrics.jsonl", "events.jsonl"):
        with open(tmp_path / name, "a") as file:
            file.write(torn)
    assert [r["step"] for r in read_rows(tmp_path)] == [1, 2]
    with RunDirectory.open(tmp_path, config) as directory:
        assert directory.attempt == 2
        directory.append(row(3))
    assert [r["step"] for r in strict_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_no_torn_line(tmp_path, config):
    with RunDirectory.open(tmp_path, config) as directory:
        directory.append(row(1))
    lines = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(lines + "garbage\n" + lines)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        RunDirectory.open(tmp_path, config)


WRITER = """
import sys
from transformer.config import default_config, resolve
from transformer.training.run_directory import RunDirectory
directory = RunDirectory.open(sys.argv[1], resolve(default_config()))
directory.set_status("running")
for step in range(1, 100_000):
    directory.append({"step": step, "split": "train", "loss": 1.0, "padding": "x" * 3000})
"""


def test_kill_9_loses_no_row_and_frees_the_lock(tmp_path, config):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT)
    wait_for(lambda: len(read_rows(tmp_path)) > 50)
    seen = len(read_rows(tmp_path))
    with pytest.raises(UserError, match=f"in use by process {writer.pid}"):
        RunDirectory.open(tmp_path, config)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert read_status(tmp_path)["state"] == "running"
    with RunDirectory.open(tmp_path, config) as directory:
        steps = [r["step"] for r in directory.rows()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= seen


def wait_for(condition, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- Disk ---------------------------------------------------------------------------------------------------


class FullDisk:
    """A file on a disk with a few bytes left."""

    def __init__(self, file):
        self.file, self.space = file, 20

    def write(self, data: bytes) -> int:
        if not self.space:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(data[: self.space])
        self.space -= written
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_is_reported_once_and_leaves_whole_lines(tmp_path, config, monkeypatch):
    directory = RunDirectory.open(tmp_path, config)
    directory.append(row(1))
    directory._metrics._file = FullDisk(directory._metrics._file)
    with pytest.raises(UserError, match="No space is left for") as caught:
        directory.append(row(2))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_directory, "write_json", refuse)
    directory.set_status("failed")  # says nothing more
    directory.close()
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    with RunDirectory.open(tmp_path, config) as directory:
        directory.append(row(2))
    assert [r["step"] for r in strict_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_failing_status_is_an_error_where_nothing_failed_before(tmp_path, config, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunDirectory.open(tmp_path, config) as directory:
        monkeypatch.setattr(run_directory, "write_json", refuse)
        with pytest.raises(UserError, match="No space"):
            directory.set_status("running")


def test_a_file_in_its_place(tmp_path, config):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is a file, not a directory.*--workdir"):
        RunDirectory.open(tmp_path / "file", config)
    with pytest.raises(UserError, match=r"Not a directory.*--workdir"):
        RunDirectory.open(tmp_path / "file" / "below", config)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_directory(tmp_path, config):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"Permission denied.*--workdir"):
        RunDirectory.open(tmp_path / "run", config)
    with pytest.raises(UserError, match=r"Permission denied.*--workdir"):
        RunDirectory.open(tmp_path / "run" / "below", config)


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "config.json", "status.json"])
def test_a_directory_in_the_place_of_a_file(tmp_path, config, name):
    RunDirectory.open(tmp_path, config).close()
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}.*--workdir"):
        RunDirectory.open(tmp_path, config)
    (tmp_path / name).rmdir()


def test_a_failed_open_frees_the_lock(tmp_path, config):
    RunDirectory.open(tmp_path, config).close()
    with pytest.raises(ConfigError):
        RunDirectory.open(tmp_path, replace(config, {"seed": 1}))
    RunDirectory.open(tmp_path, config).close()


# --- Identity -----------------------------------------------------------------------------------------------


def test_the_config_comes_back(tmp_path, config):
    other = replace(config, {"optimizer.learning_rate": 0.5, "wandb.tags": ("a", "b"), "seed": 3})
    RunDirectory.open(tmp_path, other).close()
    assert read_config(tmp_path) == other
    with pytest.raises(UserError, match=r"holds no run.*config\.json"):
        read_config(tmp_path / "nowhere")


def test_another_config_is_refused_in_three_lines(tmp_path, config):
    RunDirectory.open(tmp_path, config).close()
    before = (tmp_path / "config.json").read_text()
    given = {
        "seed": 1,
        "optimizer.learning_rate": 0.5,
        "optimizer.beta2": 0.5,
        "train.steps": 7,
        "model.d_model": 64,
        "model.num_layers": 1,
        "model.norm.kind": "none",
        "train.log_every": 99,
    }
    with pytest.raises(ConfigError) as caught:
        RunDirectory.open(tmp_path, replace(config, given))
    lines = str(caught.value).split("\n")
    assert len(lines) == 3 and str(tmp_path) in lines[0]
    assert lines[1].count("->") == 5 and lines[1].endswith("and 2 more")
    assert "model.d_model: 128 -> 64" in lines[1] and "log_every" not in lines[1]
    assert "--workdir" in lines[2] and "delete" in lines[2]
    assert (tmp_path / "config.json").read_text() == before


def test_views_may_differ_and_are_stored(tmp_path, config):
    RunDirectory.open(tmp_path, config).close()
    view = replace(config, {"train.log_every": 99, "wandb.mode": "disabled", "decode.prompt": "x"})
    RunDirectory.open(tmp_path, view).close()
    assert read_config(tmp_path) == view


def test_every_field_but_the_views_makes_another_run(tmp_path, config):
    """Fails for the first field that somebody forgets to compare."""
    RunDirectory.open(tmp_path, config).close()
    stored = json.loads((tmp_path / "config.json").read_text())
    for info in schema():
        if info.used_by:  # belongs to a kind that this config does not use
            continue
        changed = json.loads(json.dumps(stored))
        *parents, leaf = info.path.split(".")
        node = changed
        for parent in parents:
            node = node[parent]
        node[leaf] = ["something", "else"]
        (tmp_path / "config.json").write_text(json.dumps(changed))
        if is_view(info.path):
            RunDirectory.open(tmp_path, config).close()
        else:
            with pytest.raises(ConfigError, match=f"{info.path}: "):
                RunDirectory.open(tmp_path, config)


def test_a_field_added_later_is_no_difference(tmp_path, config):
    RunDirectory.open(tmp_path, config).close()
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["objective"], stored["optimizer"]["clip"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    RunDirectory.open(tmp_path, config).close()
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"optimizer\.clip: 1\.0 -> 0\.5"):
        RunDirectory.open(tmp_path, replace(config, {"optimizer.clip": 0.5}))


def test_rows_without_a_config_are_refused(tmp_path, config):
    with RunDirectory.open(tmp_path, config) as directory:
        directory.append(row(1))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        RunDirectory.open(tmp_path, config)


def test_a_number_that_json_cannot_hold(tmp_path, config):
    with pytest.raises(ConfigError, match=r"optimizer\.clip=inf"):
        RunDirectory.open(tmp_path, replace(config, {"optimizer.clip": float("inf")}))


def test_default_path_tells_configs_apart(config):
    path = default_path(config, "prenorm", "no norm/at:all")
    assert path.parent == Path("runs/prenorm")
    assert path.name.startswith("no-norm-at-all-s0-") and len(path.name.split("-")[-1]) == 8
    assert default_path(config, "base").name.startswith("run-s0-")
    assert default_path(config, "prenorm", "no norm/at:all") == path
    others = [{"seed": 1}, {"optimizer.learning_rate": 0.5}, {"model.norm.kind": "none"}, {"train.steps": 5}]
    paths = {default_path(replace(config, other), "base") for other in others}
    paths |= {default_path(config, "base"), default_path(config, "base", platform="gpu")}
    assert len(paths) == len(others) + 2
    assert default_path(replace(config, {"train.log_every": 99}), "base") == default_path(config, "base")


# --- Attempts, environment, status --------------------------------------------------------------------------


def test_attempts_are_counted_and_changes_of_the_environment_kept(tmp_path, config):
    with RunDirectory.open(tmp_path, config, {"fingerprint": "aaa", "devices": 1}) as first:
        assert first.attempt == 1 and not first.environment_changes
    with RunDirectory.open(tmp_path, config, {"fingerprint": "bbb", "devices": 1}) as second:
        assert second.attempt == 2
        assert second.environment_changes == {"fingerprint": ("aaa", "bbb")}
        second.event("checkpoint", step=7)
    events = strict_lines(tmp_path / "events.jsonl")
    assert [(e["kind"], e["attempt"]) for e in events] == [("attempt", 1), ("attempt", 2), ("checkpoint", 2)]
    assert events[1]["changed"] == {"fingerprint": ["aaa", "bbb"]}
    assert json.loads((tmp_path / "env.json").read_text())["fingerprint"] == "bbb"


@pytest.mark.parametrize(("state", "attempts"), [("done", 1), ("diverged", 1), ("failed", 2), ("preempted", 2)])
def test_a_finished_run_gets_no_further_attempt(tmp_path, config, state, attempts):
    with RunDirectory.open(tmp_path, config) as directory:
        assert directory.status() == {"state": "planned"}
        directory.set_status(state, loss=1.5)
    environment_before = (tmp_path / "env.json").read_text()
    with RunDirectory.open(tmp_path, config) as directory:
        assert directory.attempt == attempts
        assert directory.status()["state"] == state and directory.status()["loss"] == 1.5
    assert ((tmp_path / "env.json").read_text() == environment_before) == (attempts == 1)


def test_unknown_states_are_refused(tmp_path, config):
    with RunDirectory.open(tmp_path, config) as directory, pytest.raises(ValueError, match="paused"):
        directory.set_status("paused")


def test_the_status_is_whole_at_every_moment(tmp_path, config):
    with RunDirectory.open(tmp_path, config) as directory:
        directory.set_status("running", padding="x" * 50_000)
        writer = threading.Thread(
            target=lambda: [directory.set_status("running", padding=c * 50_000) for c in "abcdefgh" * 5]
        )
        writer.start()
        while writer.is_alive():
            status = read_status(tmp_path)
            assert len(set(status["padding"])) == 1 and len(status["padding"]) == 50_000
        writer.join()


def test_a_crash_while_writing_keeps_the_old_status(tmp_path, config, monkeypatch):
    with RunDirectory.open(tmp_path, config) as directory:
        directory.set_status("running", step=1)
        monkeypatch.setattr(jsonfiles.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "gone")))
        with pytest.raises(UserError, match="gone"):
            directory.set_status("running", step=2)
        assert directory.status()["step"] == 1


def test_the_environment_tells_versions_and_no_secrets(tmp_path, config, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    monkeypatch.setenv("JAX_AUTH_TOKEN", "hunter2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    monkeypatch.setattr(
        sys,
        "argv",
        ["train.py", "--api_key=hunter2", "--config.data.path=https://me:hunter2@host/x", "--seed=1"],
    )
    RunDirectory.open(tmp_path, config, {"device": "cpu"}).close()
    text = (tmp_path / "env.json").read_text()
    stored = json.loads(text)
    assert "hunter2" not in text
    assert stored["argv"][1:] == ["--api_key=***", "--config.data.path=https://***@host/x", "--seed=1"]
    assert stored["variables"]["JAX_PLATFORMS"] == "cpu"
    assert stored["variables"]["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false"
    assert stored["packages"]["numpy"] == np.__version__
    assert stored["device"] == "cpu" and stored["started"] and stored["system"]
    assert stored["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")


def test_git_is_recorded_where_the_code_runs_from_a_repository(tmp_path):
    from transformer.training.environment import _git

    assert _git(tmp_path) is None
    command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@e"]
    subprocess.run([*command, "init", "-q"], check=True)
    subprocess.run([*command, "commit", "-q", "--allow-empty", "-m", "m"], check=True)
    clean = _git(tmp_path)
    assert len(clean["sha"]) == 40 and clean["dirty"] is False
    (tmp_path / "new").write_text("")
    assert _git(tmp_path) == clean | {"dirty": True}
    (tmp_path / "below").mkdir()
    assert _git(tmp_path / "below") is None  # somebody else's repository around an installed package
    assert set(environment()) == {"argv", "git", "python", "system", "variables", "packages"}
