"""The switchable parts around the attention kernel: scale, norms on queries and keys, ties, projections, gate.

Every part that a choice leaves out owns no parameters and adds no operation.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.model.initialization import parameter
from transformer.model.linear import Linear
from transformer.registry import Registry
from transformer.schema import Config, Model

SCALES = Registry("model.attention.scale")
QK_NORMS = Registry("model.attention.qk_norm")
TIES = Registry("model.attention.tie")
VALUE_PROJECTIONS = Registry("model.attention.value_projection")
GATES = Registry("model.attention.gate")
OUTPUT_PROJECTIONS = Registry("model.attention.output_projection")

# Inside the root of a norm on queries or keys, whose entries may be small at initialisation.
EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class HeadShape:
    """Sizes of one attention layer, with the zeros of the config filled in.

    Attributes:
      num_heads: query heads H.
      num_kv_heads: key-value heads G; H / G query heads share one (Ainslie et al. 2023).
      head_dim: width K of one query or key.
      value_dim: width U of one value.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int


def head_shape(model: Model) -> HeadShape:
    """The sizes a model config asks for."""
    attention = model.attention
    head_dim = attention.head_dim or model.d_model // attention.num_heads
    return HeadShape(
        attention.num_heads, attention.num_kv_heads or attention.num_heads, head_dim, attention.value_dim or head_dim
    )


# --- Scale -------------------------------------------------------------------------------------------------------


class LearnedScale(nnx.Module):
    """gain / sqrt(head_dim) with one trained gain per head, starting at one."""

    def __init__(self, shape: HeadShape):
        self.gain = parameter((shape.num_heads,), "gain")
        self.head_dim = shape.head_dim

    def __call__(self, q_BHTK: jax.Array) -> jax.Array:
        return q_BHTK * (self.gain.astype(q_BHTK.dtype) / math.sqrt(self.head_dim))[:, None, None]


def _matched_init(config: Config) -> str | None:
    attention = config.model.attention
    if attention.qk_norm != "none":
        return f"starts from smaller query and key weights, which qk_norm={attention.qk_norm} undoes; use scale=none."
    if attention.tie in ("kv", "qkv"):
        return f"would shrink the values too, which tie={attention.tie} makes of the same matrix; use tie=none or qk."
    return None


# A factor on queries, or a module that applies one. It is data, so that a fused back-end can be handed scaled queries.
SCALES.register("inv_sqrt", paper="Vaswani et al. 2017, section 3.2.1")(lambda shape: 1.0 / math.sqrt(shape.head_dim))
SCALES.register("none")(lambda shape: 1.0)
SCALES.register("inv", paper="Yang et al. 2022 (muP)")(lambda shape: 1.0 / shape.head_dim)
SCALES.register("learned")(LearnedScale)


@SCALES.register("none_matched", traits=("matched_init",), check=_matched_init)
def matched_scale(shape: HeadShape) -> float:
    """No scale, but W_Q and W_K start smaller by head_dim^(-1/4) each: scores begin as with inv_sqrt. A control."""
    return 1.0


# --- Norms on queries and keys -----------------------------------------------------------------------------------


@QK_NORMS.register("none")
def no_qk_norm(heads: int, width: int, on_queries: bool) -> None:
    """Queries and keys as they are projected."""
    return None


@QK_NORMS.register("rms", paper="Dehghani et al. 2023 (there with LayerNorm)")
class RMSHeads(nnx.Module):
    """Every head's vector divided by its root mean square, then one trained gain per coordinate of each head.

    A gain per head and coordinate, so that the number of parameters does not depend on the number of heads.
    """

    def __init__(self, heads: int, width: int, on_queries: bool):
        self.heads, self.width = heads, width
        self.gain = parameter((heads * width,), "gain")

    def __call__(self, x_BHTK: jax.Array) -> jax.Array:
        gain_H1K = self.gain.astype(jnp.float32).reshape(self.heads, 1, self.width)
        return (unit_rms(x_BHTK) * gain_H1K).astype(x_BHTK.dtype)


def _one_factor(config: Config) -> str | None:
    if config.model.attention.scale == "learned":
        return "already learns one factor per head, and scale=learned would be a second; use scale=inv_sqrt."
    return None


@QK_NORMS.register("l2", paper="Henry et al. 2020", check=_one_factor)
class L2Heads(nnx.Module):
    """Scores are cosines times one trained factor per head.

    Both vectors are set to length sqrt(head_dim), and the trained gain on the queries starts at one: with the default
    scale the factor starts at sqrt(head_dim), where `rms` starts too. (Henry et al. start from the sequence length.)
    """

    def __init__(self, heads: int, width: int, on_queries: bool):
        self.gain = parameter((heads,), "gain") if on_queries else None

    def __call__(self, x_BHTK: jax.Array) -> jax.Array:
        y = unit_rms(x_BHTK)
        y = y if self.gain is None else y * self.gain.astype(jnp.float32)[:, None, None]
        return y.astype(x_BHTK.dtype)


