"""The feed-forward network against NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from tests.tiny import initial, tiny
from transformer.model import build
from transformer.model.context import Context
from transformer.model.feedforward import FEEDFORWARDS
from transformer.model.masks import Mask
from transformer.model.positions import NoPosition

X = np.random.default_rng(0).normal(size=(2, 8, 16)).astype(np.float32) * 2
FORMULAS = {
    "gelu": lambda z: z * special.ndtr(z),  # the exact one, not the tanh approximation
    "relu": lambda z: np.maximum(z, 0),
    "silu": lambda z: z * special.expit(z),
    "linear": lambda z: z,
}


def check_formula(kind: str, formula, bias: bool = False) -> None:
    config = tiny({"model.ffn.kind": kind, "model.ffn.bias": bias})
    layer = build(config).blocks[0].ffn.branch
    if bias:
        layer.up.bias = nnx.Param(jnp.linspace(-1, 1, 64))
        layer.down.bias = nnx.Param(jnp.linspace(-1, 1, 16))
    made = layer(jnp.asarray(X), Context(jnp.arange(8)[None], Mask(), NoPosition(config)))
    weights = {n: w.astype(np.float64) for n, w in initial(config).items() if n.startswith("blocks.0.ffn.branch")}
    hidden = X @ weights["blocks.0.ffn.branch.up.kernel"] + (np.linspace(-1, 1, 64) if bias else 0)
    wanted = formula(hidden) @ weights["blocks.0.ffn.branch.down.kernel"]
    np.testing.assert_allclose(made, wanted + (np.linspace(-1, 1, 16) if bias else 0), atol=2e-5, rtol=2e-5)


def test_every_kind_has_a_formula_here():
    assert set(FEEDFORWARDS) - {"none"} == set(FORMULAS)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", FORMULAS)
def test_formula(kind, bias):
    check_formula(kind, FORMULAS[kind], bias)


def test_the_check_notices_another_activation():
    def tanh_gelu(z):
        return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    for kind, wrong in (("gelu", tanh_gelu), ("silu", FORMULAS["gelu"]), ("relu", FORMULAS["linear"])):
        with pytest.raises(AssertionError):
            check_formula(kind, wrong)


def test_hidden_width():
    for ratio, width in ((4.0, 64), (2.5, 40), (8 / 3, 43)):
        assert build(tiny({"model.ffn.ratio": ratio})).blocks[0].ffn.branch.up.kernel.shape == (16, width)
