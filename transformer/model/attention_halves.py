"""Causal attention in two halves of the queries: the first never looks at the second half of the keys.

A quarter of the scores is thus never made, and no result changes but for rounding. It pays on a CPU, where nothing else
skips masked scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from transformer.model.taps import observed

if TYPE_CHECKING:
    from transformer.model.attention_backends import AttentionCall

SHORTEST = 128  # queries; of fewer, two small products take as long as one
SHARE_OF_SCORES = 3 / 4  # made
NAME = "causal_halves"  # by which `flops` knows the call


def halving_pays(call: AttentionCall) -> bool:
    """Whether attention takes less time in halves and is the same: causal, on a CPU, long enough, and with no tap,
    dropout or row of memory that needs all weights at once."""
    T, S = call.query_positions_BT.shape[1], call.key_positions_BS.shape[1]
    whole = call.beside is not None or call.context.drops(call.dropout_rate) or observed()
    square = call.mask.causal and call.mask.is_plain and T == S >= SHORTEST
    return square and not whole and jax.default_backend() == "cpu"


def in_halves(attend: Callable[[AttentionCall], jax.Array], call: AttentionCall) -> jax.Array:
    """`attend` of the first half of the queries and of the second, [B, H, T, U]."""
    T = call.query_positions_BT.shape[1]

    def halves() -> jax.Array:
        return jnp.concatenate([attend(_part(call, 0, T // 2)), attend(_part(call, T // 2, T))], axis=2)

    halves.__name__ = NAME
    return jax.jit(halves)()


def _part(call: AttentionCall, start: int, end: int) -> AttentionCall:
    """The queries from `start` to `end`, with the keys up to there."""
    query_BHTK, key_BGSK = call.query_BHTK, call.key_BGSK
    return dataclasses.replace(
        call,
        query_BHTK=None if query_BHTK is None else query_BHTK[:, :, start:end],
        key_BGSK=None if key_BGSK is None else key_BGSK[:, :, :end],
        value_BGSU=call.value_BGSU[:, :, :end],
        query_positions_BT=call.query_positions_BT[:, start:end],
        key_positions_BS=call.key_positions_BS[:, :end],
    )
