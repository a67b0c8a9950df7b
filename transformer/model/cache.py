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
      keys: one array [B, key-value heads, capacity, head_dim] per layer, already normed and rotated; head_dim is 0
        where attention has no keys.
      values: one array [B, key-value heads, capacity, value_dim] per layer.
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

    def append(self, layer: int, k_BGTK: jax.Array | None, v_BGTU: jax.Array) -> tuple[jax.Array | None, jax.Array]:
        """Stores new keys (if there are any) and values; returns all, up to the capacity. Unused slots stay masked,
        because their positions lie after every query."""
        at = (0, 0, self.before.length, 0)
        if k_BGTK is not None:
            k_BGTK = k_BGTK.astype(self.keys[layer].dtype)
            self.keys[layer] = jax.lax.dynamic_update_slice(self.keys[layer], k_BGTK, at)
        v_BGTU = v_BGTU.astype(self.values[layer].dtype)
        self.values[layer] = jax.lax.dynamic_update_slice(self.values[layer], v_BGTU, at)
        return None if k_BGTK is None else self.keys[layer], self.values[layer]

    def finish(self, num_tokens: int) -> Cache:
        """The cache after this pass."""
        return Cache(tuple(self.keys), tuple(self.values), self.before.length + num_tokens)


def empty_cache(
    num_layers: int, batch: int, num_kv_heads: int, head_dim: int, value_dim: int, capacity: int, dtype: jnp.dtype
) -> Cache:
    """A cache with nothing in it."""

    def zeros(width: int) -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros((batch, num_kv_heads, capacity, width), dtype) for _ in range(num_layers))

    return Cache(zeros(head_dim), zeros(value_dim), jnp.zeros((), jnp.int32))
