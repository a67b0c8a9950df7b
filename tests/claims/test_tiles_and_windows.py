"""Exact claims about attention in tiles and in windows, each with a sabotage that it must notice."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.claims.layers import TINY, context, model, stream, through_blocks
from tests.claims.test_attention import call
from transformer.model.attention_backends import AttentionCall, fused_attention, reference_attention
from transformer.model.flash_attention import flash_attention
from transformer.model.masks import Mask
from transformer.model.positions import POSITIONS

Backend = Callable[[AttentionCall], jax.Array]

B, H, T, K = 2, 4, 29, 4
tiled = functools.partial(flash_attention, block=8)  # the last tile is not full


# --- Tiles -------------------------------------------------------------------------------------------------------


def arrays(kv_heads: int = H, length: int = T) -> list[jax.Array]:
    """Queries, keys and values."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(B, heads, length, K)), jnp.float32) for heads in (H, kv_heads, kv_heads)]


def large() -> list[jax.Array]:
    """Scores up to 1e4, in whole numbers, so that every order of summation gives the same ones; and keys in pairs,
    so that not all weight goes to one."""
    rng = np.random.default_rng(0)
    q, k = rng.integers(-50, 51, (2, B, H, T, K))
    k[:, :, 1::2] = k[:, :, : T - 1 : 2]
    assert 5e3 < np.abs(np.einsum("bhtk,bhsk->bhts", q, k)).max() < 2e4
    return [jnp.asarray(x, jnp.float32) for x in (q, k, rng.normal(size=q.shape))]


def plain(*given: jax.Array) -> AttentionCall:
    return call(*given)


def causal(*given: jax.Array) -> AttentionCall:
    return call(*given, causal=True)


def segments(*given: jax.Array) -> AttentionCall:
    """Two documents in the first row; in the second, padding that sees no key."""
    ids = jnp.asarray([[1] * 10 + [2] * 19, [1] * 20 + [0] * 9])
    return dataclasses.replace(causal(*given), mask=Mask(True, None, None, ids, ids))


def alibi(*given: jax.Array) -> AttentionCall:
    made = causal(*given)
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, attention=_heads(H)))
    position = POSITIONS.build("alibi", config, True)
    return dataclasses.replace(made, context=dataclasses.replace(made.context, position=position))


def _heads(number: int):
    return dataclasses.replace(TINY.model.attention, num_heads=number)


SETTINGS = {
    "full": (plain, arrays()),
    "causal": (causal, arrays()),
    "shared keys": (causal, arrays(kv_heads=2)),
    "one token": (causal, arrays(length=1)),
    "segments": (segments, arrays()),
    "alibi": (alibi, arrays()),
    "large scores": (causal, large()),
}


def output_and_gradients(backend: Backend, setting: str) -> tuple[jax.Array, ...]:
    make, given = SETTINGS[setting]
    out, back = jax.vjp(lambda *given: backend(make(*given)), *given)
    return out, *back(jnp.asarray(np.random.default_rng(1).normal(size=out.shape), jnp.float32))


def check_exact(backend: Backend, setting: str) -> None:
    """Relative to the numbers that are summed: keys in the gradient of the queries, queries in that of the keys."""
    q, k, _ = SETTINGS[setting][1]
    made, wanted = (output_and_gradients(f, setting) for f in (backend, reference_attention))
    for ours, theirs, summed in zip(made, wanted, (1, k, q, 1), strict=True):
        size = max(1.0, float(jnp.abs(theirs).max()), float(jnp.abs(summed).max()))
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * size, rtol=0)


class TestFlashEqualsNaive:
    claim = "flash_equals_naive"

    # The kernels of accelerators are not run here.
    @pytest.mark.parametrize("backend", [tiled, fused_attention], ids=["tiles", "library"])
    @pytest.mark.parametrize("setting", SETTINGS)
    def test_holds(self, setting, backend):
        check_exact(backend, setting)

    def test_sabotage(self):
        """A softmax of each half of the keys, and the mean of both: a sum that is not carried from tile to tile."""

        def halves(whole: AttentionCall) -> jax.Array:
            pieces = (slice(0, T // 2), slice(T // 2, T))
            parts = [
                dataclasses.replace(
                    whole,
                    key_BGSK=whole.key_BGSK[:, :, piece],
                    value_BGSU=whole.value_BGSU[:, :, piece],
                    key_positions_BS=whole.key_positions_BS[:, piece],
                )
                for piece in pieces
            ]
            return sum(reference_attention(part) for part in parts) / 2

        with pytest.raises(AssertionError):
            check_exact(halves, "full")


def largest_kept(backend: Backend, length: int) -> int:
    """Numbers in the largest array that the forward pass keeps for the backward pass."""

    def kept(*given: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(jax.vjp(lambda *given: backend(causal(*given)), *given)[1])

    given = [jax.ShapeDtypeStruct((1, 1, length, K), jnp.float32)] * 3
    return max(math.prod(x.shape) for x in jax.eval_shape(kept, *given))


def check_recomputes(backend: Backend) -> None:
    check_exact(backend, "causal")
    assert largest_kept(backend, 512) == 2 * largest_kept(backend, 256) < 256**2, "scores are kept"


class TestFlashRecomputesGradients:
    claim = "flash_recompute_gradients"

    def test_holds(self):
        check_recomputes(tiled)

    def test_sabotage(self):
        with pytest.raises(AssertionError, match="scores are kept"):
            check_recomputes(reference_attention)


# --- Windows -----------------------------------------------------------------------------------------------------


def reach(layers: int, window: int, length: int = 34) -> list[int]:
    """How far back the last token of a stack sees: every distance at which anything reaches it."""
    made, where = model(num_layers=layers, attention__window=window), context(length=length)
    last, back = jax.vjp(lambda x: through_blocks(made, x, where)[0, -1], stream(length=length))
    (gradient,) = back(jnp.asarray(np.random.default_rng(2).normal(size=last.shape), jnp.float32))
    return [int(n) for n in np.flatnonzero(np.any(np.asarray(gradient[0])[::-1] != 0, axis=-1))]


def check_reach(layers: int, window: int) -> None:
    assert reach(layers, window) == list(range(layers * (8 - 1) + 1))


class TestWindowReceptiveField:
    claim = "window_receptive_field"

    @pytest.mark.parametrize("layers", [1, 2, 4])
    def test_holds(self, layers):
        check_reach(layers, window=8)

    @pytest.mark.parametrize("window", [0, 7, 9])
    def test_sabotage(self, window):
        with pytest.raises(AssertionError):
            check_reach(2, window)
