"""Normalisation: the statistic, its affine part, and where norms stand. `none` removes them, parameters and all."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.model.initialization import parameter
from transformer.registry import Registry
from transformer.schema import Config, Model, Norm, field

if TYPE_CHECKING:
    from transformer.model.context import Context

NORMS = Registry("model.norm.kind")
PLACEMENTS = Registry("model.norm.placement")
FINAL = Registry("model.norm.final")

# The three places of y = out_norm(skip_gain * x + branch_gain * res_norm(f(in_norm(x)))).
for _name, _places, _paper in (
    ("pre", {"in"}, "Xiong et al. 2020"),
    ("post", {"out"}, "Vaswani et al. 2017"),
    ("branch", {"res"}, "Liu et al. 2021 (Swin v2)"),
    ("sandwich", {"in", "res"}, "Ding et al. 2021 (CogView)"),
    ("pre_post", {"in", "out"}, ""),
):
    PLACEMENTS.register(_name, paper=_paper)(lambda places=frozenset(_places): places)

# Without a norm at the end of the last block, one is needed before the logits.
FINAL.register("auto")(lambda places: "out" not in places)
FINAL.register("always")(lambda places: True)
FINAL.register("never")(lambda places: False)


@dataclasses.dataclass(frozen=True)
class LayerNormParameters:
    detach: bool = field(False, "no gradient flows through mean and variance (Xu et al. 2019, DetachNorm)")
    shift_noise: float = field(
        0.0, "random shift and scale of channels, drawn anew each training step (Santurkar et al. 2018)"
    )


class Affine(nnx.Module):
    """What norms share: statistics in float32, then a learned gain and bias where asked for."""

    def __init__(self, norm: Norm, width: int):
        self.epsilon = norm.epsilon
        self.gain = parameter((width,), "gain") if norm.affine else None
        self.bias = parameter((width,), "bias") if norm.bias else None

    def normalize(self, x: jax.Array, context: Context | None) -> jax.Array:
        """The statistic itself, over the last axis of a float32 array."""
        raise NotImplementedError

    def __call__(self, x: jax.Array, context: Context | None = None, name: str = "norm") -> jax.Array:
        """The norm of x.

        Args:
          x: [..., width]; statistics over a batch need [B, T, width].
          context: the forward pass, for parts that differ between training and evaluation; None is evaluation.
          name: where it stands in its layer, for random keys.
        """
        y = self.normalize(x.astype(jnp.float32), context)
        y = y if self.gain is None else y * self.gain
        y = y if self.bias is None else y + self.bias
        return y.astype(x.dtype)


def _not_negative(config: Config) -> str | None:
    noise = config.model.norm.shift_noise
    return None if noise >= 0 else f"model.norm.shift_noise={noise} must not be negative."


@NORMS.register("layernorm", parameters=LayerNormParameters, paper="Ba et al. 2016", check=_not_negative)
class LayerNorm(Affine):
    """Subtracts the mean and divides by the standard deviation of each token's vector."""

    def __init__(self, norm: Norm, width: int):
        super().__init__(norm, width)
        self.detach, self.shift_noise = norm.detach, norm.shift_noise

    def normalize(self, x: jax.Array, context: Context | None) -> jax.Array:
        return detached(x, self.epsilon) if self.detach else standardized(x, self.epsilon, centre=True)

    def __call__(self, x: jax.Array, context: Context | None = None, name: str = "norm") -> jax.Array:
        y = super().__call__(x, context, name)
        return shifted(y, self.shift_noise, context, name) if self.shift_noise else y


@NORMS.register("rmsnorm", paper="Zhang & Sennrich 2019")
class RMSNorm(Affine):
    """Divides each token's vector by its root mean square; the mean stays."""

    def normalize(self, x: jax.Array, context: Context | None) -> jax.Array:
        return standardized(x, self.epsilon, centre=False)


@NORMS.register("none")
def no_norm(norm: Norm, width: int) -> None:
    """No normalisation anywhere: the part is absent."""
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def standardized(x: jax.Array, epsilon: float, centre: bool) -> jax.Array:
    """x over the root of its mean square, after its mean was subtracted if `centre`; all over the last axis.

    The gradient is written out, because it takes fewer passes over x than the one derived step by step.
    """
    return _standardized(x, epsilon, centre)[0]


def _standardized(x: jax.Array, epsilon: float, centre: bool) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x = x - x.mean(axis=-1, keepdims=True) if centre else x
    scale = jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon)
    y = x * scale
    return y, (y, scale)


def _standardized_gradient(
    epsilon: float, centre: bool, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array]:
    y, scale = saved
    dx = dy - y * (dy * y).mean(axis=-1, keepdims=True)
    dx = dx - dy.mean(axis=-1, keepdims=True) if centre else dx
    return (dx * scale,)


standardized.defvjp(_standardized, _standardized_gradient)


def detached(x: jax.Array, epsilon: float) -> jax.Array:
    """LayerNorm's output, with mean and variance taken as constants by the backward pass."""
    mean = jax.lax.stop_gradient(x.mean(axis=-1, keepdims=True))
    variance = jax.lax.stop_gradient(jnp.square(x - mean).mean(axis=-1, keepdims=True))
    return (x - mean) * jax.lax.rsqrt(variance + epsilon)


def shifted(y: jax.Array, size: float, context: Context | None, name: str) -> jax.Array:
    """y * exp(size * a) + size * b with standard normal a, b per channel, the same for all tokens of a step."""
    key = context.key(name) if context is not None and context.train else None
    if key is None:
        return y
    a_D, b_D = size * jax.random.normal(key, (2, y.shape[-1]))
    return (y * jnp.exp(a_D) + b_D).astype(y.dtype)


def make_norm(model: Model, present: bool = True) -> Affine | None:
    """A norm over d_model as configured, or None where there is none."""
    return NORMS.build(model.norm.kind, model.norm, model.d_model) if present else None


def places(model: Model) -> frozenset[str]:
    """Which of `in`, `res`, `out` carry a norm."""
    return PLACEMENTS.build(model.norm.placement)


def has_final_norm(model: Model) -> bool:
    """Whether a norm stands before the logits."""
    return FINAL.build(model.norm.final, places(model))


def apply(norm: Affine | None, x: jax.Array, context: Context | None = None, name: str = "norm") -> jax.Array:
    """The norm of x; x itself where the norm is absent."""
    return x if norm is None else norm(x, context, name)


# At the end, because it registers further entries with what is defined above.
from transformer.model import normalization_variants  # noqa: E402, F401
