"""Every back-end computes what the reference computes, values and gradients, or refuses by name."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import LENGTH, label, logits, tiny, tokens
from transformer.config import schema
from transformer.errors import ConfigError
from transformer.model import attention_backends, build
from transformer.model.attention import Attention
from transformer.model.attention_backends import BACKENDS
from transformer.model.context import Context
from transformer.model.flash_attention import flash_attention
from transformer.model.masks import Mask
from transformer.model.positions import POSITIONS

A = "model.attention."
B, T, D = 2, 7, 16
FIELDS: dict[str, list[Any]] = {
    **{info.path: list(info.kinds) for info in schema() if info.path in (A + "weights", A + "sinks")},
    "model.position.kind": ["none", "rope", "alibi", "t5"],
    A + "num_heads": [2, 4],
    A + "num_kv_heads": [0, 1, 2],
    A + "value_dim": [0, 0, 3],
    A + "soft_cap": [0.0, 0.0, 0.7],
    A + "window": [0, 3],
    A + "scale": ["inv_sqrt", "learned"],
}
MASKS = ("causal", "full", "segments", "causal segments", "prefix")
OTHERS = [name for name in BACKENDS if name != "reference"]


def mask(kind: str) -> Mask:
    """A mask; the last two tokens of the second row are padding where there are segments."""
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 2, 0, 0]]) if "segments" in kind else None
    prefix = jnp.asarray([3, 5]) if kind == "prefix" else None
    return Mask("full" != kind != "segments", None, prefix, segments, segments)


def combinations(backend: str, count: int) -> list[tuple[dict[str, Any], str]]:
    """Legal settings of all fields and a mask, drawn with a fixed seed; every value of every field comes up."""
    draw, found = random.Random(0), []
    wanted = [(path, value) for path, values in FIELDS.items() for value in dict.fromkeys(values)]
    for path, value in itertools.cycle(wanted):
        if len(found) == count:
            return found
        for _ in range(40):
            overrides = {name: draw.choice(values) for name, values in FIELDS.items()} | {path: value}
            if draw.random() < 0.6 and path not in (A + "weights", A + "sinks"):
                overrides |= {A + "weights": "softmax", A + "sinks": "none"}
            if overrides["model.position.kind"] == "t5":
                overrides["model.position.t5_buckets"] = 8
            try:
                tiny(overrides | {A + "backend": backend})
            except ConfigError:
                continue
            found.append((overrides, draw.choice(MASKS)))
            break


def outputs(
    overrides: dict[str, Any], mask_kind: str, attend: Any = None, dtype: str = "float32"
) -> tuple[jax.Array, Any]:
    """Output of an attention layer with random weights, and the gradients of its parameters, its input and the
    position scheme's parameters. `attend` stands in for the back-end's function."""
    config = tiny(overrides)
    module = nnx.Dict(layer=Attention(config.model), position=POSITIONS.build(config.model.position.kind, config, True))
    structure, params = nnx.split(module)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.4, jnp.float32), params)
    x_BTD, d_BTD = (jnp.asarray(rng.normal(size=(B, T, D)), dtype) for _ in range(2))
    entries, name = BACKENDS._entries, config.model.attention.backend

    def run(params: Any, x_BTD: jax.Array) -> jax.Array:
        module = nnx.merge(structure, params)
        at = jnp.arange(T, dtype=jnp.int32)[None]
        return module.layer(x_BTD, Context(positions_BT=at, mask=mask(mask_kind), position=module.position))

    with pytest.MonkeyPatch.context() as patch:
        if attend is not None:
            patch.setitem(entries, name, dataclasses.replace(entries[name], build=attend))
        return jax.jit(lambda *inputs: (run(*inputs), jax.vjp(run, *inputs)[1](d_BTD)))(params, x_BTD)


def check_equal(overrides: dict[str, Any], mask_kind: str, backend: str, attend: Any = None, **numbers: Any) -> None:
    wanted = outputs(overrides, mask_kind, **numbers)
    made = outputs(overrides | {A + "backend": backend}, mask_kind, attend, **numbers)
    tolerance = 0.1 if numbers else 2e-5

    def check(a: jax.Array, b: jax.Array) -> None:
        assert a.dtype == b.dtype
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance * max(1, np.abs(b).max() if numbers else 1), rtol=tolerance)

    jax.tree.map(check, made, wanted)


@pytest.mark.parametrize(("overrides", "mask_kind"), combinations("flash", 16), ids=itertools.count())
def test_flash_equals_the_reference(overrides, mask_kind):
    # Tiles of three in a text of seven: several of them, the last one not full.
    check_equal(overrides, mask_kind, "flash", functools.partial(flash_attention, block=3))


@pytest.mark.parametrize(("overrides", "mask_kind"), combinations("fused", 4), ids=itertools.count())
def test_fused_equals_the_reference(overrides, mask_kind):
    check_equal(overrides, mask_kind, "fused")


def test_every_setting_is_among_the_combinations_of_flash():
    drawn = [set(overrides.items()) for overrides, _ in combinations("flash", 16)]
    refused = {(A + "weights", "shaped")}
    for path, values in FIELDS.items():
        for value in values:
            assert any((path, value) in items for items in drawn) == ((path, value) not in refused)
    assert {kind for _, kind in combinations("flash", 16)} == set(MASKS)


def leaves_out(field: str, value: Any):
    """Flash attention that ignores one thing it is told."""
    return lambda call: flash_attention(dataclasses.replace(call, **{field: value}), block=3)


@pytest.mark.parametrize(
    ("overrides", "broken"),
    [
        ({}, leaves_out("mask", Mask(causal=False))),
        ({A + "soft_cap": 0.7}, leaves_out("soft_cap", 0.0)),
        ({}, lambda call: jax.lax.stop_gradient(flash_attention(call, block=3))),
    ],
    ids=["mask", "soft cap", "gradient"],
)
def test_the_check_notices_a_broken_back_end(overrides, broken):
    with pytest.raises(AssertionError):
        check_equal(overrides, "causal", "flash", broken)


@pytest.mark.parametrize("backend", OTHERS)
def test_bfloat16_and_a_tile_longer_than_the_text(backend):
    check_equal({}, "causal", backend, dtype="bfloat16")


@pytest.fixture
def called_with(monkeypatch):
    """What fused attention is called with from now on, as on a GPU where cuDNN takes every query."""
    calls, attend = [], jax.nn.dot_product_attention

    def recorded(*arrays: jax.Array, implementation: str | None = None, **settings: Any) -> jax.Array:
        calls.append({"implementation": implementation} | settings)
        return attend(*arrays, **settings)

    monkeypatch.setattr(attention_backends, "cudnn_computes", lambda query_BTHK: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    return calls


def check_fused_logits(overrides: dict[str, Any], **arguments: Any) -> None:
    made, wanted = (logits(tiny(overrides | {A + "backend": name}), **arguments) for name in ("fused", "reference"))
    np.testing.assert_allclose(made, wanted, atol=2e-5, rtol=2e-5)


CAUSAL, EVERYTHING = ({"is_causal": causal, "local_window_size": None} for causal in (True, False))


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        ({}, [CAUSAL]),
        ({A + "num_kv_heads": 1}, [CAUSAL]),
        ({A + "window": 3}, [{"is_causal": True, "local_window_size": (2, 0)}]),
        ({A + "mask": "none"}, [EVERYTHING]),
        ({"model.family": "encoder_decoder"}, [EVERYTHING, CAUSAL, EVERYTHING]),
    ],
    ids=["causal", "grouped heads", "window", "full", "encoder-decoder"],
)
def test_cudnn_is_told_of_a_plain_mask_in_its_own_words(called_with, overrides, settings):
    check_fused_logits({"model.num_layers": 1} | overrides)
    assert called_with == [{"implementation": "cudnn", "scale": 1.0} | setting for setting in settings]


@pytest.mark.parametrize(
    ("overrides", "arguments"),
    [
        ({}, {"segments_BT": np.array([[1] * 4 + [2] * 4] * 2)}),
        ({}, {"positions_BT": np.arange(LENGTH)[None]}),
        ({"model.family": "prefix_decoder"}, {}),
        ({"model.position.kind": "alibi"}, {}),
        ({A + "mask": "none", A + "window": 3}, {}),
    ],
    ids=["segments", "positions", "prefix", "bias", "window that looks ahead"],
)
def test_what_cudnn_cannot_be_told_goes_another_way(called_with, overrides, arguments):
    check_fused_logits({"model.num_layers": 1} | overrides, **arguments)
    assert [call["implementation"] for call in called_with] == [None]


def test_a_cache_is_not_taken_for_tokens_in_order(called_with):
    model = build(tiny({A + "backend": "fused", "model.num_layers": 1}))
    cache, parts = model.empty_cache(2, LENGTH), []
    for start, stop in ((0, 5), (5, LENGTH)):
        part, cache = model(tokens()[:, start:stop], cache=cache)
        parts.append(part)
    assert {call["implementation"] for call in called_with} == {None}
    np.testing.assert_allclose(np.concatenate(parts, axis=1), model(tokens()), atol=2e-5, rtol=2e-5)


def test_cudnn_takes_16_bits_on_a_recent_nvidia_gpu_only(monkeypatch):
    def takes(query_BTHK: jax.Array, platform: str = "cuda 13000", capability: str = "9.0") -> bool:
        client = types.SimpleNamespace(platform_version=platform)
        device = types.SimpleNamespace(client=client, compute_capability=capability)
        with monkeypatch.context() as patch:
            patch.setattr(jax, "devices", lambda: [device])
            return attention_backends.cudnn_computes(query_BTHK)

    half = jnp.zeros((1, 1, 1, 64), jnp.bfloat16)
    assert takes(half) and takes(half, capability="12.0") and takes(half, capability="8.0")
    assert not takes(half, capability="7.5") and not takes(half, platform="rocm 70000") and not takes(half, "cpu")
    assert not takes(half.astype(jnp.float32)) and not takes(half[..., :12])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({A + "backend": "flash", A + "weights": "shaped"}, r"backend=flash: .*weights=shaped"),
        ({A + "backend": "flash", "model.dropout": 0.1}, r"backend=flash: .*model\.dropout=0\.1"),
        ({A + "backend": "fused", "model.dropout": 0.1}, r"backend=fused: .*model\.dropout=0\.1"),
        ({A + "backend": "fused", A + "weights": "relu"}, r"backend=fused: .*weights=relu"),
        ({A + "backend": "fused", A + "sinks": "learned"}, r"backend=fused: .*sinks=learned"),
        ({A + "backend": "fused", A + "soft_cap": 2.0}, r"backend=fused: .*soft_cap=2\.0"),
        ({A + "backend": "fused", A + "value_dim": 3}, r"backend=fused: .*value_dim=3"),
    ],
    ids=lambda x: label(x) if isinstance(x, dict) else "",
)
def test_what_a_back_end_cannot_do_it_refuses(overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny(overrides)
