"""Beam search: the best texts found while following a fixed number of them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.inference.feed import Conditions, Feed
from transformer.inference.sampling import Beam
from transformer.model.cache import Layout


@functools.partial(jax.jit, static_argnames=("structure", "layout", "room", "prefix"))
def search(
    structure: Any,
    weights: Any,
    prompt_BP: jax.Array,
    length_B: jax.Array,
    limit_B: jax.Array,
    stop_tokens: jax.Array,
    beam: Beam,
    conditions: Conditions | None,
    layout: Layout,
    room: int,
    prefix: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best text of each row: new tokens [B, room], how many there are, and their score.

    W beams per row lie side by side in a batch of B * W.
    """
    B, W = len(length_B), beam.beams
    model = nnx.merge(structure, weights)
    token_B, cache = Feed(model, conditions).prompt(prompt_BP, length_B, layout, prefix)
    every_row = jnp.repeat(jnp.arange(B), W)
    feed = Feed(model, jax.tree.map(lambda x: x[every_row], conditions))

    def score(log_p: jax.Array, count: jax.Array) -> jax.Array:
        return log_p / jnp.maximum(count, 1).astype(jnp.float32) ** beam.length_penalty

    def unfinished(carry: Any) -> jax.Array:
        *_, done_BW = carry
        return ~done_BW.all()

    def step(carry: Any) -> Any:
        at, token_BW, cache, new_BWN, count_BW, log_p_BW, done_BW = carry
        logits_NV, cache = feed(token_BW.reshape(B * W), cache)
        # The best continuations of each beam by their logits, as greedy decoding ranks them.
        top_NC, ids_NC = jax.lax.top_k(logits_NV, min(W, logits_NV.shape[-1]))
        C = top_NC.shape[-1]
        step_BWC = (top_NC - jax.nn.logsumexp(logits_NV, axis=-1, keepdims=True)).reshape(B, W, C)
        # A finished text has one continuation: itself.
        stays_C = jnp.where(jnp.arange(C) == 0, 0.0, -jnp.inf)
        log_p_BWC = log_p_BW[..., None] + jnp.where(done_BW[..., None], stays_C, step_BWC)
        count_BW = count_BW + ~done_BW
        _, best_BW = jax.lax.top_k(score(log_p_BWC, count_BW[..., None]).reshape(B, W * C), W)
        parent_BW = best_BW // C
        chosen_BW = jnp.take_along_axis(ids_NC.reshape(B, W * C), best_BW, axis=1).astype(jnp.int32)

        def from_parent(x: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x, parent_BW.reshape(B, W, *[1] * (x.ndim - 2)), axis=1)

        log_p_BW = jnp.take_along_axis(log_p_BWC.reshape(B, W * C), best_BW, axis=1)
        new_BWN, count_BW, done_BW = from_parent(new_BWN), from_parent(count_BW), from_parent(done_BW)
        chosen_BW = jnp.where(done_BW, 0, chosen_BW)
        cache = cache.rows((parent_BW + W * jnp.arange(B)[:, None]).reshape(B * W))
        new_BWN = jax.lax.dynamic_update_slice(new_BWN, chosen_BW[..., None], (0, 0, at))
        stopped_BW = (chosen_BW[..., None] == stop_tokens).any(axis=-1)
        done_BW = done_BW | stopped_BW | (count_BW >= limit_B[:, None])
        return at + 1, chosen_BW, cache, new_BWN, count_BW, log_p_BW, done_BW

    start = (
        jnp.int32(0),
        jnp.repeat(token_B[:, None], W, axis=1),
        cache.rows(every_row),
        jnp.zeros((B, W, room), jnp.int32),
        jnp.zeros((B, W), jnp.int32),
        # All beams start equal, so all but the first are impossible.
        jnp.broadcast_to(jnp.where(jnp.arange(W) == 0, 0.0, -jnp.inf), (B, W)),
        jnp.zeros((B, W), bool),
    )
    _, _, _, new_BWN, count_BW, log_p_BW, _ = jax.lax.while_loop(unfinished, step, start)
    score_BW = score(log_p_BW, count_BW)
    best_B1 = score_BW.argmax(axis=1)[:, None]
    pick = lambda x: jnp.take_along_axis(x, best_B1, axis=1)[:, 0]  # noqa: E731
    return jnp.take_along_axis(new_BWN, best_B1[..., None], axis=1)[:, 0], pick(count_BW), pick(score_BW)
