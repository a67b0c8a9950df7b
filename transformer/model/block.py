"""The block, and the one formula every residual arrangement is a setting of."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from transformer.model.attention import Attention
from transformer.model.context import Context
from transformer.model.feedforward import FEEDFORWARDS
from transformer.model.initialization import parameter
from transformer.model.normalization import apply, make_norm, places
from transformer.schema import Gains, Model


class ResidualGain(nnx.Module):
    """A learned factor that starts at zero (ReZero, Bachlechner et al. 2020)."""

    def __init__(self) -> None:
        self.gain = parameter((), "residual_gain")

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gain.astype(x.dtype)


class Sublayer(nnx.Module):
    """y = out_norm(skip_gain * x + branch_gain * res_norm(f(in_norm(x)))); an absent norm is the identity.

    Pre, post, sandwich and no norm, no residual (skip_gain 0) and ReZero are settings of it.

    Args:
      branch: f, called as `branch(x_BTD, context)`.
      name: `attention` or `ffn`, for taps and dropout keys.
    """

    def __init__(self, branch: nnx.Module, model: Model, gains: Gains, name: str):
        present = places(model)
        self.branch: Any = branch
        self.name, self.dropout_rate = name, model.dropout
        self.in_norm = make_norm(model, "in" in present)
        self.res_norm = make_norm(model, "res" in present)
        self.out_norm = make_norm(model, "out" in present)
        self.skip_gain = gains.skip_gain
        self.branch_gain = ResidualGain() if gains.branch_gain == "learned_zero" else gains.branch_gain

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        branch_BTD = apply(self.res_norm, self.branch(apply(self.in_norm, x_BTD), context))
        branch_BTD = context.dropout(self.name, branch_BTD, self.dropout_rate)
        branch_BTD = context.tap(f"{self.name}.output", scaled(branch_BTD, self.branch_gain))
        if self.skip_gain == 0:
            return apply(self.out_norm, branch_BTD)
        return apply(self.out_norm, scaled(x_BTD, self.skip_gain) + branch_BTD)


def scaled(x: jax.Array, gain: float | str | ResidualGain) -> jax.Array:
    """gain * x, without an operation where the gain is one."""
    if isinstance(gain, ResidualGain):
        return gain(x)
    return x if gain == 1 else x * float(gain)


class Block(nnx.Module):
    """One layer: attention, then the feed-forward network."""

    def __init__(self, model: Model):
        ffn = FEEDFORWARDS.build(model.ffn.kind, model)
        self.attention = Sublayer(Attention(model), model, model.residual.attention, "attention")
        self.ffn = None if ffn is None else Sublayer(ffn, model, model.residual.ffn, "ffn")

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        x_BTD = context.tap("residual_mid", self.attention(x_BTD, context))
        x_BTD = x_BTD if self.ffn is None else self.ffn(x_BTD, context)
        return context.tap("residual", x_BTD)
