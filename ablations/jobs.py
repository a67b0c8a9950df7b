"""One arm to finish, with everything the ablations that contain it ask of it. `arm.json` is what a worker reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ablations import catalog, store
from ablations.cells import ArmCell, Member, cells
from ablations.schema import Ablation, Profile
from ablations.store import Record
from transformer.config import resolve, to_dict
from transformer.errors import UserError
from transformer.numerics import trains_together
from transformer.training.jsonfiles import read_json, write_json

ARM = "arm.json"


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
      ended: members needed that have a record.
      known: members needed in all, as far as is known before the learning rate is chosen.
      todo: members that can be trained now.
    """

    ended: int
    known: int
    todo: int


@dataclasses.dataclass(frozen=True)
class Job:
    """One arm to finish.

    Attributes:
      cells: the arm as each ablation that shares it asks for it: same config, perhaps other seeds or rates.
      contrasts: `ablation:claim:hash` of everything registered that reads it.
      probes: what is measured on its members beside the loss.
    """

    directory: Path
    cells: tuple[ArmCell, ...]
    contrasts: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()

    @property
    def cell(self) -> ArmCell:
        """The first ablation's view, which gives config and names."""
        return self.cells[0]

    @property
    def is_population(self) -> bool:
        """Whether its members are trained together, by one process."""
        return trains_together(self.cell.config)

    def todo(self, records: Mapping[Member, Record]) -> list[Member]:
        """Members that can be trained now, in order; then those that were trained when fewer probes were asked."""
        missing = (member for cell in self.cells for member in store.todo(cell, records))
        return list(dict.fromkeys((*missing, *self._unprobed(records))))

    def _unprobed(self, records: Mapping[Member, Record]) -> list[Member]:
        """Members that another question trained, whose weights are here but who lack what a probe measures."""
        if not self.probes:
            return []
        from ablations.probes import PROBES

        def lacks(probe: str, record: Record) -> bool:
            return probe not in record.probes and not PROBES[probe].traits <= record.metrics.keys()

        return [
            member
            for member, record in sorted(records.items())
            if record.state == "done"
            and not member.is_tuning
            and any(lacks(probe, record) for probe in self.probes)
            and (self.directory / member.name / "checkpoints").is_dir()
        ]

    def progress(self) -> Progress:
        """How far it is on disk."""
        records, _ = store.read_arm(self.directory)
        scored = [(cell, store.scores(records, cell.metric)) for cell in self.cells]
        needed = {member for cell, scores in scored for member in cell.members(scores)}
        expected = sum(cell.planned(scores) - len(cell.members(scores)) for cell, scores in scored)
        ended = sum(member in records for member in needed)
        return Progress(ended, len(needed) + expected, len(self.todo(records)))

    def failed(self) -> dict[Member, Record]:
        """Members that failed, which are trained again only on request."""
        return {m: r for m, r in store.read_arm(self.directory)[0].items() if r.state == "failed"}

    def write(self) -> None:
        """Stores it in its directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        content = {
            "hash": self.cell.hash,
            "config": to_dict(self.cell.config),
            "cells": [
                {field.name: getattr(cell, field.name) for field in dataclasses.fields(cell) if field.name != "config"}
                | {"settings": dataclasses.asdict(cell.settings)}
                for cell in self.cells
            ],
            "contrasts": self.contrasts,
            "probes": self.probes,
        }
        write_json(self.directory / ARM, content)


def read(directory: Path) -> Job:
    """The job stored in an arm's directory.

    Raises:
      UserError: there is none.
    """
    if not (directory / ARM).is_file():
        raise UserError(f"{directory} holds no {ARM}: give the directory of an arm, as `run` makes it.")
    content = read_json(directory / ARM)
    config = resolve(content["config"])
    views = [{**view, "config": config, "settings": _profile(view["settings"])} for view in content["cells"]]
    found = tuple(ArmCell(**view) for view in views)
    return Job(directory, found, tuple(content["contrasts"]), tuple(content["probes"]))


def collect(names: Iterable[str], profile: str, runs: Path) -> list[Job]:
    """One job per different arm: what several ablations share is trained once."""
    return of_cells((cell for name in names for cell in cells(name, catalog.load(name), profile)), runs)


def of_cells(asked: Iterable[ArmCell], runs: Path) -> list[Job]:
    """One job per different arm among cells. Their directories are made, one after another, so that commands started
    at the same time find the same one for an arm that they share."""
    jobs: dict[str, Job] = {}
    runs.mkdir(parents=True, exist_ok=True)
    for cell in asked:
        ablation = catalog.load(cell.ablation)
        with store.locked(runs / "lock"):
            directory = cell.directory(runs)
            directory.mkdir(exist_ok=True)
        known = jobs.get(cell.hash, Job(directory, ()))
        jobs[cell.hash] = Job(
            known.directory,
            (*known.cells, cell),
            tuple(dict.fromkeys((*known.contrasts, *registered(cell.ablation, ablation)))),
            tuple(dict.fromkeys((*known.probes, *ablation.probes))),
        )
    return list(jobs.values())


def registered(name: str, ablation: Ablation) -> tuple[str, ...]:
    """`ablation:claim:hash` of every contrast, as records keep them."""
    return tuple(f"{name}:{contrast.claim}:{contrast.hash}" for contrast in ablation.contrasts)


def _profile(settings: Mapping[str, Any]) -> Profile:
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    return Profile(**plain)
