"""Corruption: what it hides, what it keeps, and that nothing is lost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.data import corruption
from transformer.data.corruption import SpanSizes

ROWS, LENGTH, TEXT, MASK, END = 64, 40, 20, 98, 99
TOKENS = np.random.default_rng(0).integers(0, TEXT, (ROWS, LENGTH)).astype(np.int32)
KEYS = corruption.row_keys(jax.random.key(3), 0, ROWS)
LENGTHS = np.arange(ROWS) % (LENGTH + 1)  # with empty rows and rows of one token
MARKS = 200 + np.arange(LENGTH)


def test_a_row_draws_the_same_in_any_batch():
    later = corruption.row_keys(jax.random.key(3), 10, 5)
    np.testing.assert_array_equal(jax.random.key_data(later), jax.random.key_data(KEYS[10:15]))
    assert len({tuple(k) for k in np.asarray(jax.random.key_data(KEYS)).tolist()}) == ROWS


# --- Single tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.15, 0.5, 1.0])
def test_the_chosen_share_is_exact_and_lies_among_the_allowed(rate):
    allowed = np.arange(LENGTH) < LENGTHS[:, None]
    chosen = np.asarray(jax.jit(corruption.choose)(KEYS, allowed, jnp.full(ROWS, rate)))
    assert not (chosen & ~allowed).any()
    wanted = np.minimum(LENGTHS, np.maximum(1, np.round(np.float32(rate) * LENGTHS.astype(np.float32))))
    assert chosen.sum(1).tolist() == wanted.tolist()
    if rate < 1:
        assert len({tuple(row) for row in chosen[-10:].tolist()}) == 10


def replaced(masked: float, random: float, chosen: np.ndarray | None = None) -> np.ndarray:
    chosen = np.ones(TOKENS.shape, bool) if chosen is None else chosen
    return np.asarray(
        jax.jit(corruption.replace, static_argnums=(3, 4, 5, 6))(KEYS, TOKENS, chosen, MASK, TEXT, masked, random)
    )


def check_shares(out: np.ndarray) -> None:
    """80% mask; of the random 10% one in TEXT is the token itself."""
    assert (out == MASK).mean() == pytest.approx(0.8, abs=0.03)
    assert (out == TOKENS).mean() == pytest.approx(0.1 + 0.1 / TEXT, abs=0.02)
    assert set(np.unique(out)) == {*range(TEXT), MASK}


def test_eighty_ten_ten():
    check_shares(replaced(0.8, 0.1))
    with pytest.raises(AssertionError):
        check_shares(replaced(0.85, 0.1))
    assert (replaced(1.0, 0.0) == MASK).all()


def test_tokens_that_were_not_chosen_stay():
    chosen = np.random.default_rng(1).random(TOKENS.shape) < 0.3
    out = replaced(0.8, 0.1, chosen)
    assert (out == TOKENS)[~chosen].all()
    assert (out != TOKENS)[chosen].any()


# --- Spans -----------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def split(sizes: SpanSizes, keys=KEYS):
    spans = corruption.draw_spans(keys, LENGTHS, LENGTH, sizes)
    _, longest_source, longest_target = sizes.largest(LENGTH)
    marks = jnp.asarray(MARKS)[jnp.minimum(spans.index_BL, LENGTH - 1)]
    source = corruption.without_noise(TOKENS, spans, LENGTHS, marks, END, longest_source + 1)
    target = corruption.noise_only(TOKENS, spans, marks, END, longest_target + 1)
    return spans, source, target


def restored(source: list[int], target: list[int]) -> list[int]:
    """The text, from source and target alone."""
    hidden: dict[int, list[int]] = {}
    for token in target[: target.index(END)]:
        if token >= 200:
            hidden[token] = []
        else:
            hidden[list(hidden)[-1]].append(token)
    out: list[int] = []
    for token in source[: source.index(END)]:
        out += hidden.pop(token) if token >= 200 else [token]
    assert not hidden
    return out


SIZES = [SpanSizes(0.15, 3.0), SpanSizes(0.5, 3.0), SpanSizes(0.5, 1.0), SpanSizes(0.15, 32.0), SpanSizes(0.9, 2.0)]


@pytest.mark.parametrize("sizes", SIZES)
def test_source_and_target_hold_the_text_between_them(sizes):
    spans, (source, source_count), (target, count) = jax.tree.map(np.asarray, split(sizes))
    for b, n in enumerate(LENGTHS):
        assert restored(source[b].tolist(), target[b].tolist()) == TOKENS[b, :n].tolist()
        noise, number = sizes.counts(int(n))
        assert spans.noise_BL[b].sum() == noise
        assert spans.first_BL[b].sum() == number
        assert (source_count[b], count[b]) == (n - noise + number + 1, noise + number + 1)
        assert not source[b, source_count[b] :].any() and not target[b, count[b] :].any()
        if n:
            assert not spans.noise_BL[b, 0]


def test_a_lost_span_would_be_noticed():
    _, (source, _), (target, _) = split(SIZES[1])
    row = target[-1].tolist()
    with pytest.raises(AssertionError):
        assert restored(source[-1].tolist(), [*row[:1], *row[2:]]) == TOKENS[-1, : LENGTHS[-1]].tolist()


def test_every_division_is_equally_likely():
    sizes = SpanSizes(0.5, 1.5)  # six tokens: three noise in two spans, three others around them
    keys = corruption.row_keys(jax.random.key(0), 0, 4000)
    spans = jax.jit(lambda keys: corruption.draw_spans(keys, jnp.full(4000, 6), 6, sizes))(keys)
    patterns, counts = np.unique(np.asarray(spans.noise_BL), axis=0, return_counts=True)
    assert len(patterns) == 2 * 3  # 1+2 or 2+1 that are noise; 1+1+1, 1+2 or 2+1 that are not
    assert counts.min() > 550


def test_counts_are_those_of_the_paper():
    assert SpanSizes(0.15, 3.0).counts(512) == (77, 26)
    assert SpanSizes(0.15, 3.0).counts(1) == (0, 0)
    assert SpanSizes(0.15, 3.0).counts(2) == (1, 1)
