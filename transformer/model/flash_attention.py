"""Attention in tiles: memory grows with the length of the text instead of its square (Rabe & Staats 2021; Dao et al.
2022).

Queries and keys are cut into blocks. Scores of one block of queries with one block of keys, a tile, are made, used and
forgotten; a softmax is kept right by the highest score and the sum so far of each query. The backward pass makes every
tile again. A tile in which no query sees a key is skipped.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.model.attention_backends import BACKENDS, AttentionCall, for_every_head, scores
from transformer.model.attention_weights import Sight, Softmax, Softmax1, WeightRule
from transformer.model.context import Context
from transformer.model.masks import Mask
from transformer.schema import Config

BLOCK = 128  # queries and keys of a tile


class Floats(NamedTuple):
    """What gradients flow to.

    Attributes:
      query_BHTK, key_BGSK, value_BGSU: as in an `AttentionCall`.
      position: parameters of the position scheme.
      sink: a score that takes weight and gives nothing [H or 1, 1, 1], or None.
    """

    query_BHTK: jax.Array | None
    key_BGSK: jax.Array | None
    value_BGSU: jax.Array
    position: Any
    sink: jax.Array | None


class Places(NamedTuple):
    """Where queries and keys stand, and which see each other."""

    query_positions_BT: jax.Array
    key_positions_BS: jax.Array
    mask: Mask


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a tile is computed by.

    Attributes:
      elementwise: the rule from a score to a weight, or None for a softmax.
      position: structure of the position scheme.
      num_heads, soft_cap: as in an `AttentionCall`.
      block: queries and keys of a tile.
    """

    elementwise: WeightRule | None
    position: nnx.GraphDef
    num_heads: int
    soft_cap: float
    block: int


@dataclasses.dataclass(frozen=True)
class TileSight(Sight):
    """What the queries of a tile see in it, with the number of keys each sees in all."""

    count: jax.Array

    def count_B1T1(self) -> jax.Array:
        return self.count


def _refuses(config: Config) -> str | None:
    attention = config.model.attention
    if attention.weights == "shaped":
        return "adds no identity to its weights, which weights=shaped asks for; use backend=reference."
    if config.model.dropout:
        return (
            f"keeps no weights to drop, but model.dropout={config.model.dropout}; use backend=reference or dropout=0."
        )
    return None


@BACKENDS.register("flash", paper="Dao et al. 2022", traits=("no_weights",), check=_refuses)
def flash_attention(call: AttentionCall, block: int = BLOCK) -> jax.Array:
    """In tiles, with an online softmax and a backward pass of its own: memory linear in the length."""
    weights = call.weights
    structure, position = nnx.split(call.context.position)
    sink = None
    if isinstance(weights, Softmax) and weights.sink is not None:
        sink = weights.sink(jnp.float32)
    elif isinstance(weights, Softmax1):
        sink = jnp.zeros((1, 1, 1), jnp.float32)
    is_softmax = isinstance(weights, Softmax | Softmax1)
    rules = Rules(None if is_softmax else weights, structure, call.num_heads, call.soft_cap, block)
    floats = Floats(call.query_BHTK, call.key_BGSK, call.value_BGSU, nnx.to_pure_dict(position), sink)
    places = Places(call.query_positions_BT, call.key_positions_BS, call.mask)
    o_BHTU, count_B1T1 = _attend(rules, floats, places)
    if is_softmax and sink is None and call.mask.key_segments_BS is not None:
        # As in the reference, a query that sees no key weighs all alike.
        everything_BH1U = for_every_head(call.value_BGSU, call.num_heads).mean(axis=2, keepdims=True)
        o_BHTU = jnp.where(count_B1T1 > 0, o_BHTU, everything_BH1U)
    return o_BHTU


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rules: Rules, floats: Floats, places: Places) -> tuple[jax.Array, jax.Array]:
    """Head outputs [B, H, T, U], zero where a query sees no key, and how many keys each query sees [B, 1, T, 1]."""
    return _forward(rules, floats, places)[0]


def _forward(rules: Rules, floats: Floats, places: Places) -> tuple[tuple[jax.Array, jax.Array], Any]:
    tiles = Tiles(rules, floats, places)
    count_B1T1 = tiles.by_query(lambda i: tiles.over_keys(i, tiles.count, jnp.zeros((tiles.B, 1, tiles.block, 1))))
    if rules.elementwise is None:
        o_BHTU, total = tiles.by_query(tiles.online_softmax)
    else:
        total = count_B1T1

        def add(i: jax.Array, j: jax.Array, o: jax.Array) -> jax.Array:
            return o + tiles.read(tiles.tile(i, j), tiles.places_of(i, j), tiles.rows(jnp.maximum(total, 1), i))[0]

        o_BHTU = tiles.by_query(lambda i: tiles.over_keys(i, add, tiles.zeros()))
    T = places.query_positions_BT.shape[1]
    out = o_BHTU[:, :, :T].astype(floats.value_BGSU.dtype), count_B1T1[:, :, :T]
    return out, (floats, places, o_BHTU, total)


