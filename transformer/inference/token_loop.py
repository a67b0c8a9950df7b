"""Token after token: feed, choose, append, until every row is done."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.inference.feed import Conditions, Feed
from transformer.inference.sampling import Greedy, Sample
from transformer.model.cache import Layout


@functools.partial(jax.jit, static_argnames=("structure", "layout", "room", "prefix"))
def extend(
    structure: Any,
    weights: Any,
    prompt_BP: jax.Array,
    length_B: jax.Array,
    limit_B: jax.Array,
    stop_tokens: jax.Array,
    sampler: Greedy | Sample,
    streams: tuple[jax.Array, jax.Array],
    conditions: Conditions | None,
    layout: Layout,
    room: int,
    prefix: bool,
) -> tuple[jax.Array, jax.Array]:
    """New tokens [B, room] and how many of them each row has, the stop token included.

    A draw depends on the row's seed, its stream within it and how many tokens precede, so a row is the same in any
    batch.
    """
    keys_B = jax.vmap(lambda seed, stream: jax.random.fold_in(jax.random.key(seed), stream))(*streams)
    feed = Feed(nnx.merge(structure, weights), conditions)
    token_B, cache = feed.prompt(prompt_BP, length_B, layout, prefix)

    def unfinished(carry: Any) -> jax.Array:
        *_, done_B = carry
        return ~done_B.all()

    def step(carry: Any) -> Any:
        at, token_B, cache, new_BN, count_B, done_B = carry
        logits_BV, cache = feed(token_B, cache)
        chosen_B = sampler.pick(logits_BV, jax.vmap(jax.random.fold_in)(keys_B, length_B + at))
        chosen_B = jnp.where(done_B, 0, chosen_B)
        new_BN = jax.lax.dynamic_update_slice(new_BN, chosen_B[:, None], (0, at))
        count_B = count_B + ~done_B
        stopped_B = (chosen_B[:, None] == stop_tokens[None]).any(axis=1)
        return at + 1, chosen_B, cache, new_BN, count_B, done_B | stopped_B | (count_B >= limit_B)

    B = len(length_B)
    start = (jnp.int32(0), token_B, cache, jnp.zeros((B, room), jnp.int32), jnp.zeros(B, jnp.int32), jnp.zeros(B, bool))
    _, _, _, new_BN, count_B, _ = jax.lax.while_loop(unfinished, step, start)
    return new_BN, count_B
