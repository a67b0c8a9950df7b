"""W&B has the rows of metrics.jsonl, and cannot hold up or end a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from transformer.errors import UserError
from transformer.schema import Wandb
from transformer.training.sinks import RunInfo, Sinks
from transformer.training.wandb_sink import MODES, WandbSink

ROOT = Path(__file__).resolve().parents[2]
CREDENTIALS = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_SERVICE")


def info(workdir: Path, **more) -> RunInfo:
    return RunInfo("name", "group", "job", {"seed": 0}, "0123456789abcdef", workdir, total_steps=10, **more)


def row(step: int, split: str = "train") -> dict:
    return {"step": step, "tokens": 10 * step, "split": split, "loss": 1 / (step + 1)}


class Fake(types.ModuleType):
    """Stands in for the package wandb; `behaviour` maps names of its functions to what they do first."""

    def __init__(self, workdir: Path, credentials: bool = False, **behaviour):
        super().__init__("wandb")
        self.credentials, self.behaviour = credentials, behaviour
        self.inits: list[dict] = []
        self.logged: list[dict] = []
        self.metrics: list[tuple] = []
        self.alerts: list[tuple] = []
        self.finished: list[int] = []
        self.summary: dict = {}
        self.settings = types.SimpleNamespace(sync_dir=str(workdir / "wandb" / "offline-run-x"))
        self.url = "https://example.test/run"
        self.Settings = dict
        self.threads: set[str] = set()

    def _do(self, name: str):
        self.threads.add(threading.current_thread().name)
        return self.behaviour.get(name, lambda: None)()

    def setup(self, settings):
        self._do("setup")

    def login(self, prompt, verify):
        assert prompt is False and verify is False
        self._do("login")
        return self.credentials

    def init(self, **arguments):
        self.inits.append(arguments)
        self._do("init-" + arguments["mode"])
        return self

    def define_metric(self, *arguments, **named):
        self.metrics.append((arguments, named))

    def log(self, values, **named):
        assert not named  # wandb's own step stays unused
        self._do("log")
        self.logged.append(values)

    def alert(self, *arguments):
        self.alerts.append(arguments)

    def finish(self, exit_code):
        self._do("finish")
        self.finished.append(exit_code)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes `fake(...)` the package wandb."""
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)

    def install(**behaviour) -> Fake:
        module = Fake(tmp_path, **behaviour)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return install


def fails(error: BaseException):
    def fail():
        raise error

    return fail


def never_ends():
    time.sleep(60)


class Rows:
    """Another sink beside the one under test."""

    def __init__(self):
        self.rows = []

    def scalars(self, row):
        self.rows.append(row)

    def __getattr__(self, name):
        return lambda *_: None


# --- The real package, offline ------------------------------------------------------------------------------

OFFLINE = """
import sys, threading, time
from pathlib import Path
from transformer.config import default_config, resolve, to_dict
from transformer.training.run_directory import RunDirectory
from transformer.training.sinks import RunInfo, Sinks
from transformer.training.wandb_sink import WandbSink

config = resolve(default_config())
for start in (0, 3):  # the second attempt resumes after step 3
    with RunDirectory.open(sys.argv[1], config) as directory:
        began = time.monotonic()
        sinks = Sinks([WandbSink(config.wandb)])
        directory.truncate_after(start)
        sinks.start(RunInfo("name", "group", "job", to_dict(config), "0123456789abcdef", directory.path, 6,
                            resumed_from=start, attempt=directory.attempt))
        for step in range(start + 1, 7):
            loss = float("nan") if step == 5 else 1 / (step + directory.attempt)
            row = {"step": step, "tokens": 10 * step, "split": "train", "loss": loss, "grad_norm": 0.5}
            sinks.scalars(directory.append(row))
            if step % 3 == 0:
                sinks.scalars(directory.append({"step": step, "split": "validation", "loss": 2.0 + step}))
        assert time.monotonic() - began < 1.0, "training waited for wandb"
        sinks.text(6, "sample", "<b>To be</b>")
        sinks.event("diverged", {"step": 6})
        sinks.close("done", {"loss": 0.25, "best": None})
"""


