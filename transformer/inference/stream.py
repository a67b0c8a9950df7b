"""The loss along a long text that is read once, token by token, through a cache."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer.errors import UserError
from transformer.model.cache import Layout


def streamed_losses(model: Any, tokens_BT: np.ndarray, layout: Layout) -> np.ndarray:
    """Nats [B, T - 1] of every token after the first, given what the cache still holds of those before it.

    With a layout that forgets, the text may be of any length (Xiao et al. 2023); one compiled loop reads it.

    Raises:
      UserError: fewer than two tokens, or more than the model or a full cache has places for.
    """
    tokens_BT = np.asarray(tokens_BT, np.int32)
    length, known = tokens_BT.shape[1], model.position.max_length
    if length < 2:
        raise UserError(f"The text has {length} tokens: a loss needs one to predict and one before it.")
    if not layout.forgets and length - 1 > layout.capacity:
        raise UserError(
            f"The text has {length} tokens and the full cache room for {layout.capacity}; use decode.cache=sink_window."
        )
    if known is not None and length - 1 > known:
        raise UserError(f"The text has {length} tokens, but the model knows {known} positions; shorten it.")
    return np.asarray(_losses(*nnx.split(model), tokens_BT, layout))


@functools.partial(jax.jit, static_argnames=("structure", "layout"))
def _losses(structure: Any, weights: Any, tokens_BT: jax.Array, layout: Layout) -> jax.Array:
    model = nnx.merge(structure, weights)

    def step(cache: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        read_B, next_B = pair
        logits_B1V, cache = model(read_B[:, None], cache=cache)
        log_p_BV = jax.nn.log_softmax(logits_B1V[:, 0])
        return cache, -jnp.take_along_axis(log_p_BV, next_B[:, None], axis=1)[:, 0]

    pairs = (tokens_BT[:, :-1].T, tokens_BT[:, 1:].T)
    return jax.lax.scan(step, model.empty_cache(len(tokens_BT), layout), pairs)[1].T
