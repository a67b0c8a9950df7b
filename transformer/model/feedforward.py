"""Position-wise feed-forward networks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.model.context import Context
from transformer.model.linear import Linear
from transformer.registry import Registry
from transformer.schema import Config, Model

FEEDFORWARDS = Registry("model.ffn.kind")
MATCHES = Registry("model.ffn.match")

Activation = Callable[[jax.Array], jax.Array]


def gelu(x: jax.Array) -> jax.Array:
    """x times the standard normal distribution function of x. By erf: the erfc of `jax.nn.gelu` costs a CPU more."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATIONS: dict[str, tuple[Activation, str]] = {
    "gelu": (gelu, "Hendrycks & Gimpel 2016"),
    "gelu_tanh": (functools.partial(jax.nn.gelu, approximate=True), "Hendrycks & Gimpel 2016, as in GPT-2"),
    "relu": (jax.nn.relu, "Vaswani et al. 2017, section 3.3"),
    "silu": (jax.nn.silu, "Ramachandran et al. 2017"),
    "relu2": (lambda x: jnp.square(jax.nn.relu(x)), "So et al. 2021 (Primer)"),
    "linear": (lambda x: x, "no non-linearity: a control"),
}
# The activation of the gate; all from Shazeer 2020.
GATES: dict[str, Activation] = {
    "glu": jax.nn.sigmoid,
    "bilinear": lambda x: x,
    "reglu": jax.nn.relu,
    "geglu": gelu,
    "swiglu": jax.nn.silu,
}


class FeedForward(nnx.Module):
    """W_down activation(W_up x): the same two-layer network at every position."""

    def __init__(self, model: Model, activation: str):
        width, bias = hidden_width(model), model.ffn.bias
        self.up = Linear(model.d_model, width, bias=bias, role="hidden")
        self.down = Linear(width, model.d_model, bias=bias, role="output")
        self.activation = activation

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        activate, _ = ACTIVATIONS[self.activation]
        h_BTF = context.tap("ffn.hidden", activate(self.up(x_BTD)))
        return self.down(h_BTF)


class GatedFeedForward(nnx.Module):
    """W_down (activation(W_gate x) * W_up x): a third matrix decides how much of each hidden unit passes."""

    def __init__(self, model: Model, gate: str):
        width, bias = hidden_width(model), model.ffn.bias
        self.up = Linear(model.d_model, width, bias=bias, role="hidden")
        self.gate = Linear(model.d_model, width, bias=bias, role="hidden")
        self.down = Linear(width, model.d_model, bias=bias, role="output")
        self.activation = gate

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        h_BTF = context.tap("ffn.hidden", GATES[self.activation](self.gate(x_BTD)) * self.up(x_BTD))
        return self.down(h_BTF)


for _name, (_, _paper) in ACTIVATIONS.items():
    FEEDFORWARDS.register(_name, paper=_paper)(functools.partial(FeedForward, activation=_name))
for _name in GATES:
    FEEDFORWARDS.register(_name, paper="Shazeer 2020", traits=("gated",))(
        functools.partial(GatedFeedForward, gate=_name)
    )


def _nothing_to_share(config: Config) -> str | None:
    return "leaves no network for model.ffn.shared=True to share; remove one." if config.model.ffn.shared else None


@FEEDFORWARDS.register("none", check=_nothing_to_share)
def no_feedforward(model: Model) -> None:
    """No feed-forward sublayer: attention only."""
    return None


# --- Hidden width ------------------------------------------------------------------------------------------------


@MATCHES.register("width")
def same_width(model: Model, width: int) -> float:
    """The same hidden width, gated or not: a gated network has half as many weights again."""
    return width


@MATCHES.register("params", paper="Shazeer 2020, section 2")
def same_params(model: Model, width: int) -> float:
    """The parameters of an ungated network of this width: two thirds of it, biases counted."""
    d, bias = model.d_model, int(model.ffn.bias)
    return width * (2 * d + bias) / (3 * d + 2 * bias)


@MATCHES.register("flops")
def same_flops(model: Model, width: int) -> float:
    """The multiply-adds of its matrix products: two thirds of the width; element-wise work is not counted."""
    return width * 2 / 3


def hidden_width(model: Model) -> int:
    """Hidden units: ratio * d_model, or what `match` makes of it for a gated network, to the nearest whole number."""
    width = round(model.ffn.ratio * model.d_model)
    if "gated" not in FEEDFORWARDS[model.ffn.kind].traits:
        return width
    return round(MATCHES.build(model.ffn.match, model, width))


# --- One network for all layers ----------------------------------------------------------------------------------


class SharedFeedForward(nnx.Module):
    """The network that all layers share (Pires et al. 2023); the model owns it, layers find it in the context."""

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        return context.ffn(x_BTD, context)


def make_feedforward(model: Model) -> nnx.Module | None:
    """The feed-forward network of one layer, or None without one."""
    return SharedFeedForward() if model.ffn.shared else FEEDFORWARDS.build(model.ffn.kind, model)


def make_shared_feedforward(model: Model) -> nnx.Module | None:
    """The network the model keeps for all its layers, or None where each has its own."""
    return FEEDFORWARDS.build(model.ffn.kind, model) if model.ffn.shared else None
