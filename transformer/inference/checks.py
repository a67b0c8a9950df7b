"""What `eval.py` measures on a finished run."""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

import numpy as np

from transformer.data.batching import Dataset
from transformer.errors import DataError
from transformer.registry import Registry
from transformer.training.evaluation import Sums, add_up
from transformer.training.run import LoadedRun, load_dataset

CHECKS = Registry("--checks")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run, and the split it is measured on."""

    run: LoadedRun
    dataset: Dataset
    split: str

    @functools.cached_property
    def sums(self) -> Sums:
        """Losses over the whole split, added up once for all checks."""
        return add_up(self.run.program, self.run.state, self.dataset, self.split)


def open_subject(run: LoadedRun, split: str) -> Subject:
    """Finds the corpus a run was trained on.

    Raises:
      DataError: no such split, or a vocabulary that is not the run's.
    """
    dataset = load_dataset(run.config)
    if split not in dataset.splits:
        raise DataError(f"--split={split!r} does not exist; {dataset.name} has: {', '.join(dataset.splits)}.")
    if dataset.vocabulary.to_dict() != run.vocabulary.to_dict():
        raise DataError("The corpus changed: its vocabulary is not the one this run was trained with.")
    if dataset.fingerprint != run.fingerprint:
        print(
            f"note: this is not the corpus the run was trained on: its fingerprint was {run.fingerprint} and is now "
            f"{dataset.fingerprint}; numbers measured on the two do not compare.",
            file=sys.stderr,
        )
    return Subject(run, dataset, split)


@CHECKS.register("loss")
def check_loss(subject: Subject) -> dict[str, Any]:
    """Loss and bits per byte over the whole split."""
    (result,) = subject.sums.means()
    marks = subject.run.program.objective.bounds(subject.dataset, subject.split)
    return {
        "loss": result["loss"],
        **{name: result[name] for name in ("bits_per_byte", "pad_share") if name in result},
        "accuracy": result["accuracy"],
        "tokens": result["eval_tokens"],
        **{f"{name}_entropy": nats for name, nats in marks.items()},
    }


@CHECKS.register("position")
def check_position(subject: Subject) -> dict[str, Any]:
    """Loss by position in the window, the mean over the targets of each of eight equal stretches (or fewer, for short
    windows); a stretch without targets is left out."""
    nll_T, weight_T = subject.sums.totals.nll_T, subject.sums.totals.weight_T
    parts = np.array_split(np.arange(len(nll_T)), min(8, len(nll_T)))
    return {
        f"{part[0]}-{part[-1]}": float(nll_T[part].sum() / weight_T[part].sum())
        for part in parts
        if weight_T[part].sum() > 0
    }


from transformer.inference import samples, shots, translate  # noqa: E402, F401