def without_credentials(home: Path) -> dict[str, str]:
    variables = {k: v for k, v in os.environ.items() if k not in CREDENTIALS}
    nowhere = "http://127.0.0.1:9"  # whoever asks the network after all is refused at once
    return variables | {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_BASE_URL": nowhere}


def inspect(record: Path, *flags: str) -> list[dict]:
    """The records that the package's own reader finds in an offline run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(record)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if flags:
        return [json.loads(done.stdout)]
    return [json.loads(line) for line in done.stdout.splitlines()]


def logged_rows(records: list[dict]) -> list[tuple]:
    """(step, split, loss) of every row that W&B has."""
    items = [r["history"]["item"] for r in records if r["type"] == "history"]
    return [
        (item["step"], name.removesuffix("/loss"), item[name])
        for item in items
        for name in item
        if name.endswith("/loss")
    ]


def test_offline_records_hold_the_rows_of_the_file(tmp_path):
    """No account, no network, and a terminal nobody answers: two attempts, every row in W&B."""
    ours, theirs = os.openpty()
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path / "run")],
        cwd=ROOT,
        stdin=theirs,
        stderr=subprocess.PIPE,
        text=True,
        env=without_credentials(tmp_path),
        timeout=60,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "finishing" not in line]  # said where it takes seconds
    records = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"), key=lambda path: path.name[-1])
    assert [r.name[-3:] for r in records] == ["-a1", "-a2"]
    assert len({r.name[-18:-3] for r in records}) == 1  # one id, one W&B run per attempt
    assert said == [f"wandb: offline (no credentials); publish later with: wandb sync {record}" for record in records]

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [(r["step"], r["split"], "NaN" if r["loss"] is None else r["loss"]) for r in rows]
    inspected = [inspect(record) for record in records]
    first, second = map(logged_rows, inspected)
    assert second == [r for r in expected if r[0] > 3]  # nothing lost, nothing twice
    assert first[:4] == expected[:4]
    assert len(first) == 8  # the discarded rows of the first attempt stay in its record

    (summary,) = inspect(records[1], "--summary")
    assert summary["config"]["model"]["d_model"] == 128
    assert summary["config"]["config_hash"] == "0123456789abcdef"
    assert summary["summary"]["final/loss"] == 0.25 and summary["summary"]["attempt"] == 2
    assert summary["project"] == "whatif-transformers" and summary["name"] == "name"
    axes = [r["metric"] for r in inspected[0] if r["type"] == "metric"]
    assert any(axis.get("glob_name") == "*" and axis.get("step_metric") == "step" for axis in axes)


# --- Modes --------------------------------------------------------------------------------------------------


def test_disabled_means_no_thread_and_no_import(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    before = threading.active_count()
    for name, environment in (("disabled", ""), ("auto", "disabled")):
        monkeypatch.setenv("WANDB_MODE", environment)
        sinks = Sinks([WandbSink(Wandb(mode=name))], warn=pytest.fail)
        sinks.start(info(tmp_path))
        sinks.scalars(row(1))
        assert threading.active_count() == before
        sinks.close("done", {})
    assert not list(tmp_path.iterdir())


def test_auto_honours_the_environment(monkeypatch):
    assert set(MODES) == {"auto", "online", "offline", "disabled"}
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert [MODES.build(name) for name in MODES] == list(MODES)
    for value, mode in {
        "offline": "offline",
        "dryrun": "offline",
        "online": "online",
        "disabled": "disabled",
    }.items():
        monkeypatch.setenv("WANDB_MODE", value)
        assert MODES.build("auto") == mode
        assert MODES.build("online") == "online"
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match="WANDB_MODE='ofline' is not one of: online, offline, disabled"):
        WandbSink(Wandb(mode="auto"))
    WandbSink(Wandb(mode="offline"))


@pytest.mark.parametrize(
    ("mode", "credentials", "opened"),
    [
        ("auto", True, "online"),
        ("auto", False, "offline"),
        ("online", False, "offline"),
        ("offline", True, "offline"),
    ],
)
def test_online_needs_credentials(tmp_path, fake, mode, credentials, opened):
    wandb, said = fake(credentials=credentials), []
    sink = WandbSink(Wandb(mode=mode, group="mine", tags=("a",)), said.append)
    sink.start(info(tmp_path, attempt=3))
    sink.scalars(row(1))
    sink.close("diverged", {"loss": 1.0})
    (arguments,) = wandb.inits
    assert arguments["mode"] == opened
    identifier = (tmp_path / "wandb" / "id.txt").read_text().strip()
    assert identifier.startswith("01234567-")
    if opened == "online":
        assert arguments["id"] == identifier and arguments["resume"] == "allow"
        assert said == ["wandb: https://example.test/run"]
    else:
        assert arguments["id"] == f"{identifier}-a3" and arguments["resume"] is None
        assert "offline" in said[0] and "wandb sync" in said[0] and len(said) == 1
    assert (arguments["group"], arguments["job_type"], arguments["tags"]) == ("mine", "job", ["a"])
    assert arguments["dir"] == str(tmp_path) and arguments["entity"] is None
    assert arguments["settings"]["init_timeout"] <= 15 and arguments["settings"]["console"] == "off"
    assert wandb.logged == [{"step": 1, "tokens": 10, "train/loss": 0.5, "attempt": 3}]
    assert wandb.metrics == [(("*",), {"step_metric": "step"})]
    assert wandb.summary == {"state": "diverged", "final/loss": 1.0} and wandb.finished == [3]
    assert wandb.threads == {"wandb"}


def test_the_id_belongs_to_the_directory(tmp_path, fake):
    wandb = fake(credentials=True)
    for workdir in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        sink = WandbSink(Wandb(), lambda _: None)
        sink.start(info(workdir))
        sink.close("done", {})
    first, again, other = (arguments["id"] for arguments in wandb.inits)
    assert first == again != other


@pytest.mark.parametrize("where", ["login", "init-online"])
def test_without_a_connection_the_record_is_offline(tmp_path, fake, where):
    wandb, said = fake(credentials=True, **{where: fails(ConnectionError("no route\nto host"))}), []
    sinks = Sinks([WandbSink(Wandb(), said.append)], warn=pytest.fail)
    sinks.start(info(tmp_path))
    sinks.scalars(row(1))
    sinks.close("done", {})
    assert wandb.inits[-1]["mode"] == "offline" and len(wandb.logged) == 1
    assert len(said) == 1 and "offline (ConnectionError: no route)" in said[0]
    ids = [arguments["id"] for arguments in wandb.inits]
    assert len(set(ids)) == len(ids)  # wandb refuses an id that a failed start still holds


# --- Failures -----------------------------------------------------------------------------------------------


def test_rows_wait_for_a_slow_start(tmp_path, fake):
    released = threading.Event()
    wandb = fake(**{"init-offline": released.wait})
    sink = WandbSink(Wandb(), lambda _: None)
    began = time.monotonic()
    sink.start(info(tmp_path))
    for step in range(1, 101):
        sink.scalars(row(step))
    assert time.monotonic() - began < 1.0 and not wandb.logged
    released.set()
    sink.close("done", {})
    assert [values["step"] for values in wandb.logged] == list(range(1, 101))


@pytest.mark.parametrize("where", ["setup", "init-offline", "log"])
@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1), KeyboardInterrupt()])
def test_a_failing_wandb_is_reported_once_and_dropped(tmp_path, fake, where, error):
    fake(**{where: fails(error)})
    warnings, others = [], Rows()
    sinks = Sinks([WandbSink(Wandb(), lambda _: None), others], warnings.append)
    sinks.start(info(tmp_path))
    for step in range(1, 21):
        sinks.scalars(row(step))
        time.sleep(0.005)
    sinks.close("done", {})
    assert len(warnings) == 1 and "WandbSink" in warnings[0] and type(error).__name__ in warnings[0]
    assert len(others.rows) == 20


def test_a_failure_at_the_very_end_is_reported_too(tmp_path, fake):
    fake(finish=fails(ValueError("broken")))
    warnings = []
    sinks = Sinks([WandbSink(Wandb(), lambda _: None)], warnings.append)
    sinks.start(info(tmp_path))
    sinks.close("done", {})
    assert len(warnings) == 1 and "broken" in warnings[0]


def test_a_missing_wandb_is_reported_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    warnings = []
    sinks = Sinks([WandbSink(Wandb(mode="offline"), lambda _: None)], warnings.append)
    sinks.start(info(tmp_path))
    sinks.close("done", {})
    assert len(warnings) == 1 and "wandb" in warnings[0]


@pytest.mark.parametrize("where", ["setup", "init-offline", "log"])
def test_a_hanging_wandb_is_reported_once_and_dropped(tmp_path, fake, where):
    fake(**{where: never_ends})
    warnings, others = [], Rows()
    sinks = Sinks([WandbSink(Wandb(), lambda _: None, patience=0.1), others], warnings.append)
    began = time.monotonic()
    sinks.start(info(tmp_path))
    for step in range(1, 31):
        sinks.scalars(row(step))
        time.sleep(0.01)
    sinks.close("done", {})
    assert time.monotonic() - began < 10.0
    assert len(warnings) == 1 and "WandbSink" in warnings[0] and "no answer" in warnings[0]
    assert len(others.rows) == 30


def test_closing_waits_a_bounded_time_and_says_so(tmp_path, fake):
    fake(finish=never_ends)
    said = []
    sinks = Sinks([WandbSink(Wandb(), said.append, close_timeout=0.3)], warn=pytest.fail)
    sinks.start(info(tmp_path))
    sinks.scalars(row(1))
    began = time.monotonic()
    sinks.close("done", {})
    assert 0.3 <= time.monotonic() - began < 5.0
    assert "not finished after 0.3 s" in said[-1] and "wandb sync" in said[-1]


def test_an_unfinished_upload_says_how_to_publish_it(tmp_path, fake):
    fake(credentials=True, finish=fails(TimeoutError()))
    said = []
    sinks = Sinks([WandbSink(Wandb(), said.append)], warn=pytest.fail)
    sinks.start(info(tmp_path))
    sinks.close("done", {})
    assert said[-1].startswith("wandb: could not send everything; publish later with: wandb sync ")


def test_divergence_raises_an_alert_and_nonfinite_numbers_are_logged(tmp_path, fake):
    wandb = fake()
    sink = WandbSink(Wandb(), lambda _: None)
    sink.start(info(tmp_path))
    sink.scalars({"step": 7, "split": "train", "loss": None, "nonfinite": ["loss"], "note": "text"})
    sink.event("checkpoint", {"step": 6})
    sink.event("diverged", {"step": 7})
    sink.close("diverged", {})
    (values,) = wandb.logged
    assert set(values) == {"step", "train/loss", "attempt"} and values["train/loss"] != values["train/loss"]
    assert wandb.alerts == [("diverged", "step=7")]
