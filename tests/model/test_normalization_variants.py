"""Norms over the batch, by length and without statistics: formulas, running averages, what they see."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import BATCH, LENGTH, VOCAB, tiny, tokens
from transformer.data.batch import Batch
from transformer.errors import ConfigError, UserError
from transformer.model import build
from transformer.model.context import Context
from transformer.model.masks import Mask
from transformer.model.normalization import NORMS, LayerNorm, detached
from transformer.model.positions import NoPosition
from transformer.schema import Norm
from transformer.training.step import Program, flat_state, unflat_state

COVERED = {"scalenorm", "prmsnorm", "dyt", "batchnorm", "batchnorm_masked", "batchnorm_time_local"}
BATCH_NORMS = sorted(kind for kind in COVERED if kind.startswith("batchnorm"))
B, T, D, EPSILON = 3, 5, 4, 1e-3
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(B, T, D)) * 3 + 1).astype(np.float32)
SEGMENTS = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], np.int32)


def make(kind: str, affine: bool = False, **options):
    return NORMS.build(kind, Norm(kind=kind, affine=affine, epsilon=EPSILON, options=tuple(options.items())), D)


def context(train: bool = True, key=None, positions=None) -> Context:
    mask = Mask(query_segments_BT=jnp.asarray(SEGMENTS), key_segments_BS=jnp.asarray(SEGMENTS))
    at = jnp.arange(T)[None] if positions is None else positions
    return Context(at, mask, NoPosition(tiny()), dropout_key=key, train=train)


# --- By length, and by no statistic ------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_scalenorm(affine):
    layer = make("scalenorm", affine)
    length = np.sqrt(D)
    if affine:
        assert layer.gain.get_value().shape == () and layer.gain.fill == length
        layer.gain, length = nnx.Param(jnp.float32(1.7)), 1.7
    wanted = length * X / np.sqrt((X.astype(np.float64) ** 2).sum(-1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(layer(X), wanted, rtol=1e-5)


@pytest.mark.parametrize(("share", "read"), [(0.0625, 1), (0.5, 2), (1.0, D)])
def test_prmsnorm(share, read):
    wanted = X / np.sqrt((X[..., :read].astype(np.float64) ** 2).mean(-1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(make("prmsnorm", prmsnorm_share=share)(X), wanted, rtol=1e-5)


def test_prmsnorm_over_all_channels_is_rmsnorm():
    np.testing.assert_array_equal(make("prmsnorm", prmsnorm_share=1.0)(X), make("rmsnorm")(X))
    assert not np.allclose(make("prmsnorm", prmsnorm_share=0.5)(X), make("rmsnorm")(X), atol=1e-2)


def test_dyt():
    layer = make("dyt", True, dyt_alpha=0.3)
    assert layer.alpha.fill == 0.3
    layer.alpha, layer.gain = nnx.Param(jnp.float32(0.3)), nnx.Param(jnp.arange(1.0, D + 1))
    np.testing.assert_allclose(layer(X), np.arange(1, D + 1) * np.tanh(0.3 * X.astype(np.float64)), rtol=1e-5)


def test_the_initial_numbers_are_drawn_as_declared():
    model = build(tiny({"model.norm.kind": "scalenorm"}))
    assert float(model.final_norm.gain.get_value()) == 4.0
    model = build(tiny({"model.norm.kind": "dyt", "model.norm.dyt_alpha": 0.25}))
    assert float(model.final_norm.alpha.get_value()) == 0.25


# --- Batch statistics --------------------------------------------------------------------------------------------


def by_loop(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [T, D] that each token is normalised with, one channel and position at a time."""
    x, mean, variance = X.astype(np.float64), np.zeros((T, D)), np.zeros((T, D))
    for t in range(T):
        for d in range(D):
            pool = [
                x[b, s, d]
                for b in range(B)
                for s in range(T)
                if (kind == "batchnorm" or SEGMENTS[b, s]) and (kind != "batchnorm_time_local" or s == t)
            ]
            mean[t, d], variance[t, d] = np.mean(pool), np.var(pool)
    return mean, variance


