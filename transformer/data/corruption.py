"""Corruption of text for denoising objectives: on the device, with static shapes, each row from a key of its own."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


def row_keys(key: jax.Array, first_row: jax.Array | int, rows: int) -> jax.Array:
    """One key per row, which depends on the row's index but not on the size of its batch: [B]."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(first_row + jnp.arange(rows))


# --- Single tokens ---------------------------------------------------------------------------------------


def choose(keys_B: jax.Array, allowed_BL: jax.Array, rate_B: jax.Array) -> jax.Array:
    """Picks round(rate * n) of the n allowed tokens of each row, at least one where there are any: bool [B, L]."""

    def pick(key: jax.Array, allowed_L: jax.Array, rate: jax.Array) -> jax.Array:
        n = allowed_L.sum()
        count = jnp.clip(jnp.round(rate * n).astype(jnp.int32), jnp.minimum(n, 1), n)
        order_L = jnp.where(allowed_L, jax.random.uniform(key, allowed_L.shape), 2.0)
        return jnp.argsort(jnp.argsort(order_L)) < count

    return jax.vmap(pick)(keys_B, allowed_BL, rate_B)


def replace(
    keys_B: jax.Array,
    tokens_BL: jax.Array,
    chosen_BL: jax.Array,
    mask: int,
    text_ids: int,
    masked: float,
    random: float,
) -> jax.Array:
    """Chosen tokens become `mask` with probability `masked`, any of the first `text_ids` ids with probability `random`,
    and stay what they are otherwise (Devlin et al. 2019: 0.8, 0.1)."""

    def row(key: jax.Array, tokens_L: jax.Array, chosen_L: jax.Array) -> jax.Array:
        which, what = jax.random.split(key)
        u_L = jax.random.uniform(which, tokens_L.shape)
        random_L = jax.random.randint(what, tokens_L.shape, 0, text_ids)
        new_L = jnp.where(u_L < masked, mask, jnp.where(u_L < masked + random, random_L, tokens_L))
        return jnp.where(chosen_L, new_L, tokens_L)

    return jax.vmap(row)(keys_B, tokens_BL, chosen_BL)


# --- Spans -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SpanSizes:
    """How many tokens and spans of a row are noise (Raffel et al. 2020, section 3.1.4).

    Args:
      density: share of the tokens that is noise.
      mean_length: mean length of a noise span.
    """

    density: float
    mean_length: float

    def counts(self, n: int) -> tuple[int, int]:
        """(noise tokens, noise spans) of a row of n tokens; rows of fewer than two have none."""
        if n < 2:
            return 0, 0
        noise = min(max(round(n * self.density), 1), n - 1)
        return noise, min(max(round(noise / self.mean_length), 1), noise, n - noise)

    def largest(self, length: int) -> tuple[int, int, int]:
        """(most spans, longest text with one token per span, longest row of spans with one token before each), over
        all rows of up to `length` tokens."""
        every = [(n, *self.counts(n)) for n in range(length + 1)]
        return (
            max(spans for _, _, spans in every),
            max(n - noise + spans for n, noise, spans in every),
            max(noise + spans for _, noise, spans in every),
        )


class Spans(NamedTuple):
    """Where the noise of each row lies.

    Attributes:
      noise_BL: whether a token is noise.
      first_BL: whether it opens a noise span.
      index_BL: number of the noise span it belongs to, or of the next one.
    """

    noise_BL: jax.Array
    first_BL: jax.Array
    index_BL: jax.Array