def _backward(rules: Rules, saved: Any, cotangents: tuple[jax.Array, Any]) -> tuple[Floats, None]:
    floats, places, o_BHTU, total = saved
    tiles = Tiles(rules, floats, places)
    d_BHTU = tiles.padded(cotangents[0].astype(tiles.dtype))
    if rules.elementwise is None:  # the sum of a softmax's weights is held at one
        pull_BHT1 = -(d_BHTU * o_BHTU).sum(axis=-1, keepdims=True)
    else:
        total, pull_BHT1 = jnp.maximum(total, 1), jnp.zeros((*d_BHTU.shape[:3], 1), tiles.dtype)

    def add(i: jax.Array, j: jax.Array, grads: Floats) -> Floats:
        at, seen = tiles.places_of(i, j), tiles.rows(total, i)
        _, back = jax.vjp(lambda tile: tiles.read(tile, at, seen), tiles.tile(i, j))
        (grad,) = back((tiles.rows(d_BHTU, i), tiles.rows(pull_BHT1, i)))
        return Floats(
            tiles.add_rows(grads.query_BHTK, grad.query_BHTK, i),
            tiles.add_rows(grads.key_BGSK, grad.key_BGSK, j),
            tiles.add_rows(grads.value_BGSU, grad.value_BGSU, j),
            jax.tree.map(jnp.add, grads.position, grad.position),
            grads.sink,
        )

    grads = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), tiles.floats)
    grads = jax.lax.fori_loop(0, tiles.num_queries, lambda i, grads: tiles.over_keys(i, add, grads), grads)
    if floats.sink is not None:
        _, back = jax.vjp(lambda sink: jnp.broadcast_to(share(sink, total), pull_BHT1.shape), floats.sink)
        grads = grads._replace(sink=back(pull_BHT1)[0])
    T, S = places.query_positions_BT.shape[1], places.key_positions_BS.shape[1]
    grads = grads._replace(
        query_BHTK=None if grads.query_BHTK is None else grads.query_BHTK[:, :, :T],
        key_BGSK=None if grads.key_BGSK is None else grads.key_BGSK[:, :, :S],
        value_BGSU=grads.value_BGSU[:, :, :S],
    )
    return jax.tree.map(lambda grad, x: grad.astype(x.dtype), grads, floats), None


_attend.defvjp(_forward, _backward)


def share(score: jax.Array, sum_BHT2: jax.Array) -> jax.Array:
    """The weight of a score in a softmax. The sum of exponentials comes as the highest score and the logarithm of the
    rest: added up, they would round away the digits that count where scores are large."""
    return jnp.exp(score - sum_BHT2[..., :1] - sum_BHT2[..., 1:])


