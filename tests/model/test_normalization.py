"""Norms against their formulas in NumPy, and against the layers of Flax."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import tiny
from transformer.model.normalization import FINAL, NORMS, PLACEMENTS, has_final_norm, make_norm
from transformer.schema import Norm

D, EPSILON = 16, 1e-3
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(2, 3, D)) * 3 + 1).astype(np.float32)
GAIN, BIAS = RNG.normal(size=(2, D)).astype(np.float32)


def layernorm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)


def rmsnorm(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON)


FORMULAS = {"layernorm": layernorm, "rmsnorm": rmsnorm}


def make(kind: str, affine: bool = True, bias: bool = True):
    norm = NORMS.build(kind, Norm(kind=kind, affine=affine, bias=bias, epsilon=EPSILON), D)
    if affine:
        norm.gain = nnx.Param(jnp.asarray(GAIN))
    if bias:
        norm.bias = nnx.Param(jnp.asarray(BIAS))
    return norm


def check_formula(kind: str, affine: bool, bias: bool, formula) -> None:
    wanted = formula(X.astype(np.float64))
    wanted = wanted * GAIN if affine else wanted
    wanted = wanted + BIAS if bias else wanted
    np.testing.assert_allclose(make(kind, affine, bias)(X), wanted, atol=1e-5, rtol=1e-5)


def test_every_norm_has_a_formula_here():
    from tests.model.test_normalization_variants import COVERED

    assert set(NORMS) - {"none"} == set(FORMULAS) | COVERED


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_formula(kind, affine, bias):
    check_formula(kind, affine, bias, FORMULAS[kind])


def test_the_check_notices_another_statistic():
    for kind, wrong in (("layernorm", rmsnorm), ("rmsnorm", layernorm)):
        with pytest.raises(AssertionError):
            check_formula(kind, True, True, wrong)


@pytest.mark.parametrize("kind", FORMULAS)
def test_flax_agrees(kind):
    rngs = nnx.Rngs(0)
    if kind == "layernorm":
        theirs = nnx.LayerNorm(D, epsilon=EPSILON, rngs=rngs)
        theirs.bias = nnx.Param(jnp.asarray(BIAS))
    else:
        theirs = nnx.RMSNorm(D, epsilon=EPSILON, rngs=rngs)
    theirs.scale = nnx.Param(jnp.asarray(GAIN))
    np.testing.assert_allclose(make(kind, bias=kind == "layernorm")(X), theirs(X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FORMULAS)
def test_the_gradient_is_that_of_the_formula(kind):
    norm, weights = make(kind), jnp.asarray(RNG.normal(size=X.shape), jnp.float32)

    def written_out(x):
        centred = x - x.mean(-1, keepdims=True) if kind == "layernorm" else x
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * GAIN + BIAS

    for at in (X, X * 1e-2, jnp.zeros_like(X)):  # the last two where epsilon matters
        ours, wanted = (jax.grad(lambda x, f=f: (f(x) * weights).sum())(at) for f in (norm, written_out))
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_what_each_statistic_ignores():
    moved, scaled = X + 5, X * 4
    exact = dataclasses.replace(Norm(), epsilon=0.0, affine=False)
    layer, rms = (NORMS.build(kind, exact, D) for kind in ("layernorm", "rmsnorm"))
    np.testing.assert_allclose(layer(moved), layer(X), atol=1e-5)
    np.testing.assert_allclose(layer(scaled), layer(X), atol=1e-5)
    np.testing.assert_allclose(rms(scaled), rms(X), atol=1e-5)
    assert not np.allclose(rms(moved), rms(X), atol=1e-1)


@pytest.mark.parametrize("kind", FORMULAS)
def test_statistics_are_float32_whatever_the_activations(kind):
    x = jnp.asarray(X, jnp.bfloat16)
    y = make(kind)(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, make(kind)(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_none_is_absent():
    assert make_norm(tiny({"model.norm.kind": "none"}).model) is None


def test_places_and_the_final_norm():
    assert {name: set(PLACEMENTS.build(name)) for name in PLACEMENTS} == {
        "pre": {"in"},
        "post": {"out"},
        "branch": {"res"},
        "sandwich": {"in", "res"},
        "pre_post": {"in", "out"},
    }
    for placement in PLACEMENTS:
        model = {kind: tiny({"model.norm.placement": placement, "model.norm.final": kind}).model for kind in FINAL}
        assert has_final_norm(model["always"]) and not has_final_norm(model["never"])
        assert has_final_norm(model["auto"]) == (placement not in ("post", "pre_post"))
