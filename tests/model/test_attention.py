"""Attention against loops in float64, for every choice and many combinations of them."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.model.attention_loops import attend
from tests.tiny import label, named, one_switch, tiny
from transformer.config import schema
from transformer.errors import ConfigError
from transformer.model import declare
from transformer.model.attention import Attention
from transformer.model.attention_parts import SCALES, head_shape
from transformer.model.attention_weights import WEIGHTS, Softmax
from transformer.model.context import Context
from transformer.model.masks import Mask
from transformer.model.positions import NoPosition

B, T, D = 2, 5, 16
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)


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


def weights_of(module: nnx.Module) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in named(nnx.to_pure_dict(nnx.state(module, nnx.Param))).items()}


def make(overrides: dict) -> Attention:
    return with_random_weights(Attention(tiny(overrides).model))


def context(mask: Mask) -> Context:
    positions = jnp.arange(T, dtype=jnp.int32)[None]
    return Context(positions_BT=positions, mask=mask, position=NoPosition(tiny()))


def check_against_loops(overrides: dict, causal: bool = True, in_loops: dict | None = None) -> None:
    """`in_loops` are overrides that only the loops are told."""
    layer = make(overrides)
    made = layer(jnp.asarray(X), context(Mask(causal=causal)))
    wanted = attend(weights_of(layer), tiny({**overrides, **(in_loops or {})}), X, causal)
    np.testing.assert_allclose(made, wanted, atol=2e-5, rtol=2e-5)


FIELD = "model.attention."
PLAIN = [
    {},
    {FIELD + "bias": True},
    {FIELD + "num_heads": 1},
    {FIELD + "num_heads": 4},
    {FIELD + "head_dim": 6},
    {FIELD + "value_dim": 3},
    {FIELD + "num_heads": 4, FIELD + "num_kv_heads": 1},
    {FIELD + "num_heads": 4, FIELD + "num_kv_heads": 2, FIELD + "value_dim": 5},
    {FIELD + "soft_cap": 0.5},
    {FIELD + "window": 2},
    {FIELD + "weights": "fixed_offset", FIELD + "offset": 2},
]
SWITCHES = [o for o in one_switch(FIELD) if FIELD + "mask" not in o and FIELD + "backend" not in o]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("overrides", [*PLAIN, *SWITCHES], ids=label)
def test_against_loops(overrides, causal):
    check_against_loops(overrides, causal)


def combinations(each: int) -> list[dict[str, Any]]:
    """Random legal settings of all attention fields at once, `each` for every switch."""
    draw, found = random.Random(0), []
    values: dict[str, list[Any]] = {
        FIELD + "bias": [False, True],
        FIELD + "num_heads": [2, 4],
        FIELD + "num_kv_heads": [0, 0, 1, 2],
        FIELD + "head_dim": [0, 6],
        FIELD + "value_dim": [0, 0, 3, 4],
        FIELD + "soft_cap": [0.0, 0.7],
        FIELD + "window": [0, 3],
    }
    for info in schema():
        if info.path in {path for overrides in SWITCHES for path in overrides}:
            values[info.path] = [info.default] * len(info.kinds) + list(info.kinds)
    for overrides in SWITCHES * each:
        while True:
            combination = {path: draw.choice(kinds) for path, kinds in values.items()} | overrides
            try:
                tiny(combination)
            except ConfigError:
                continue
            found.append(combination)
            break
    return found


COMBINATIONS = combinations(2)


@pytest.mark.parametrize("overrides", COMBINATIONS, ids=[label(o) for o in SWITCHES * 2])
def test_combinations_against_loops(overrides):
    check_against_loops(overrides)


@pytest.mark.parametrize(
    ("overrides", "wrong"),
    [
        ({}, {FIELD + "scale": "inv"}),
        ({}, {FIELD + "soft_cap": 1.0}),
        ({}, {FIELD + "window": 4}),
        ({FIELD + "num_heads": 4, FIELD + "num_kv_heads": 2}, {FIELD + "soft_cap": 1.0}),
        ({FIELD + "weights": "sigmoid"}, {FIELD + "weights": "sigmoid_bias"}),
        ({FIELD + "weights": "softmax1"}, {FIELD + "weights": "softmax"}),
        ({FIELD + "sinks": "learned"}, {FIELD + "sinks": "zero_key"}),
        ({FIELD + "weights": "fixed_offset"}, {FIELD + "offset": 2}),
        ({FIELD + "gate": "sigmoid"}, {FIELD + "gate": "none"}),
        ({FIELD + "qk_norm": "rms"}, {FIELD + "qk_norm": "none"}),
    ],
    ids=label,
)
def test_the_check_notices_another_formula(overrides, wrong):
    with pytest.raises(AssertionError):
        check_against_loops(overrides, in_loops=wrong)


def test_the_check_notices_a_wrong_mask():
    layer = make({})
    made = layer(jnp.asarray(X), context(Mask(causal=False)))
    assert not np.allclose(made, attend(weights_of(layer), tiny(), X, causal=True), atol=1e-3)


def test_scales():
    shape = head_shape(tiny({"model.attention.head_dim": 16}).model)
    made = {kind: SCALES.build(kind, shape) for kind in SCALES if kind != "learned"}
    assert made == {"inv_sqrt": 0.25, "none": 1.0, "inv": 0.0625, "none_matched": 1.0}


def test_kernels_are_two_dimensional_unless_there_are_several_side_by_side():
    layer = Attention(tiny({"model.attention.num_heads": 4, "model.attention.head_dim": 6}).model)
    assert layer.query.kernel.shape == layer.key.kernel.shape == layer.value.kernel.shape == (D, 24)
    assert layer.output.kernel.shape == (24, D)
    shared = {"model.attention.num_heads": 4, "model.attention.num_kv_heads": 2, "model.attention.value_dim": 3}
    layer = Attention(tiny({**shared, "model.attention.output_projection": "block_diagonal"}).model)
    assert layer.query.kernel.shape == (D, 16) and layer.key.kernel.shape == (D, 8)
    assert layer.value.kernel.shape == (D, 6) and layer.output.kernel.shape == (4, 3, 4)


def check_finite_without_keys(overrides: dict) -> None:
    segments = jnp.zeros((B, T), jnp.int32)
    mask = Mask(query_segments_BT=segments, key_segments_BS=segments)
    assert np.isfinite(make(overrides)(jnp.asarray(X), context(mask))).all()


@pytest.mark.parametrize("overrides", [{}, *SWITCHES], ids=label)
def test_a_query_that_sees_no_key_stays_finite(overrides):
    check_finite_without_keys(overrides)


def test_the_check_notices_hiding_by_minus_infinity(monkeypatch):
    class Hiding(Softmax):
        def __call__(self, scores_BHTS, sight):
            return jax.nn.softmax(jnp.where(sight.visible_B1TS(), scores_BHTS, -jnp.inf))

    monkeypatch.setitem(WEIGHTS._entries, "softmax", dataclasses.replace(WEIGHTS["softmax"], build=Hiding))
    with pytest.raises(AssertionError):
        check_finite_without_keys({})


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
