"""Tokens as vectors, and vectors as logits over tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.model.initialization import parameter


class TokenEmbedding(nnx.Module):
    """Rows of a table; `attend` uses the same table to make logits."""

    def __init__(self, vocab_size: int, d_model: int):
        self.table = parameter((vocab_size, d_model), "embedding")

    def __call__(self, tokens_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
        # Converted last, so that the gradient is summed in the table's float32: more exactly, and on a GPU, which adds
        # 16-bit numbers into the same row one after the other, several times faster.
        return self.table[tokens_BT].astype(dtype)

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
        row_BTD = self.table[0] if types_BT is None else self.table[types_BT]
        return x_BTD + row_BTD.astype(x_BTD.dtype)
