"""Loss on fixed batches: the same ones for every run of a corpus, each target counted once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from transformer.data.batching import Dataset
from transformer.training.objectives import TINY
from transformer.training.step import EvalSums, Program, TrainState

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
    """
    (result,) = evaluate_members(program, state, dataset, split, max_tokens)
    return result


def evaluate_members(
    program: Program | Population, state: TrainState, dataset: Dataset, split: str, max_tokens: int | None = None
) -> list[dict[str, Any]]:
    """As `evaluate`, for every member of a population; a program for one member gives a list of one."""
    batch_size = program.config.eval.batch_size or program.config.train.batch_size
    totals: Any = None
    for number, batch in enumerate(dataset.batches(split, batch_size, max_tokens)):
        sums = program.evaluate(state, batch, number * batch_size)
        sums = [np.asarray(x, np.float64) for x in sums]
        totals = sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
    total = EvalSums(*totals)
    if total.rows.ndim == 0:
        return [_means(total)]
    return [_means(EvalSums(*sums)) for sums in zip(*total, strict=True)]


def _means(total: EvalSums) -> dict[str, Any]:
    nll, count = float(total.nll_T.sum()), float(total.weight_T.sum())
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
