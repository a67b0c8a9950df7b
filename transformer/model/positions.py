"""Position schemes: how the model knows where a token stands.

A scheme may act in three places: added to the embeddings, applied to queries and keys, added to the scores.
Choosing one leaves nothing of another behind; `none` does nothing anywhere and owns no parameters.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.errors import UserError
from transformer.model.initialization import parameter
from transformer.registry import Registry
from transformer.schema import Config, field

POSITIONS = Registry("model.position.kind")


@POSITIONS.register("none", paper="Haviv et al. 2022 (causal models find positions without being told)")
class NoPosition(nnx.Module):
    """No positional signal. Base of all schemes: each overrides the place it acts in.

    Attributes:
      max_length: positions the scheme knows, or None for any number.
    """

    max_length: int | None = None

    def __init__(self, config: Config):
        del config

    def embed(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Acts on token embeddings [B, T, d_model]."""
        return x_BTD

    def rotate(self, x_BHTK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Acts on queries and keys [B, heads, T, head_dim]."""
        return x_BHTK

    def bias(self, query_positions_BT: jax.Array, key_positions_BS: jax.Array) -> jax.Array | None:
        """A term [B, heads, T, S] added to the scaled scores, or None."""
        return None


@dataclasses.dataclass(frozen=True)
class LearnedParameters:
    max_length: int = field(0, "rows of the position table; 0: data.sequence_length")


@POSITIONS.register("learned", parameters=LearnedParameters, paper="Vaswani et al. 2017, section 3.5")
class LearnedPosition(NoPosition):
    """A trained vector per position, added to the embedding."""

    def __init__(self, config: Config):
        self.max_length: int = config.model.position.max_length or config.data.sequence_length
        self.table = parameter((self.max_length, config.model.d_model), "position")

    def embed(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        if x_BTD.shape[1] > self.max_length:
            raise UserError(
                f"The input has {x_BTD.shape[1]} tokens but model.position.kind=learned knows only "
                f"{self.max_length} positions; shorten it or train with a larger model.position.max_length."
            )
        # A position outside the table becomes NaN instead of being clamped to the last row in silence.
        return x_BTD + self.table.astype(x_BTD.dtype).at[positions_BT].get(mode="fill", fill_value=jnp.nan)


@dataclasses.dataclass(frozen=True)
class RopeParameters:
    rope_base: float = field(10_000.0, "base of the geometric series of rotation frequencies")


def _even_head_dim(config: Config) -> str | None:
    head_dim = config.model.attention.head_dim or config.model.d_model // config.model.attention.num_heads
    return f"rotates pairs, but the head dimension {head_dim} is odd; choose another." if head_dim % 2 else None


@POSITIONS.register("rope", parameters=RopeParameters, paper="Su et al. 2021 (RoFormer)", check=_even_head_dim)
class RotaryPosition(NoPosition):
    """Rotates queries and keys by an angle proportional to their position, so scores depend on distance only."""

    def __init__(self, config: Config):
        self.base = config.model.position.rope_base

    def rotate(self, x_BHTK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        half = x_BHTK.shape[-1] // 2
        frequency_k = self.base ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angle_B1Tk = positions_BT[:, None, :, None].astype(jnp.float32) * frequency_k  # float32: large angles
        cos, sin = jnp.cos(angle_B1Tk).astype(x_BHTK.dtype), jnp.sin(angle_B1Tk).astype(x_BHTK.dtype)
        a, b = x_BHTK[..., :half], x_BHTK[..., half:]
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
