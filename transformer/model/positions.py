"""Position schemes: how the model knows where a token stands.

A scheme may act in four places: added to the embeddings, applied to queries and keys, applied to values and head
outputs, added to the scores. Choosing one leaves nothing of another behind; `none` does nothing anywhere and owns
no parameters.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer.errors import UserError
from transformer.model.embeddings import in_float32
from transformer.model.initialization import parameter
from transformer.model.rope_scaling import ROPE_SCALINGS, one_text_per_row
from transformer.registry import Registry
from transformer.schema import Config, choice, field

POSITIONS = Registry("model.position.kind")


@POSITIONS.register("none", paper="Haviv et al. 2022 (causal models find positions without being told)")
class NoPosition(nnx.Module):
    """No positional signal. Base of all schemes: each overrides the places it acts in.

    Args:
      causal: whether queries see only keys that do not stand after them.

    Attributes:
      max_length: positions the scheme knows, or None for any number.
      cache_length: tokens up to which what was computed for earlier tokens stays right when later ones follow, or
        None for any number. A scheme that looks at the length of the text has such a limit.
    """

    max_length: int | None = None
    cache_length: int | None = None

    def __init__(self, config: Config | None = None, causal: bool = True):
        del config, causal

    def embed(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Acts on token embeddings [B, T, d_model]."""
        return x_BTD

    def rotate(self, x_BHTK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Acts on queries and keys [B, heads, T, head_dim]."""
        return x_BHTK

    def rotate_value(self, v_BHTK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Acts on values [B, heads, T, head_dim]."""
        return v_BHTK

    def place(
        self, k_BGTK: jax.Array | None, v_BGTU: jax.Array, positions_BT: jax.Array
    ) -> tuple[jax.Array | None, jax.Array]:
        """Keys, if there are any, and values of tokens that stand at these positions."""
        k_BGTK = None if k_BGTK is None else self.rotate(k_BGTK, positions_BT)
        return k_BGTK, self.rotate_value(v_BGTU, positions_BT)

    def unrotate_output(self, o_BHTK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Acts on head outputs [B, heads, T, head_dim], at the positions of the queries."""
        return o_BHTK

    def bias(self, query_positions_BT: jax.Array, key_positions_BS: jax.Array) -> jax.Array | None:
        """A term [B, heads, T, S] added to the scaled scores, or None."""
        return None


# --- Added to the embedding --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SinusoidalParameters:
    sinusoidal_base: float = field(10_000.0, "the slowest sinusoid has a period of nearly 2 pi times this")


def _sinusoidal(config: Config) -> str | None:
    if config.model.d_model % 2:
        return f"sines and cosines come in pairs, but model.d_model={config.model.d_model} is odd; choose an even one."
    return _positive_base("sinusoidal_base", config.model.position.sinusoidal_base)


def _positive_base(name: str, base: float) -> str | None:
    return None if base > 0 else f"model.position.{name}={base} must be positive."


def sinusoidal_code(positions: jax.Array, width: int, base: float = 10_000.0) -> jax.Array:
    """sin and cos of position * base^(-2i / width) at features 2i and 2i + 1 (Vaswani et al. 2017, section 3.5).

    Args:
      positions: [...], integers or floats.

    Returns:
      [..., width] in float32, or in float64 for positions in float64.
    """
    dtype = jnp.promote_types(positions.dtype, jnp.float32)
    frequency_k = base ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
    angle = positions.astype(dtype)[..., None] * frequency_k
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*positions.shape, width)


@POSITIONS.register(
    "sinusoidal", parameters=SinusoidalParameters, paper="Vaswani et al. 2017, section 3.5", check=_sinusoidal
)
class SinusoidalPosition(NoPosition):
    """A fixed vector of sines and cosines per position, added to the embedding."""

    def __init__(self, config: Config, causal: bool = True):
        self.base = config.model.position.sinusoidal_base

    def embed(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        return x_BTD + sinusoidal_code(positions_BT, x_BTD.shape[-1], self.base).astype(x_BTD.dtype)


OUT_OF_RANGE = Registry("model.position.out_of_range")


@OUT_OF_RANGE.register("error")
def nan_outside(table_ND: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """NaN, where the number of tokens did not already raise: never the last row in silence."""
    return table_ND.at[positions_BT].get(mode="fill", fill_value=jnp.nan)


@OUT_OF_RANGE.register("clamp")
def clamp(table_ND: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """The last row, for every position beyond it."""
    return table_ND[jnp.minimum(positions_BT, len(table_ND) - 1)]


@OUT_OF_RANGE.register("wrap")
def wrap(table_ND: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """The table again from its first row."""
    return table_ND[positions_BT % len(table_ND)]


@OUT_OF_RANGE.register("interpolate", traits=("length_dependent",))
def interpolate(table_ND: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """The whole table stretched over a text that is longer than it; rows are blended linearly."""
    last = len(table_ND) - 1
    longest_B1 = jnp.maximum(positions_BT.max(axis=1, keepdims=True), max(last, 1)).astype(jnp.float32)
    row_BT = positions_BT.astype(jnp.float32) * (last / longest_B1)
    below_BT = jnp.floor(row_BT).astype(jnp.int32)
    share_BT1 = (row_BT - below_BT)[..., None].astype(table_ND.dtype)
    return table_ND[below_BT] * (1 - share_BT1) + table_ND[jnp.minimum(below_BT + 1, last)] * share_BT1


@dataclasses.dataclass(frozen=True)
class LearnedParameters:
    max_length: int = field(0, "rows of the position table; 0: data.sequence_length")
    out_of_range: str = choice("error", "transformer.model.positions:OUT_OF_RANGE", "positions beyond the table")


def _enough_positions(config: Config) -> str | None:
    position, needed = config.model.position, config.data.sequence_length
    if position.out_of_range == "error" and 0 < position.max_length < needed:
        remedy = "raise it, or leave it at 0"
        return f"model.position.max_length={position.max_length} is below data.sequence_length={needed}; {remedy}."
    if "length_dependent" in OUT_OF_RANGE[position.out_of_range].traits and (problem := one_text_per_row(config)):
        return f"model.position.out_of_range={position.out_of_range} {problem}"
    return None


@POSITIONS.register(
    "learned",
    parameters=LearnedParameters,
    paper="Vaswani et al. 2017, section 3.5",
    check=_enough_positions,
)
class LearnedPosition(NoPosition):
    """A trained vector per position, added to the embedding."""

    def __init__(self, config: Config, causal: bool = True):
        position = config.model.position
        rows = position.max_length or config.data.sequence_length
        self.table = parameter((rows, config.model.d_model), "position")
        self.out_of_range = position.out_of_range
        self.max_length = rows if position.out_of_range == "error" else None
        self.cache_length = rows if "length_dependent" in OUT_OF_RANGE[position.out_of_range].traits else None

    def embed(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        if self.max_length is not None and x_BTD.shape[1] > self.max_length:
            raise UserError(
                f"The input has {x_BTD.shape[1]} tokens but model.position.kind=learned knows only "
                f"{self.max_length} positions; shorten it or train with a larger model.position.max_length."
            )
        row_BTD = OUT_OF_RANGE.build(self.out_of_range, in_float32(self.table[...]), positions_BT)
        return x_BTD + row_BTD.astype(x_BTD.dtype)


# --- Rotations ---------------------------------------------------------------------------------------------------

# Entry -> whether it rotates queries and keys, rotates values, turns head outputs back.
ROPE_ON = Registry("model.position.rope_on")
ROPE_ON.register("qk", paper="Su et al. 2021 (RoFormer)")(lambda: (True, False, False))
ROPE_ON.register("qkv_no_inverse", traits=("absolute",))(lambda: (True, True, False))
ROPE_ON.register("qkv_with_inverse", paper="RoVE, arXiv 2606.11275", traits=("turns_output",))(
    lambda: (True, True, True)
)
ROPE_ON.register("v_only", paper="Su 2025 (VO-RoPE)", traits=("turns_output",))(lambda: (False, True, True))


@dataclasses.dataclass(frozen=True)
class RopeParameters:
    rope_base: float = field(10_000.0, "base of the geometric series of rotation frequencies")
    rope_fraction: float = field(1.0, "share of the pairs that rotate, the fastest ones (p-RoPE)")
    rope_on: str = choice(
        "qk", "transformer.model.positions:ROPE_ON", "what rotates; inverse: head outputs are turned back"
    )
    rope_scaling: str = choice(
        "none", "transformer.model.rope_scaling:ROPE_SCALINGS", "how frequencies change for longer texts"
    )


def _rope(config: Config) -> str | None:
    position, attention = config.model.position, config.model.attention
    head_dim = attention.head_dim or config.model.d_model // attention.num_heads
    if head_dim % 2:
        return f"rotates pairs, but the head dimension {head_dim} is odd; choose another."
    if not 0 < position.rope_fraction <= 1 or round(position.rope_fraction * head_dim / 2) < 1:
        return (
            f"model.position.rope_fraction={position.rope_fraction} must be at most 1 and leave at least one of the "
            f"{head_dim // 2} pairs of a head; model.position.kind=none rotates nothing."
        )
    factor = getattr(position, "rope_attention_factor", 0.0)
    if position.rope_on == "v_only" and factor:
        return (
            f"model.position.rope_attention_factor={factor} acts on queries and keys, which "
            "model.position.rope_on=v_only does not turn; leave it at 0."
        )
    return _positive_base("rope_base", position.rope_base)


@POSITIONS.register("rope", parameters=RopeParameters, paper="Su et al. 2021 (RoFormer)", check=_rope)
class RotaryPosition(NoPosition):
    """Rotates queries and keys by an angle proportional to their position, so scores depend on distance only.

    Feature j is paired with feature j + head_dim / 2 (the paper pairs neighbours: the same up to the order of
    features). `rope_fraction` keeps the fastest pairs and leaves the others alone (p-RoPE, Barbero et al. 2024).
    Rotating only the first share p of the features with a spectrum of their own (GPT-NeoX) is the same up to the
    order of features with the base raised to the power 1 / p.
    """

    def __init__(self, config: Config, causal: bool = True):
        position = config.model.position
        self.fraction = position.rope_fraction
        self.turns_qk, self.turns_v, self.turns_back = ROPE_ON.build(position.rope_on)
        self.scaling = ROPE_SCALINGS.build(position.rope_scaling, config)
        self.cache_length = self.scaling.cache_length

    def rotate(self, x_BHTK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        if not self.turns_qk:
            return x_BHTK
        x_BHTK = self._turn(x_BHTK, positions_BT)
        return x_BHTK if self.scaling.attention_factor == 1 else x_BHTK * self.scaling.attention_factor

    def rotate_value(self, v_BHTK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        return self._turn(v_BHTK, positions_BT) if self.turns_v else v_BHTK

    def unrotate_output(self, o_BHTK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        return self._turn(o_BHTK, positions_BT, back=True) if self.turns_back else o_BHTK

    def _turn(self, x_BHTK: jax.Array, positions_BT: jax.Array, back: bool = False) -> jax.Array:
        half = x_BHTK.shape[-1] // 2
        frequency_k = self.scaling.frequencies(half, positions_BT)
        if self.fraction != 1:
            frequency_k = jnp.where(jnp.arange(half) < round(self.fraction * half), frequency_k, 0.0)
        angle_B1Tk = positions_BT[:, None, :, None].astype(jnp.float32) * frequency_k  # float32: large angles
        cos, sin = jnp.cos(angle_B1Tk).astype(x_BHTK.dtype), jnp.sin(angle_B1Tk).astype(x_BHTK.dtype)
        sin = -sin if back else sin
        a, b = x_BHTK[..., :half], x_BHTK[..., half : 2 * half]
        turned = [a * cos - b * sin, a * sin + b * cos]
        alone = [x_BHTK[..., 2 * half :]] if x_BHTK.shape[-1] % 2 else []  # the last of an odd number of values
        return jnp.concatenate(turned + alone, axis=-1)


# --- Added to the scores -----------------------------------------------------------------------------------------


def alibi_slopes(num_heads: int) -> np.ndarray:
    """2^(-8 i / n) for heads i = 1 ... n where n is a power of two.

    Otherwise the slopes of the largest power of two below n, then every other one of twice as many, as in the code
    published with the paper: [num_heads] in float32.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    exponents = [8 * i / power for i in range(1, power + 1)]
    exponents += [8 * i / (2 * power) for i in range(1, 2 * power + 1, 2)][: num_heads - power]
    return np.exp2(-np.array(exponents)).astype(np.float32)


@POSITIONS.register("alibi", paper="Press et al. 2021 (ALiBi)", traits=("on_scores",))
class AlibiPosition(NoPosition):
    """Subtracts from each score the distance of its two tokens times a slope of the head's own.

    Without a causal mask the distance counts alike in both directions, so an encoder cannot tell a text from its
    mirror image.
    """

    def __init__(self, config: Config, causal: bool = True):
        self.num_heads = config.model.attention.num_heads

    def bias(self, query_positions_BT: jax.Array, key_positions_BS: jax.Array) -> jax.Array:
        offset_BTS = key_positions_BS[:, None, :] - query_positions_BT[:, :, None]
        distance_B1TS = jnp.abs(offset_BTS)[:, None].astype(jnp.float32)
        return -jnp.asarray(alibi_slopes(self.num_heads))[:, None, None] * distance_B1TS


@dataclasses.dataclass(frozen=True)
class T5Parameters:
    t5_buckets: int = field(32, "rows of the bias table; without a causal mask half of them for each direction")
    t5_max_distance: int = field(128, "distance from which on all share one bucket")


def _t5(config: Config) -> str | None:
    position = config.model.position
    if position.t5_buckets < 4 or position.t5_buckets % 4:
        return f"model.position.t5_buckets={position.t5_buckets} must be a multiple of 4."
    if position.t5_max_distance <= position.t5_buckets // 2:
        return (
            f"model.position.t5_max_distance={position.t5_max_distance} must be larger than half of "
            f"model.position.t5_buckets={position.t5_buckets}: that many distances have a bucket of their own."
        )
    return None


def t5_buckets_by_distance(num_buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of distances 0 ... max_distance: one each up to half of the buckets, then ever wider ones.

    Returns:
      int32 [max_distance + 1]; longer distances belong to the last bucket as well.
    """
    exact = num_buckets // 2
    distance = np.arange(max_distance + 1)
    share = np.log(np.maximum(distance, 1) / exact) / math.log(max_distance / exact)
    # A millionth more, so that a boundary is not missed by rounding.
    wide = np.minimum(exact + np.floor(share * (num_buckets - exact) + 1e-6), num_buckets - 1)
    return np.where(distance < exact, distance, wide).astype(np.int32)


@POSITIONS.register(
    "t5", parameters=T5Parameters, paper="Raffel et al. 2020 (T5), section 2.1", traits=("on_scores",), check=_t5
)
class T5Position(NoPosition):
    """Adds to each score a trained number that depends on the head and on a bucket of the distance.

    One table serves all layers. T5 does not scale scores besides: set model.attention.scale=none for that.
    """

    def __init__(self, config: Config, causal: bool = True):
        position = config.model.position
        self.causal, self.max_distance = causal, position.t5_max_distance
        self.num_buckets = position.t5_buckets
        self.table = parameter((position.t5_buckets, config.model.attention.num_heads), "position_bias")

    def bias(self, query_positions_BT: jax.Array, key_positions_BS: jax.Array) -> jax.Array:
        offset_BTS = key_positions_BS[:, None, :] - query_positions_BT[:, :, None]
        distance_BTS = jnp.maximum(-offset_BTS, 0) if self.causal else jnp.abs(offset_BTS)
        one_way = self.num_buckets if self.causal else self.num_buckets // 2
        by_distance = jnp.asarray(t5_buckets_by_distance(one_way, self.max_distance))
        bucket_BTS = by_distance[jnp.minimum(distance_BTS, self.max_distance)]
        if not self.causal:  # the second half of the table is for keys that stand after the query
            bucket_BTS = bucket_BTS + jnp.where(offset_BTS > 0, one_way, 0)
        return self.table.astype(jnp.float32)[bucket_BTS].transpose(0, 3, 1, 2)
