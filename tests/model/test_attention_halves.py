"""Causal attention in halves is causal attention: values, gradients and what is counted; and what cannot be halved is
not."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import LENGTH, company, label, nudged, tiny, tokens
from transformer.analysis import flops
from transformer.model import attention_backends, attention_halves, build
from transformer.model.attention_weights import SINKS, WEIGHTS
from transformer.model.positions import POSITIONS
from transformer.model.taps import capture
from transformer.schema import Config

A = "model.attention."
ONE = {"model.num_layers": 1}


@pytest.fixture
def halved(monkeypatch) -> list[int]:
    """From now on every call that can be halved is; the lengths of those that were."""
    lengths, halve = [], attention_halves.in_halves

    def recorded(attend: Any, call: Any) -> jax.Array:
        lengths.append(call.query_positions_BT.shape[1])
        return halve(attend, call)

    monkeypatch.setattr(attention_backends, "in_halves", recorded)
    monkeypatch.setattr(attention_halves, "SHORTEST", 2)
    return lengths


def switches() -> list[dict[str, Any]]:
    """Every kind of what has a say in attention, and the numbers that do."""
    found = []
    registries = {A + "weights": WEIGHTS, A + "sinks": SINKS, "model.position.kind": POSITIONS}
    for path, registry in registries.items():
        found += [{path: kind} | company(path, kind) for kind in registry]
    return [*found, {A + "window": 3}, {A + "soft_cap": 0.7}, {A + "num_kv_heads": 1}, {A + "value_dim": 3}]


def value_and_gradients(config: Config, length: int) -> tuple[jax.Array, Any]:
    """A number that depends on every logit, and how every parameter moves it."""
    structure, params, rest = nnx.split(nudged(build(config)), nnx.Param, ...)

    def number(params: Any) -> jax.Array:
        logits = nnx.merge(structure, params, rest)(tokens(length=length))
        return (logits * jnp.asarray(np.random.default_rng(1).normal(size=logits.shape), jnp.float32)).sum()

    return jax.jit(jax.value_and_grad(number))(params)


def check_equal(overrides: dict[str, Any], halved: list[int], length: int = LENGTH) -> None:
    """In halves as in one, which is another program from the first line on."""
    config = tiny(ONE | overrides)
    made = value_and_gradients(config, length)
    assert halved == [length]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_halves, "SHORTEST", length + 1)
        wanted = value_and_gradients(config, length)
    assert halved == [length]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=5e-5), made, wanted)


@pytest.mark.parametrize("overrides", switches(), ids=label)
def test_halves_are_the_whole(halved, overrides):
    check_equal(overrides, halved)


def test_so_are_halves_of_unequal_length(halved):
    check_equal({}, halved, LENGTH - 1)


@pytest.mark.parametrize("end", [1, -1], ids=["keys of the first half for all", "not the last key"])
def test_the_check_notices_wrong_keys(halved, monkeypatch, end):
    part = attention_halves._part

    def wrong(call: Any, start: int, stop: int) -> Any:
        found = part(call, start, stop)
        keys = slice(LENGTH // 2 if end == 1 else end)
        return dataclasses.replace(
            found,
            key_BGSK=found.key_BGSK[:, :, keys],
            value_BGSU=found.value_BGSU[:, :, keys],
            key_positions_BS=found.key_positions_BS[:, keys],
        )

    monkeypatch.setattr(attention_halves, "_part", wrong)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_equal({}, halved)


@pytest.mark.parametrize(
    ("overrides", "arguments"),
    [
        ({A + "mask": "none"}, {}),
        ({"model.family": "encoder"}, {}),
        ({"model.family": "prefix_decoder"}, {"prefix_length_B": np.full(2, 3)}),
        ({}, {"segments_BT": np.array([[1] * 4 + [2] * 4] * 2)}),
        ({}, {"positions_BT": np.arange(LENGTH)[None]}),
        ({A + "memory": "persistent"}, {}),
        ({"model.dropout": 0.1}, {"dropout_key": jax.random.key(0), "train": True}),
    ],
    ids=["not causal", "encoder", "prefix", "segments", "positions", "memory", "dropout"],
)
def test_what_needs_all_weights_is_not_halved(halved, overrides, arguments):
    build(tiny(ONE | overrides))(tokens(), **arguments)
    assert not halved


def test_without_a_dropout_key_nothing_is_dropped_and_attention_is_halved(halved):
    build(tiny(ONE | {"model.dropout": 0.1}))(tokens())
    assert halved == [LENGTH]


def test_a_tap_finds_all_weights(halved):
    name = "blocks.0.attention.weights"
    _, found = capture(build(tiny(ONE)), name)(tokens())
    assert found[name].shape == (2, 2, LENGTH, LENGTH) and not halved


def test_a_cache_is_not_halved(halved):
    model = build(tiny(ONE))
    model(tokens(), cache=model.empty_cache(2, LENGTH))
    assert not halved


def test_short_texts_and_other_machines_compute_all_at_once(halved, monkeypatch):
    model = build(tiny(ONE))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model(tokens())
    monkeypatch.undo()
    monkeypatch.setattr(attention_backends, "in_halves", pytest.fail)
    model(tokens())


def test_a_skipped_pair_counts_as_one_that_is_masked(halved, monkeypatch):
    """In the forward pass and in the gradient; the only difference is that two gradients of the keys are added."""
    model = build(tiny(ONE))
    structure, params = nnx.split(model)

    def step(params: Any) -> Any:
        return jax.value_and_grad(lambda p: nnx.merge(structure, p)(tokens()).sum())(params)

    made = flops.count(step, params)
    assert halved == [LENGTH]
    monkeypatch.setattr(attention_halves, "SHORTEST", LENGTH + 1)
    wanted = flops.count(lambda params: step(params), params)
    assert (made.products, made.transcendental) == (wanted.products, wanted.transcendental)
    assert made.elementwise == pytest.approx(wanted.elementwise, rel=0.05)
