"""How attention is computed: the written-out reference, and what any other back-end is given.

A back-end is a function `AttentionCall -> head outputs [B, H, T, U]`, registered in `BACKENDS`. What it cannot do it
refuses when the config is resolved, by the `check` of its entry, naming the field; it never does something else.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from transformer.model.attention_halves import halving_pays, in_halves
from transformer.model.attention_parts import head_shape
from transformer.model.attention_weights import Sight, WeightRule
from transformer.model.context import Context
from transformer.model.masks import Mask
from transformer.registry import Registry
from transformer.schema import Config

BACKENDS = Registry("model.attention.backend")
Beside = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """Everything a back-end needs. G key-value heads serve H query heads: head h reads group h // (H / G).

    Attributes:
      query_BHTK: queries, normed, rotated and scaled.
      key_BGSK: keys, normed and rotated. Neither is there where `weights.uses_scores` is False.
      value_BGSU: values.
      query_positions_BT, key_positions_BS: where they stand, for the mask and for the position bias.
      num_heads: H.
      mask: which keys a query may see, the window included.
      weights: the rule that turns scores into weights; a `Softmax` carries its sink, or None, as `sink`.
      soft_cap: scores pass through soft_cap * tanh(score / soft_cap) before any bias; 0: they do not.
      dropout_rate: on the weights, where `context` has a dropout key.
      context: gives `position.bias`, `tap` and `dropout`.
      name: prefix of taps and random keys, `attention` or `cross_attention`.
      beside: puts the scores and values of rows that every query sees behind those of the tokens; None: no such rows.
    """

    query_BHTK: jax.Array | None
    key_BGSK: jax.Array | None
    value_BGSU: jax.Array
    query_positions_BT: jax.Array
    key_positions_BS: jax.Array
    num_heads: int
    mask: Mask
    weights: WeightRule
    soft_cap: float
    dropout_rate: float
    context: Context
    name: str = "attention"
    beside: Beside | None = None


@BACKENDS.register("reference")
def reference_attention(call: AttentionCall) -> jax.Array:
    """Written out, and in two halves where that takes less time."""
    return in_halves(written_out, call) if halving_pays(call) else written_out(call)


def written_out(call: AttentionCall) -> jax.Array:
    """Scores, weights, sum of values: every intermediate has a name and can be tapped."""
    context, value_BHSU = call.context, for_every_head(call.value_BGSU, call.num_heads)
    allowed_B1TS = call.mask.dense(call.query_positions_BT, call.key_positions_BS)
    scores_BHTS = scores(call, allowed_B1TS)
    scores_BHTS = context.tap(f"{call.name}.scores", scores_BHTS) if call.weights.uses_scores else scores_BHTS
    if call.beside is not None:
        scores_BHTS, value_BHSU = call.beside(scores_BHTS, value_BHSU)
    weights_BHTS = call.weights(scores_BHTS, Sight(allowed_B1TS, call.query_positions_BT, call.key_positions_BS))
    weights_BHTS = context.tap(f"{call.name}.weights", weights_BHTS)
    weights_BHTS = context.dropout(f"{call.name}.weights", weights_BHTS, call.dropout_rate)
    return jnp.einsum("bhts,bhsk->bhtk", weights_BHTS.astype(value_BHSU.dtype), value_BHSU)


def scores(call: AttentionCall, allowed_B1TS: jax.Array | None) -> jax.Array:
    """Capped, biased and masked query-key products [B, H, T, S], in float32 at least."""
    if call.query_BHTK is None or call.key_BGSK is None:
        B, _, S, _ = call.value_BGSU.shape
        return jnp.zeros((B, call.num_heads, call.query_positions_BT.shape[1], S), jnp.float32)
    key_BHSK = for_every_head(call.key_BGSK, call.num_heads)
    exact = jnp.promote_types(key_BHSK.dtype, jnp.float32)
    scores_BHTS = jnp.einsum("bhtk,bhsk->bhts", call.query_BHTK, key_BHSK, preferred_element_type=exact)
    if call.soft_cap:
        scores_BHTS = call.soft_cap * jnp.tanh(scores_BHTS / call.soft_cap)
    bias = call.context.position.bias(call.query_positions_BT, call.key_positions_BS)
    scores_BHTS = scores_BHTS if bias is None else scores_BHTS + bias
    if allowed_B1TS is not None:
        # Finite, so that a query that sees no key gets uniform weights instead of NaN.
        scores_BHTS = jnp.where(allowed_B1TS, scores_BHTS, jnp.finfo(scores_BHTS.dtype).min)
    return scores_BHTS


def for_every_head(x_BGSE: jax.Array, num_heads: int) -> jax.Array:
    """Repeats each key-value head for the query heads that share it: [B, H, S, E]."""
    groups = x_BGSE.shape[1]
    return x_BGSE if groups == num_heads else jnp.repeat(x_BGSE, num_heads // groups, axis=1)


def _plain_softmax(config: Config) -> str | None:
    attention = config.model.attention
    for name, only in {"weights": "softmax", "sinks": "none", "soft_cap": 0.0}.items():
        if (value := getattr(attention, name)) != only:
            return f"knows {name}={only} only, but {name}={value}; use backend=flash or reference."
    shape = head_shape(config.model)
    if shape.value_dim != shape.head_dim:
        return f"needs value_dim={shape.value_dim} to be head_dim={shape.head_dim}; use backend=flash or reference."
    if config.model.dropout:
        return (
            f"keeps no weights to drop, but model.dropout={config.model.dropout}; use backend=reference or dropout=0."
        )
    return None


@BACKENDS.register("fused", traits=("no_weights",), check=_plain_softmax)
def fused_attention(call: AttentionCall) -> jax.Array:
    """`jax.nn.dot_product_attention`: XLA's own fusion, or cuDNN's kernel where `cudnn_computes` the call. That one's
    gradients may differ in the last bits from run to run."""
    query_BTHK, key_BSGK, value_BSGU = (
        jnp.swapaxes(x, 1, 2) for x in (call.query_BHTK, call.key_BGSK, call.value_BGSU) if x is not None
    )
    bias = call.context.position.bias(call.query_positions_BT, call.key_positions_BS)
    attend = functools.partial(jax.nn.dot_product_attention, query_BTHK, key_BSGK, value_BSGU, scale=1.0)
    if bias is None and call.mask.is_plain and cudnn_computes(query_BTHK):
        sees = None if call.mask.window is None else (call.mask.window - 1, 0)
        o_BTHU = attend(is_causal=call.mask.causal, local_window_size=sees, implementation="cudnn")
    else:
        o_BTHU = attend(bias=bias, mask=call.mask.dense(call.query_positions_BT, call.key_positions_BS))
    return jnp.swapaxes(o_BTHU, 1, 2)


def cudnn_computes(query_BTHK: jax.Array) -> bool:
    """Whether cuDNN's attention takes such queries: bfloat16, heads of a multiple of 8 up to 128, and an NVIDIA GPU of
    the Ampere generation (2020) or a later one."""
    head_dim, device = query_BTHK.shape[-1], jax.devices()[0]
    takes = query_BTHK.dtype == jnp.bfloat16 and head_dim % 8 == 0 and head_dim <= 128
    return takes and "cuda" in device.client.platform_version and float(device.compute_capability) >= 8.0


# At the end, because it registers a further entry with what is defined above.
from transformer.model import flash_attention  # noqa: E402, F401
