"""Single parts and whole stacks, called on a given stream instead of tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer import Config, build, replace
from transformer.model.context import Context
from transformer.model.masks import Mask
from transformer.model.positions import NoPosition
from transformer.schema import Config as ConfigType

V, T, D = 17, 6, 16
TINY = replace(
    Config(),
    {
        "model.d_model": D,
        "model.num_layers": 2,
        "model.attention.num_heads": 2,
        "model.position.kind": "none",
        "model.init.std": 0.4,  # large enough that every part shapes the output
        "data.sequence_length": T,
    },
)


def config(**overrides: Any) -> ConfigType:
    """The tiny config with dotted fields of `model` changed; dots are written as two underscores."""
    return replace(TINY, {f"model.{name.replace('__', '.')}": value for name, value in overrides.items()})


def model(seed: int = 0, **overrides: Any):
    """A model with the initial weights of a seed."""
    return build(config(**overrides), V, seed=seed)


def context(causal: bool = True, train: bool = False, length: int = T) -> Context:
    """What a part is called with."""
    return Context(jnp.arange(length)[None], Mask(causal=causal), NoPosition(TINY), train=train)


def stream(seed: int = 0, batch: int = 1, length: int = T, width: int = D) -> jax.Array:
    """A random residual stream of unit variance."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, length, width)), jnp.float32)


def tokens(seed: int = 0, batch: int = 2, length: int = T) -> jax.Array:
    """Random token ids."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, (batch, length)), jnp.int32)


def through_blocks(made, x: jax.Array, where: Context | None = None) -> jax.Array:
    """The stream after all blocks."""
    where = context() if where is None else where
    for layer, block in enumerate(made.blocks):
        x = block(x, where.in_layer(layer))
    return x


def rms(x: Any) -> float:
    """Root mean square of an array."""
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))