class Tiles:
    """One attention, cut: queries and keys filled up to whole blocks, of which i and j are the indices."""

    def __init__(self, rules: Rules, floats: Floats, places: Places):
        self.rules, self.block = rules, rules.block
        mask, self.length = places.mask, places.key_positions_BS.shape[1]
        self.B, _, _, self.U = floats.value_BGSU.shape
        self.num_queries = -(-places.query_positions_BT.shape[1] // self.block)
        self.num_keys = -(-self.length // self.block)
        self.floats = floats._replace(
            query_BHTK=self.padded(floats.query_BHTK),
            key_BGSK=self.padded(floats.key_BGSK),
            value_BGSU=self.padded(floats.value_BGSU),
        )
        self.query_positions, self.key_positions = (self.padded(x, axis=1) for x in places[:2])
        self.mask = dataclasses.replace(
            mask,
            query_segments_BT=self.padded(mask.query_segments_BT, axis=1),
            key_segments_BS=self.padded(mask.key_segments_BS, axis=1),
        )

    # --- cutting -------------------------------------------------------------------------------------------------

    def padded(self, x: Any, axis: int = 2) -> Any:
        """x with zeros up to a whole number of blocks; None stays None."""
        if x is None:
            return None
        missing = -x.shape[axis] % self.block
        return jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)])

    def rows(self, x: Any, i: jax.Array, axis: int = 2) -> Any:
        """Block i of x along an axis; None stays None."""
        return None if x is None else jax.lax.dynamic_slice_in_dim(x, i * self.block, self.block, axis)

    def add_rows(self, x: Any, block: Any, i: jax.Array) -> Any:
        """x with something added to its block i."""
        if x is None:
            return None
        return jax.lax.dynamic_update_slice_in_dim(x, self.rows(x, i) + block.astype(x.dtype), i * self.block, 2)

    def tile(self, i: jax.Array, j: jax.Array) -> Floats:
        """Block i of the queries, block j of keys and values."""
        query, key, value, position, _ = self.floats
        return Floats(self.rows(query, i), self.rows(key, j), self.rows(value, j), position, None)

    def places_of(self, i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Positions of the queries and keys of a tile, and which see each other [B, 1, t, s] (B may be 1)."""
        t, s = self.rows(self.query_positions, i, 1), self.rows(self.key_positions, j, 1)
        segments = self.rows(self.mask.query_segments_BT, i, 1), self.rows(self.mask.key_segments_BS, j, 1)
        mask = dataclasses.replace(self.mask, query_segments_BT=segments[0], key_segments_BS=segments[1])
        exists = j * self.block + jnp.arange(self.block) < self.length
        allowed = mask.dense(t, s)
        allowed = jnp.ones((1, 1, self.block, 1), bool) & exists if allowed is None else allowed & exists
        return t, s, allowed

    # --- looping -------------------------------------------------------------------------------------------------

    def by_query(self, compute: Callable[[jax.Array], Any]) -> Any:
        """`compute` of every block of queries, its results [B, H, t, ...] put side by side."""
        stacked = jax.lax.map(compute, jnp.arange(self.num_queries))
        return jax.tree.map(lambda x: jax.lax.collapse(jnp.moveaxis(x, 0, 2), 2, 4), stacked)

    def over_keys(self, i: jax.Array, step: Callable[[jax.Array, jax.Array, Any], Any], start: Any) -> Any:
        """`step` from block to block of the keys that any of these queries sees."""

        def maybe(j: jax.Array, carry: Any) -> Any:
            return jax.lax.cond(self.places_of(i, j)[2].any(), lambda c: step(i, j, c), lambda c: c, carry)

        return jax.lax.fori_loop(0, self.num_keys, maybe, start)

    def zeros(self) -> jax.Array:
        """No output yet [B, H, t, U]."""
        return jnp.zeros((self.B, self.rules.num_heads, self.block, self.U), self.dtype)

    # --- computing -----------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> jnp.dtype:
        """Of sums: at least float32."""
        return jnp.promote_types(self.floats.value_BGSU.dtype, jnp.float32)

    def count(self, i: jax.Array, j: jax.Array, counted: jax.Array) -> jax.Array:
        """Keys seen so far, with those of block j."""
        return counted + self.places_of(i, j)[2].sum(axis=-1, keepdims=True)

    def scores(self, tile: Floats, at: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        """Capped, biased and masked scores of a tile."""
        t, s, allowed = at
        position = nnx.merge(self.rules.position, tile.position)
        return scores(
            AttentionCall(
                query_BHTK=tile.query_BHTK,
                key_BGSK=tile.key_BGSK,
                value_BGSU=tile.value_BGSU,
                query_positions_BT=t,
                key_positions_BS=s,
                num_heads=self.rules.num_heads,
                mask=self.mask,
                weights=self.rules.elementwise,  # type: ignore[arg-type]  # scores do not depend on it
                soft_cap=self.rules.soft_cap,
                dropout_rate=0.0,
                context=Context(positions_BT=t, mask=self.mask, position=position),
            ),
            allowed,
        )

    def read(
        self, tile: Floats, at: tuple[jax.Array, jax.Array, jax.Array], total: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What queries read from the keys of a tile [B, H, t, U], and with how much weight [B, H, t, 1].

        Args:
          total: per query, the sum of a softmax's exponentials as `share` wants it, else the number of keys it sees.
        """
        scores_BHts = self.scores(tile, at)
        if self.rules.elementwise is None:
            weights_BHts = share(scores_BHts, total)
        else:
            weights_BHts = self.rules.elementwise(scores_BHts, TileSight(at[2], *at[:2], total))
        return self.weighted(weights_BHts, tile), weights_BHts.sum(axis=-1, keepdims=True)

    def weighted(self, weights_BHts: jax.Array, tile: Floats) -> jax.Array:
        """Sums of values [B, H, t, U]."""
        value_BHsU = for_every_head(tile.value_BGSU, self.rules.num_heads)
        return jnp.einsum(
            "bhts,bhsu->bhtu", weights_BHts.astype(value_BHsU.dtype), value_BHsU, preferred_element_type=self.dtype
        )

    def online_softmax(self, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Outputs of block i of the queries, and each one's sum of exponentials as `share` wants it (0: saw no key)."""
        sink = self.floats.sink
        lowest = jnp.finfo(self.dtype).min
        row = (self.B, self.rules.num_heads, self.block, 1)
        highest = jnp.full(row, lowest) if sink is None else jnp.broadcast_to(sink.astype(self.dtype), row)
        start = highest, jnp.full(row, 0.0 if sink is None else 1.0, self.dtype), self.zeros()

        def add(i: jax.Array, j: jax.Array, carry: Any) -> Any:
            highest, total, o = carry
            tile, at = self.tile(i, j), self.places_of(i, j)
            scores_BHts = self.scores(tile, at)
            higher = jnp.maximum(highest, scores_BHts.max(axis=-1, keepdims=True))
            exp_BHts, shrink = jnp.where(at[2], jnp.exp(scores_BHts - higher), 0), jnp.exp(highest - higher)
            total = total * shrink + exp_BHts.sum(axis=-1, keepdims=True)
            return higher, total, o * shrink + self.weighted(exp_BHts, tile)

        highest, total, o = self.over_keys(i, add, start)
        sum_BHt2 = jnp.concatenate([highest, jnp.log(total)], axis=-1)
        return o / jnp.where(total > 0, total, 1), jnp.where(total > 0, sum_BHt2, 0)
