"""Edits change what they name and nothing else; a knock-out that puts back what was there costs nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import LENGTH, tiny, tokens
from transformer.analysis.interventions import costs, given, head_costs, mean, resample, within, zero
from transformer.analysis.lenses import logit_lens, residual_writes
from transformer.model import build
from transformer.model.taps import capture

WINDOW = tokens(4, LENGTH + 1)
X = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 5)), jnp.float32)


@pytest.fixture(scope="module")
def model():
    return build(tiny())


# --- Edits -------------------------------------------------------------------------------------------------------


def test_zero_given_and_mean():
    np.testing.assert_array_equal(zero(X), np.zeros_like(X))
    np.testing.assert_array_equal(given(X[:1])(X), np.repeat(X[:1], 4, axis=0))
    np.testing.assert_allclose(mean(X)(X[:2]), np.repeat(np.asarray(X).mean(0, keepdims=True), 2, axis=0), atol=1e-6)


def test_resample_takes_whole_rows_of_the_reference():
    drawn = np.asarray(resample(X, jax.random.key(0))(jnp.zeros((64, 3, 5))))
    rows = [next(i for i in range(4) if np.array_equal(row, X[i])) for row in drawn]
    assert set(rows) == {0, 1, 2, 3}


@pytest.mark.parametrize(("axis", "index"), [(0, 3), (1, 2), (2, 0), (-1, 4)])
def test_within_edits_one_slice(axis, index):
    edited = np.asarray(within(zero, axis, index)(X))
    there = np.zeros(X.shape, bool)
    np.moveaxis(there, axis, 0)[index] = True
    assert np.all(edited[there] == 0) and np.array_equal(edited[~there], np.asarray(X)[~there])


def test_within_refuses_an_index_that_is_not_there():
    with pytest.raises(IndexError, match=r"index 3 on axis 1, .* \(4, 3, 5\)"):
        within(zero, axis=1, index=3)(X)


# --- Knock-outs --------------------------------------------------------------------------------------------------


def test_putting_back_what_was_there_costs_nothing(model):
    _, seen = capture(model)(WINDOW[:, :-1])
    taps = [name for name in seen if name.startswith("blocks.")]
    same = costs(model, WINDOW, {name: {name: given(seen[name])} for name in taps})
    np.testing.assert_allclose(list(same.values()), 0.0, atol=1e-6)
    gone = costs(model, WINDOW, {name: {name: zero} for name in taps})
    assert all(abs(cost) > 1e-4 for cost in gone.values())  # the same question has another answer when it should


def test_a_head_that_writes_nothing_costs_nothing(model):
    intact = head_costs(model, WINDOW)
    assert np.shape(intact) == (2, 2) and np.all(np.abs(intact) > 1e-5)
    silenced = build(tiny())
    kernel = silenced.blocks[1].attention.branch.output.kernel
    kernel.set_value(kernel.get_value().at[: kernel.shape[0] // 2].set(0.0))  # what reads head 0
    found = head_costs(silenced, WINDOW)
    assert abs(found[1][0]) < 1e-6 < abs(found[1][1])


def test_a_mean_over_equal_rows_costs_nothing(model):
    same_rows = np.repeat(WINDOW[:1], 4, axis=0)
    np.testing.assert_allclose(head_costs(model, same_rows, how=mean), 0.0, atol=1e-6)
    assert np.all(np.abs(head_costs(model, WINDOW, how=mean)) > 1e-6)


def test_only_the_tokens_that_count_are_counted(model):
    late = np.zeros(WINDOW.shape, np.float32)
    late[:, LENGTH - 1 :] = 1.0
    blind = {"no embedding early": {"embedding": within(zero, axis=1, index=LENGTH - 1)}}
    everywhere, last = costs(model, WINDOW, blind), costs(model, WINDOW, blind, late)
    assert everywhere["no embedding early"] * LENGTH == pytest.approx(2 * last["no embedding early"], rel=1e-4)


def test_an_unknown_tap_is_named(model):
    with pytest.raises(KeyError, match=r"blocks\.7\.residual"):
        costs(model, WINDOW, {"x": {"blocks.7.residual": zero}})


# --- Lenses ------------------------------------------------------------------------------------------------------


def test_the_last_lens_is_the_model(model):
    lens = logit_lens(model, WINDOW)
    np.testing.assert_array_equal(lens[-1], model(WINDOW))
    assert lens.shape == (3, *model(WINDOW).shape)
    assert not np.allclose(lens[1], lens[2], atol=1e-2) and not np.allclose(lens[0], lens[1], atol=1e-2)


@pytest.mark.parametrize("placement", ["pre", "sandwich"])
def test_the_writes_add_up_to_the_stream(placement):
    model = build(tiny({"model.norm.placement": placement}))
    _, seen = capture(model)(WINDOW)
    writes = residual_writes(model, WINDOW)
    assert len(writes) == 5
    np.testing.assert_allclose(sum(writes.values()), seen["blocks.1.residual"], atol=1e-5)


def test_the_sum_notices_a_norm_on_the_stream():
    model = build(tiny({"model.norm.placement": "post"}))
    _, seen = capture(model)(WINDOW)
    assert not np.allclose(sum(residual_writes(model, WINDOW).values()), seen["blocks.1.residual"], atol=0.1)
