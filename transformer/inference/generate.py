"""Continuing text, one compiled loop over a key-value cache."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer.errors import UserError


def generate(
    model: Any, prompt_BT: np.ndarray, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Extends each row of a prompt.

    Args:
      model: a causal model, as `load(...).model`.
      prompt_BT: token ids, all rows of one length, at least one token.
      max_new_tokens: tokens to add.
      temperature: 0 takes the most likely token; otherwise samples from softmax(logits / temperature).
      seed: of the sampling.

    Returns:
      [B, T + max_new_tokens] token ids.

    Raises:
      UserError: an empty prompt, or more positions than the model knows.
    """
    prompt_BT = np.asarray(prompt_BT, np.int32)
    length = prompt_BT.shape[1] + max_new_tokens
    if prompt_BT.shape[1] == 0:
        raise UserError("The prompt is empty: generation needs at least one token to start from.")
    if model.position.max_length is not None and length > model.position.max_length:
        raise UserError(
            f"{prompt_BT.shape[1]} prompt tokens and {max_new_tokens} new ones need {length} positions, but the "
            f"model knows {model.position.max_length}; shorten the prompt or decode.max_new_tokens."
        )
    if max_new_tokens == 0:
        return prompt_BT
    structure, weights = nnx.split(model)
    new_BN = _continue(structure, weights, prompt_BT, jnp.float32(temperature), jax.random.key(seed), max_new_tokens)
    return np.concatenate([prompt_BT, np.asarray(new_BN)], axis=1)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _continue(
    structure: Any, weights: Any, prompt_BT: jax.Array, temperature: jax.Array, key: jax.Array, count: int
) -> jax.Array:
    model = nnx.merge(structure, weights)
    batch, length = prompt_BT.shape
    logits_BTV, cache = model(prompt_BT, cache=model.empty_cache(batch, length + count))

    def choose(step: jax.Array, logits_BV: jax.Array) -> jax.Array:
        sampled = jax.random.categorical(jax.random.fold_in(key, step), logits_BV / jnp.maximum(temperature, 1e-6))
        return jnp.where(temperature == 0, logits_BV.argmax(axis=-1), sampled).astype(jnp.int32)

    def body(step: jax.Array, carry: Any) -> Any:
        out_BN, cache = carry
        logits_B1V, cache = model(jax.lax.dynamic_slice_in_dim(out_BN, step - 1, 1, axis=1), cache=cache)
        return out_BN.at[:, step].set(choose(step, logits_B1V[:, 0])), cache

    out_BN = jnp.zeros((batch, count), jnp.int32).at[:, 0].set(choose(jnp.int32(0), logits_BTV[:, -1]))
    return jax.lax.fori_loop(1, count, body, (out_BN, cache))[0]
