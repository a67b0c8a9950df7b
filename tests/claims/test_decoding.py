"""Exact claims of decoding: temperature, truncation, caches; each with a sabotage that it must notice."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import Config, build, replace
from transformer.inference.generate import generate
from transformer.inference.sampling import Greedy, Sample, probabilities
from transformer.model.cache import CacheWriter, Layout, Sliding

V = 13
LOGITS = np.random.default_rng(0).normal(0, 2, (20, V)).astype(np.float32)
TIED = np.round(LOGITS)  # many equal ones

Distribution = Callable[..., np.ndarray]


def distribution(logits: np.ndarray, **settings) -> np.ndarray:
    return np.asarray(probabilities(jnp.asarray(logits), Sample(**settings)), np.float64)


# --- Temperature -------------------------------------------------------------------------------------------------


def entropy(p: np.ndarray) -> np.ndarray:
    return -np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0).sum(axis=-1)


def check_temperature(of: Distribution) -> None:
    """Entropy rises strictly, ranks stay, and the limits are the likeliest token and the uniform distribution."""
    grid = (0.2, 0.5, 0.8, 1.0, 1.5, 3.0, 10.0)
    rows = [of(LOGITS, temperature=t) for t in grid]
    for cooler, warmer in itertools.pairwise(rows):
        assert (entropy(warmer) > entropy(cooler)).all()
    for p in rows:
        assert (p.argsort(axis=-1) == LOGITS.argsort(axis=-1)).all()
        np.testing.assert_allclose(p.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(of(LOGITS, temperature=1e6), 1 / V, atol=1e-4)
    cold = of(LOGITS, temperature=1e-3)
    assert (cold.argmax(axis=-1) == LOGITS.argmax(axis=-1)).all() and (cold.max(axis=-1) > 0.999).all()


class TestTemperatureEntropy:
    claim = "temperature_entropy"

    def test_holds(self):
        check_temperature(distribution)
        keys = jax.random.split(jax.random.key(0), len(TIED))
        np.testing.assert_array_equal(Greedy().pick(jnp.asarray(TIED), keys), TIED.argmax(axis=-1))

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_temperature(lambda logits, temperature: distribution(logits * temperature, temperature=1.0))
        with pytest.raises(AssertionError):
            check_temperature(lambda logits, temperature: distribution(logits + temperature, temperature=1.0))


# --- Truncation --------------------------------------------------------------------------------------------------


def check_truncation(of: Distribution) -> None:
    """What is kept is the likeliest, exactly k or the fewest that reach p, and keeps its proportions."""
    for logits in (LOGITS, TIED):
        plain = of(logits)
        for settings in [{"top_k": k} for k in (1, 3, V)] + [{"top_p": p} for p in (0.1, 0.5, 0.9, 0.999)]:
            cut = of(logits, **settings)
            for whole, left in zip(plain, cut, strict=True):
                kept = left > 0
                mass = whole[kept].sum()
                np.testing.assert_allclose(left[kept], whole[kept] / mass, rtol=1e-4)
                assert kept.all() or whole[kept].min() >= whole[~kept].max()
                if "top_k" in settings:
                    assert kept.sum() == settings["top_k"]
                else:
                    assert mass >= settings["top_p"] - 1e-6, "the mass reaches p"
                    assert mass - whole[kept].min() < settings["top_p"] + 1e-6, "no smaller set does"


def keeps_ties(logits: np.ndarray, top_k: int = 0, **settings) -> np.ndarray:
    """Top-k by comparison with the k-th score, as it is often written: keeps more than k where scores tie."""
    if top_k:
        lowest = np.sort(logits, axis=-1)[:, -top_k, None]
        logits = np.where(logits >= lowest, logits, -np.inf)
    return distribution(logits, **settings)


class TestTruncation:
    claim = "topk_topp_semantics"

    def test_holds(self):
        check_truncation(distribution)

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_truncation(keeps_ties)
        with pytest.raises(AssertionError):  # the token that crosses p is lost
            check_truncation(
                lambda logits, top_k=None, top_p=None: distribution(logits, top_k=top_k, top_p=top_p and 0.8 * top_p)
            )
        with pytest.raises(AssertionError):  # one token too few
            check_truncation(
                lambda logits, top_k=None, top_p=None: distribution(
                    logits, top_k=top_k and max(1, top_k - 1), top_p=top_p
                )
            )


# --- Caches ------------------------------------------------------------------------------------------------------

T, WINDOW = 9, 4
TINY = replace(
    Config(),
    {
        "model.d_model": 16,
        "model.num_layers": 2,
        "model.attention.num_heads": 4,
        "model.embedding.tie": False,
        "model.init.std": 0.5,  # large enough that untrained attention decides something
        "data.sequence_length": 2 * T,
    },
)
ARMS = {
    **{kind: {"model.position.kind": kind} for kind in ("rope", "learned", "alibi", "t5")},
    "shared heads and a window": {"model.attention.num_kv_heads": 2, "model.attention.window": WINDOW},
}


def check_cache(model, layout: Layout | None = None) -> None:
    """Logits and greedy tokens of rows of different lengths equal those of full passes without a cache."""
    layout, new = layout or Layout(2 * T), 4
    rng = np.random.default_rng(0)
    lengths, text = np.array([T, 5, 2]), rng.integers(0, V, (3, T))
    answer = generate(model, [row[:n] for row, n in zip(text, lengths, strict=True)], new, cache=layout).new_BN
    whole = np.zeros((3, T + new), np.int32)  # what follows a row does not matter: no token sees the future
    for row, n in enumerate(lengths):
        whole[row, : n + new] = [*text[row, :n], *answer[row]]
    full = np.asarray(jax.jit(lambda x: model(x))(whole))

    real = jnp.asarray(np.arange(T) < lengths[:, None], jnp.int32)
    cached = jax.jit(lambda x, real, cache: model(x, segments_BT=real, cache=cache))
    logits, cache = cached(whole[:, :T], real, model.empty_cache(3, layout))
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :n], full[row, :n], atol=1e-4)
    step = jax.jit(lambda x, cache: model(x, cache=cache))
    for at in range(new):
        logits, cache = step(answer[:, at : at + 1], cache)
        np.testing.assert_array_equal(answer[:, at], [full[row, n + at - 1].argmax() for row, n in enumerate(lengths)])
        np.testing.assert_allclose(logits[:, 0], [full[row, n + at] for row, n in enumerate(lengths)], atol=1e-4)


class TestCacheExact:
    claim = "kv_cache_exact"

    @pytest.mark.parametrize("arm", ARMS)
    def test_holds(self, arm):
        check_cache(build(replace(TINY, ARMS[arm]), V))

    def test_sabotage(self, monkeypatch):
        model = build(TINY, V)
        with pytest.raises(AssertionError):  # a cache that computes something else
            check_cache(model, Sliding(WINDOW))
        finish = CacheWriter.finish
        late = lambda self: dataclasses.replace(finish(self), length_B=self.length_B + 1)  # noqa: E731
        monkeypatch.setattr(CacheWriter, "finish", late)  # positions off by one
        with pytest.raises(AssertionError):
            check_cache(model)
