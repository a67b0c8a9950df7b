"""The feed-forward network against NumPy."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from tests.tiny import declared, initial, tiny, tokens
from transformer.analysis.accounting import train_flops_per_token
from transformer.errors import ConfigError
from transformer.model import build
from transformer.model.context import Context
from transformer.model.feedforward import FEEDFORWARDS, MATCHES, hidden_width
from transformer.model.masks import Mask
from transformer.model.positions import NoPosition

X = np.random.default_rng(0).normal(size=(2, 8, 16)).astype(np.float32) * 2
FORMULAS = {
    "gelu": lambda z: z * special.ndtr(z),  # the exact one, not the tanh approximation
    "relu": lambda z: np.maximum(z, 0),
    "silu": lambda z: z * special.expit(z),
    "linear": lambda z: z,
    "gelu_tanh": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    "relu2": lambda z: np.maximum(z, 0) ** 2,
}
# What the gate's pre-activation becomes (Shazeer 2020, equations 5 and 6).
GATED = {
    "glu": special.expit,
    "bilinear": FORMULAS["linear"],
    "reglu": FORMULAS["relu"],
    "geglu": FORMULAS["gelu"],
    "swiglu": FORMULAS["silu"],
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
    assert set(FEEDFORWARDS) - {"none"} == set(FORMULAS) | set(GATED)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", FORMULAS)
def test_formula(kind, bias):
    check_formula(kind, FORMULAS[kind], bias)


def test_the_check_notices_another_activation():
    wrong_ones = (("gelu", "gelu_tanh"), ("silu", "gelu"), ("relu", "linear"), ("relu2", "relu"))
    for kind, wrong in ((kind, FORMULAS[wrong]) for kind, wrong in wrong_ones):
        with pytest.raises(AssertionError):
            check_formula(kind, wrong)


def test_hidden_width():
    for ratio, width in ((4.0, 64), (2.5, 40), (8 / 3, 43)):
        assert build(tiny({"model.ffn.ratio": ratio})).blocks[0].ffn.branch.up.kernel.shape == (16, width)


# --- Gated networks ----------------------------------------------------------------------------------------------


def check_gated(kind: str, activation, swapped: bool = False) -> None:
    config = tiny({"model.ffn.kind": kind, "model.ffn.bias": True})
    layer = build(config).blocks[0].ffn.branch
    biases = {name: np.linspace(-1, 1, width) for name, width in (("up", 64), ("gate", 64), ("down", 16))}
    for name, bias in biases.items():
        getattr(layer, name).bias = nnx.Param(jnp.asarray(bias, jnp.float32))
    made = layer(jnp.asarray(X), Context(jnp.arange(8)[None], Mask(), NoPosition(config)))
    kernels = {name: np.asarray(getattr(layer, name).kernel.get_value(), np.float64) for name in biases}
    up, gate = (X @ kernels[name] + biases[name] for name in (("gate", "up") if swapped else ("up", "gate")))
    np.testing.assert_allclose(made, (activation(gate) * up) @ kernels["down"] + biases["down"], atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("kind", GATED)
def test_gated_formula(kind):
    check_gated(kind, GATED[kind])


def test_the_check_notices_another_gate_or_an_exchange():
    with pytest.raises(AssertionError):
        check_gated("geglu", FORMULAS["gelu_tanh"])
    with pytest.raises(AssertionError):
        check_gated("swiglu", GATED["swiglu"], swapped=True)


def size(overrides: dict) -> int:
    """Parameters of one feed-forward network of width 128."""
    wide = {"model.d_model": 128, "model.num_layers": 1}
    parts = declared(tiny({**wide, **overrides}))
    return sum(math.prod(shape) for name, (shape, _) in parts.items() if ".ffn.branch." in name)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 8 / 3, 4.0])
def test_matched_networks_have_the_same_size(ratio, bias):
    """Within half a hidden unit, which at these widths is below 0.5 percent from a ratio of one on."""
    common = {"model.ffn.ratio": ratio, "model.ffn.bias": bias}
    plain = size(common)
    for kind in GATED:
        matched = size({**common, "model.ffn.kind": kind, "model.ffn.match": "params"})
        assert abs(matched - plain) <= (3 * 128 + 2) / 2
        assert ratio < 1 or abs(matched / plain - 1) < 0.005
        assert size({**common, "model.ffn.kind": kind}) > 1.4 * plain  # the check is not vacuous


def test_matching_leaves_an_ungated_network_alone():
    for match in MATCHES:
        assert hidden_width(tiny({"model.ffn.match": match}).model) == 64
    assert hidden_width(tiny({"model.ffn.match": "flops", "model.ffn.kind": "glu"}).model) == 43


# --- One network for all layers ----------------------------------------------------------------------------------


def test_a_shared_network_is_stored_once_and_used_everywhere():
    config = tiny({"model.ffn.shared": True})
    assert {name for name in declared(config) if "ffn" in name and "norm" not in name} == {
        "ffn.up.kernel",
        "ffn.down.kernel",
    }
    shared = build(config)
    own = build(tiny())
    for block in own.blocks:  # the same numbers in every layer
        block.ffn.branch.up.kernel, block.ffn.branch.down.kernel = shared.ffn.up.kernel, shared.ffn.down.kernel
    np.testing.assert_array_equal(own(tokens()), shared(tokens()))
    own.blocks[1].ffn.branch.up.kernel = nnx.Param(jnp.zeros((16, 64)))
    assert not np.allclose(own(tokens()), shared(tokens()))


def test_a_shared_network_costs_as_much_as_one_per_layer():
    own, shared = tiny(), tiny({"model.ffn.shared": True})
    assert train_flops_per_token(own) == train_flops_per_token(shared)


def test_nothing_to_share():
    with pytest.raises(ConfigError, match=r"model\.ffn\.kind=none: .*model\.ffn\.shared=True"):
        tiny({"model.ffn.kind": "none", "model.ffn.shared": True})
