"""Decoding with a cache gives the logits of the full forward pass, for every position scheme and way of feeding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import LENGTH, label, one_switch, tiny, tokens, traits
from transformer.errors import UserError
from transformer.model import build
from transformer.model.cache import Cache
from transformer.model.positions import POSITIONS

HALF = LENGTH // 2
ONE_BY_ONE = (1,) * LENGTH
PIECES = {
    "one by one": ONE_BY_ONE,
    "prefill, then one by one": (HALF, *(1,) * HALF),
    "chunks": (HALF, HALF),
    "at once": (LENGTH,),
}
CAUSAL = [
    o
    for o in one_switch("model.")
    if o != {"model.attention.mask": "none"}
    and not ("length_dependent" in traits(o) and "model.position.rope_scaling" in o)  # see below
]


def check_cached_equals_full(
    overrides: dict,
    pieces: tuple[int, ...],
    disturb: Callable[[Cache], Cache] = lambda cache: cache,
    spare: int = 0,
) -> None:
    """Feeds the tokens in `pieces`; `disturb` is applied to the cache between them, `spare` slots stay unused."""
    model, window = build(tiny(overrides)), tokens()
    cache, parts, start = model.empty_cache(len(window), LENGTH + spare), [], 0
    for size in pieces:
        logits, cache = model(window[:, start : start + size], cache=cache)
        parts.append(logits)
        start += size
        if start < LENGTH:
            cache = disturb(cache)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), model(window), atol=2e-5, rtol=2e-5)
    assert (cache.length_B == LENGTH).all()


@pytest.mark.parametrize("overrides", [{}, *CAUSAL], ids=label)
def test_every_variant(overrides):
    check_cached_equals_full(overrides, PIECES["prefill, then one by one"])


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("kind", POSITIONS)
def test_any_way_of_feeding(kind, pieces):
    check_cached_equals_full({"model.position.kind": kind}, pieces)


def test_slots_left_over_are_not_seen():
    check_cached_equals_full({}, (LENGTH,), spare=LENGTH)


@pytest.mark.parametrize("kind", POSITIONS)
def test_the_check_notices_a_shifted_position(kind):
    def shift(cache):
        return dataclasses.replace(cache, length_B=cache.length_B + (cache.length_B == 3))

    with pytest.raises(AssertionError):
        check_cached_equals_full({"model.position.kind": kind}, ONE_BY_ONE, shift)


def test_the_check_notices_a_lost_key():
    def lose(cache):
        return dataclasses.replace(cache, keys=tuple(k.at[:, :, 0].set(0.0) for k in cache.keys))

    with pytest.raises(AssertionError):
        check_cached_equals_full({}, ONE_BY_ONE, lose)


def test_a_cache_keeps_the_computed_dtype_and_its_capacity():
    cache = build(tiny({"numerics.compute_dtype": "bfloat16"})).empty_cache(2, 5)
    assert cache.capacity == 5 and len(cache.keys) == len(cache.values) == 2
    assert all(x.dtype == jnp.bfloat16 and x.shape == (2, 2, 5, 8) for x in cache.keys + cache.values)


def test_no_cache_where_tokens_see_the_future():
    with pytest.raises(UserError, match=r"model\.attention\.mask=none .* not exact"):
        build(tiny({"model.attention.mask": "none"})).empty_cache(1, 4)


# --- Schemes that look at the length of the text -----------------------------------------------------------------

LENGTH_DEPENDENT = [
    {"model.position.rope_scaling": "dynamic_ntk", "model.position.rope_original_length": HALF},
    {"model.position.kind": "learned", "model.position.max_length": HALF, "model.position.out_of_range": "interpolate"},
]


@pytest.mark.parametrize("overrides", LENGTH_DEPENDENT, ids=label)
def test_no_cache_where_earlier_tokens_change(overrides):
    model = build(tiny(overrides))
    with pytest.raises(UserError, match=f"Decoding {LENGTH} tokens with a cache is not exact: .* longer than {HALF}"):
        model.empty_cache(2, LENGTH)
    model.empty_cache(2, HALF)


@pytest.mark.parametrize("overrides", LENGTH_DEPENDENT, ids=label)
def test_earlier_tokens_really_change(overrides):
    """Without the refusal the logits would be wrong: from the first token past the limit on, and not before."""
    limit = next(path for path in overrides if path.endswith("length"))
    check_cached_equals_full({**overrides, limit: LENGTH}, ONE_BY_ONE)
    model, window = build(tiny(overrides)), tokens()
    model.position.cache_length = None
    cache, full = model.empty_cache(len(window), LENGTH), model(window)
    _, cache = model(window[:, :HALF], cache=cache)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(model(window[:, HALF:], cache=cache)[0], full[:, HALF:], atol=1e-3)
