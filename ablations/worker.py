"""Trains the members of one arm, one after another or together, in one process that compiles once.

    python -m ablations.worker --arm=DIRECTORY [--cpus=0,1]

This command is the only unit of work: the local pool starts it, and any other scheduler can. Several may work at one
arm, each on a member of its own. Exit codes: 0 all members ended (diverged and failed ones too), 75 preempted, 130
stopped by the user, 2 an error that it names; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import math
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations import jobs, store
from ablations.cells import Member
from ablations.jobs import Job
from ablations.schema import PERCENT
from transformer.errors import ConfigError, UserError
from transformer.training.interrupts import PREEMPTED, STOPPED_BY_USER
from transformer.training.jsonfiles import read_json, write_json

REGISTERED = "registered.json"
SHARED = "population"  # where a population's checkpoint lies, in the arm's directory
FINAL = ("loss", *PERCENT)  # of a final evaluation; a probe measures anything else
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")  # env.json has them all


def run_arm(directory: Path, retry_failed: bool = False) -> int:
    """Trains every member the arm still needs; returns an exit code.

    Raises:
      UserError: the directory holds no arm.
    """
    job = jobs.read(directory)
    arm = _Arm(job)
    with _Requests() as requests, store.locked(directory / "lock", shared=not job.is_population):
        if retry_failed:
            arm.forget_failed()
        while todo := arm.todo():
            with contextlib.nullcontext(todo) if job.is_population else arm.claim(todo) as mine:
                code = arm.train(mine) if mine else None
            if code := code or requests.exit_code():
                return code
    return 0


_CODES: dict[int, int] = {
    signal.SIGINT: STOPPED_BY_USER,
    signal.SIGTERM: PREEMPTED,
    signal.SIGUSR1: PREEMPTED,
    signal.SIGUSR2: PREEMPTED,
}


class _Requests:
    """Requests to stop. Between two runs they end the process at once; a run saves itself first.

    A run that is past saving, in its last evaluation, ends as if nothing had been asked; the request is kept here.
    """

    def __enter__(self) -> _Requests:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._read, self._write = os.pipe()
            os.set_blocking(self._read, False)
            os.set_blocking(self._write, False)
            # Python writes the number of every signal here, whoever handles it.
            self._previous_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._previous = {number: signal.signal(number, self._end) for number in _CODES}
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._previous_fd)
            os.close(self._read)
            os.close(self._write)

    def exit_code(self) -> int | None:
        """The exit code of a request that came during a run; None if there was none."""
        with contextlib.suppress(BlockingIOError):
            numbers = os.read(self._read, 4096) if self._main else b""
            return max((_CODES[number] for number in numbers if number in _CODES), default=None)
        return None

    def _end(self, number: int, frame: object) -> None:
        sys.exit(_CODES[number])


class Postponed(UserError):
    """What was begun cannot go on now; nothing of it is lost, and the same command takes it up again."""


class _Arm:
    """One compiled arm."""

    def __init__(self, job: Job):
        self.job = job
        self.program: Any = None
        self.dataset: Any = None

    def todo(self) -> list[Member]:
        """The members that have no record and can be trained now."""
        return self.job.todo(store.read_arm(self.job.directory)[0])

    @contextlib.contextmanager
    def claim(self, todo: Sequence[Member]) -> Iterator[list[Member]]:
        """Holds the first member that no other worker trains.

        Where all are taken it waits until the first of them is free, and gives none: what is to do has to be looked up
        again. So it does where another worker finished the member before it was held.
        """
        for member in todo:
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(self._held(member, wait=False))
                except BlockingIOError:
                    continue
                yield [member] if member in self.todo() else []
                return
        with self._held(todo[0]):
            yield []

    def forget_failed(self) -> None:
        """Deletes the failed runs, so that they are trained again; one that another worker has begun again stays. The
        checkpoint of a population they were part of goes with them. Of a run that ended well and failed when it was
        measured, the record goes alone."""
        shared = self.job.directory / SHARED
        for member in self.job.failed():
            with contextlib.suppress(BlockingIOError), self._held(member, wait=False):
                if member in self.job.failed() and self._ended(member) is not None:
                    for name in (store.RECORD, "error.txt"):
                        (self.job.directory / member.name / name).unlink(missing_ok=True)
                elif member in self.job.failed():
                    shutil.rmtree(self.job.directory / member.name)
                    if member.name in self._begun():
                        shutil.rmtree(shared)

    def _held(self, member: Member, wait: bool = True) -> contextlib.AbstractContextManager[None]:
        folder = self.job.directory / "claims"
        folder.mkdir(exist_ok=True)
        return store.locked(folder / member.name, wait=wait)

    def train(self, todo: list[Member]) -> int | None:
        """Trains the next member, or the next ones together, to their records.

        Returns:
          An exit code if the process was asked to stop.

        Raises:
          Postponed: memory does not hold what was begun.
        """
        group = todo[:1]
        try:
            self._prepare(group[0])
            group = self._together(todo) if self.job.is_population else group
            contrasts = [self._registered(member) for member in group]
            outcomes = self._run(group)
        except Postponed:
            raise
        except Exception as error:  # a failing member must not take its neighbours with it
            for member in group:
                if (ended := self._ended(member)) is None:
                    self._failed(member, error)
                else:  # of a population that broke later
                    self._conclude(member, ended, self._registered(member))
            return None
        for member, outcome, registered in zip(group, outcomes, contrasts, strict=True):
            self._conclude(member, outcome, registered)
        asked = {outcome.exit_code for outcome in outcomes} & {PREEMPTED, STOPPED_BY_USER}
        return max(asked, default=None)

    def _ended(self, member: Member) -> Any:
        """How a member ended that is done or diverged; None for others."""
        from transformer.training.member import Outcome
        from transformer.training.run_directory import FINISHED, read_status

        path = self.job.directory / member.name
        status = read_status(path)
        return Outcome(status["state"], status, path) if status["state"] in FINISHED else None

    def _conclude(self, member: Member, outcome: Any, contrasts: tuple[str, ...]) -> None:
        """The record of a member that ended."""
        path = self.job.directory / member.name
        if outcome.state not in ("done", "diverged"):
            return
        try:
            store.write_record(path, self._record(member, path, outcome, contrasts))
        except Exception as error:
            self._failed(member, error)
            return
        if member.is_tuning:
            shutil.rmtree(path / "checkpoints", ignore_errors=True)  # nothing reads a tuning run's weights

    def _failed(self, member: Member, error: Exception) -> None:
        """The record of a member that could not be trained."""
        contrasts = self._registered(member)
        text = "".join(traceback.format_exception(error))
        (self.job.directory / member.name / "error.txt").write_text(text, encoding="utf-8")
        line = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        record = store.Record(member, "failed", self.job.cell.hash, error=line[:500], contrasts=contrasts)
        store.write_record(self.job.directory / member.name, record)

    def _together(self, todo: list[Member]) -> list[Member]:
        """The members of a population that was begun and not ended, or as many of those to do as memory holds."""
        from transformer.training.population import members_that_fit

        known = {member.name: member for member in [*todo, *store.read_arm(self.job.directory)[0]]}
        begun, fitting = [known.get(name) for name in self._begun()], members_that_fit(self.program)
        if None not in begun and set(begun) & set(todo):  # else it failed, or belongs to another config
            if len(begun) > fitting:
                raise Postponed(
                    f"{self.job.cell.label} was begun as a population of {len(begun)} members, but the free memory "
                    f"holds {fitting} of them; free some and run the same command again, which goes on where it was."
                )
            return [member for member in begun if member]
        shutil.rmtree(self.job.directory / SHARED, ignore_errors=True)
        return todo[: max(1, fitting)]

    def _begun(self) -> list[str]:
        """Names of the members of the population that was begun and not ended."""
        from transformer.training.population import pending

        return pending(self.job.directory / SHARED)

    def _registered(self, member: Member) -> tuple[str, ...]:
        """What was registered when this member's training began; kept, so that a later edit shows."""
        path = self.job.directory / member.name
        if not (path / REGISTERED).is_file():
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / REGISTERED, self.job.contrasts)
        return tuple(read_json(path / REGISTERED))

    def _prepare(self, member: Member) -> None:
        """Loads the corpus and makes the program, once."""
        from transformer.training.run import load_dataset, make_program

        if self.program is None:
            config = member.config(self.job.cell.config)
            self.dataset = load_dataset(config)
            self.program = make_program(config, self.dataset)

    def _run(self, group: list[Member]) -> list[Any]:
        """Trains one member, or several as a population."""
        from transformer.training import population, run

        configs = [member.config(self.job.cell.config) for member in group]
        paths = [self.job.directory / member.name for member in group]
        shared: dict[str, Any] = {"name": self.job.cell.ablation, "arm": self.job.cell.arm, "quiet": True}
        shared |= {"program": self.program, "dataset": self.dataset}
        if self.job.is_population:
            return population.train_population(configs, paths, self.job.directory / SHARED, **shared)
        return [run.train(config, path, **shared) for config, path in zip(configs, paths, strict=True)]

    def _record(self, member: Member, path: Path, outcome: Any, contrasts: tuple[str, ...]) -> store.Record:
        from transformer.analysis import accounting
        from transformer.training.run_directory import read_rows

        params = self.program.abstract_state.params
        components = accounting.parameters_by_component(params)
        rows, summary = read_rows(path), outcome.summary
        validation, train_rows = ([r for r in rows if r["split"] == split] for split in ("validation", "train"))
        return store.Record(
            member,
            outcome.state,
            self.job.cell.hash,
            metrics=self._metrics(member, path, rows) if outcome.state == "done" else {},
            initial=_finite(summary.get("initial_loss")),
            diverged_at=summary.get("diverged_at"),
            parameters=sum(components.values()),
            components=components,
            flops_per_token=self._flops_per_token,
            tokens=train_rows[-1]["tokens"] if train_rows else 0,
            seconds=summary.get("training_seconds", 0.0),
            curve=_curve(validation, "loss"),
            curves={name: _curve(validation, name) for name in PERCENT if any(name in r for r in validation)},
            train_curve=store.thin([(r["tokens"], r["loss"], r["grad_norm"]) for r in train_rows]),
            references=self._references(),
            fingerprint=summary["fingerprint"],
            contrasts=contrasts,
            environment=_environment(path),
            probes=self.job.probes if outcome.state == "done" and not member.is_tuning else (),
        )

    @functools.cached_property
    def _flops_per_token(self) -> float:
        from transformer.analysis import accounting

        return accounting.train_operations(self.program).products

    def _references(self) -> dict[str, float]:
        """What simple predictors score on the split that `_metrics` is about: entropies in nats, chance in points."""
        split = "test" if "test" in self.dataset.splits else "validation"
        chance, found = self.dataset.chance(split), self.program.objective.bounds(self.dataset, split)
        found |= {} if chance is None else {"chance": chance}
        return {name: _percent(name, value) for name, value in found.items()}

    def _metrics(self, member: Member, path: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
        """The final numbers of a run that ended well: each metric on the test split, or else on validation, and as
        `validation_...`, which learning rates are chosen by."""
        from ablations import probes
        from transformer.training.run import load

        final: dict[str, dict[str, float]] = {
            row["split"]: {name: _percent(name, _number(row[name])) for name in FINAL if name in row}
            for row in rows
            if row.get("final")
        }
        validation = final.get("validation", {})
        metrics = {**validation, **final.get("test", {})} | {f"validation_{n}": v for n, v in validation.items()}
        tuned_by = {cell.metric for cell in self.job.cells}
        if self.job.probes and not (member.is_tuning and tuned_by <= metrics.keys()):
            metrics |= probes.measure(
                self.job.probes,
                config=member.config(self.job.cell.config),
                program=self.program,
                state=load(path, program=self.program).state,
                dataset=self.dataset,
            )
        if unknown := tuned_by - metrics.keys():
            listed = ", ".join(metrics) or "none, since eval.final=False"
            raise ConfigError(f"The primary metric {unknown.pop()!r} is not measured; there are: {listed}.")
        return {name: _finite(value) for name, value in metrics.items()}


def _percent(name: str, value: float) -> float:
    """Shares become points; everything else stays."""
    return 100.0 * value if name in PERCENT or name == "chance" else value


def _number(value: float | None) -> float:
    """What a file of metrics, which holds no NaN or infinity, says in its place."""
    return math.nan if value is None else value


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[tuple[float, ...], ...]:
    """(tokens, metric) during training, at most 100 points."""
    shown = (row for row in rows if row.get(name) is not None and not row.get("final"))
    return store.thin([(row["tokens"], _percent(name, row[name])) for row in shown])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _environment(path: Path) -> dict[str, Any]:
    """The part of env.json that a reader of the verdict needs."""
    env = read_json(path / "env.json")
    env["packages"] = {name: version for name, version in env["packages"].items() if name in PACKAGES}
    return {name: env[name] for name in ("python", "packages", "platform", "device", "devices", "git") if name in env}


def _end_with(parent: int) -> None:
    """Asks Linux for a SIGTERM when the driver is killed, so that no orphan trains on unseen."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it was killed before this process could ask
        sys.exit(PREEMPTED)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ablations.worker", description=__doc__)
    parser.add_argument("--arm", required=True, type=Path, help="directory that holds arm.json")
    parser.add_argument("--cpus", default="", help="cores to run on, such as 0,1; default: all")
    parser.add_argument("--retry-failed", action="store_true", help="train failed members again")
    parser.add_argument("--parent", type=int, default=0, help="end when this process, which started us, is gone")
    arguments = parser.parse_args()
    if arguments.parent:
        _end_with(arguments.parent)
    if arguments.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in arguments.cpus.split(",")})
    from transformer.platform import prepare

    prepare()
    try:
        return run_arm(arguments.arm, arguments.retry_failed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
