"""Loss on fixed batches: the same ones for every run of a corpus, each target counted once."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from transformer.data.batching import Dataset
from transformer.errors import DataError
from transformer.schema import Config
from transformer.training.objectives import TINY
from transformer.training.step import BATCHES_PER_CALL, SECONDS_PER_CALL, EvalSums, Program, TrainState

if TYPE_CHECKING:
    from transformer.training.population import Population


def evaluate(
    program: Program, state: TrainState, dataset: Dataset, split: str, max_tokens: int | None = None
) -> dict[str, Any]:
    """Means over the batches of a split, each target weighing what its batch says.

    Args:
      max_tokens: evaluate only about that many leading tokens; None for all.

    Returns:
      `loss` (nats per target), `accuracy`, `exact_match` (rows all of whose targets are right), `eval_tokens`
      (targets), `loss_by_position` and `accuracy_by_position` (lists); `bits_per_byte` where targets are text and
      `pad_share` where there is padding.

    Raises:
      DataError: no target counts.
    """
    (result,) = add_up(program, state, dataset, split, max_tokens).means()
    return result


@dataclasses.dataclass(frozen=True)
class Sums:
    """What the first batches of a split add up to, in float64.

    Attributes:
      batches: how many there were.
      totals: of one member, or of the members of a population.
    """

    batches: int
    totals: EvalSums

    def means(self) -> list[dict[str, Any]]:
        """What `evaluate` returns, for every member of a population; a program for one member gives a list of one."""
        if self.totals.rows.ndim == 0:
            return [_means(self.totals)]
        return [_means(EvalSums(*sums)) for sums in zip(*self.totals, strict=True)]


def add_up(
    program: Program | Population,
    state: TrainState,
    dataset: Dataset,
    split: str,
    max_tokens: int | None = None,
    begun: Sums | None = None,
) -> Sums:
    """Sums over the batches of a split.

    Args:
      max_tokens: as for `evaluate`.
      begun: sums of its first batches for the same state, which are not computed again.
    """
    batch_size = rows_per_batch(program.config)
    done = begun.batches if begun else 0
    totals: Any = begun.totals if begun else None
    batches, size = itertools.islice(dataset.batches(split, batch_size, max_tokens), done, None), 1
    while group := list(itertools.islice(batches, size)):
        started = time.perf_counter()
        filled = [*group, *[group[-1]] * (BATCHES_PER_CALL - len(group))]
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *filled)
        first_rows = ((done + np.arange(BATCHES_PER_CALL)) * batch_size).astype(np.int32)
        found = program.evaluate(state, stacked, first_rows, np.int32(len(group)))
        for sums in zip(*[np.asarray(x, np.float64)[: len(group)] for x in found], strict=True):
            totals = EvalSums(*sums) if totals is None else EvalSums(*map(np.add, totals, sums))
        done += len(group)
        seconds = (time.perf_counter() - started) / len(group)
        size = max(1, min(BATCHES_PER_CALL, int(SECONDS_PER_CALL / seconds)))
    return Sums(done, totals)


def whole_batches(config: Config, dataset: Dataset, max_tokens: int) -> bool:
    """Whether a subset of so many tokens ends with a batch, so that its sums begin those of the whole split."""
    return max_tokens % (rows_per_batch(config) * dataset.layout.positions) == 0


def rows_per_batch(config: Config) -> int:
    """Rows of an evaluation batch."""
    return config.eval.batch_size or config.train.batch_size


def _means(total: EvalSums) -> dict[str, Any]:
    nll, count = float(total.nll_T.sum()), float(total.weight_T.sum())
    if not count:
        raise DataError(
            "No row of this evaluation has a target that counts; make the rows longer, or take more of them."
        )
    by_position = np.maximum(total.weight_T, TINY)
    result = {
        "loss": nll / count,
        "accuracy": float(total.correct_T.sum()) / count,
        "exact_match": float(total.exact / total.rows),
        "eval_tokens": round(count),
        "loss_by_position": (total.nll_T / by_position).tolist(),
        "accuracy_by_position": (total.correct_T / by_position).tolist(),
    }
    if total.bytes:
        result["bits_per_byte"] = nll / math.log(2) / float(total.bytes)
    if total.padding:
        result["pad_share"] = float(total.padding / total.positions)
    return result
