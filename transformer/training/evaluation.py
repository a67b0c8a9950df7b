"""Loss on fixed windows: the same ones for every run of a corpus, each predicted token counted once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from transformer.data.batching import evaluation_batches
from transformer.training.step import Program, TrainState


def evaluate(program: Program, state: TrainState, tokens: np.ndarray, max_tokens: int | None = None) -> dict[str, Any]:
    """Mean loss over consecutive windows of a split.

    Args:
      tokens: the split, [N].
      max_tokens: evaluate only that many leading tokens; None for all.

    Returns:
      `loss` (nats per token), `bits_per_byte`, `eval_tokens`, and `loss_by_position` (list, nats).
    """
    config = program.config
    batch_size = config.eval.batch_size or config.train.batch_size
    length = config.data.sequence_length
    nll, weight, num_bytes = np.zeros(length), np.zeros(length), 0.0
    for batch, weights in evaluation_batches(tokens, length, batch_size, max_tokens):
        sums = program.evaluate(state, batch, weights)
        nll += np.asarray(sums.nll_T, np.float64)
        weight += np.asarray(sums.weight_T, np.float64)
        num_bytes += float(sums.bytes)
    total, count = float(np.sum(nll)), float(np.sum(weight))
    return {
        "loss": total / count,
        "bits_per_byte": total / math.log(2) / num_bytes if num_bytes else None,
        "eval_tokens": int(count),
        "loss_by_position": (nll / np.maximum(weight, 1)).tolist(),
    }
