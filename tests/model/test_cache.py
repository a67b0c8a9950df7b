"""Decoding with a cache gives the logits of the full forward pass, for every position scheme and way of feeding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import LENGTH, called, label, one_switch, tiny, tokens, traits
from transformer.errors import UserError
from transformer.model import build
from transformer.model.cache import Cache, Layout, SinkWindow, Sliding
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
    if o not in ({"model.attention.mask": "none"}, {"model.family": "encoder"})
    and "per_row" not in traits(o)
    and not ("length_dependent" in traits(o) and "model.position.rope_scaling" in o)  # see below
]


def check_cached_equals_full(
    overrides: dict,
    pieces: tuple[int, ...],
    disturb: Callable[[Cache], Cache] = lambda cache: cache,
    spare: int = 0,
) -> None:
    """Feeds the tokens in `pieces`; `disturb` is applied to the cache between them, `spare` slots stay unused."""
    config, window = tiny(overrides), tokens()
    model = build(config)
    forward = called(model, config)
    cache, parts, start = model.empty_cache(len(window), LENGTH + spare), [], 0
    for size in pieces:
        logits, cache = forward(window[:, start : start + size], cache=cache)
        parts.append(logits)
        start += size
        if start < LENGTH:
            cache = disturb(cache)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), forward(window), atol=2e-5, rtol=2e-5)
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
        check_cached_equals_full({"model.position.kind": kind}, ONE_BY_ONE, shift, spare=1)


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


# --- Caches that forget ------------------------------------------------------------------------------------------

KEPT, LONG = 4, 11
ONE_LAYER = {"model.num_layers": 1}


def fed(model, text, layout: Layout, pieces: tuple[int, ...] = (1,) * LONG) -> np.ndarray:
    """Logits of a text that is fed in pieces through a cache."""
    step = jax.jit(lambda piece, cache: model(piece, cache=cache))
    cache, parts, start = model.empty_cache(len(text), layout), [], 0
    for size in pieces:
        logits, cache = step(text[:, start : start + size], cache)
        parts.append(logits)
        start += size
    return np.concatenate(parts, axis=1)


def close(a, b) -> bool:
    return np.allclose(a, b, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("pieces", [(1,) * LONG, (7, 1, 3), (LONG,)], ids=str)
@pytest.mark.parametrize("kind", ["rope", "alibi", "none"])
def test_a_sliding_cache_is_the_model_with_a_window(kind, pieces):
    """In every layer and however it is fed: what a layer stored saw a window itself."""
    overrides, text = {"model.position.kind": kind}, tokens(2, LONG)
    windowed = build(tiny({**overrides, "model.attention.window": KEPT}))
    assert close(fed(build(tiny(overrides)), text, Sliding(KEPT), pieces), windowed(text))
    wider = build(tiny({**overrides, "model.attention.window": KEPT + 1}))
    assert not close(fed(build(tiny(overrides)), text, Sliding(KEPT), pieces), wider(text))


def test_the_narrower_window_counts():
    text = tokens(2, LONG)
    narrow, wide = (build(tiny({"model.attention.window": window})) for window in (3, 6))
    assert close(fed(narrow, text, Sliding(KEPT), (7, 1, 3)), narrow(text))
    assert close(fed(wide, text, Sliding(KEPT)), build(tiny({"model.attention.window": KEPT}))(text))


@pytest.mark.parametrize("layout", [Sliding(KEPT), SinkWindow(KEPT, 1)], ids=str)
@pytest.mark.parametrize("kind", POSITIONS)
def test_what_forgets_agrees_within_its_capacity_and_differs_beyond(kind, layout):
    model = build(tiny({"model.position.kind": kind, "data.sequence_length": LONG}))
    text = tokens(2, LONG)
    forgetful, full = fed(model, text, layout), model(text)
    assert close(forgetful[:, :KEPT], full[:, :KEPT])
    assert not any(close(forgetful[:, t], full[:, t]) for t in range(KEPT, LONG))


def test_recomputing_the_window_is_a_sliding_cache_of_one_layer_only():
    text, last = tokens(2, LONG), jnp.arange(LONG - KEPT, LONG)[None]
    for layers in (1, 2):
        model = build(tiny({"model.num_layers": layers}))
        recomputed = model(text[:, -KEPT:], positions_BT=last)[:, -1]
        assert close(fed(model, text, Sliding(KEPT))[:, -1], recomputed) == (layers == 1)
    reach = 2 * (KEPT - 1) + 1  # two layers see this far
    windowed = build(tiny({"model.attention.window": KEPT}))(text[:, -reach:], positions_BT=jnp.arange(reach)[None])
    assert close(fed(model, text, Sliding(KEPT))[:, -1], windowed[:, -1])


ROTATES_VALUES = {"model.position.rope_on": "qkv_no_inverse"}


@pytest.mark.parametrize(
    "overrides",
    [*({"model.position.kind": kind} for kind in ("rope", "alibi", "t5", "none")), ROTATES_VALUES],
    ids=label,
)
@pytest.mark.parametrize("sinks", [1, 2])
def test_sinks_and_a_window_are_a_text_of_just_those_tokens(overrides, sinks):
    """One layer, at every step: the first tokens and the newest, at the positions 0, 1, ... inside the cache."""
    model, text = build(tiny({**overrides, **ONE_LAYER})), tokens(2, LONG)
    streamed = fed(model, text, SinkWindow(KEPT, sinks))
    for t in range(KEPT, LONG):
        kept = np.concatenate([text[:, :sinks], text[:, t + 1 - (KEPT - sinks) : t + 1]], axis=1)
        assert close(streamed[:, t], model(kept)[:, -1])
    wrong = np.concatenate([text[:, 1 : 1 + sinks], text[:, LONG - (KEPT - sinks) :]], axis=1)
    assert not close(streamed[:, -1], model(wrong)[:, -1])


def test_positions_inside_the_cache_stay_small():
    """A model that knows few positions streams on; positions in the text would leave its bias table alone, but turn
    rotations further than any training did."""
    model, text = build(tiny(ONE_LAYER)), tokens(2, LONG)
    in_cache = fed(model, text, SinkWindow(KEPT, 2))[:, -1]
    kept = np.concatenate([text[:, :2], text[:, -2:]], axis=1)
    in_text = jnp.array([[0, 1, LONG - 2, LONG - 1]])
    assert close(in_cache, model(kept)[:, -1])
    assert not close(in_cache, model(kept, positions_BT=in_text)[:, -1])


# --- Rows of different lengths -----------------------------------------------------------------------------------

PADDING = {
    "right": [[1] * 5 + [0] * 2, [1] * 7],
    "left": [[0] * 2 + [1] * 5, [1] * 7],
    "between": [[1, 0, 1, 1, 0, 1, 1], [1] * 7],
    "a row of padding": [[0] * 7, [1] * 7],
}


@pytest.mark.parametrize("layout", [Layout(LONG), Sliding(3), SinkWindow(LONG, 1)], ids=str)
@pytest.mark.parametrize("real", PADDING.values(), ids=PADDING)
@pytest.mark.parametrize("kind", ["rope", "learned"])
def test_padding_is_neither_stored_nor_counted(kind, real, layout):
    model = build(tiny({"model.position.kind": kind, "data.sequence_length": LONG}))
    real_BT, text, more = np.array(real, np.int32), tokens(2, 7), tokens(2, 2, seed=1)
    logits, cache = model(text, segments_BT=real_BT, cache=model.empty_cache(2, layout))
    later, cache = model(more, cache=cache)
    np.testing.assert_array_equal(cache.length_B, real_BT.sum(axis=1) + 2)
    for row in range(2):
        alone = text[row : row + 1, real_BT[row] == 1]
        own, own_cache = model(alone, cache=model.empty_cache(1, layout)) if alone.size else (None, None)
        if own is not None:
            assert close(logits[row, real_BT[row] == 1], own[0])
        rest = model(more[row : row + 1], cache=own_cache or model.empty_cache(1, layout))[0]
        assert close(later[row], rest[0])
        assert not alone.size or not close(later[row], model(more[row : row + 1])[0])


# --- No room -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "remedy"), [(Layout(KEPT), "use a larger cache"), (SinkWindow(KEPT, 1), "add them one by one")], ids=str
)
def test_more_than_fits_is_refused_or_nan(layout, remedy):
    model, text = build(tiny()), tokens(2, KEPT)
    _, cache = model(text[:, :3], cache=model.empty_cache(2, layout))
    with pytest.raises(UserError, match=f"A cache of 4 tokens that holds 3 has no room for 2 more at once; {remedy}"):
        model(text[:, :2], cache=cache)
    logits, _ = jax.jit(lambda text, cache: model(text, cache=cache))(text[:, :2], cache)
    assert np.isnan(logits[:, 1]).all()
    assert np.isfinite(model(text[:, :1], cache=cache)[0]).all()


def test_what_forgets_needs_positions_that_do_not_look_at_the_length():
    model = build(tiny({"model.position.rope_scaling": "dynamic_ntk"}))
    with pytest.raises(UserError, match=r"forgets tokens does not go with .* use decode\.cache=full"):
        model.empty_cache(1, Sliding(KEPT))


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
