"""Keys and values that belong to the layer, not to any token: every query sees them, whatever the mask says."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.model.attention_parts import HeadShape
from transformer.model.initialization import parameter
from transformer.registry import Registry
from transformer.schema import Attention, Config, field

MEMORIES = Registry("model.attention.memory")


@MEMORIES.register("none")
def no_memory(attention: Attention, shape: HeadShape) -> None:
    """Only tokens are attended to."""
    return None


@dataclasses.dataclass(frozen=True)
class PersistentParameters:
    persistent_rows: int = field(16, "learned key-value rows of a layer, each split over the key-value heads")


def _written_out_softmax(config: Config) -> str | None:
    attention = config.model.attention
    if attention.persistent_rows < 1:
        return f"has no row: model.attention.persistent_rows={attention.persistent_rows}; use 1 or more, or none."
    for name, only in {"weights": "softmax", "backend": "reference"}.items():
        if (value := getattr(attention, name)) != only:
            return f"shares one softmax with the tokens, written out, but {name}={value}; use {name}={only}."
    from transformer.model.positions import ROPE_ON

    position = config.model.position
    if position.kind == "rope" and "turns_output" in ROPE_ON[position.rope_on].traits:
        return (
            f"has values without a position, but model.position.rope_on={position.rope_on} turns what the heads read "
            "back by the query's; use rope_on=qk."
        )
    return None


@MEMORIES.register(
    "persistent",
    parameters=PersistentParameters,
    paper="Sukhbaatar et al. 2019 (Augmenting self-attention with persistent memory)",
    check=_written_out_softmax,
)
class PersistentMemory(nnx.Module):
    """Learned rows beside the tokens: an attention layer that can do a feed-forward network's work.

    They have no position: no rotation, no position bias, no mask and no soft cap act on them.
    """

    def __init__(self, attention: Attention, shape: HeadShape):
        self.groups, rows = shape.num_kv_heads, attention.persistent_rows
        self.key = parameter((rows, self.groups * shape.head_dim), "embedding")
        self.value = parameter((rows, self.groups * shape.value_dim), "embedding")

    def beside(
        self, query_BHTK: jax.Array, scores_BHTS: jax.Array, value_BHSU: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Scores and values with N rows more behind those of the tokens: [B, H, T, S + N] and [B, H, S + N, U].

        Args:
          query_BHTK: scaled, and as they are before positions act on them.
        """
        B, H = query_BHTK.shape[:2]
        key_HNK, value_HNU = self._heads(self.key, H), self._heads(self.value, H)
        key_HNK, exact = key_HNK.astype(query_BHTK.dtype), scores_BHTS.dtype
        memory_BHTN = jnp.einsum("bhtk,hnk->bhtn", query_BHTK, key_HNK, preferred_element_type=exact)
        value_BHNU = jnp.broadcast_to(value_HNU.astype(value_BHSU.dtype), (B, *value_HNU.shape))
        return (
            jnp.concatenate([scores_BHTS, memory_BHTN], axis=-1),
            jnp.concatenate([value_BHSU, value_BHNU], axis=2),
        )

    def _heads(self, rows_NE: nnx.Param, num_heads: int) -> jax.Array:
        rows_GNE = rows_NE[...].reshape(rows_NE.shape[0], self.groups, -1).swapaxes(0, 1)
        return jnp.repeat(rows_GNE, num_heads // self.groups, axis=0)
