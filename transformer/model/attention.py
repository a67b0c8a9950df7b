"""Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2).

Shape letters beside the usual ones: G key-value heads (H where they are not shared), U width of a value,
E the heads of one token side by side.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from flax import nnx

from transformer.model.attention_backends import BACKENDS, AttentionCall, Beside
from transformer.model.attention_memory import MEMORIES
from transformer.model.attention_parts import (
    GATES,
    OUTPUT_PROJECTIONS,
    QK_NORMS,
    SCALES,
    TIES,
    VALUE_PROJECTIONS,
    head_shape,
)
from transformer.model.attention_weights import WEIGHTS
from transformer.model.context import Context
from transformer.model.linear import Linear
from transformer.schema import Model


class Attention(nnx.Module):
    """softmax(Q K^T / sqrt(head_dim)) V, in parallel heads, mixed by an output projection."""

    def __init__(self, model: Model, name: str = "attention"):
        attention, shape, self.name = model.attention, head_shape(model), name
        self.num_heads, self.num_kv_heads = shape.num_heads, shape.num_kv_heads
        self.head_dim, self.value_dim = shape.head_dim, shape.value_dim
        self.scale = SCALES.build(attention.scale, shape)
        self.weights = WEIGHTS.build(attention.weights, attention)
        self.memory = MEMORIES.build(attention.memory, attention, shape)
        self.soft_cap, self.window = attention.soft_cap, attention.window
        self.backend, self.dropout_rate = attention.backend, model.dropout

        def project(heads: int, init_scale: float) -> Linear:
            return Linear(model.d_model, heads * self.head_dim, bias=attention.bias, init_scale=init_scale)

        self.tie = TIES.build(attention.tie)
        start = self.head_dim**-0.25 if "matched_init" in SCALES[attention.scale].traits else 1.0
        scored = self.weights.uses_scores
        self.query = project(self.num_heads, start * self.weights.query_init_scale) if scored else None
        self.key = project(self.num_kv_heads, start) if scored and not self.tie.keys else None
        self.query_norm = QK_NORMS.build(attention.qk_norm, self.num_heads, self.head_dim, on_queries=True)
        self.key_norm = QK_NORMS.build(attention.qk_norm, self.num_kv_heads, self.head_dim, on_queries=False)
        self.value = None if self.tie.values else VALUE_PROJECTIONS.build(attention.value_projection, model, shape)
        self.gate = GATES.build(attention.gate, model, shape)
        self.output = OUTPUT_PROJECTIONS.build(attention.output_projection, model, shape)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        unplaced_BHTK, k_BGSK, v_BGSU = self._queries_keys_values(x_BTD)
        q_BHTK = None if unplaced_BHTK is None else context.position.rotate(unplaced_BHTK, context.positions_BT)
        key_positions_BS = context.positions_BT
        if context.cache is None:
            k_BGSK, v_BGSU = context.position.place(k_BGSK, v_BGSU, key_positions_BS)
        else:
            k_BGSK, v_BGSU, key_positions_BS = context.cache.extend(context.layer, k_BGSK, v_BGSU, context.position)
        return self.read(x_BTD, q_BHTK, k_BGSK, v_BGSU, key_positions_BS, context, unplaced_BHTK)

    def read(
        self,
        x_BTD: jax.Array,
        q_BHTK: jax.Array | None,
        k_BGSK: jax.Array | None,
        v_BGSU: jax.Array,
        key_positions_BS: jax.Array,
        context: Context,
        unplaced_BHTK: jax.Array | None,
    ) -> jax.Array:
        """What the queries of x find among keys and values, mapped back to the stream.

        Args:
          unplaced_BHTK: the queries before positions act on them, for what has no position itself.
        """
        if q_BHTK is not None and k_BGSK is not None:
            q_BHTK, k_BGSK = context.tap(f"{self.name}.query", q_BHTK), context.tap(f"{self.name}.key", k_BGSK)
            q_BHTK = self._scaled(q_BHTK)
        v_BGSU = context.tap(f"{self.name}.value", v_BGSU)
        call = AttentionCall(
            query_BHTK=q_BHTK,
            key_BGSK=k_BGSK,
            value_BGSU=v_BGSU,
            query_positions_BT=context.positions_BT,
            key_positions_BS=key_positions_BS,
            num_heads=self.num_heads,
            mask=context.mask.narrowed(self.window),
            weights=self.weights,
            soft_cap=self.soft_cap,
            dropout_rate=self.dropout_rate,
            context=context,
            name=self.name,
            beside=self._memory(unplaced_BHTK),
        )
        o_BHTU = context.position.unrotate_output(BACKENDS.build(self.backend, call), context.positions_BT)
        o_BHTU = context.tap(f"{self.name}.heads", o_BHTU)
        B, H, T, U = o_BHTU.shape
        o_BTE = o_BHTU.transpose(0, 2, 1, 3).reshape(B, T, H * U)
        if self.gate is not None:
            o_BTE = o_BTE * context.tap(f"{self.name}.gate", jax.nn.sigmoid(self.gate(x_BTD)))
        return o_BTE if self.output is None else self.output(o_BTE)

    def _scaled(self, q_BHTK: jax.Array) -> jax.Array:
        return self.scale(q_BHTK) if isinstance(self.scale, nnx.Module) else q_BHTK * self.scale

    def _memory(self, unplaced_BHTK: jax.Array | None) -> Beside | None:
        """What the queries find in rows that stand nowhere, or None where there are no such rows."""
        if self.memory is None or unplaced_BHTK is None:
            return None
        return functools.partial(self.memory.beside, self._scaled(unplaced_BHTK))

    def _queries_keys_values(self, x_BTD: jax.Array) -> tuple[jax.Array | None, jax.Array | None, jax.Array]:
        """Heads of queries [B, H, T, K], keys [B, G, T, K] and values [B, G, T, U], none of which has a position yet;
        what owns no projection takes what it is tied to. Norms act on queries and keys only."""
        q_BTE = None if self.query is None else self.query(x_BTD)
        return (self.queries(q_BTE), *self.keys_values(x_BTD, q_BTE))

    def queries(self, q_BTE: jax.Array | None) -> jax.Array | None:
        """Projected queries as heads [B, H, T, K], normed."""
        if q_BTE is None:
            return None
        q_BHTK = split_heads(q_BTE, self.num_heads)
        return q_BHTK if self.query_norm is None else self.query_norm(q_BHTK)

    def keys_values(self, x_BSD: jax.Array, q_BSE: jax.Array | None = None) -> tuple[jax.Array | None, jax.Array]:
        """Heads of keys [B, G, S, K], normed, and values [B, G, S, U].

        Args:
          q_BSE: the projected queries of the same tokens, for keys that are tied to them.
        """
        k_BSE = q_BSE if self.key is None else self.key(x_BSD)
        v_BSE: Any = self.value(x_BSD) if self.value is not None else k_BSE if self.tie.values else x_BSD
        v_BGSU = split_heads(v_BSE, self.num_kv_heads)
        if k_BSE is None:
            return None, v_BGSU
        k_BGSK = split_heads(k_BSE, self.num_kv_heads)
        return (k_BGSK if self.key_norm is None else self.key_norm(k_BGSK)), v_BGSU


def split_heads(x_BTE: jax.Array, heads: int) -> jax.Array:
    """[B, T, heads * width] -> [B, heads, T, width]."""
    B, T, _ = x_BTE.shape
    return x_BTE.reshape(B, T, heads, -1).transpose(0, 2, 1, 3)
