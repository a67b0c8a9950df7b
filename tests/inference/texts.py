"""What the tests of generation share: a model whose text depends on all of the past, and an oracle without cache."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from tests.tiny import LENGTH, tiny, tokens


def wild(overrides: dict[str, Any] | None = None):
    """Large untied weights: greedy text does not settle on one token."""
    large = {"model.embedding.tie": False, "model.init.std": 1.0, "data.sequence_length": 4 * LENGTH}
    return tiny({**large, **(overrides or {})})


def ragged() -> list[np.ndarray]:
    """Four prompts of different lengths."""
    return [tokens(1, length, seed)[0] for seed, length in enumerate((5, 1, 9, 2))]


def by_full_passes(model, prompt_BT: np.ndarray, count: int) -> np.ndarray:
    """Greedy decoding [B, count] that reads the whole text again for every token."""
    forward = jax.jit(lambda text: model(text))
    start = prompt_BT.shape[1]
    text = np.zeros((len(prompt_BT), start + count), np.int32)
    text[:, :start] = prompt_BT
    for place in range(start, text.shape[1]):
        text[:, place] = np.asarray(forward(text))[:, place - 1].argmax(axis=-1)
    return text[:, start:]
