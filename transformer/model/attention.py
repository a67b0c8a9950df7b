"""Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.model.context import Context
from transformer.model.linear import Linear
from transformer.registry import Registry
from transformer.schema import Model

SCALES = Registry("model.attention.scale")
SCALES.register("inv_sqrt", paper="Vaswani et al. 2017, section 3.2.1")(lambda head_dim: 1.0 / math.sqrt(head_dim))
SCALES.register("none")(lambda head_dim: 1.0)
SCALES.register("inv", paper="Yang et al. 2022 (muP)")(lambda head_dim: 1.0 / head_dim)

BACKENDS = Registry("model.attention.backend")


class Attention(nnx.Module):
    """softmax(Q K^T / sqrt(head_dim)) V, in parallel heads, mixed by an output projection."""

    def __init__(self, model: Model):
        self.num_heads = model.attention.num_heads
        self.head_dim = model.attention.head_dim or model.d_model // model.attention.num_heads
        self.scale = SCALES.build(model.attention.scale, self.head_dim)
        self.backend = model.attention.backend
        self.dropout_rate = model.dropout
        width, bias = self.num_heads * self.head_dim, model.attention.bias
        self.query = Linear(model.d_model, width, bias=bias)
        self.key = Linear(model.d_model, width, bias=bias)
        self.value = Linear(model.d_model, width, bias=bias, role="value")
        self.output = Linear(width, model.d_model, bias=bias, role="output")

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        q_BHTK = context.position.rotate(self._heads(self.query(x_BTD)), context.positions_BT)
        k_BHSK = context.position.rotate(self._heads(self.key(x_BTD)), context.positions_BT)
        v_BHSK = self._heads(self.value(x_BTD))
        key_positions_BS = context.positions_BT
        if context.cache is not None:
            k_BHSK, v_BHSK = context.cache.append(context.layer, k_BHSK, v_BHSK)
            key_positions_BS = jnp.arange(k_BHSK.shape[2])[None]
        q_BHTK, k_BHSK = context.tap("attention.query", q_BHTK), context.tap("attention.key", k_BHSK)
        v_BHSK = context.tap("attention.value", v_BHSK)
        attend = BACKENDS[self.backend].build
        o_BHTK = attend(q_BHTK * self.scale, k_BHSK, v_BHSK, key_positions_BS, context, self.dropout_rate)
        o_BHTK = context.tap("attention.heads", o_BHTK)
        B, H, T, K = o_BHTK.shape
        return self.output(o_BHTK.transpose(0, 2, 1, 3).reshape(B, T, H * K))

    def _heads(self, x_BTE: jax.Array) -> jax.Array:
        """[B, T, heads * head_dim] -> [B, heads, T, head_dim]."""
        B, T, _ = x_BTE.shape
        return x_BTE.reshape(B, T, self.num_heads, self.head_dim).transpose(0, 2, 1, 3)


@BACKENDS.register("reference")
def reference_attention(
    q_BHTK: jax.Array,
    k_BHSK: jax.Array,
    v_BHSK: jax.Array,
    key_positions_BS: jax.Array,
    context: Context,
    dropout_rate: float,
) -> jax.Array:
    """Written out: every intermediate has a name and can be tapped.

    Args:
      q_BHTK: queries, already scaled.
      k_BHSK, v_BHSK: keys and values.
      key_positions_BS: position of each key, for the mask and the position bias.

    Returns:
      Head outputs [B, H, T, K].
    """
    scores_BHTS = jnp.einsum("bhtk,bhsk->bhts", q_BHTK, k_BHSK).astype(jnp.float32)
    bias = context.position.bias(context.positions_BT, key_positions_BS)
    scores_BHTS = scores_BHTS if bias is None else scores_BHTS + bias
    allowed_B1TS = context.mask.dense(context.positions_BT, key_positions_BS)
    if allowed_B1TS is not None:
        # Finite, so that a query that sees no key gets uniform weights instead of NaN.
        scores_BHTS = jnp.where(allowed_B1TS, scores_BHTS, jnp.finfo(jnp.float32).min)
    scores_BHTS = context.tap("attention.scores", scores_BHTS)
    weights_BHTS = context.tap("attention.weights", jax.nn.softmax(scores_BHTS, axis=-1))
    weights_BHTS = context.dropout("attention.weights", weights_BHTS, dropout_rate)
    return jnp.einsum("bhts,bhsk->bhtk", weights_BHTS.astype(v_BHSK.dtype), v_BHSK)
