"""A local pool of workers over the arms that are not finished. Kill anything; the same command goes on."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ablations import store
from ablations.cells import ArmCell
from ablations.worker import write_arm

RESTARTS = 2  # how often a worker that died is started again before its arm is left unfinished
PREEMPTED, STOPPED_BY_USER = 75, 130


@dataclasses.dataclass(frozen=True)
class Job:
    """One arm to finish, shared by every ablation that contains it.

    Attributes:
      contrasts: `ablation:claim:hash` of everything registered that reads it.
    """

    cell: ArmCell
    directory: Path
    contrasts: tuple[str, ...]
    probes: tuple[str, ...]

    def missing(self) -> int:
        """Members still to train, as far as is known before the learning rate is chosen."""
        records, _ = store.read_arm(self.directory)
        scores = store.scores(records)
        needed = self.cell.members(scores)
        missing = sum(member not in records for member in needed)
        if not any(not member.is_tuning for member in needed):  # the test seeds come once tuning is done
            missing += self.cell.settings.test_seeds * (2 if self.cell.has_twins else 1)
        return missing

    def ended(self) -> int:
        """Members with a record."""
        return len(store.read_arm(self.directory)[0])


@dataclasses.dataclass
class _Worker:
    job: Job
    process: subprocess.Popen
    cpus: str
    starts: int = 1


class Pool:
    """Runs jobs on `workers` processes at a time.

    Args:
      workers: processes; on a CPU each gets its own share of the cores.
      progress: called about twice a second with (ended members, known members, running labels).
    """

    def __init__(self, workers: int, progress: Callable[[int, int, list[str]], None], retry_failed: bool = False):
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.shares = [",".join(map(str, cores[i::workers])) if len(cores) >= workers else "" for i in range(workers)]
        self.progress, self.retry_failed = progress, retry_failed
        self.running: list[_Worker] = []
        self.stopping = False

    def run(self, jobs: Sequence[Job]) -> int:
        """Finishes all jobs; returns 0, or 130 if the user stopped it, or 1 if an arm could not be finished."""
        for job in jobs:
            write_arm(job.directory, job.cell, job.contrasts, job.probes)
        waiting = [job for job in jobs if job.missing() or self.retry_failed]
        abandoned = 0
        previous = {n: signal.signal(n, self._stop) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            while waiting or self.running:
                while waiting and len(self.running) < len(self.shares) and not self.stopping:
                    self._start(waiting.pop(0))
                for worker in list(self.running):
                    abandoned += self._check(worker)
                self._report(jobs)
                if self.stopping and not self.running:
                    return STOPPED_BY_USER
                time.sleep(0.3)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        self._report(jobs)
        return 1 if abandoned else 0

    def _start(self, job: Job, starts: int = 1) -> None:
        taken = {worker.cpus for worker in self.running}
        cpus = next((share for share in self.shares if share not in taken), "")
        command = [sys.executable, "-m", "ablations.worker", f"--arm={job.directory}", f"--cpus={cpus}"]
        if self.retry_failed and starts == 1:
            command.append("--retry-failed")
        with open(job.directory / "worker.log", "a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=_root())
        self.running.append(_Worker(job, process, cpus, starts))

    def _check(self, worker: _Worker) -> int:
        """Handles a worker that ended; returns 1 if its arm is given up."""
        code = worker.process.poll()
        if code is None:
            return 0
        self.running.remove(worker)
        if self.stopping or (code == 0 and not worker.job.missing()):
            return 0
        if worker.starts <= RESTARTS and code != 2:
            self._start(worker.job, worker.starts + 1)
            return 0
        tail = (worker.job.directory / "worker.log").read_text(errors="replace").strip().splitlines()[-1:]
        print(f"{worker.job.cell.label}: the worker ended with code {code}: {' '.join(tail)}", file=sys.stderr)
        return 1

    def _report(self, jobs: Sequence[Job]) -> None:
        ended, missing = sum(job.ended() for job in jobs), sum(job.missing() for job in jobs)
        self.progress(ended, ended + missing, [worker.job.cell.label for worker in self.running])

    def _stop(self, number: int, frame: object) -> None:
        """Asks the workers to save and end; a second request ends them at once."""
        for worker in self.running:
            worker.process.send_signal(signal.SIGKILL if self.stopping else signal.SIGTERM)
        self.stopping = True


def default_workers() -> int:
    """One per core on a CPU; one on an accelerator, which a single process fills."""
    accelerated = any(Path(p).exists() for p in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0"))
    return 1 if accelerated and os.environ.get("JAX_PLATFORMS") != "cpu" else max(1, min(os.cpu_count() or 1, 8))


def _root() -> Path:
    return Path(__file__).resolve().parents[1]
