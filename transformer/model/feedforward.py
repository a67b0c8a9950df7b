"""Position-wise feed-forward networks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from flax import nnx

from transformer.model.context import Context
from transformer.model.linear import Linear
from transformer.registry import Registry
from transformer.schema import Model

FEEDFORWARDS = Registry("model.ffn.kind")

ACTIVATIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], str]] = {
    "gelu": (functools.partial(jax.nn.gelu, approximate=False), "Hendrycks & Gimpel 2016"),
    "relu": (jax.nn.relu, "Vaswani et al. 2017, section 3.3"),
    "silu": (jax.nn.silu, "Ramachandran et al. 2017"),
    "linear": (lambda x: x, "no non-linearity: a control"),
}


class FeedForward(nnx.Module):
    """W_down activation(W_up x): the same two-layer network at every position."""

    def __init__(self, model: Model, activation: str):
        width = round(model.ffn.ratio * model.d_model)
        self.up = Linear(model.d_model, width, bias=model.ffn.bias)
        self.down = Linear(width, model.d_model, bias=model.ffn.bias, role="output")
        self.activation = activation

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        activate, _ = ACTIVATIONS[self.activation]
        h_BTF = context.tap("ffn.hidden", activate(self.up(x_BTD)))
        return self.down(h_BTF)


for _name, (_, _paper) in ACTIVATIONS.items():
    FEEDFORWARDS.register(_name, paper=_paper)(functools.partial(FeedForward, activation=_name))


@FEEDFORWARDS.register("none")
def no_feedforward(model: Model) -> None:
    """No feed-forward sublayer: attention only."""
    return None
