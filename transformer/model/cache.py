"""Keys and values of tokens already processed, so that decoding costs one token per step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """A full cache of fixed capacity.

    Attributes:
      keys, values: one array [B, heads, capacity, head_dim] per layer, keys already rotated.
      length: number of tokens stored, int32 scalar; the next token has this position.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.keys[0].shape[2]


class CacheWriter:
    """Collects what each layer stores during one forward pass."""

    def __init__(self, cache: Cache):
        self.before, self.keys, self.values = cache, list(cache.keys), list(cache.values)

    def append(self, layer: int, k_BHTK: jax.Array, v_BHTK: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Stores new keys and values; returns all [B, heads, capacity, head_dim]. Unused slots stay masked,
        because their positions lie after every query."""
        at = (0, 0, self.before.length, 0)
        self.keys[layer] = jax.lax.dynamic_update_slice(self.keys[layer], k_BHTK.astype(self.keys[layer].dtype), at)
        self.values[layer] = jax.lax.dynamic_update_slice(
            self.values[layer], v_BHTK.astype(self.values[layer].dtype), at
        )
        return self.keys[layer], self.values[layer]

    def finish(self, num_tokens: int) -> Cache:
        """The cache after this pass."""
        return Cache(tuple(self.keys), tuple(self.values), self.before.length + num_tokens)


def empty_cache(num_layers: int, batch: int, heads: int, head_dim: int, capacity: int, dtype: jnp.dtype) -> Cache:
    """A cache with nothing in it."""
    shape = (batch, heads, capacity, head_dim)
    zeros = tuple(jnp.zeros(shape, dtype) for _ in range(num_layers))
    return Cache(zeros, tuple(jnp.zeros(shape, dtype) for _ in range(num_layers)), jnp.zeros((), jnp.int32))
