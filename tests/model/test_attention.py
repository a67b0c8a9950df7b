"""Attention against loops in float64, for every scale and with and without biases."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import label, named, tiny
from transformer.model import declare
from transformer.model.attention import BACKENDS, SCALES, Attention
from transformer.model.context import Context
from transformer.model.masks import Mask
from transformer.model.positions import NoPosition

B, T, D = 2, 5, 16
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
SCALE_OF = {"inv_sqrt": lambda k: k**-0.5, "none": lambda k: 1.0, "inv": lambda k: 1 / k}


def with_random_weights(module: nnx.Module) -> nnx.Module:
    """Every parameter standard normal, scaled to keep activations near one."""
    structure, params = nnx.split(module)
    rng = np.random.default_rng(1)
    values = {
        name: jnp.asarray(rng.normal(size=leaf.shape) / math.sqrt(D), jnp.float32)
        for name, leaf in named(nnx.to_pure_dict(params)).items()
    }
    flat = iter(values.values())
    return nnx.merge(structure, nnx.map_state(lambda *_: next(flat), params))


def make(overrides: dict) -> Attention:
    return with_random_weights(Attention(tiny(overrides).model))


def context(mask: Mask) -> Context:
    positions = jnp.arange(T, dtype=jnp.int32)[None]
    return Context(positions_BT=positions, mask=mask, position=NoPosition(tiny()))


def by_loop(layer: Attention, scale: float, causal: bool, x: np.ndarray) -> np.ndarray:
    """One query, one head, one key at a time, in float64."""

    def project(linear, v):
        y = v @ np.asarray(linear.kernel[...], np.float64)
        return y if linear.bias is None else y + np.asarray(linear.bias[...], np.float64)

    x = x.astype(np.float64)
    q, k, v = (project(linear, x) for linear in (layer.query, layer.key, layer.value))
    K = layer.head_dim
    heads = np.zeros_like(q)
    for b in range(B):
        for h in range(layer.num_heads):
            part = slice(h * K, (h + 1) * K)
            for t in range(T):
                keys = range(t + 1 if causal else T)
                scores = np.array([q[b, t, part] @ k[b, s, part] * scale for s in keys])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                heads[b, t, part] = sum(w * v[b, s, part] for w, s in zip(weights, keys, strict=True))
    return project(layer.output, heads)


def check_against_loop(overrides: dict, scale: float, causal: bool = True, causal_in_loop: bool = True) -> None:
    layer = make(overrides)
    made = layer(jnp.asarray(X), context(Mask(causal=causal)))
    np.testing.assert_allclose(made, by_loop(layer, scale, causal_in_loop, X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model.attention.bias": True},
        {"model.attention.num_heads": 1},
        {"model.attention.num_heads": 4},
        {"model.attention.head_dim": 6},
        {"model.attention.scale": "none"},
        {"model.attention.scale": "inv"},
    ],
    ids=label,
)
def test_against_loops(overrides, causal, backend):
    attention = tiny(overrides).model.attention
    head_dim = attention.head_dim or D // attention.num_heads
    scale = SCALE_OF[attention.scale](head_dim)
    check_against_loop({**overrides, "model.attention.backend": backend}, scale, causal, causal)


def test_the_check_notices_a_wrong_scale_and_a_wrong_mask():
    with pytest.raises(AssertionError):
        check_against_loop({}, scale=1 / 8)
    with pytest.raises(AssertionError):
        check_against_loop({}, scale=8**-0.5, causal=False, causal_in_loop=True)


def test_scales():
    assert {kind: SCALES.build(kind, 16) for kind in SCALES} == {"inv_sqrt": 0.25, "none": 1.0, "inv": 0.0625}


def test_kernels_are_two_dimensional():
    layer = Attention(tiny({"model.attention.num_heads": 4, "model.attention.head_dim": 6}).model)
    assert layer.query.kernel.shape == layer.key.kernel.shape == layer.value.kernel.shape == (D, 24)
    assert layer.output.kernel.shape == (24, D)


def test_a_query_that_sees_no_key_stays_finite():
    segments = jnp.zeros((B, T), jnp.int32)
    mask = Mask(query_segments_BT=segments, key_segments_BS=segments)
    assert np.isfinite(make({})(jnp.asarray(X), context(mask))).all()


def test_scores_and_weights_are_float32_in_a_bfloat16_model():
    from transformer.model import build
    from transformer.model.taps import capture

    model = build(tiny({"numerics.compute_dtype": "bfloat16"}))
    _, seen = jax.eval_shape(capture(model), jnp.zeros((1, 4), jnp.int32))
    dtypes = {name.split(".", 2)[-1]: str(x.dtype) for name, x in seen.items() if name.startswith("blocks.0")}
    assert dtypes.pop("attention.scores") == dtypes.pop("attention.weights") == "float32"
    assert set(dtypes.values()) == {"bfloat16"}
    assert seen["logits"].dtype == jnp.float32


def test_no_position_scheme_shares_attention_between_models():
    """Positions belong to the model, not to each layer: the scheme's parameters exist once."""
    names = named(nnx.to_pure_dict(nnx.state(declare(tiny({"model.position.kind": "learned"})), nnx.Param)))
    assert [name for name in names if "position" in name] == ["position.table"]
