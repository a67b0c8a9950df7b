"""Continuing text: prompts of any lengths, any sampler and cache, one compiled loop without a word to the host."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from transformer.errors import UserError
from transformer.inference.beam import search
from transformer.inference.feed import Conditions
from transformer.inference.sampling import Beam, Greedy, Sample, Sampler
from transformer.inference.token_loop import extend
from transformer.model.cache import Layout

Prompts = np.ndarray | Sequence[Sequence[int] | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Generation:
    """Prompts and what follows them.

    Attributes:
      new_BN: new tokens, int32; 0 after the end of a row.
      new_length_B: how many there are, the stop token included.
      prompts: as they were given, one array per row.
      score_B: of beam search: log-probability of the new tokens / their number ^ length_penalty; else None.
    """

    new_BN: np.ndarray
    new_length_B: np.ndarray
    prompts: tuple[np.ndarray, ...]
    score_B: np.ndarray | None = None

    @property
    def new(self) -> list[np.ndarray]:
        """The new tokens of each row."""
        return [row[:length] for row, length in zip(self.new_BN, self.new_length_B, strict=True)]

    @property
    def rows(self) -> list[np.ndarray]:
        """Each prompt with its continuation."""
        return [np.concatenate([prompt, new]) for prompt, new in zip(self.prompts, self.new, strict=True)]


def generate(
    model: Any,
    prompts: Prompts,
    max_new_tokens: int | Sequence[int],
    sampler: Sampler | None = None,
    *,
    cache: Layout | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    source_BS: np.ndarray | None = None,
    source_segments_BS: np.ndarray | None = None,
    prefix: bool = False,
) -> Generation:
    """Continues every prompt until a stop token or its number of new tokens.

    Compiled once per model, sampler and size: lengths are rounded up to buckets, so that a prompt of another length
    seldom compiles anything, and temperature, thresholds, seeds, stop tokens and limits never do.

    Args:
      model: as `load(...).model`.
      prompts: token ids [B, T], or a list of rows of any lengths, each at least one token.
      max_new_tokens: limit for all rows, or one for each.
      sampler: by default greedy.
      cache: which tokens attention still sees; by default all, with as much room as it takes.
      stop_tokens: ids that end a row; they are part of it.
      seed: of the draws. A number gives every row a stream of its own; a list names the stream of each row, and then
        a row is the same in any batch.
      source_BS, source_segments_BS: what the encoder of an encoder-decoder reads; segment 0 is padding.
      prefix: whether the prompt's tokens see each other in both directions, as those of a prefix decoder may.

    Raises:
      UserError: an empty prompt, no new tokens, more positions than the model knows or the cache holds, or settings
        that leave nothing to choose; before anything is compiled.
    """
    rows = _rows(prompts)
    limit_B = np.broadcast_to(np.asarray(max_new_tokens, np.int32), (len(rows),))
    if limit_B.min() < 1:
        raise UserError(f"max_new_tokens={limit_B.min()} leaves nothing to generate; ask for at least 1.")
    sampler = Greedy() if sampler is None else sampler
    if problem := sampler.problem():
        raise UserError(problem)
    if isinstance(sampler, Sample) and sampler.temperature == 0:
        sampler = Greedy()
    length_B = np.array([len(row) for row in rows], np.int32)
    layout = _layout(model, cache, length_B, limit_B)
    most = model.position.max_length if layout.forgets else layout.capacity
    prompt_BP = np.zeros((len(rows), _bucket(int(length_B.max()), most)), np.int32)
    for at, row in enumerate(rows):
        prompt_BP[at, : len(row)] = row
    room = _bucket(int(limit_B.max()))
    conditions = _conditions(model, len(rows), source_BS, source_segments_BS)
    if prefix and (layout.forgets or not getattr(model, "looks_ahead", False)):
        raise UserError("prefix=True needs model.family=prefix_decoder and decode.cache=full.")
    structure, weights = nnx.split(model)
    inputs = (structure, weights, prompt_BP, length_B, limit_B, np.asarray(stop_tokens, np.int32))
    if isinstance(sampler, Beam):
        new_BN, count_B, score_B = jax.device_get(search(*inputs, sampler, conditions, layout, room, prefix))
    else:
        streams = _streams(seed, len(rows))
        new_BN, count_B = jax.device_get(extend(*inputs, sampler, streams, conditions, layout, room, prefix))
        score_B = None
    return Generation(new_BN[:, : limit_B.max()], count_B, tuple(rows), score_B)


def _rows(prompts: Prompts) -> list[np.ndarray]:
    rows = [np.asarray(row, np.int32) for row in prompts]
    if not rows:
        raise UserError("There is no prompt: generation needs at least one row.")
    for at, row in enumerate(rows):
        if row.ndim != 1:
            raise UserError(f"Prompt row {at} has shape {row.shape}: it must be a flat list of token ids.")
        if not len(row):
            raise UserError(f"Prompt row {at} is empty: generation needs at least one token to start from.")
    return rows


def _conditions(model: Any, batch: int, source_BS: Any, source_segments_BS: Any) -> Conditions | None:
    """Further arguments of every call: the encoded source, if the model has one."""
    if source_BS is None:
        return None
    if not hasattr(model, "encode"):
        raise UserError("A source was given, but this model has no encoder; use model.family=encoder_decoder.")
    if len(source_BS) != batch:
        raise UserError(f"{len(source_BS)} sources were given for {batch} prompts; give one for each.")
    if source_segments_BS is not None and not np.asarray(source_segments_BS).any(axis=1).all():
        row = int(np.asarray(source_segments_BS).any(axis=1).argmin())
        raise UserError(f"Source row {row} is padding only: there is nothing to read.")
    structure, weights = nnx.split(model)
    return {"memory": _encode(structure, weights, source_BS, source_segments_BS)}


@functools.partial(jax.jit, static_argnames=("structure",))
def _encode(structure: Any, weights: Any, source_BS: jax.Array, source_segments_BS: jax.Array | None) -> Any:
    return nnx.merge(structure, weights).encode(source_BS, source_segments_BS)


def _layout(model: Any, cache: Layout | None, length_B: np.ndarray, limit_B: np.ndarray) -> Layout:
    """The cache's layout, once it is sure that the longest row fits into it and into the model."""
    at = int(np.argmax(length_B + limit_B))
    prompt, new = int(length_B[at]), int(limit_B[at])
    wanted = f"{prompt} prompt tokens and {new} new ones"
    known = model.position.max_length
    if known is not None and prompt + new > known:
        raise UserError(
            f"{wanted} need {prompt + new} positions, but the model knows {known}; shorten the prompt or "
            "decode.max_new_tokens."
        )
    if cache is None:
        room = _bucket(int(length_B.max())) + _bucket(int(limit_B.max()))
        limits = [n for n in (known, model.position.cache_length) if n is not None]
        return Layout(max(prompt + new, min([room, *limits])))
    if not cache.forgets and prompt + new > cache.capacity:
        raise UserError(
            f"{wanted} do not fit into a cache of {cache.capacity}; shorten one of them, raise decode.cache_capacity, "
            "or use decode.cache=sink_window or sliding."
        )
    return cache


def _bucket(number: int, most: int | None = None) -> int:
    """The number rounded up, by less than a quarter: 16, 20, 24, 28, 32, 40, ...; at most `most`."""
    step = max(4, 2 ** ((number - 1).bit_length() - 3))
    rounded = max(16, -(-number // step) * step)
    return rounded if most is None else max(number, min(rounded, most))


def _streams(seed: int | Sequence[int], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """(seed, stream within the seed) of each row."""
    if isinstance(seed, int | np.integer):
        return np.full(batch, _folded(seed), np.int32), np.arange(batch, dtype=np.int32)
    if len(seed) != batch:
        raise UserError(f"{len(seed)} seeds were given for {batch} prompts; give one number, or one for each.")
    return np.asarray([_folded(one) for one in seed], np.int32), np.zeros(batch, np.int32)


def _folded(seed: int) -> int:
    """Any integer as one of 32 bits; what fits stays."""
    return (int(seed) + 2**31) % 2**32 - 2**31
