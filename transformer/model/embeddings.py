"""Tokens as vectors, and vectors as logits over tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.model.initialization import parameter


def in_float32(table_ND: jax.Array) -> jax.Array:
    """A table to take rows of, before they are converted to 16 bits: the gradient of a row that is taken often is
    summed in this dtype. That is more exact, and several times faster on a GPU, which adds 16-bit numbers into one row
    one after the other."""
    return table_ND.astype(jnp.promote_types(table_ND.dtype, jnp.float32))


class TokenEmbedding(nnx.Module):
    """Rows of a table; `attend` uses the same table to make logits."""

    def __init__(self, vocab_size: int, d_model: int):
        self.table = parameter((vocab_size, d_model), "embedding")

    def __call__(self, tokens_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return in_float32(self.table[...])[tokens_BT].astype(dtype)

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        """Inner products of x with every row: [B, T, V]."""
        return x_BTD @ self.table.astype(x_BTD.dtype).T


class TypeEmbedding(nnx.Module):
    """A vector for the part of the input a token belongs to, such as the first or second of two sentences
    (Devlin et al. 2019, figure 2)."""

    def __init__(self, num_types: int, d_model: int):
        self.table = parameter((num_types, d_model), "embedding")

    def __call__(self, x_BTD: jax.Array, types_BT: jax.Array | None) -> jax.Array:
        """x plus the vector of each token's type; without types, every token is of type 0."""
        table_ND = in_float32(self.table[...])
        return x_BTD + (table_ND[0] if types_BT is None else table_ND[types_BT]).astype(x_BTD.dtype)
