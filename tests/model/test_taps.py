"""Taps read and replace intermediates, and cost nothing when nobody looks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import LENGTH, VOCAB, tiny, tokens
from transformer.model import build
from transformer.model import context as context_module
from transformer.model import heads as heads_module
from transformer.model.taps import capture, observing, replace

BLOCK = {
    "attention.query": (2, 2, LENGTH, 8),
    "attention.key": (2, 2, LENGTH, 8),
    "attention.value": (2, 2, LENGTH, 8),
    "attention.scores": (2, 2, LENGTH, LENGTH),
    "attention.weights": (2, 2, LENGTH, LENGTH),
    "attention.heads": (2, 2, LENGTH, 8),
    "attention.output": (2, LENGTH, 16),
    "residual_mid": (2, LENGTH, 16),
    "ffn.hidden": (2, LENGTH, 64),
    "ffn.output": (2, LENGTH, 16),
    "residual": (2, LENGTH, 16),
}
# In the order of the forward pass. Others rely on these names: add to them, do not rename.
NAMES = {
    "embedding": (2, LENGTH, 16),
    **{f"blocks.{layer}.{name}": shape for layer in range(2) for name, shape in BLOCK.items()},
    "final": (2, LENGTH, 16),
    "logits": (2, LENGTH, VOCAB),
}


@pytest.fixture(scope="module")
def model():
    return build(tiny())


def program_of(function) -> str:
    return str(jax.make_jaxpr(function)(tokens()))


def check_same_program(model, function) -> None:
    assert program_of(function) == program_of(model)


def test_names_and_shapes_are_stable(model):
    _, seen = capture(model)(tokens())
    assert [(name, x.shape) for name, x in seen.items()] == list(NAMES.items())


def test_capture_returns_the_output_and_only_what_was_asked_for(model):
    out, seen = capture(model, "blocks.1.attention.weights", "logits")(tokens())
    assert list(seen) == ["blocks.1.attention.weights", "logits"]
    np.testing.assert_array_equal(out, model(tokens()))
    np.testing.assert_array_equal(seen["logits"], out)
    weights = np.asarray(seen["blocks.1.attention.weights"])
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    assert np.all(weights[..., np.triu(np.ones((LENGTH, LENGTH), bool), k=1)] == 0)


def test_taps_nobody_observes_leave_no_trace_in_the_program(model, monkeypatch):
    def watched(x):
        with observing(lambda name, value: value):
            return model(x)

    check_same_program(model, watched)
    with_taps = program_of(model)
    for module in (context_module, heads_module):
        monkeypatch.setattr(module, "tap", lambda name, value: value)
    assert program_of(model) == with_taps


def test_the_check_notices_an_operation_in_a_tap(model):
    with pytest.raises(AssertionError):
        check_same_program(model, replace(model, final=lambda x: x * 1.5))


def test_capture_inside_jit_equals_outside():
    model = build(tiny({"model.num_layers": 1}))
    traced = jax.jit(lambda x: capture(model)(x))(tokens())[1]
    eager = capture(model)(tokens())[1]
    assert traced.keys() == eager.keys()
    for name in eager:
        np.testing.assert_allclose(traced[name], eager[name], atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_every_tap_can_be_replaced(model, name):
    _, before = capture(model)(tokens())
    replaced = replace(model, **{name: lambda x: x * 0.5})
    out, after = capture(replaced)(tokens())
    assert after.keys() == before.keys()
    np.testing.assert_array_equal(after["logits"], out)
    assert not np.array_equal(out, before["logits"])


def test_replacing_acts_where_it_says(model):
    """Silencing what a block adds leaves the residual stream as it was."""
    silence = dict.fromkeys(("blocks.0.attention.output", "blocks.0.ffn.output"), jnp.zeros_like)
    seen = {}

    def keep(name):
        def edit(x):
            seen[name] = x
            return x

        return edit

    replace(model, **silence, **{name: keep(name) for name in ("embedding", "blocks.0.residual")})(tokens())
    np.testing.assert_array_equal(seen["embedding"], seen["blocks.0.residual"])


def test_what_follows_an_edit_can_be_captured(model):
    silent = replace(model, **{"blocks.0.attention.output": jnp.zeros_like})
    out, seen = capture(silent, "blocks.0.attention.output", "logits")(tokens())
    assert not np.any(seen["blocks.0.attention.output"])
    np.testing.assert_array_equal(seen["logits"], out)
    np.testing.assert_array_equal(out, silent(tokens()))
    twice = replace(silent, **{"blocks.0.attention.output": lambda x: x + 1})
    np.testing.assert_array_equal(capture(twice, "blocks.0.attention.output")(tokens())[1].popitem()[1], 1.0)


def test_an_unknown_name_is_refused(model):
    with pytest.raises(KeyError, match=r"blocks\.9\.residual"):
        replace(model, **{"blocks.9.residual": lambda x: x})(tokens())


def test_an_unknown_name_is_refused_by_capture_too(model):
    with pytest.raises(KeyError, match=r"blocks\.9\.residual"):
        capture(model, "blocks.9.residual")(tokens())


def test_observers_are_removed_after_an_error(model):
    def explode(name, value):
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="embedding"), observing(explode):
        model(tokens())
    model(tokens())
