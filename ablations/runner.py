"""A local pool of workers over the arms that are not finished; where no arm is left to begin, workers share one. Kill
anything; the same command goes on."""

from __future__ import annotations

import collections
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ablations.jobs import Job, Progress
from ablations.store import RECORD
from transformer.errors import UserError
from transformer.training.interrupts import STOPPED_BY_USER

RESTARTS = 2  # how often an arm's last worker, when it died, is started again before the arm is left unfinished


@dataclasses.dataclass
class _Worker:
    job: Job
    process: subprocess.Popen
    cpus: str


class Pool:
    """Runs jobs on `workers` processes at a time.

    Args:
      workers: processes; on a CPU each gets its own share of the cores.
      progress: called about three times a second with (ended members, known members, running labels).
      retry_failed: train failed members again.

    Raises:
      UserError: fewer than one worker.
    """

    def __init__(self, workers: int, progress: Callable[[int, int, list[str]], None], retry_failed: bool = False):
        if workers < 1:
            raise UserError(f"--workers={workers} must be at least 1, or 0 for one per core.")
        cores = _cores()
        self.shares = [",".join(map(str, cores[i::workers])) if len(cores) >= workers else "" for i in range(workers)]
        self.progress, self.retry_failed = progress, retry_failed
        self.running: list[_Worker] = []
        self.stopping = False
        self._known: dict[Path, tuple[int, Progress]] = {}
        self._deaths: collections.Counter[Path] = collections.Counter()

    def run(self, jobs: Sequence[Job]) -> int:
        """Finishes all jobs.

        Returns:
          0, or 130 if the user stopped it, or 1 if an arm could not be finished or a member of it failed.
        """
        for job in jobs:
            job.write()
        waiting = [job for job in jobs if job.progress().todo or (self.retry_failed and job.failed())]
        previous = {n: signal.signal(n, self._stop) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            while waiting or self.running:
                while len(self.running) < len(self.shares) and not self.stopping:
                    if (following := self._next(waiting)) is None:
                        break
                    self._start(following)
                for worker in list(self.running):
                    self._check(worker)
                self._report(jobs)
                if self.stopping and not self.running:
                    return STOPPED_BY_USER
                time.sleep(0.3)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        self._report(jobs)
        unfinished = sum(job.progress().todo > 0 for job in jobs)
        return 1 if unfinished + sum(map(_tell_failures, jobs)) else 0

    def _next(self, waiting: list[Job]) -> Job | None:
        """The next arm; where none waits, the one with the most members that nobody trains yet, if there is any. An
        arm that lost a worker, perhaps for want of memory, gets no second one."""
        if waiting:
            return waiting.pop(0)
        under_way = {worker.job.directory: worker.job for worker in self.running if not worker.job.is_population}
        spare = {
            path: self._progress(job).todo - self._workers(job)
            for path, job in under_way.items()
            if not self._deaths[path]
        }
        most = max(spare, key=spare.__getitem__, default=None)
        return under_way[most] if most is not None and spare[most] > 0 else None

    def _workers(self, job: Job) -> int:
        return sum(worker.job.directory == job.directory for worker in self.running)

    def _start(self, job: Job) -> None:
        taken = {worker.cpus for worker in self.running}
        cpus = next((share for share in self.shares if share not in taken), "")
        command = [sys.executable, "-m", "ablations.worker", f"--arm={job.directory.resolve()}"]
        command += [f"--cpus={cpus}", f"--parent={os.getpid()}"]
        if self.retry_failed and not self._workers(job) and not self._deaths[job.directory]:
            command.append("--retry-failed")
        with open(job.directory / "worker.log", "a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=_environment())
        self.running.append(_Worker(job, process, cpus))

    def _check(self, worker: _Worker) -> None:
        """Handles a worker that ended: one that died is started again if it was alone with its arm."""
        code = worker.process.poll()
        if code is None:
            return
        self.running.remove(worker)
        job = worker.job
        if self.stopping or (code == 0 and not job.progress().todo):
            return
        self._deaths[job.directory] += 1
        alone = not self._workers(job)
        if alone and self._deaths[job.directory] <= RESTARTS and code != 2:
            job.write()  # another driver that shares the arm may have written what it asks of it
            self._start(job)
            return
        tail = (job.directory / "worker.log").read_text(errors="replace").strip().splitlines()[-1:]
        left = "" if alone else " (the others of this arm go on)"
        print(f"{job.cell.label}: the worker ended with code {code}: {' '.join(tail)}{left}", file=sys.stderr)

    def _report(self, jobs: Sequence[Job]) -> None:
        found = [self._progress(job) for job in jobs]
        ended, known = sum(progress.ended for progress in found), sum(progress.known for progress in found)
        self.progress(ended, known, list(dict.fromkeys(worker.job.cell.label for worker in self.running)))

    def _progress(self, job: Job) -> Progress:
        """How far a job is; read again only when a record has come, since reading takes a core from the training."""
        records = sum(1 for _ in job.directory.glob(f"*/{RECORD}"))
        if job.directory not in self._known or self._known[job.directory][0] != records:
            self._known[job.directory] = records, job.progress()
        return self._known[job.directory][1]

    def _stop(self, number: int, frame: object) -> None:
        """Asks the workers to save and end; a second request ends them at once."""
        for worker in self.running:
            worker.process.send_signal(signal.SIGKILL if self.stopping else signal.SIGTERM)
        self.stopping = True


def _tell_failures(job: Job) -> int:
    """Names the members that failed; returns how many."""
    failed = job.failed()
    for member, record in failed.items():
        what = f"{job.cell.label} {member.name} failed: {record.error}"
        print(f"{what} (--retry-failed trains it again)", file=sys.stderr)
    return len(failed)


def default_workers() -> int:
    """One per core on a CPU, of those this process may use; one on an accelerator, which a single process fills."""
    return 1 if _accelerated() else max(1, min(len(_cores()) or os.cpu_count() or 1, 8))


def _cores() -> list[int]:
    """The cores this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def default_execution() -> str:
    """`population` where there is an accelerator for it, else `sequential`."""
    return "population" if _accelerated() else "sequential"


def _accelerated() -> bool:
    """Whether workers will find an accelerator. JAX is not asked: it would take the device's memory from them."""
    present = any(Path(p).exists() for p in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0"))
    return present and os.environ.get("JAX_PLATFORMS") != "cpu"


def _environment() -> dict[str, str]:
    """Workers find this package from whatever folder the user stands in."""
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
