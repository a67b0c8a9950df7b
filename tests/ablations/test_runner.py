"""The local pool: arms side by side and shared out, dead workers started again, failures told, Ctrl-C saved."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ablations import jobs, runner, summary
from ablations.runner import RESTARTS, Pool
from ablations.schema import Arm
from tests.ablations.lab import ablation, fill, write_config, write_text
from transformer.config import replace
from transformer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def attempts(path: Path) -> int:
    return (path / "events.jsonl").read_text().count('"kind": "attempt"')


def silent(ended: int, known: int, running: list[str]) -> None:
    pass


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    """Two workers on a healthy arm whose worker is killed, one that diverges, and one whose text is missing.

    Started from another folder than the repository, with a path relative to it.
    """
    folder = tmp_path_factory.mktemp("lab")
    write_text(folder / "text.txt")
    arms = {
        "base": Arm(),
        "hot": Arm({"optimizer.learning_rate": 1e30}),
        "lost": Arm({"data.path": "missing.txt"}),
    }
    write_config(folder / "configs", ablation("text.txt", arms=arms, rates=(1e-2,), seeds=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("ablations.catalog._folder", folder / "configs")
        found = jobs.collect(["tiny"], "tiny", Path("runs"))
        starts: list[str] = []
        shown: list[tuple[int, int]] = []
        killed: list[str] = []

        def progress(ended: int, known: int, running: list[str]) -> None:
            shown.append((ended, known))
            if not killed and found[0].progress().ended:
                for worker in [worker for worker in pool.running if worker.job is found[0]]:
                    killed.append(worker.cpus)
                    worker.process.kill()
                    worker.process.wait()

        pool = Pool(2, progress)
        start = pool._start
        patch.setattr(pool, "_start", lambda job: (starts.append((job.cell.label, bool(killed))), start(job)))
        code = pool.run(found)
        data = summary.summarize(summary.collect("tiny", "tiny", Path("runs")))
    return folder, code, starts, shown, data, killed


def test_a_killed_worker_is_started_again_and_goes_on(pooled):
    folder, code, starts, shown, _, killed = pooled
    assert starts.count(("tiny/lost", False)) == 1 and killed
    assert starts.count(("tiny/base", True)) == 1  # all of the arm's workers were killed; the last one came back
    members = list((folder / "runs").glob("tiny-base-*/lr*"))
    assert len(members) == 3 + 3 + 3  # test seeds, twins, and those of the arm that differs in its rate alone
    begun_again = sum(map(attempts, members)) - len(members)
    assert 0 <= begun_again <= len(killed)  # at most those that were under way when the workers died
    assert shown[-1] == (12, 12) and code == 1  # the failures are told by the exit code


def test_diverged_and_failed_arms_are_reported_as_what_they_are(pooled):
    data = pooled[4]
    states = {arm["arm"]: {member["state"] for member in arm["members"]} for arm in data["arms"]}
    assert states == {"base": {"done"}, "hot": {"diverged"}, "lost": {"failed"}}
    assert {k: data["progress"][k] for k in ("planned", "done", "diverged", "failed", "missing")} == {
        "planned": 12, "done": 6, "diverged": 3, "failed": 3, "missing": 0,
    }  # fmt: skip
    hot, lost = data["arms"][1]["members"], data["arms"][2]["members"]
    assert all(member["diverged_at"] and not member["metrics"] for member in hot)
    assert all("missing.txt' matches no file" in member["error"] for member in lost)


def test_finished_jobs_start_nothing(pooled, monkeypatch, capfd):
    folder = pooled[0]
    monkeypatch.chdir(folder)
    monkeypatch.setattr("ablations.catalog._folder", folder / "configs")
    monkeypatch.setattr(runner.subprocess, "Popen", None)
    assert Pool(2, silent).run(jobs.collect(["tiny"], "tiny", Path("runs"))) == 1
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 3 and all(line.startswith("tiny/lost lr0.01-s") and "--retry-failed" in line for line in said)


@pytest.mark.parametrize(("workers", "started"), [(1, 1), (3, 3), (9, 6)])
def test_workers_without_an_arm_of_their_own_share_one(tmp_path, configs, monkeypatch, workers, started):
    """As many as there are members that nobody trains; those of a population are left to one process."""
    write_config(configs, ablation("no.txt", rates=(1e-2,), seeds=6))
    job = jobs.collect(["tiny"], "tiny", tmp_path / "runs")[1]
    assert started_at_once(job, monkeypatch, workers) == started
    population = replace(job.cell.config, {"execution": "population"})
    cells = tuple(dataclasses.replace(cell, config=population) for cell in job.cells)
    together = dataclasses.replace(job, cells=cells, directory=tmp_path / "runs" / "together")
    assert started_at_once(together, monkeypatch, workers) == 1


def test_workers_of_one_arm_that_all_die_are_not_started_for_ever(job, monkeypatch, capfd):
    """However they overlap: what counts is how many the arm lost."""
    started = with_worker(monkeypatch, "import os, time; time.sleep(0.2 + os.getpid() % 7 / 5); raise SystemExit(1)")
    assert Pool(3, silent).run([job]) == 1
    assert len(started) <= 3 + RESTARTS
    assert "the others of this arm go on" in capfd.readouterr().err


@pytest.mark.parametrize(("usable", "workers"), [({3}, 1), ({0, 5, 6}, 3), (set(range(64)), 8)])
def test_a_worker_for_every_core_that_may_be_used(monkeypatch, usable, workers):
    """Of a container or a job on a shared machine these are few."""
    monkeypatch.setattr(runner, "_accelerated", lambda: False)
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda pid: usable, raising=False)
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 64)
    assert runner.default_workers() == workers
    assert all(Pool(workers, print).shares)


def test_a_helper_that_dies_spoils_nothing(tmp_path, configs, monkeypatch, capfd):
    """The arm is finished by the worker that is left: that is success."""
    write_config(configs, ablation("no.txt", rates=(1e-2,)))
    job = jobs.collect(["tiny"], "tiny", tmp_path / "runs")[1]
    real, started = subprocess.Popen, []

    def popen(command, **named):
        started.append(command)
        code = "import time; time.sleep(3)" if len(started) == 1 else "raise SystemExit(9)"
        return real([sys.executable, "-S", "-c", code], **named)

    def progress(*_):
        if len(started) == 2 and len(pool.running) == 1:
            fill(tmp_path / "runs", job.cell, lambda member: 2.0)

    monkeypatch.setattr(runner.subprocess, "Popen", popen)
    pool = Pool(2, progress)
    assert pool.run([job]) == 0 and len(started) == 2
    assert "ended with code 9" in capfd.readouterr().err


def test_only_the_first_worker_of_an_arm_forgets_what_failed(tmp_path, configs, monkeypatch):
    made = ablation("no.txt", rates=(1e-2,), seeds=4)
    write_config(configs, made)
    job = jobs.collect(["tiny"], "tiny", tmp_path / "runs")[1]
    real, commands = subprocess.Popen, []

    def popen(command, **named):
        commands.append(command)
        return real([sys.executable, "-S", "-c", "import time; time.sleep(60)"], **named)

    monkeypatch.setattr(runner.subprocess, "Popen", popen)
    assert Pool(3, lambda *_: os.kill(os.getpid(), signal.SIGINT), retry_failed=True).run([job]) == 130
    assert ["--retry-failed" in command for command in commands] == [True, False, False]


def started_at_once(job, monkeypatch, workers):
    """How many processes a pool has running before any member has ended."""
    with_worker(monkeypatch, "import time; time.sleep(60)")
    most = []

    def progress(*_):
        most.append(len(pool.running))
        os.kill(os.getpid(), signal.SIGINT)

    pool = Pool(workers, progress)
    assert pool.run([job]) == 130
    return most[0]


# --- Workers that die, and users who stop ------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path, configs):
    write_config(configs, ablation("no.txt"))
    return jobs.collect(["tiny"], "tiny", tmp_path / "runs")[0]


def with_worker(monkeypatch, code: str) -> list[int]:
    """Makes every worker a process that runs `code`; returns the list that counts them."""
    real, started = subprocess.Popen, []

    def popen(command, **named):
        started.append(1)
        return real([sys.executable, "-S", "-c", code], **named)

    monkeypatch.setattr(runner.subprocess, "Popen", popen)
    return started


@pytest.mark.parametrize(("code", "starts"), [(1, 1 + RESTARTS), (75, 1 + RESTARTS), (0, 1 + RESTARTS), (2, 1)])
def test_a_worker_that_never_gets_on_is_given_up(job, monkeypatch, capfd, code, starts):
    started = with_worker(monkeypatch, f"print('what went wrong'); raise SystemExit({code})")
    assert Pool(1, silent).run([job]) == 1
    assert len(started) == starts
    assert f"tiny/base: the worker ended with code {code}: what went wrong" in capfd.readouterr().err


def test_an_interrupt_stops_workers_and_starts_no_others(job, monkeypatch):
    started = with_worker(monkeypatch, "import time; time.sleep(60)")
    asked = []

    def progress(*_):
        if not asked:
            asked.append(os.kill(os.getpid(), signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    pool = Pool(1, progress)
    assert pool.run([job, job]) == 130 and len(started) == 1
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_interrupt_does_not_wait(job, monkeypatch):
    with_worker(
        monkeypatch, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(60)"
    )

    def progress(*_):
        log = job.directory / "worker.log"
        if log.is_file():
            os.kill(os.getpid(), signal.SIGINT)

    assert Pool(1, progress).run([job]) == 130


def test_retries_start_only_where_something_failed(tmp_path, configs, monkeypatch):
    made = ablation("no.txt", rates=(1e-2,))
    write_config(configs, made)
    good, bad = jobs.collect(["tiny"], "tiny", tmp_path / "runs")
    fill(tmp_path / "runs", good.cell, lambda member: 2.0)
    fill(tmp_path / "runs", bad.cell, lambda member: 2.0, state="failed", error="out of memory")
    started = with_worker(monkeypatch, "raise SystemExit(0)")
    assert Pool(2, silent).run([good, bad]) == 1 and not started
    assert Pool(2, silent, retry_failed=True).run([good, bad]) == 1 and len(started) == 1


def test_a_worker_ends_with_the_driver_that_started_it(job):
    job.write()
    command = [sys.executable, "-m", "ablations.worker", f"--arm={job.directory}", "--parent=999999999"]
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == 75
    assert not list(job.directory.glob("lr*"))


def test_the_cores_are_shared_out():
    cores = sorted(os.sched_getaffinity(0))
    shares = [{int(cpu) for cpu in share.split(",")} for share in Pool(len(cores), silent).shares]
    assert sorted(cpu for share in shares for cpu in share) == cores and all(len(share) == 1 for share in shares)
    assert Pool(len(cores) + 1, silent).shares == [""] * (len(cores) + 1)  # too many: none is pinned
    with pytest.raises(UserError, match="--workers=-1 must be at least 1"):
        Pool(-1, silent)


def test_what_the_worker_is_told_is_on_disk(job):
    job.write()
    assert jobs.read(job.directory) == job
    stored = json.loads((job.directory / jobs.ARM).read_text())
    assert stored["hash"] == job.cell.hash and stored["config"]["data"]["path"] == "no.txt"
