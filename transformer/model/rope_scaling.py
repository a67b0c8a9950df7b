"""Frequencies of rotary positions, and ways to stretch them over texts longer than those of the training."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.registry import Registry
from transformer.schema import Config, field

ROPE_SCALINGS = Registry("model.position.rope_scaling")


def geometric(base: float | jax.Array, half: int) -> jax.Array:
    """base^(-j / half) for j = 0, 1, ..., half - 1: radians per position of each pair, fastest first, float32."""
    return base ** (-jnp.arange(half, dtype=jnp.float32) / half)


@ROPE_SCALINGS.register("none", paper="Su et al. 2021 (RoFormer)")
class Unscaled(nnx.Module):
    """The geometric series as it is. Base of all scalings.

    Attributes:
      attention_factor: factor on queries and on keys.
      cache_length: tokens up to which rotated keys in a cache stay right, or None for any number.
    """

    attention_factor: float = 1.0
    cache_length: int | None = None

    def __init__(self, config: Config):
        self.base = config.model.position.rope_base

    def frequencies(self, half: int, positions_BT: jax.Array) -> jax.Array:
        """Radians per position of `half` pairs, float32, broadcastable to [B, 1, T, half]."""
        del positions_BT
        return geometric(self.base, half)


@dataclasses.dataclass(frozen=True)
class FactorParameters:
    rope_factor: float = field(4.0, "length to reach / length of the training")


def _factor(config: Config) -> str | None:
    factor = config.model.position.rope_factor
    return None if factor >= 1 else f"model.position.rope_factor={factor} must be at least 1 (1: no scaling)."


def _two_pairs(config: Config) -> str | None:
    attention, values_turn = config.model.attention, config.model.position.rope_on != "qk"
    head_dim = attention.head_dim or config.model.d_model // attention.num_heads
    narrowest = min(head_dim, attention.value_dim or head_dim) if values_turn else head_dim
    return None if narrowest > 3 else f"the head dimension {narrowest} has a single frequency; choose 4 or more."


def one_text_per_row(config: Config) -> str | None:
    """Refuses packed rows where the length of a text is read off its row."""
    if config.data.packing != "none":
        return f"takes the length of a text from its row, so data.packing={config.data.packing} breaks it; use none."
    return None


def _original_length(config: Config) -> str | None:
    length = config.model.position.rope_original_length
    return None if length >= 0 else f"model.position.rope_original_length={length} must not be negative."


@ROPE_SCALINGS.register(
    "linear", parameters=FactorParameters, paper="Chen et al. 2023 (position interpolation)", check=_factor
)
class Interpolated(Unscaled):
    """All angles divided by the factor, so that new positions fall between those of the training."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.factor = config.model.position.rope_factor

    def frequencies(self, half: int, positions_BT: jax.Array) -> jax.Array:
        return geometric(self.base, half) / self.factor


def stretched_base(base: float, factor: float | jax.Array, half: int) -> float | jax.Array:
    """The base whose slowest pair is slower by `factor` while the fastest stays as it is."""
    return base * factor ** (half / (half - 1))


@ROPE_SCALINGS.register(
    "ntk",
    parameters=FactorParameters,
    paper="Peng et al. 2023 (YaRN), section 3.1",
    check=lambda config: _factor(config) or _two_pairs(config),
)
class NTKAware(Interpolated):
    """A larger base: the slowest pair is stretched by the factor, the fastest not at all."""

    def frequencies(self, half: int, positions_BT: jax.Array) -> jax.Array:
        return geometric(stretched_base(self.base, self.factor, half), half)


@dataclasses.dataclass(frozen=True)
class OriginalLength:
    rope_original_length: int = field(0, "tokens per window of the training; 0: data.sequence_length")


@ROPE_SCALINGS.register(
    "dynamic_ntk",
    parameters=OriginalLength,
    paper="Peng et al. 2023 (YaRN), section 3.3",
    traits=("length_dependent",),
    check=lambda config: _original_length(config) or _two_pairs(config) or one_text_per_row(config),
)
class DynamicNTK(Unscaled):
    """As ntk, with the factor that the text at hand needs: none up to the original length, then length / original."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.original_length = config.model.position.rope_original_length or config.data.sequence_length
        self.cache_length = self.original_length

    def frequencies(self, half: int, positions_BT: jax.Array) -> jax.Array:
        length_B111 = 1 + positions_BT.max(axis=1)[:, None, None, None]
        factor_B111 = jnp.maximum(1.0, length_B111.astype(jnp.float32) / self.original_length)
        return geometric(stretched_base(self.base, factor_B111, half), half)


@dataclasses.dataclass(frozen=True)
class YarnParameters(FactorParameters, OriginalLength):
    rope_beta_fast: float = field(32.0, "pairs with more turns than this within the original length stay as they are")
    rope_beta_slow: float = field(1.0, "pairs with fewer turns than this are divided by rope_factor")
    rope_attention_factor: float = field(0.0, "factor on queries and on keys; 0: 0.1 ln(rope_factor) + 1")


def _yarn(config: Config) -> str | None:
    position = config.model.position
    if not position.rope_beta_fast > position.rope_beta_slow:
        return (
            f"model.position.rope_beta_fast={position.rope_beta_fast} must be larger than "
            f"model.position.rope_beta_slow={position.rope_beta_slow}."
        )
    if position.rope_attention_factor < 0:
        return f"model.position.rope_attention_factor={position.rope_attention_factor} must not be negative."
    return _factor(config) or _original_length(config)


@ROPE_SCALINGS.register("yarn", parameters=YarnParameters, paper="Peng et al. 2023 (YaRN)", check=_yarn)
class Yarn(Interpolated):
    """Slow pairs are divided by the factor, fast ones kept, those between blended; scores are sharpened.

    The blend is linear in the number of turns within the original length, as the paper writes it; the code
    published with it is linear in the index of the pair instead.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        position = config.model.position
        self.original_length = position.rope_original_length or config.data.sequence_length
        self.beta_fast, self.beta_slow = position.rope_beta_fast, position.rope_beta_slow
        self.attention_factor = position.rope_attention_factor or 0.1 * math.log(self.factor) + 1.0

    def frequencies(self, half: int, positions_BT: jax.Array) -> jax.Array:
        frequency_k = geometric(self.base, half)
        turns_k = self.original_length * frequency_k / (2 * math.pi)
        keep_k = jnp.clip((turns_k - self.beta_slow) / (self.beta_fast - self.beta_slow), 0.0, 1.0)
        return frequency_k * (keep_k + (1.0 - keep_k) / self.factor)