def draw_spans(keys_B: jax.Array, lengths_B: jax.Array, length: int, sizes: SpanSizes) -> Spans:
    """Splits each row into as many noise spans as `sizes` says, in turn with spans that stay: every division is equally
    likely. A row begins with what stays and may end with either (T5's code ends it with noise, so that a short row with
    a single span would lose its last tokens every time).

    Args:
      lengths_B: real tokens of each row, which stand at its beginning.
      length: L.
    """
    table = jnp.asarray([sizes.counts(n) for n in range(length + 1)], jnp.int32)
    most = sizes.largest(length)[0] + 1  # parts that stay
    places_L = jnp.arange(length)
    more_L = jnp.arange(length + 1)

    def parts(key: jax.Array, total: jax.Array, count: jax.Array) -> jax.Array:
        """`total` as a sum of `count` positive numbers; [most], zeros behind."""
        inner_L = (more_L >= 1) & (more_L < total)  # where a part may begin, beside 0
        order_L = jnp.where(inner_L, jax.random.uniform(key, (length + 1,)), 2.0)
        begins_L = (jnp.argsort(jnp.argsort(order_L)) < count - 1) & inner_L
        number_L = jnp.cumsum(begins_L)
        counted_L = (more_L < total).astype(jnp.int32)
        return jax.ops.segment_sum(counted_L, number_L, num_segments=most) * (jnp.arange(most) < count)

    def row(key: jax.Array, n: jax.Array) -> Spans:
        noise, spans = table[n, 0], table[n, 1]
        a, b = jax.random.split(key)
        # One part more than spans, which may be empty: behind the last noise.
        kept_K, noise_K = parts(a, n - noise + 1, spans + 1).at[spans].add(-1), parts(b, noise, spans)
        ends = jnp.cumsum(jnp.stack([kept_K, noise_K], axis=1).reshape(-1))  # of kept 0, noise 0, kept 1, ...
        part_L = jnp.searchsorted(ends, places_L, side="right")
        noise_L = (part_L % 2 == 1) & (places_L < n)
        first_L = noise_L & ~jnp.concatenate([jnp.zeros(1, bool), noise_L[:-1]])
        return Spans(noise_L, first_L, part_L // 2)

    return jax.vmap(row)(keys_B, lengths_B)


def scatter(size: int, *items: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """Writes tokens to places: [B, size], zeros elsewhere.

    Args:
      items: (tokens [B, L], places [B, L], whether to write [B, L]) in any number.
    """

    def row(*items_L: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        out = jnp.zeros(size, jnp.int32)
        for tokens_L, places_L, write_L in items_L:
            out = out.at[jnp.where(write_L, places_L, size)].set(tokens_L, mode="drop")
        return out

    return jax.vmap(row)(*items)


def without_noise(tokens_BL: jax.Array, spans: Spans, lengths_B: jax.Array, marks_BL: jax.Array, end: int, size: int):
    """The text with one mark in place of each noise span, then `end`.

    Returns:
      (tokens [B, size], number of them [B]).
    """
    real_BL = jnp.arange(tokens_BL.shape[1]) < lengths_B[:, None]
    emits_BL = real_BL & (~spans.noise_BL | spans.first_BL)
    places_BL = jnp.cumsum(emits_BL, axis=1) - 1
    count_B = emits_BL.sum(axis=1)
    kept = (jnp.where(spans.first_BL, marks_BL, tokens_BL), places_BL, emits_BL)
    return scatter(size, kept, _ending(count_B, end)), count_B + 1


def noise_only(tokens_BL: jax.Array, spans: Spans, marks_BL: jax.Array, end: int, size: int):
    """The noise spans, each behind its mark, then `end`.

    Returns:
      (tokens [B, size], number of them [B]).
    """
    places_BL = jnp.cumsum(spans.noise_BL + spans.first_BL.astype(jnp.int32), axis=1) - 1
    count_B = (spans.noise_BL + spans.first_BL.astype(jnp.int32)).sum(axis=1)
    marks = (marks_BL, places_BL - 1, spans.first_BL)
    return scatter(size, (tokens_BL, places_BL, spans.noise_BL), marks, _ending(count_B, end)), count_B + 1


def _ending(count_B: jax.Array, end: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    places_B1 = count_B[:, None]
    return jnp.full_like(places_B1, end), places_B1, jnp.ones_like(places_B1, bool)


def real_up_to(count_B: jax.Array, size: int) -> jax.Array:
    """Segments of rows with that many real tokens: 1, then 0; int32 [B, size]."""
    return (jnp.arange(size) < count_B[:, None]).astype(jnp.int32)
