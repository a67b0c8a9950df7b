"""The block, and the one formula every residual arrangement is a setting of."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from transformer.model.attention import Attention
from transformer.model.context import Context
from transformer.model.cross_attention import make_cross_attention
from transformer.model.feedforward import make_feedforward
from transformer.model.layer_pattern import has_cross_attention
from transformer.model.normalization import apply, make_norm, places
from transformer.model.remat import run_block
from transformer.model.residual import BRANCH_GAINS, SKIP_GAINS, scaled
from transformer.registry import Registry
from transformer.schema import Config, Gains, Model

ARRANGEMENTS = Registry("model.residual.arrangement")


class Sublayer(nnx.Module):
    """y = out_norm(skip_gain * x + branch_gain * res_norm(f(in_norm(x)))); an absent norm is the identity.

    Pre, post, sandwich and no norm, no residual (skip_gain 0), ReZero and DeepNorm are settings of it.

    Args:
      branch: f, called as `branch(x_BTD, context)`.
      name: `attention`, `cross_attention` or `ffn`, for taps and random keys.
      joins: whether it adds to the stream itself. In a parallel block only the last sublayer does, for both.
      reads: whether f looks at x at all; if not, there is nothing to norm before it.
    """

    def __init__(
        self, branch: nnx.Module, model: Model, gains: Gains, name: str, joins: bool = True, reads: bool = True
    ):
        present = places(model)
        self.branch: Any = branch
        self.name, self.dropout_rate = name, model.dropout
        self.in_norm = make_norm(model, "in" in present and reads)
        self.res_norm = make_norm(model, "res" in present)
        self.out_norm = make_norm(model, "out" in present and joins)
        self.skip_gain = SKIP_GAINS.build(gains.skip_gain, model, gains)
        self.branch_gain = BRANCH_GAINS.build(gains.branch_gain, model, gains)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        return self.join(x_BTD, self.write(x_BTD, context), context)

    def write(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """What the branch adds to the stream: branch_gain * res_norm(f(in_norm(x)))."""
        read_BTD = apply(self.in_norm, x_BTD, context, f"{self.name}.in_norm")
        branch_BTD = apply(self.res_norm, self.branch(read_BTD, context), context, f"{self.name}.res_norm")
        branch_BTD = context.dropout(self.name, branch_BTD, self.dropout_rate)
        return context.tap(f"{self.name}.output", scaled(branch_BTD, self.branch_gain))

    def join(self, x_BTD: jax.Array, written_BTD: jax.Array, context: Context) -> jax.Array:
        """out_norm(skip_gain * x + written)."""
        joined_BTD = written_BTD if self.skip_gain == 0 else scaled(x_BTD, self.skip_gain) + written_BTD
        return apply(self.out_norm, joined_BTD, context, f"{self.name}.out_norm")


class Block(nnx.Module):
    """One layer: attention, then the feed-forward network; between them, where there is an encoder, attention to it.

    Args:
      kind: `both`, or the only sublayer it has.
    """

    def __init__(self, model: Model, kind: str = "both"):
        ffn = None if kind == "attention" else make_feedforward(model)
        attention = None if kind == "ffn" else Attention(model)
        cross = None if kind == "ffn" else make_cross_attention(model)
        gains, self.arrangement = model.residual, model.residual.arrangement
        joins = ffn is None or self.arrangement != "parallel"
        self.attention = _sublayer(attention, model, gains.attention, "attention", joins)
        reads = cross is None or cross.reads
        self.cross_attention = _sublayer(cross, model, gains.cross_attention, "cross_attention", joins, reads)
        self.ffn = _sublayer(ffn, model, gains.ffn, "ffn")

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        return context.tap("residual", run_block(ARRANGEMENTS[self.arrangement].build, self, x_BTD, context))


def _sublayer(branch: Any, *arguments: Any) -> Sublayer | None:
    return None if branch is None else Sublayer(branch, *arguments)


@ARRANGEMENTS.register("sequential", paper="Vaswani et al. 2017")
def sequential(block: Block, x_BTD: jax.Array, context: Context) -> jax.Array:
    """The feed-forward network reads what attention has written."""
    if block.attention is not None:
        x_BTD = context.tap("residual_mid", block.attention(x_BTD, context))
    if block.cross_attention is not None:
        x_BTD = context.tap("residual_cross", block.cross_attention(x_BTD, context))
    return x_BTD if block.ffn is None else block.ffn(x_BTD, context)


def _same_skip(config: Config) -> str | None:
    gains = config.model.residual
    attention, cross, ffn = gains.attention.skip_gain, gains.cross_attention.skip_gain, gains.ffn.skip_gain
    if attention != ffn:
        return f"has one skip path, but the skip gains of attention and ffn differ ({attention} and {ffn})."
    if has_cross_attention(config.model) and cross != ffn:
        return f"has one skip path, but the skip gains of cross_attention and ffn differ ({cross} and {ffn})."
    return None


@ARRANGEMENTS.register("parallel", paper="Wang & Komatsuzaki 2021 (GPT-J)", check=_same_skip)
def parallel(block: Block, x_BTD: jax.Array, context: Context) -> jax.Array:
    """All sublayers read the block's input, and their sum is added once."""
    if block.attention is None or block.ffn is None:
        return sequential(block, x_BTD, context)
    written_BTD = block.attention.write(x_BTD, context) + block.ffn.write(x_BTD, context)
    if block.cross_attention is not None:
        written_BTD += block.cross_attention.write(x_BTD, context)
    return block.ffn.join(x_BTD, written_BTD, context)