def unit_rms(x: jax.Array) -> jax.Array:
    """x with root mean square one over the last axis, in float32 at least."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPSILON)


# --- Projections -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tie:
    """Whether keys are taken from queries, and values from keys."""

    keys: bool = False
    values: bool = False


def _same_heads(config: Config) -> str | None:
    shape = head_shape(config.model)
    if shape.num_kv_heads != shape.num_heads:
        return (
            f"needs as many key heads as query heads, but num_kv_heads={shape.num_kv_heads} and "
            f"num_heads={shape.num_heads}; set num_kv_heads=0."
        )
    return None


def _same_width(config: Config) -> str | None:
    shape = head_shape(config.model)
    if shape.value_dim != shape.head_dim:
        return (
            f"needs values as wide as keys, but value_dim={shape.value_dim} and head_dim={shape.head_dim}; "
            "set value_dim=0."
        )
    return None


TIES.register("none")(lambda: Tie())
TIES.register("qk", paper="Kitaev et al. 2020 (Reformer)", check=_same_heads)(lambda: Tie(keys=True))
TIES.register("kv", check=_same_width)(lambda: Tie(values=True))
TIES.register("qkv", check=lambda config: _same_heads(config) or _same_width(config))(lambda: Tie(True, True))


def _slices_of_the_stream(config: Config) -> str | None:
    model, shape = config.model, head_shape(config.model)
    if TIES.build(model.attention.tie).values:
        return f"takes the input itself as values, tie={model.attention.tie} takes the keys; choose one of the two."
    if shape.num_kv_heads * shape.value_dim != model.d_model:
        return (
            f"hands each head a slice of the input, but num_kv_heads * value_dim = "
            f"{shape.num_kv_heads} * {shape.value_dim} is not d_model={model.d_model}; change one of them."
        )
    return None


@VALUE_PROJECTIONS.register("full")
def full_value(model: Model, shape: HeadShape) -> Linear:
    """V = x W_V."""
    return Linear(model.d_model, shape.num_kv_heads * shape.value_dim, bias=model.attention.bias, role="value")


@VALUE_PROJECTIONS.register("identity", paper="He & Hofmann 2023", check=_slices_of_the_stream)
def identity_value(model: Model, shape: HeadShape) -> None:
    """V = x: each head reads its own slice of the input."""
    return None


class BlockDiagonal(nnx.Module):
    """Each head through a small matrix of its own into its own slice of the output: heads do not mix.

    The kernel is [heads, value_dim, d_model / heads].
    """

    def __init__(self, heads: int, value_dim: int, d_model: int, bias: bool):
        self.kernel = parameter((heads, value_dim, d_model // heads), "output")
        self.bias = parameter((d_model,), "bias") if bias else None

    def __call__(self, o_BTE: jax.Array) -> jax.Array:
        B, T, _ = o_BTE.shape
        heads, value_dim, _ = self.kernel.shape
        o_BTHU = o_BTE.reshape(B, T, heads, value_dim)
        y = jnp.einsum("bthu,huo->btho", o_BTHU, self.kernel.astype(o_BTE.dtype)).reshape(B, T, -1)
        return y if self.bias is None else y + self.bias.astype(y.dtype)


def _heads_fill_the_stream(config: Config) -> str | None:
    model, shape = config.model, head_shape(config.model)
    if shape.num_heads * shape.value_dim != model.d_model:
        return (
            f"puts the heads side by side, but num_heads * value_dim = {shape.num_heads} * {shape.value_dim} is not "
            f"d_model={model.d_model}; change one of them."
        )
    return None


def _slices_of_equal_width(config: Config) -> str | None:
    model = config.model
    if model.d_model % model.attention.num_heads:
        return (
            f"gives every head an equal slice of the output, but d_model={model.d_model} is not divisible by "
            f"num_heads={model.attention.num_heads}; change one of them."
        )
    return None


@OUTPUT_PROJECTIONS.register("full", paper="Vaswani et al. 2017, section 3.2.2")
def full_output(model: Model, shape: HeadShape) -> Linear:
    """Heads side by side, times W_O."""
    return Linear(shape.num_heads * shape.value_dim, model.d_model, bias=model.attention.bias, role="output")


@OUTPUT_PROJECTIONS.register("none", paper="He & Hofmann 2023", check=_heads_fill_the_stream)
def no_output(model: Model, shape: HeadShape) -> None:
    """Heads side by side."""
    return None


@OUTPUT_PROJECTIONS.register("block_diagonal", check=_slices_of_equal_width)
def block_diagonal_output(model: Model, shape: HeadShape) -> BlockDiagonal:
    """A small matrix per head; heads do not mix."""
    return BlockDiagonal(shape.num_heads, shape.value_dim, model.d_model, model.attention.bias)


@GATES.register("none")
def no_gate(model: Model, shape: HeadShape) -> None:
    """What the heads read goes on as it is."""
    return None


@GATES.register("sigmoid", paper="Qiu et al. 2025")
def sigmoid_gate(model: Model, shape: HeadShape) -> Linear:
    """What the heads read times sigmoid(x W_G), coordinate by coordinate; starts near one half."""
    return Linear(model.d_model, shape.num_heads * shape.value_dim, bias=model.attention.bias)
