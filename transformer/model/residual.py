"""The two gains of y = skip_gain * x + branch_gain * f(x): numbers, formulas of the depth, or learned."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from transformer.model.initialization import parameter
from transformer.model.layer_pattern import num_sublayers
from transformer.registry import Entry, Registry
from transformer.schema import Config, Gains, Model, field


def _number(value: Any) -> Entry | None:
    """The entry of a plain number."""
    return Entry("number", lambda model, gains: value) if isinstance(value, int | float) else None


SKIP_GAINS = Registry("model.residual.*.skip_gain", other=_number, other_help="a number")
BRANCH_GAINS = Registry("model.residual.*.branch_gain", other=_number, other_help="a number")


class LearnedGain(nnx.Module):
    """A learned factor: one for all channels (shape `()`) or one per channel (`(d_model,)`)."""

    def __init__(self, shape: tuple[int, ...], initial: float):
        self.gain = parameter(shape, "residual_gain", fill=initial)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gain.astype(x.dtype)


def _one_stack(config: Config) -> str | None:
    if config.model.family == "encoder_decoder":
        return "alpha is that of a single stack; set the gains of an encoder-decoder as numbers."
    return None


@SKIP_GAINS.register("deepnorm", paper="Wang et al. 2022 (DeepNet)", check=_one_stack)
def deepnorm_skip(model: Model, gains: Gains) -> float:
    """DeepNorm's alpha, (2 * num_layers)^(1/4); goes with placement=post and model.init.scheme=deepnorm, its beta."""
    return (2 * max(1, model.num_layers)) ** 0.25


@BRANCH_GAINS.register("learned_zero", paper="Bachlechner et al. 2020 (ReZero)", traits=("silent_branches",))
def learned_zero(model: Model, gains: Gains) -> LearnedGain:
    """One learned number that starts at zero: the block starts as the identity."""
    return LearnedGain((), 0.0)


@dataclasses.dataclass(frozen=True)
class LayerScaleParameters:
    layerscale_init: float = field(0.1, "initial factor; the paper takes 1e-5 and less beyond 18 layers")


@BRANCH_GAINS.register("layerscale", parameters=LayerScaleParameters, paper="Touvron et al. 2021 (CaiT), section 2")
def layerscale(model: Model, gains: Gains) -> LearnedGain:
    """A learned factor per channel that starts small."""
    return LearnedGain((model.d_model,), gains.layerscale_init)


@BRANCH_GAINS.register("inv_sqrt_depth", paper="Hayou et al. 2021 (Stable ResNet)")
def inv_sqrt_depth(model: Model, gains: Gains) -> float:
    """1 / sqrt(number of branches), so that the variance they add does not grow with depth."""
    return max(1, num_sublayers(model)) ** -0.5


def scaled(x: jax.Array, gain: float | LearnedGain) -> jax.Array:
    """gain * x, without an operation where the gain is one."""
    if isinstance(gain, LearnedGain):
        return gain(x)
    return x if gain == 1 else x * gain
