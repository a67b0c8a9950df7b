"""Exact claims of the causal mask, each with a sabotage that it must notice."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import Config, build, replace
from transformer.inference.generate import generate
from transformer.inference.sampling import Greedy, Sample
from transformer.model.masks import Mask

V, T = 17, 6
TINY = replace(
    Config(),
    {
        "model.d_model": 16,
        "model.num_layers": 2,
        "model.attention.num_heads": 2,
        "model.init.std": 0.5,  # large enough that untrained attention decides something
        "data.sequence_length": 8,
    },
)
POSITIONS = ("rope", "learned", "none")


def tiny(position: str = "rope", **overrides):
    return build(replace(TINY, {"model.position.kind": position, **overrides}), V)


def tokens(seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, (2, T)), jnp.int32)


def with_influence(model):
    """A compiled function of tokens: logits [B, T, V], and [T, T], the largest change of the first row's logits at t
    per unit change of the embedding at s."""

    def logits(embedded, x):
        original = type(model.embedding).__call__
        try:
            type(model.embedding).__call__ = lambda self, tokens, dtype: embedded
            out = model(x)
            return out[0], out
        finally:
            type(model.embedding).__call__ = original

    def both(x):
        jacobian, out = jax.jacobian(logits, has_aux=True)(model.embedding(x, jnp.float32), x)
        return out, jnp.abs(jacobian[:, :, 0]).max(axis=(1, 3))

    return jax.jit(both)


def check_blocks_future(model) -> None:
    forward = with_influence(model)
    logits, reach = map(np.asarray, forward(tokens()))
    assert np.all(np.triu(reach, k=1) == 0), "the gradient reaches back from the future"
    assert np.all(np.diag(reach) > 0)
    changed, _ = forward(tokens().at[:, -1].add(1) % V)
    assert np.array_equal(logits[:, :-1], changed[:, :-1]), "a later token changed earlier logits"


class TestBlocksFuture:
    claim = "causal_mask_blocks_future"

    @pytest.mark.parametrize("position", POSITIONS)
    def test_holds(self, position):
        check_blocks_future(tiny(position))

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_blocks_future(tiny(**{"model.attention.mask": "none"}))


class TestIncludesSelf:
    claim = "causal_mask_includes_self"

    def test_refuted(self):
        """The diagonal is allowed: position t sees itself, and the first position would otherwise see nothing."""
        at = jnp.arange(4)[None]
        dense = np.asarray(Mask(causal=True).dense(at, at))[0, 0]
        assert dense.diagonal().all()
        assert (np.diag(with_influence(tiny())(tokens())[1]) > 0).all()

    def test_sabotage(self, monkeypatch):
        strict = lambda self, q, k: (k[:, None, :] < q[:, :, None])[:, None]  # noqa: E731
        monkeypatch.setattr(Mask, "dense", strict)
        at = jnp.arange(4)[None]
        assert not np.asarray(Mask(causal=True).dense(at, at))[0, 0].diagonal().any()


def check_stepwise(model, cached: bool) -> None:
    x = tokens()
    forward, cached_step = jax.jit(lambda x: model(x)), jax.jit(lambda x, cache: model(x, cache=cache))
    whole, cache = forward(x), model.empty_cache(2, T) if cached else None
    for t in range(T):
        if cached:
            step, cache = cached_step(x[:, t : t + 1], cache)
        else:
            step = forward(x[:, : t + 1])
        np.testing.assert_allclose(step[:, -1], whole[:, t], atol=1e-4)


class TestTeacherForcingEqualsStepwise:
    claim = "teacher_forcing_equals_stepwise"

    @pytest.mark.parametrize(("position", "cached"), [("rope", False), *((p, True) for p in POSITIONS)])
    def test_holds(self, position, cached):
        check_stepwise(tiny(position), cached)

    def test_sabotage(self, monkeypatch):
        from transformer.model.cache import CacheWriter

        finish = CacheWriter.finish
        late = lambda self: dataclasses.replace(finish(self), length_B=self.length_B + 1)  # noqa: E731
        monkeypatch.setattr(CacheWriter, "finish", late)
        with pytest.raises(AssertionError):
            check_stepwise(tiny(), cached=True)


def check_generates(model) -> None:
    prompt = np.asarray(tokens()[:, :3])

    def text(seed: int | None = None) -> np.ndarray:
        sampler = Sample() if seed else Greedy()
        return np.stack(generate(model, prompt, 5, sampler, stop_tokens=[V], seed=seed or 0).rows)  # never stops

    out = text(seed=3)
    assert out.shape == (2, 8), "stops at the length limit"
    assert np.array_equal(out[:, :3], prompt), "the prompt is kept"
    assert np.array_equal(out, text(seed=3)), "one seed, one text"
    assert not np.array_equal(out, text(seed=4)), "the seed matters"
    greedy = text()
    logits = np.asarray(jax.jit(lambda x: model(x))(greedy[:, :-1]))
    assert np.array_equal(greedy[:, 3:], logits[:, 2:].argmax(-1)), "each token is what a pass over the text prefers"
    stopped = generate(model, prompt, 5, stop_tokens=[int(greedy[0, 5])])
    assert stopped.new_length_B[0] == 1 + list(greedy[0, 3:]).index(greedy[0, 5]), "stops at the stop token"


class TestGenerates:
    claim = "clm_generates"

    @pytest.mark.parametrize("position", POSITIONS)
    def test_holds(self, position):
        check_generates(tiny(position))

    def test_sabotage(self, monkeypatch):
        from transformer.model.cache import CacheWriter

        monkeypatch.setattr(CacheWriter, "_store", lambda self, stored, layer, new: stored[layer])
        jax.clear_caches()
        with pytest.raises(AssertionError):
            check_generates(tiny("learned"))
        jax.clear_caches()
