"""Trains the members of one arm, one after another, in one process that compiles once.

    python -m ablations.worker --arm=DIRECTORY [--cpus=0,1]

This command is the only unit of work: the local pool starts it, and any other scheduler can. Exit codes: 0 all members
ended (diverged ones too), 75 preempted, 130 stopped by the user; both are resumed by the same command.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import fcntl
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablations import store
from ablations.cells import ArmCell, Member
from ablations.schema import Profile
from transformer.config import resolve, to_dict
from transformer.errors import UserError
from transformer.training.jsonfiles import read_json, write_json

ARM = "arm.json"
FAILED = 1


def write_arm(directory: Path, cell: ArmCell, contrasts: tuple[str, ...], probes: tuple[str, ...]) -> None:
    """Stores what a worker needs to know about an arm."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        **{f.name: getattr(cell, f.name) for f in dataclasses.fields(cell) if f.name not in ("config", "settings")},
        "config": to_dict(cell.config),
        "settings": dataclasses.asdict(cell.settings),
        "contrasts": contrasts,
        "probes": probes,
        "hash": cell.hash,
    }
    write_json(directory / ARM, content)


def read_arm(directory: Path) -> tuple[ArmCell, tuple[str, ...], tuple[str, ...]]:
    """(arm, contrasts registered for it, probes)."""
    content = read_json(directory / ARM)
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.pop("settings").items()}
    contrasts, probes = tuple(content.pop("contrasts")), tuple(content.pop("probes"))
    content.pop("hash")
    config = resolve(content.pop("config"))
    return ArmCell(config=config, settings=Profile(**settings), **content), contrasts, probes


def run_arm(directory: Path, retry_failed: bool = False) -> int:
    """Trains every member the arm still needs; returns an exit code."""
    with _locked(directory):
        cell, contrasts, probes = read_arm(directory)
        if retry_failed:
            for member, record in store.read_arm(directory)[0].items():
                if record.state == "failed":
                    shutil.rmtree(directory / member.name)
        arm = _Arm(directory, cell, contrasts, probes)
        while True:
            records, _ = store.read_arm(directory)
            todo = [m for m in cell.members(store.scores(records)) if m not in records]
            if not todo:
                return 0
            code = arm.train(todo[0])
            if code is not None:
                return code


class _Arm:
    """One compiled arm."""

    def __init__(self, directory: Path, cell: ArmCell, contrasts: tuple[str, ...], probes: tuple[str, ...]):
        self.directory, self.cell, self.contrasts, self.probes = directory, cell, contrasts, probes
        self.program: Any = None
        self.dataset: Any = None

    def train(self, member: Member) -> int | None:
        """Trains one member to its record; returns an exit code if the process was asked to stop."""
        from transformer.training.interrupts import PREEMPTED, STOPPED_BY_USER

        path = self.directory / member.name
        try:
            outcome = self._run(member, path)
        except KeyboardInterrupt:
            return STOPPED_BY_USER
        except Exception as error:  # a failing member must not take its neighbours with it
            path.mkdir(parents=True, exist_ok=True)
            (path / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            line = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            record = store.Record(member, "failed", self.cell.hash, error=line[:500], contrasts=self.contrasts)
            store.write_record(path, record)
            return None
        if outcome.state == "preempted":
            return PREEMPTED
        if outcome.state == "interrupted":
            return STOPPED_BY_USER
        return None

    def _run(self, member: Member, path: Path) -> Any:
        from transformer.data import dataset as datasets
        from transformer.training.run import make_program, train

        config = member.config(self.cell.config)
        if self.program is None:
            self.dataset = datasets.load(config.data)
            self.program = make_program(config, self.dataset)
        outcome = train(
            config,
            path,
            name=self.cell.ablation,
            arm=self.cell.arm,
            quiet=True,
            program=self.program,
            dataset=self.dataset,
        )
        if outcome.state in ("done", "diverged"):
            store.write_record(path, self._record(member, path, outcome))
            if outcome.state == "done" and member.is_tuning:
                shutil.rmtree(path / "checkpoints", ignore_errors=True)  # nothing reads a tuning run's weights
        return outcome

    def _record(self, member: Member, path: Path, outcome: Any) -> store.Record:
        from ablations import probes
        from transformer.analysis import accounting
        from transformer.training.run import load
        from transformer.training.run_directory import read_rows

        config = member.config(self.cell.config)
        rows = read_rows(path)
        summary = outcome.summary
        validation, train_rows = ([r for r in rows if r["split"] == split] for split in ("validation", "train"))
        metrics: dict[str, float | None] = {}
        if outcome.state == "done":
            metrics = {
                "loss": summary.get("test_loss", summary.get("validation_loss")),
                "validation_loss": summary.get("validation_loss"),
            }
            if self.probes and not member.is_tuning:
                state = load(path, program=self.program).state
                metrics |= probes.measure(
                    self.probes, config=config, program=self.program, state=state, dataset=self.dataset
                )
        return store.Record(
            member,
            outcome.state,
            self.cell.hash,
            metrics=metrics,
            tuning_value=metrics.get("validation_loss"),
            initial=summary.get("initial_loss"),
            diverged_at=summary.get("diverged_at"),
            parameters=sum(accounting.parameters_by_component(self.program.abstract_state.params).values()),
            components=accounting.parameters_by_component(self.program.abstract_state.params),
            flops_per_token=accounting.train_flops_per_token(config, self.program.abstract_state.params),
            tokens=train_rows[-1]["tokens"] if train_rows else 0,
            seconds=summary.get("training_seconds", 0.0),
            curve=store.thin([(r["tokens"], r["loss"]) for r in validation if not r.get("final")]),
            train_curve=store.thin([(r["tokens"], r["loss"], r["grad_norm"]) for r in train_rows]),
            references=self.dataset.bounds("validation"),
            fingerprint=self.dataset.fingerprint,
            contrasts=self.contrasts,
            environment=_environment(path),
        )


def _environment(path: Path) -> dict[str, Any]:
    """The part of env.json that a reader of the verdict needs."""
    env = read_json(path / "env.json")
    return {name: env[name] for name in ("python", "packages", "platform", "device", "devices", "git") if name in env}


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the arm for the life of the worker; waits while another worker finishes it."""
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _die_with_parent() -> None:
    """Asks Linux for a SIGTERM when the driver is killed, so that no orphan trains on unseen."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ablations.worker", description=__doc__)
    parser.add_argument("--arm", required=True, type=Path, help="directory that holds arm.json")
    parser.add_argument("--cpus", default="", help="cores to run on, such as 0,1; default: all")
    parser.add_argument("--retry-failed", action="store_true", help="train failed members again")
    arguments = parser.parse_args()
    _die_with_parent()
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
