"""Keys and values of tokens already processed, so that decoding costs one token per step.

A cache keeps, for every row of a batch, how many tokens it has seen; which token stands in which slot follows from
that number alone, by the rules of its layout. So prompts of different lengths share a batch, and nothing but keys and
values is stored.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from transformer.config import stack_models
from transformer.errors import UserError
from transformer.registry import Registry
from transformer.schema import Config, field

if TYPE_CHECKING:
    from transformer.model.positions import NoPosition

CACHES = Registry("decode.cache")

# The position of a slot that holds nothing: after every query, so that a causal mask hides it.
EMPTY = np.iinfo(np.int32).max


# --- Layouts: which tokens are kept, and where -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """Every token is kept, the one at position p in slot p. Base of all layouts.

    Attributes:
      capacity: slots per row.
      forgets: whether old tokens make room for new ones.
      moves: whether a token's position changes as others are forgotten. Keys and values are then stored without
        their position, which is added when they are read.
    """

    capacity: int
    forgets = False
    moves = False

    @property
    def window(self) -> int | None:
        """Positions a query sees, counting back from itself; None: all."""
        return None

    def slots(self, positions_BT: jax.Array, length_B1: jax.Array) -> jax.Array:
        """Where the tokens at these positions are stored once a row has `length` tokens; the capacity: nowhere."""
        return jnp.where(positions_BT < self.capacity, positions_BT, self.capacity)

    def held(self, length_B1: jax.Array) -> jax.Array:
        """[B, S]: position of the token in each slot of a row with `length` tokens, or EMPTY."""
        slot_S = jnp.arange(self.capacity, dtype=jnp.int32)
        return jnp.where(slot_S < length_B1, slot_S, EMPTY)

    def seen_at(self, positions_BT: jax.Array, length_B1: jax.Array) -> jax.Array:
        """Where attention takes the tokens at these positions to stand once a row has `length` tokens."""
        return positions_BT

    def fits(self, positions_BT: jax.Array) -> jax.Array | None:
        """Which new tokens can be handled rightly; None: all."""
        return positions_BT < self.capacity


@dataclasses.dataclass(frozen=True)
class FullParameters:
    cache_capacity: int = field(0, "tokens of prompt and answer that fit; 0: as many as are asked for")


def _capacity(config: Config) -> str | None:
    capacity = config.decode.cache_capacity
    return None if capacity >= 0 else f"decode.cache_capacity={capacity} must be 0 (as needed) or more."


@CACHES.register("full", parameters=FullParameters, check=_capacity, traits=("equals_the_full_pass",))
def full_cache(config: Config) -> Layout | None:
    """Every token is kept; None where the size follows from what is generated."""
    capacity = config.decode.cache_capacity
    return Layout(capacity) if capacity else None


@dataclasses.dataclass(frozen=True)
class Sliding(Layout):
    """The last `capacity` tokens are kept, at their positions in the text.

    A model without a window, decoded with this cache, is exactly the model with `model.attention.window` = capacity:
    what a layer stored was itself computed from the last `capacity` tokens. It is another function than the model's
    own as soon as the text is longer than that; and it is not the model run over the last `capacity` tokens alone,
    since every further layer reaches back that far again.
    """

    forgets = True

    @property
    def window(self) -> int:
        return self.capacity

    def slots(self, positions_BT: jax.Array, length_B1: jax.Array) -> jax.Array:
        kept = (positions_BT >= length_B1 - self.capacity) & (positions_BT != EMPTY)
        return jnp.where(kept, positions_BT % self.capacity, self.capacity)

    def held(self, length_B1: jax.Array) -> jax.Array:
        return _newest(length_B1, self.capacity)

    def fits(self, positions_BT: jax.Array) -> jax.Array | None:
        return None


def _newest(length_B1: jax.Array, ring: int) -> jax.Array:
    """[B, ring]: the newest position below `length` that is congruent to each slot, or EMPTY."""
    newest = length_B1 - 1
    positions_BS = newest - (newest - jnp.arange(ring, dtype=jnp.int32)) % ring
    return jnp.where(positions_BS >= 0, positions_BS, EMPTY)


@dataclasses.dataclass(frozen=True)
class WindowParameters:
    cache_window: int = field(0, "newest tokens that are kept; 0: what data.sequence_length leaves room for")


def _window(config: Config) -> str | None:
    window = config.decode.cache_window
    return None if window >= 0 else f"decode.cache_window={window} must be 0 (data.sequence_length) or more."


@CACHES.register("sliding", parameters=WindowParameters, check=_window, traits=("forgets",))
def sliding_cache(config: Config) -> Layout:
    """The newest tokens are kept, at their positions in the text."""
    return Sliding(config.decode.cache_window or config.data.sequence_length)


@dataclasses.dataclass(frozen=True)
class SinkWindow(Layout):
    """The first `sinks` tokens and the newest ones are kept, and attention counts positions inside the cache.

    The token that comes is always taken to stand at the end of the cache, so no distance grows beyond what fits: a
    text may go on for ever (Xiao et al. 2023, section 3.2). Only rotations and score biases count this way; what is
    added to the embedding keeps the position in the text.
    """

    sinks: int
    forgets = True
    moves = True

    def slots(self, positions_BT: jax.Array, length_B1: jax.Array) -> jax.Array:
        ring = self.capacity - self.sinks
        newest = self.sinks + (positions_BT - self.sinks) % ring
        slots_BT = jnp.where(positions_BT < self.sinks, positions_BT, newest)
        kept = (positions_BT < self.sinks) | (positions_BT >= length_B1 - ring)
        return jnp.where(kept & (positions_BT != EMPTY), slots_BT, self.capacity)

    def held(self, length_B1: jax.Array) -> jax.Array:
        sink_S = jnp.arange(self.sinks, dtype=jnp.int32)
        sinks_BS = jnp.where(sink_S < length_B1, sink_S, EMPTY)
        newest_BS = _newest(length_B1 - self.sinks, self.capacity - self.sinks)
        newest_BS = jnp.where(newest_BS == EMPTY, EMPTY, newest_BS + self.sinks)
        return jnp.concatenate([sinks_BS, newest_BS], axis=1)

    def seen_at(self, positions_BT: jax.Array, length_B1: jax.Array) -> jax.Array:
        forgotten_B1 = jnp.maximum(length_B1 - self.capacity, 0)
        stays = (positions_BT < self.sinks) | (positions_BT == EMPTY)
        return jnp.where(stays, positions_BT, positions_BT - forgotten_B1)

    def fits(self, positions_BT: jax.Array) -> jax.Array | None:
        # Tokens added together would have to stand at several distances from the sinks at once.
        return None if positions_BT.shape[1] == 1 else positions_BT < self.capacity


@dataclasses.dataclass(frozen=True)
class SinkParameters(WindowParameters):
    cache_sinks: int = field(4, "first tokens that are kept for ever")


def _sinks(config: Config) -> str | None:
    decode, length = config.decode, config.data.sequence_length
    if decode.cache_sinks < 1:
        return f"decode.cache_sinks={decode.cache_sinks} must be at least 1; decode.cache=sliding has none."
    if not decode.cache_window and decode.cache_sinks >= length:
        return (
            f"decode.cache_sinks={decode.cache_sinks} leaves no window within data.sequence_length={length}; lower it, "
            "or set decode.cache_window."
        )
    window = stack_models(config)[""].attention.window
    if 0 < window < decode.cache_sinks + (decode.cache_window or length):
        return f"keeps tokens that model.attention.window={window} hides from most queries; use decode.cache=sliding."
    return _window(config)


@CACHES.register(
    "sink_window",
    parameters=SinkParameters,
    paper="Xiao et al. 2023 (StreamingLLM)",
    check=_sinks,
    traits=("forgets",),
)
def sink_window_cache(config: Config) -> Layout:
    """The first tokens and the newest are kept, at positions inside the cache."""
    decode = config.decode
    window = decode.cache_window or config.data.sequence_length - decode.cache_sinks
    return SinkWindow(decode.cache_sinks + window, decode.cache_sinks)


# --- The cache ---------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What every layer stored.

    Attributes:
      keys: one array [B, key-value heads, capacity, head_dim] per layer, normed, and rotated unless the layout
        moves tokens; head_dim is 0 where attention has no keys.
      values: one array [B, key-value heads, capacity, value_dim] per layer.
      length_B: tokens each row has seen, int32; the next one has this position in the text.
      layout: which of them are kept, and in which slot.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length_B: jax.Array
    layout: Layout = dataclasses.field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.layout.capacity

    def rows(self, index_N: jax.Array) -> Cache:
        """The cache of these rows, in this order; a row may occur several times."""
        return jax.tree.map(lambda x: x[index_N], self)

    def grown(self, layout: Layout) -> Cache:
        """A full cache with more slots."""
        more = layout.capacity - self.capacity
        pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))  # noqa: E731
        return Cache(tuple(map(pad, self.keys)), tuple(map(pad, self.values)), self.length_B, layout)


class CacheWriter:
    """One forward pass over new tokens: stores what each layer computes, and gives it everything it may see.

    Args:
      cache: what was stored before.
      length: tokens per row, T.
      segments_BT: 0 marks padding, which is neither stored nor counted; None: there is none.

    Attributes:
      positions_BT: where the tokens stand in the text.
      query_positions_BT: where attention takes them to stand.
      fits_BT: which of them the cache has room for; None: all.

    Raises:
      UserError: more tokens than fit, where their number is known; inside a compiled function logits become NaN.
    """

    def __init__(self, cache: Cache, length: int, segments_BT: jax.Array | None):
        self.before, self.layout = cache, cache.layout
        self.keys, self.values = list(cache.keys), list(cache.values)
        start_B1 = cache.length_B[:, None]
        if segments_BT is None:
            self.positions_BT = start_B1 + jnp.arange(length, dtype=jnp.int32)
            stored_BT, self.length_B = self.positions_BT, cache.length_B + length
        else:
            real_BT = segments_BT != 0
            counted_BT = jnp.cumsum(real_BT, axis=1, dtype=jnp.int32)
            self.positions_BT = start_B1 + jnp.maximum(counted_BT - 1, 0)
            stored_BT = jnp.where(real_BT, self.positions_BT, EMPTY)
            self.length_B = cache.length_B + counted_BT[:, -1]
        length_B1 = self.length_B[:, None]
        self.query_positions_BT = self.layout.seen_at(self.positions_BT, length_B1)
        self.fits_BT = self.layout.fits(self.positions_BT)
        _refuse_overflow(self.fits_BT, cache, length)
        self._slots_BT = self.layout.slots(stored_BT, length_B1)
        # New tokens may overwrite some that the first of them still see, so they are read beside the old ones.
        self._beside = self.layout.window is not None and length > 1
        positions_BS = self.layout.held(start_B1 if self._beside else length_B1)
        positions_BS = self.layout.seen_at(positions_BS, length_B1)
        self._positions_BS = jnp.concatenate([positions_BS, stored_BT], axis=1) if self._beside else positions_BS

    def extend(
        self, layer: int, k_BGTK: jax.Array | None, v_BGTU: jax.Array, position: NoPosition
    ) -> tuple[jax.Array | None, jax.Array, jax.Array]:
        """Stores new keys (if there are any) and values, not yet rotated.

        Returns:
          Keys [B, G, S, K], values [B, G, S, U] and positions [B, S] of all tokens there are; an unused slot has
          the position EMPTY.
        """
        moves = self.layout.moves
        if not moves:
            k_BGTK, v_BGTU = position.place(k_BGTK, v_BGTU, self.positions_BT)
        v_BGSU = self._store(self.values, layer, v_BGTU)
        k_BGSK = None if k_BGTK is None else self._store(self.keys, layer, k_BGTK)
        if moves:
            at_BS = jnp.where(self._positions_BS == EMPTY, 0, self._positions_BS)
            k_BGSK, v_BGSU = position.place(k_BGSK, v_BGSU, at_BS)
        return k_BGSK, v_BGSU, self._positions_BS

    def _store(self, stored: list[jax.Array], layer: int, new_BGTE: jax.Array) -> jax.Array:
        """Writes new vectors into the slots of their rows; returns what is to be read."""
        old_BGSE = stored[layer]
        new_BGTE = new_BGTE.astype(old_BGSE.dtype)
        B, G, S, E = old_BGSE.shape
        # One row per head of the batch: the form in which XLA updates in place, instead of copying every cache.
        slots_NT = jnp.repeat(self._slots_BT, G, axis=0)
        rows_N1 = jnp.arange(B * G)[:, None]
        flat_NSE = old_BGSE.reshape(B * G, S, E)
        flat_NSE = flat_NSE.at[rows_N1, slots_NT].set(new_BGTE.reshape(B * G, -1, E), mode="drop")
        stored[layer] = flat_NSE.reshape(B, G, S, E)
        return jnp.concatenate([old_BGSE, new_BGTE], axis=2) if self._beside else stored[layer]

    def finish(self) -> Cache:
        """The cache after this pass."""
        return Cache(tuple(self.keys), tuple(self.values), self.length_B, self.layout)


def _refuse_overflow(fits_BT: jax.Array | None, cache: Cache, length: int) -> None:
    if fits_BT is None or isinstance(fits_BT, jax.core.Tracer) or bool(fits_BT.all()):
        return
    held = int(cache.length_B.max())
    remedy = "add them one by one" if cache.layout.forgets else "use a larger cache"
    raise UserError(
        f"A cache of {cache.capacity} tokens that holds {held} has no room for {length} more at once; {remedy}."
    )


def empty_cache(
    num_layers: int, batch: int, num_kv_heads: int, head_dim: int, value_dim: int, layout: Layout, dtype: jnp.dtype
) -> Cache:
    """A cache with nothing in it."""

    def zeros(width: int) -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros((batch, num_kv_heads, layout.capacity, width), dtype) for _ in range(num_layers))

    return Cache(zeros(head_dim), zeros(value_dim), jnp.zeros(batch, jnp.int32), layout)
