"""Attention of a decoder to the output of an encoder (Vaswani et al. 2017, section 3.2.3).

Queries come from the decoder, keys and values from the encoder. Both are sets of states without a common line of
positions, so no position scheme acts here, and no window.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from transformer.model.attention import Attention
from transformer.model.context import Context
from transformer.model.layer_pattern import has_cross_attention
from transformer.model.masks import Mask
from transformer.model.positions import NoPosition
from transformer.registry import Registry
from transformer.schema import Model

CROSS_ATTENTIONS = Registry("model.cross_attention")
NO_POSITION = NoPosition()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """An encoded source, as the layers of the decoder read it: computed once, used at every step.

    Attributes:
      layers: by layer with cross-attention, keys [B, key-value heads, S, head_dim], or None where it needs none, and
        values [B, key-value heads, S, value_dim], zero at padding.
      segments_BS: ids of the source documents; 0 is padding. None: every token is real and visible.
    """

    layers: dict[int, tuple[jax.Array | None, jax.Array]]
    segments_BS: jax.Array | None = None


class CrossAttention(Attention):
    """Attention with keys and values from the memory."""

    def __init__(self, model: Model):
        super().__init__(model, name="cross_attention")
        self.window = 0
        self.reads = self.query is not None or self.gate is not None

    def remember(self, source_BSD: jax.Array, segments_BS: jax.Array | None) -> tuple[jax.Array | None, jax.Array]:
        """Keys and values of an encoded source, for the memory.

        Values are zero at padding, so that a row that is nothing but padding is read as zero, however long it is.
        """
        tied = self.query if self.tie.keys else None
        k_BGSK, v_BGSU = self.keys_values(source_BSD, None if tied is None else tied(source_BSD))
        real = 1 if segments_BS is None else (segments_BS != 0)[:, None, :, None].astype(v_BGSU.dtype)
        return k_BGSK, v_BGSU * real

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        memory: Memory = context.memory
        k_BGSK, v_BGSU = memory.layers[context.layer]
        q_BHTK = self.queries(None if self.query is None else self.query(x_BTD))
        # A token reads the source of its own document where both sides are packed, and no padding.
        own_BT = None if memory.segments_BS is None else context.mask.query_segments_BT
        mask = Mask(causal=False, query_segments_BT=own_BT, key_segments_BS=memory.segments_BS)
        across = dataclasses.replace(context, mask=mask, position=NO_POSITION)
        return self.read(x_BTD, q_BHTK, k_BGSK, v_BGSU, jnp.arange(v_BGSU.shape[2])[None], across, q_BHTK)


@CROSS_ATTENTIONS.register("full", paper="Vaswani et al. 2017, section 3.2.3")
def full(model: Model) -> CrossAttention:
    """Every target token weighs the source tokens by its own scores."""
    return CrossAttention(model)


@CROSS_ATTENTIONS.register("pooled", paper="Cho et al. 2014 (a source of one vector)", traits=("no_scores",))
def pooled(model: Model) -> CrossAttention:
    """Every target token reads the mean over the source tokens: a control that knows what, but not where."""
    unscored: dict[str, Any] = {"weights": "uniform", "scale": "inv_sqrt", "qk_norm": "none", "tie": "none"}
    unscored |= {"soft_cap": 0.0, "sinks": "none", "memory": "none"}
    if model.attention.backend == "fused":  # which knows softmax only
        unscored["backend"] = "reference"
    return CrossAttention(dataclasses.replace(model, attention=dataclasses.replace(model.attention, **unscored)))


@CROSS_ATTENTIONS.register("none")
def no_cross_attention(model: Model) -> None:
    """The decoder does not see the source; the encoder is not built."""
    return None


def make_cross_attention(model: Model) -> CrossAttention | None:
    """The cross-attention of one layer, or None where the model has no encoder to read."""
    return CROSS_ATTENTIONS.build(model.cross_attention, model) if has_cross_attention(model) else None
