"""Losses against NumPy in float64, and targets that are one token ahead."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny import VOCAB, tiny, tokens
from transformer.data.batch import Batch
from transformer.model import FAMILIES, build
from transformer.training.objectives import OBJECTIVE_OF_FAMILY, OBJECTIVES, cross_entropy, ranks_first

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(2, 8, VOCAB)) * 4).astype(np.float32)
TARGETS = tokens()


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def by_hand(logits, targets, smoothing):
    """Cross-entropy against (1 - smoothing) * one-hot + smoothing * uniform."""
    wanted = (1 - smoothing) * np.eye(VOCAB)[targets] + smoothing / VOCAB
    return -(wanted * log_softmax(logits)).sum(-1)


def check_smoothing(smoothing: float, claimed: float) -> None:
    nll, smoothed = cross_entropy(LOGITS, TARGETS, smoothing)
    np.testing.assert_allclose(nll, by_hand(LOGITS, TARGETS, 0.0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(smoothed, by_hand(LOGITS, TARGETS, claimed), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing(smoothing):
    check_smoothing(smoothing, smoothing)


def test_the_check_notices_another_smoothing():
    with pytest.raises(AssertionError):
        check_smoothing(0.1, 0.11)


def test_optax_agrees():
    labels = optax.smooth_labels(jnp.eye(VOCAB)[TARGETS], 0.1)
    theirs = optax.softmax_cross_entropy(LOGITS, labels)
    np.testing.assert_allclose(cross_entropy(LOGITS, TARGETS, 0.1)[1], theirs, rtol=1e-5, atol=1e-6)


def test_an_accelerators_way_to_pick_the_target_gives_the_same_losses_and_gradients(monkeypatch):
    def both():
        def losses_and_gradients(logits):
            return jax.value_and_grad(lambda x: cross_entropy(x, TARGETS, 0.1)[1].sum())(logits)

        return str(jax.make_jaxpr(losses_and_gradients)(LOGITS)), losses_and_gradients(LOGITS)

    gathered, wanted = both()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    compared, made = both()
    assert "scatter" in gathered and "scatter" not in compared
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), made, wanted)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_target_ranks_first_where_argmax_says_so(monkeypatch, platform):
    """Of equal logits the first counts; what is no number is no right answer."""
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.integers(0, 3, (50, 20, VOCAB)), jnp.float32)  # most rows hold their highest logit often
    targets = jnp.asarray(rng.integers(0, VOCAB, (50, 20)))
    right = logits.argmax(axis=-1) == targets
    assert 0.05 < right.mean() < 0.5 and ((logits == logits.max(axis=-1, keepdims=True)).sum(axis=-1) > 1).mean() > 0.5
    np.testing.assert_array_equal(ranks_first(logits, targets), right)
    assert not ranks_first(logits.at[..., 3].set(jnp.nan), targets).any()


def test_huge_logits_stay_finite_and_losses_are_float32():
    for dtype in (jnp.float32, jnp.bfloat16):
        losses = cross_entropy(jnp.asarray(LOGITS * 1e4, dtype), TARGETS, 0.1)
        assert all(x.dtype == jnp.float32 and np.isfinite(x).all() for x in losses)


# --- Alignment ---------------------------------------------------------------------------------------------------


def check_next_token(objective) -> None:
    """The loss at t is that of token t + 1, given tokens 0..t alone."""
    model, window = build(tiny()), tokens(2, 9)
    losses = objective.losses(model, Batch(window), None, train=False)
    np.testing.assert_array_equal(losses.targets_BT, window[:, 1:])
    for t in (0, 3, 7):
        prefix = log_softmax(np.asarray(model(window[:, : t + 1])))[:, -1]
        wanted = -prefix[np.arange(2), window[:, t + 1]]
        np.testing.assert_allclose(losses.nll_BT[:, t], wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["clm", "auto"])
def test_each_token_is_predicted_from_those_before_it(kind):
    check_next_token(OBJECTIVES.build(kind, tiny()))


def test_the_check_notices_a_shift():
    real = OBJECTIVES.build("clm", tiny())

    class Shifted(type(real)):
        def losses(self, model, batch, key, train):
            return super().losses(model, batch.replace(tokens_BL=np.roll(batch.tokens_BL, 1, axis=1)), key, train)

    with pytest.raises(AssertionError):
        check_next_token(Shifted(tiny()))


def test_every_family_has_an_objective():
    assert set(OBJECTIVE_OF_FAMILY) == set(FAMILIES)
    assert set(OBJECTIVE_OF_FAMILY.values()) <= set(OBJECTIVES)
