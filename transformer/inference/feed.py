"""A model as decoding sees it: prompts in, then one token per row and step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from transformer.model.cache import Cache, Layout

Conditions = dict[str, Any]


class Feed:
    """Feeds a model through a cache.

    Args:
      model: the model, inside a compiled function.
      conditions: further arguments of every call, such as what an encoder made of the source.
    """

    def __init__(self, model: Any, conditions: Conditions | None):
        self.model, self.conditions = model, conditions or {}

    def prompt(
        self, prompt_BP: jax.Array, length_B: jax.Array, layout: Layout, prefix: bool
    ) -> tuple[jax.Array, Cache]:
        """Stores all but the last token of each row, whose logits are the first that are wanted.

        Args:
          prefix: whether the tokens see each other in both directions. The last one is then read with the others, and
            once more after them.

        Returns:
          The last tokens [B] and the cache.
        """
        B, P = prompt_BP.shape
        last_B = jnp.take_along_axis(prompt_BP, length_B[:, None] - 1, axis=1)[:, 0]
        before_BP = jnp.arange(P)[None] < length_B[:, None] - (0 if prefix else 1)
        # A full cache is no wider than it need be while the prompt is read; one that moves tokens takes what fits.
        together = min(P, layout.capacity) if layout.moves else P
        cache = self.model.empty_cache(B, layout if layout.forgets else Layout(P))
        _, cache = self.model(
            prompt_BP[:, :together],
            segments_BT=before_BP[:, :together].astype(jnp.int32),
            cache=cache,
            **self.conditions,
            **({"prefix_length_B": length_B} if prefix else {}),
        )
        if prefix:
            cache = dataclasses.replace(cache, length_B=length_B - 1)
        if not layout.forgets:
            return last_B, cache.grown(layout)

        def one_more(at: jax.Array, cache: Cache) -> Cache:
            token_B1 = jax.lax.dynamic_slice_in_dim(prompt_BP, at, 1, axis=1)
            real_B1 = jax.lax.dynamic_slice_in_dim(before_BP, at, 1, axis=1).astype(jnp.int32)
            return self.model(token_B1, segments_BT=real_B1, cache=cache, **self.conditions)[1]

        return last_B, jax.lax.fori_loop(together, P, one_more, cache)

    def __call__(self, token_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Logits [B, V] after one more token per row."""
        logits_B1V, cache = self.model(token_B[:, None], cache=cache, **self.conditions)
        return logits_B1V[:, 0], cache
