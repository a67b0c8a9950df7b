"""Sinks may break without hurting a run, and see the rows of metrics.jsonl."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from transformer.config import default_config, resolve
from transformer.errors import UserError
from transformer.training.run_directory import RunDirectory
from transformer.training.sinks import RunInfo, Sinks
from transformer.training.tensorboard_sink import TensorboardSink

ROOT = Path(__file__).resolve().parents[2]


def info(workdir: Path, **more) -> RunInfo:
    return RunInfo("name", "group", "job", {"seed": 0}, "0123456789abcdef", workdir, total_steps=10, **more)


class Recorder:
    """Writes down what it is told."""

    def __init__(self, calls: list | None = None):
        self.calls = [] if calls is None else calls

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, arguments))

    @property
    def rows(self) -> list:
        return [arguments[0] for name, arguments in self.calls if name == "scalars"]


class Broken(Recorder):
    """Raises in one method, once."""

    def __init__(self, method: str, error: BaseException):
        super().__init__()
        setattr(self, method, self._fail)
        self.error, self.failures = error, 0

    def _fail(self, *_):
        self.failures += 1
        raise self.error


def drive(sinks: Sinks, workdir: Path, steps: int = 3) -> None:
    sinks.start(info(workdir))
    for step in range(1, steps + 1):
        sinks.scalars({"step": step, "split": "train", "loss": 1.0})
    sinks.text(steps, "sample", "text")
    sinks.event("checkpoint", {"step": steps})
    sinks.close("done", {"loss": 1.0})


@pytest.mark.parametrize("method", ["start", "scalars", "text", "event", "close"])
def test_a_broken_sink_is_reported_once_and_dropped(tmp_path, method, capsys):
    before, broken, after = Recorder(), Broken(method, ValueError("first line\nsecond")), Recorder()
    drive(Sinks([before, broken, after]), tmp_path)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("warning: Broken failed and is dropped (ValueError: first line).")
    assert broken.failures == 1
    assert before.calls == after.calls
    assert [name for name, _ in after.calls] == ["start", *["scalars"] * 3, "text", "event", "close"]


def test_sinks_close_in_reverse_order_and_once(tmp_path):
    order: list = []
    first, second = Recorder(), Recorder()
    first.close = lambda *_: order.append("first")
    second.close = lambda *_: order.append("second")
    sinks = Sinks([first, second])
    drive(sinks, tmp_path)
    sinks.close("failed", {})
    assert order == ["second", "first"]


def test_an_interrupt_is_no_failure_of_a_sink(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        drive(Sinks([Broken("scalars", KeyboardInterrupt())]), tmp_path)


def test_a_broken_standard_error_is_no_failure_of_the_run(tmp_path):
    def warn(_):
        raise BrokenPipeError

    after = Recorder()
    drive(Sinks([Broken("scalars", ValueError()), after], warn), tmp_path)
    assert len(after.rows) == 3


def test_sinks_see_the_rows_of_the_file(tmp_path):
    recorder = Recorder()
    sinks = Sinks([Broken("scalars", RuntimeError()), recorder], warn=lambda _: None)
    with RunDirectory.open(tmp_path, resolve(default_config())) as directory:
        for step in range(5):
            sinks.scalars(directory.append({"step": step, "split": "train", "loss": 1 / (step + 1)}))
        assert recorder.rows == directory.rows()


def test_importing_the_sinks_imports_no_heavy_package():
    rooms = "run_directory, sinks, console_sink, wandb_sink, tensorboard_sink"
    code = (
        f"import sys; from transformer.training import {rooms}; "
        "print([m for m in ('wandb', 'rich', 'tensorboardX', 'jax', 'flax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- TensorBoard --------------------------------------------------------------------------------------------


def test_a_missing_tensorboardx_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tensorboardX.*\[tensorboard\].*tensorboard=False"):
        TensorboardSink()


def tensorboard_events(directory: Path) -> list:
    """All events of all files: length-prefixed records around protocol buffers."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for file in sorted(directory.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_tensorboard_has_the_rows_and_a_resume_mark(tmp_path):
    pytest.importorskip("tensorboardX")
    rows = [
        {"step": 1, "split": "train", "tokens": 10, "loss": 2.5, "final": True},
        {"step": 1, "split": "validation", "loss": None, "nonfinite": ["loss"]},
    ]
    for resumed_from in (0, 1):
        sinks = Sinks([TensorboardSink()], warn=pytest.fail)
        sinks.start(info(tmp_path, resumed_from=resumed_from, attempt=resumed_from + 1))
        for row in rows:
            sinks.scalars(row | {"step": row["step"] + resumed_from})
        sinks.text(1, "sample", "text")
        sinks.event("diverged", {"step": 1})
        sinks.close("done", {})
    events = tensorboard_events(tmp_path / "tb")
    scalars = [(v.tag, e.step, v.simple_value) for e in events for v in e.summary.value if "/" in v.tag]
    assert ("train/loss", 1, 2.5) in scalars and ("train/loss", 2, 2.5) in scalars
    assert any(tag == "validation/loss" and value != value for tag, _, value in scalars)
    tags = {v.tag for e in events for v in e.summary.value}
    assert {"train/tokens", "config/text_summary", "sample/text_summary"} <= tags
    assert [e.step for e in events if e.WhichOneof("what") == "session_log"] == [2]