def check_batch_norm(kind: str, formula: str) -> None:
    layer = make(kind, batchnorm_positions=T, batchnorm_momentum=0.75)
    mean, variance = by_loop(formula)
    out = layer(jnp.asarray(X), context())
    np.testing.assert_allclose(out, (X - mean) / np.sqrt(variance + EPSILON), atol=1e-5, rtol=1e-5)
    mean, variance = 0.25 * mean, 0.75 + 0.25 * variance  # from zero and one
    np.testing.assert_allclose(np.broadcast_to(layer.mean.get_value(), (T, D)), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.broadcast_to(layer.variance.get_value(), (T, D)), variance, rtol=1e-5)
    known = np.asarray(layer.mean.get_value())
    out = layer(jnp.asarray(X), context(train=False))
    np.testing.assert_allclose(out, (X - mean) / np.sqrt(variance + EPSILON), atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(layer.mean.get_value(), known)  # evaluation does not move them


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_batch_norm_by_loop(kind):
    check_batch_norm(kind, kind)


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_the_check_tells_them_apart(kind):
    for other in set(BATCH_NORMS) - {kind}:
        with pytest.raises(AssertionError):
            check_batch_norm(kind, other)


def test_flax_agrees_with_the_naive_one():
    theirs = nnx.BatchNorm(D, use_bias=False, use_scale=False, momentum=0.9, epsilon=EPSILON, rngs=nnx.Rngs(0))
    theirs.train()
    ours = make("batchnorm")
    for _ in range(2):
        np.testing.assert_allclose(ours(jnp.asarray(X), context()), theirs(jnp.asarray(X)), atol=1e-5)
    np.testing.assert_allclose(ours.mean.get_value(), theirs.mean.get_value(), rtol=1e-5)
    np.testing.assert_allclose(ours.variance.get_value(), theirs.var.get_value(), rtol=1e-4)


def test_a_position_without_tokens_keeps_its_statistics():
    layer = make("batchnorm_time_local", batchnorm_positions=T)
    empty = dataclasses.replace(context(), mask=Mask(query_segments_BT=jnp.asarray(SEGMENTS).at[:, -1].set(0)))
    assert np.isfinite(layer(jnp.asarray(X), empty)).all()
    np.testing.assert_array_equal(layer.mean.get_value()[-1], 0.0)
    assert np.all(layer.mean.get_value()[:-1] != 0)


def test_time_local_positions():
    layer = make("batchnorm_time_local", batchnorm_positions=3)
    layer.mean = nnx.BatchStat(jnp.arange(3.0)[:, None] * jnp.ones(D))
    late = context(train=False, positions=jnp.array([[0, 1, 2, 3, 9]]))  # beyond the table: its last row
    np.testing.assert_allclose(layer(jnp.zeros((1, T, D)), late)[0, :, 0], [0, -1, -2, -2, -2], rtol=1e-2)
    with pytest.raises(UserError, match="share their positions"):
        layer(jnp.asarray(X), context(positions=jnp.zeros((B, T), jnp.int32)))
    with pytest.raises(ConfigError, match=r"batchnorm_positions=4 positions.*sequence_length=8"):
        tiny({"model.norm.kind": "batchnorm_time_local", "model.norm.batchnorm_positions": 4})
    with pytest.raises(ConfigError, match="only one"):
        tiny({"model.norm.kind": "batchnorm_time_local", "train.accumulate": BATCH})


# --- What batch statistics see -----------------------------------------------------------------------------------


def seen(kind: str) -> dict[str, bool]:
    """Whether the output of one token moves, in training, with a later token, another row, and padding."""
    config = tiny({"model.norm.kind": kind})
    structure, params, state = nnx.split(build(config), nnx.Param, ...)
    params, state = nnx.to_pure_dict(params), nnx.to_pure_dict(state)
    segments = np.ones((BATCH, LENGTH), np.int32)
    segments[-1, -1] = 0
    window = tokens(BATCH)

    @jax.jit
    def first(window):
        model = nnx.merge(structure, params, state)
        return model(window, segments_BT=segments, train=True)[0, 0]

    def moves(row, column):
        other = window.copy()
        other[row, column] = (other[row, column] + 1) % VOCAB
        return not np.array_equal(first(window), first(other))

    return {"sees_the_future": moves(0, LENGTH - 1), "batch_dependent": moves(1, 0), "sees_padding": moves(-1, -1)}


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm", *BATCH_NORMS])
def test_a_norm_sees_what_its_traits_say(kind):
    """The exceptions really occur, and nothing else does."""
    assert {name for name, yes in seen(kind).items() if yes} == NORMS[kind].traits


# --- Running statistics through training -------------------------------------------------------------------------


def program(**overrides) -> Program:
    config = tiny({"model.num_layers": 1, "model.norm.kind": "batchnorm", **overrides})
    return Program(config, VOCAB, np.ones(VOCAB, np.int32))


def run(made: Program, steps: int, state=None):
    corpus = jnp.asarray(np.random.default_rng(1).integers(0, VOCAB, 500), jnp.uint8)
    starts = (np.arange(8 * BATCH) * 29 % 400).reshape(8, BATCH).astype(np.int32)
    hyper = made.hyperparameters(made.config)
    state = made.init(0) if state is None else state
    return made.train_steps(state, corpus, starts, jnp.int32(0), jnp.int32(steps), hyper)[0]


def test_training_carries_running_statistics():
    made = program()
    before, after = flat_state(made.init(0)), flat_state(run(made, 3))
    names = {name for name in before if name.startswith("model_state.")}
    assert "model_state.blocks.0.ffn.in_norm.mean" in names and len(names) == 2 * 3
    assert not any(np.array_equal(before[name], after[name]) for name in names)
    assert not any("in_norm.mean" in name for name in after if not name.startswith("model_state."))  # not trained
    back = unflat_state(made.abstract_state, after)
    assert jax.tree.structure(back) == jax.tree.structure(made.init(0))
    again = flat_state(made.init(0))  # the step took over none of the buffers of a fresh state
    assert all(np.array_equal(before[name], again[name]) for name in names)


def test_evaluation_uses_and_keeps_running_statistics():
    made = program()
    state = run(made, 3)
    batch = Batch(tokens(BATCH, LENGTH + 1))
    evaluate = jax.jit(made.evaluate_batch)
    nll = evaluate(state, batch).nll_T
    np.testing.assert_array_equal(evaluate(state, batch).nll_T, nll)
    alone = sum(evaluate(state, batch.take(slice(i, i + 1))).nll_T for i in range(BATCH))
    np.testing.assert_allclose(alone, nll, rtol=1e-5)  # no row depends on another
    other = state._replace(model_state=jax.tree.map(lambda x: x + 1, state.model_state))
    assert not np.allclose(evaluate(other, batch).nll_T, nll)


def test_a_microbatch_has_statistics_of_its_own():
    whole, parts = (flat_state(run(program(**o), 1)) for o in ({}, {"train.accumulate": 2}))
    name = "model_state.blocks.0.attention.in_norm.mean"
    assert not np.allclose(whole[name], parts[name], rtol=1e-3)


# --- LayerNorm taken apart ---------------------------------------------------------------------------------------


def test_detached_statistics_change_the_gradient_alone():
    layer, apart = make("layernorm"), make("layernorm", detach=True)
    np.testing.assert_array_equal(layer(X), apart(X))
    weight = jnp.asarray(RNG.normal(size=X.shape), jnp.float32)
    pulled = jax.grad(lambda x: (apart(x) * weight).sum())(jnp.asarray(X))
    x = X.astype(np.float64)
    np.testing.assert_allclose(pulled, weight / np.sqrt(x.var(-1, keepdims=True) + EPSILON), rtol=1e-5, atol=1e-6)
    assert not np.allclose(jax.grad(lambda x: (layer(x) * weight).sum())(jnp.asarray(X)), pulled, atol=1e-2)
    assert detached(X, 0.0).shape == X.shape


def test_shift_noise():
    layer = make("layernorm", shift_noise=0.5)
    key = jax.random.key(3)
    plain = make("layernorm")(X)
    for quiet in (None, context(train=False, key=key), context(train=True)):
        np.testing.assert_array_equal(layer(X, quiet), plain)
    noisy = np.asarray(layer(X, context(key=key), "in_norm"))
    np.testing.assert_array_equal(noisy, layer(X, context(key=key), "in_norm"))
    assert not np.allclose(noisy, layer(X, context(key=key), "out_norm"))  # every place its own
    assert not np.allclose(noisy, layer(X, context(key=jax.random.key(4)), "in_norm"))
    # One scale and one shift per channel, common to all tokens.
    for d in range(D):
        slope, offset = np.polyfit(np.asarray(plain)[..., d].ravel(), noisy[..., d].ravel(), 1)
        np.testing.assert_allclose(noisy[..., d], slope * np.asarray(plain)[..., d] + offset, atol=1e-4)
        assert abs(slope - 1) > 1e-3 and abs(offset) > 1e-3
    assert isinstance(layer, LayerNorm)


def test_shift_noise_differs_from_step_to_step():
    made = program(**{"model.norm.kind": "layernorm", "model.norm.shift_noise": 0.5})
    hyper, window = made.hyperparameters(made.config), Batch(tokens(BATCH, LENGTH + 1))
    step = jax.jit(made.train_step)
    losses = [float(step(made.init(0), window, jnp.int32(s), hyper)[1]["loss"]) for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        *(({"model.norm.kind": kind, "model.norm.batchnorm_momentum": 1.0}, "below 1") for kind in BATCH_NORMS),
        ({"model.norm.shift_noise": -0.1}, "must not be negative"),
        *(({"model.norm.kind": "prmsnorm", "model.norm.prmsnorm_share": p}, "1 is rmsnorm") for p in (0.0, 1.5)),
    ],
)
def test_numbers_out_of_range(overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny(overrides)
