"""A whole lab killed at random, driver and workers, ends with the report of the lab that was left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablations import catalog, jobs, store, summary
from ablations.worker import run_arm
from tests.ablations.lab import ablation, without_clock, write_config, write_text

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = 10  # at least: two rates, two test seeds, and twins for one of the two arms
LINES = 16  # about as many does a member write


class Lab:
    """One ablation in a folder of its own."""

    def __init__(self, folder: Path, text: Path):
        self.folder, self.runs = folder, folder / "runs"
        write_config(folder / "configs", ablation(text, size={"train.checkpoint_every": 8}))

    def start(self) -> subprocess.Popen:
        """The driver, at the head of a process group with its workers."""
        command = [sys.executable, "-m", "ablations", "run", "tiny", "--profile=tiny", "--workers=2"]
        command += [f"--configs={self.folder / 'configs'}", f"--runs={self.runs}", f"--out={self.folder / 'reports'}"]
        return subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def finish(self) -> None:
        """Runs undisturbed to the end."""
        process = self.start()
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said

    def records(self) -> dict[Path, bytes]:
        """What is finished: every record and the events of its run."""
        found = list(self.runs.glob(f"*/*/{store.RECORD}"))
        return {path: path.read_bytes() for record in found for path in (record, record.with_name("events.jsonl"))}

    def lines(self) -> int:
        """How far the runs are: lines in their files."""
        files = [path for name in ("metrics", "events") for path in self.runs.glob(f"*/*/{name}.jsonl")]
        return sum(path.read_bytes().count(b"\n") for path in files)

    def report(self) -> dict:
        """The report data without the clock's part."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(catalog, "_folder", self.folder / "configs")
            return without_clock(summary.summarize(summary.collect("tiny", "tiny", self.runs)))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, text) -> Lab:
    """A lab in which one process trained arm after arm."""
    lab = Lab(tmp_path_factory.mktemp("undisturbed"), text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "_folder", lab.folder / "configs")
        for job in jobs.collect(["tiny"], "tiny", lab.runs):
            job.write()
            assert run_arm(job.directory) == 0
    assert lab.report()["progress"]["done"] >= MEMBERS
    return lab


def kill_repeatedly(lab: Lab, times: int, seed: int) -> int:
    """Kills the driver with its workers, the driver alone, or workers alone, each after some progress.

    Returns:
      How many processes were killed.
    """
    chance, killed = random.Random(seed), 0
    for kill in range(times):
        process = lab.start()
        target = lab.lines() + chance.randrange(1, max(2, 2 * MEMBERS * LINES // times))
        # Mostly while members are trained; sometimes at any moment, start-up and report included.
        deadline = time.monotonic() + (chance.uniform(0, 8) if chance.random() < 0.25 else 120)
        while lab.lines() < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.random() * 0.05)
        finished = lab.records()
        workers = children(process.pid)
        victims = [[process.pid, *workers], [process.pid], workers][kill % 3]
        for pid in victims:
            send_kill(pid)
        killed += len({*victims, process.pid})
        if process.pid not in victims:
            time.sleep(chance.random())
            send_kill(process.pid)
        process.communicate()
        assert lab.records().items() >= finished.items()  # what is finished is never touched again
    lab.finish()
    return killed


def send_kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Processes started by `pid`."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def check_same_end(lab: Lab, undisturbed: Lab) -> None:
    assert lab.report() == undisturbed.report()
    for path in lab.runs.glob("*/lr*"):
        kinds = [json.loads(line)["kind"] for line in (path / "events.jsonl").read_text().splitlines()]
        assert kinds[-1] == "done" and kinds.count("done") == 1  # nothing was attempted after the end
        assert kinds.count("start") + kinds.count("resume") <= kinds.count("attempt")


def test_kills_change_nothing(tmp_path, text, undisturbed):
    lab = Lab(tmp_path, text)
    kill_repeatedly(lab, times=2, seed=0)
    check_same_end(lab, undisturbed)


@pytest.mark.soak
def test_twenty_kills_change_nothing(tmp_path, text, undisturbed, record_property):
    lab = Lab(tmp_path, text)
    record_property("processes killed", kill_repeatedly(lab, times=20, seed=1))
    check_same_end(lab, undisturbed)
    record_property("drivers killed", 20)
    record_property("members trained once", lab.report()["progress"]["done"])
    attempts = [path.read_text().count('"kind": "attempt"') for path in lab.runs.glob("*/lr*/events.jsonl")]
    record_property("members interrupted", sum(count > 1 for count in attempts))
    record_property("attempts in all", sum(attempts))


def test_one_other_number_is_noticed(tmp_path, text, undisturbed):
    """The comparison above can fail: the last digit of one loss in one sealed record is enough."""
    lab = Lab(tmp_path, text)
    shutil.copytree(undisturbed.runs, lab.runs)
    check_same_end(lab, undisturbed)
    path = next(lab.runs.glob(f"*/lr*-s1/{store.RECORD}"))
    content = json.loads(path.read_text())
    content.pop("digest")
    content["metrics"]["loss"] += 1e-12
    path.write_text(json.dumps({**content, "digest": store.digest(content)}))
    with pytest.raises(AssertionError):
        check_same_end(lab, undisturbed)
