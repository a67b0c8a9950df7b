"""Which windows a step sees: a pure function of (seed, step), and two ways of cutting them out of the tokens.

The data state of a run is therefore one integer, its step: resuming, skipping and sharing are arithmetic.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any

import numpy as np

from transformer.errors import DataError
from transformer.registry import Registry
from transformer.schema import Data

SAMPLINGS = Registry("data.sampling")
FEEDS = Registry("data.feed")

RESIDENT_BYTES = 1 << 30  # feed=auto keeps training tokens below this on the device


# --- Plans: step -> starts of windows ------------------------------------------------------------------


class Plan(abc.ABC):
    """The order of windows. A window is `sequence_length + 1` tokens: inputs, and the same shifted by one.

    Args:
      num_tokens: length of the token array, at least `sequence_length + 1`.
      sequence_length: L, tokens predicted per window.
      batch_size: B, windows per step.
      seed: together with the step decides everything; every process computes the same.
    """

    def __init__(self, num_tokens: int, sequence_length: int, batch_size: int, seed: int):
        if num_tokens <= sequence_length:
            raise DataError(
                f"data.sequence_length={sequence_length} needs windows of {sequence_length + 1} tokens, but "
                f"there are only {num_tokens}; use more text or a shorter data.sequence_length."
            )
        self.num_tokens = num_tokens
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.seed = seed
        self._dtype = np.dtype(np.int32 if num_tokens < 2**31 else np.int64)

    @abc.abstractmethod
    def starts(self, step: int) -> np.ndarray:
        """First token of each window of `step`, int32 [B] (int64 for 2**31 tokens or more)."""

    @abc.abstractmethod
    def epoch_of(self, step: int) -> float:
        """Epochs that `step` steps amount to."""

    def _generator(self, counter: int) -> np.random.Generator:
        """Random numbers keyed by (seed, counter): equal on every machine, independent of earlier draws."""
        return np.random.Generator(np.random.Philox(key=[self.seed % 2**64, counter]))


@SAMPLINGS.register("epochs")
class Epochs(Plan):
    """Every window once per epoch, in an order and with cut points that differ from epoch to epoch."""

    def __init__(self, num_tokens: int, sequence_length: int, batch_size: int, seed: int):
        super().__init__(num_tokens, sequence_length, batch_size, seed)
        # One window fewer than would fit, so that the first cut can lie anywhere in the first
        # sequence_length tokens.
        self.windows = max(1, (num_tokens - sequence_length - 1) // sequence_length)
        self._offsets = min(sequence_length, num_tokens - self.windows * sequence_length)
        self._recent: dict[int, tuple[int, np.ndarray]] = {}

    def starts(self, step: int) -> np.ndarray:
        rows = int(step) * self.batch_size + np.arange(self.batch_size)
        epochs, places = rows // self.windows, rows % self.windows
        starts = np.empty(self.batch_size, self._dtype)
        for epoch in np.unique(epochs):
            offset, order = self._epoch(int(epoch))
            here = epochs == epoch
            starts[here] = offset + order[places[here]] * self.sequence_length
        return starts

    def epoch_of(self, step: int) -> float:
        return step * self.batch_size / self.windows

    def _epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        """(first cut, order of windows) of an epoch; the last two asked for are kept."""
        if epoch not in self._recent:
            generator = self._generator(epoch)
            drawn = int(generator.integers(self._offsets)), generator.permutation(self.windows)
            self._recent = {**dict(list(self._recent.items())[-1:]), epoch: drawn}
        return self._recent[epoch]


@SAMPLINGS.register("replacement")
class Replacement(Plan):
    """Every window starts anywhere, independently of all others, as in nanoGPT."""

    def starts(self, step: int) -> np.ndarray:
        positions = self.num_tokens - self.sequence_length
        return self._generator(int(step)).integers(positions, size=self.batch_size, dtype=self._dtype)

    def epoch_of(self, step: int) -> float:
        return step * self.batch_size * self.sequence_length / self.num_tokens


def make_plan(section: Data, num_tokens: int, batch_size: int, seed: int) -> Plan:
    """The plan `section.sampling` names, for a token array of `num_tokens`.

    Raises:
      DataError: not one window fits.
    """
    return SAMPLINGS.build(section.sampling, num_tokens, section.sequence_length, batch_size, seed)


# --- Feeds: who cuts the windows -----------------------------------------------------------------------


class Feed(abc.ABC):
    """Batches of consecutive steps; every feed of one plan stands for the same numbers.

    Attributes:
      resident: True where the tokens live on the device and `chunk` only says where windows start.
    """

    resident: bool

    @abc.abstractmethod
    def chunk(self, first_step: int, num_steps: int) -> np.ndarray:
        """Steps `first_step ... first_step + num_steps - 1`.

        Returns:
          int32 starts [num_steps, B] if `resident`, else int32 tokens [num_steps, B, L + 1].
        """


@FEEDS.register("device")
class DeviceFeed(Feed):
    """Starts of windows only; the step gathers them from the tokens kept on the device."""

    resident = True

    def __init__(self, plan: Plan, tokens: np.ndarray):
        if len(tokens) >= 2**31:
            raise DataError(
                f"data.feed=device indexes tokens with 32 bits, but the corpus has {len(tokens)}; use data.feed=grain."
            )
        self._plan = plan

    def chunk(self, first_step: int, num_steps: int) -> np.ndarray:
        return np.stack([self._plan.starts(first_step + i) for i in range(num_steps)])


@FEEDS.register("grain")
class GrainFeed(Feed):
    """Windows cut on the host by Grain, a whole batch per element, one thread ahead of the training loop."""

    resident = False

    def __init__(self, plan: Plan, tokens: np.ndarray):
        import grain

        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
        self._batches = grain.MapDataset.source(_Batches(plan, tokens)).to_iter_dataset(options)
        self._iterator: Any = None
        self._next_step = -1

    def chunk(self, first_step: int, num_steps: int) -> np.ndarray:
        if first_step != self._next_step:
            # A new iterator, not a seek in the old one: batches already read ahead must not slip through.
            self._iterator = iter(self._batches)
            self._iterator.set_state({"next_index": first_step})
        self._next_step = first_step + num_steps
        return np.stack([next(self._iterator) for _ in range(num_steps)])


@FEEDS.register("auto")
def automatic_feed(plan: Plan, tokens: np.ndarray) -> Feed:
    """device while the training tokens stay below 1 GiB, else grain."""
    return FEEDS.build("device" if tokens.nbytes < RESIDENT_BYTES else "grain", plan, tokens)


class _Batches:
    """A plan as the random-access source Grain reads: element = step."""

    def __init__(self, plan: Plan, tokens: np.ndarray):
        self._plan, self._tokens = plan, tokens
        self._window = np.arange(plan.sequence_length + 1)

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, step: int) -> np.ndarray:
        return self._tokens[self._plan.starts(step)[:, None] + self._window].astype(np.int32)


def make_feed(kind: str, plan: Plan, tokens: np.ndarray) -> Feed:
    """The feed `kind` names.

    Args:
      kind: an entry of FEEDS.
      plan: the order of windows.
      tokens: the training tokens, unsigned integers [plan.num_tokens].

    Raises:
      DataError: more tokens than the device feed can address.
    """
    return FEEDS.build(kind, plan, tokens)


# --- Evaluation ----------------------------------------------------------------------------------------


def evaluation_batches(
    tokens: np.ndarray, sequence_length: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Consecutive windows that predict every token but the first exactly once.

    Neighbouring windows share one token: the last target of one is the first input of the next. The last
    batch is padded with token 0 and weight 0, so all batches have one shape.

    Args:
      tokens: unsigned integers [number of tokens].
      sequence_length: L.
      batch_size: B.
      max_tokens: predict only the first so many tokens; None: all.

    Yields:
      (tokens int32 [B, L + 1], weights float32 [B, L]): weights[b, t] is 1 where tokens[b, t + 1] counts.
    """
    covered = len(tokens) if max_tokens is None else min(len(tokens), max_tokens + 1)
    window = np.arange(sequence_length + 1)
    stride = sequence_length * batch_size
    for first in range(0, covered - 1, stride):
        places = first + np.arange(batch_size)[:, None] * sequence_length + window
        inside = places < covered
        batch = np.where(inside, tokens[np.minimum(places, covered - 1)], 0).astype(np.int32)
        yield batch, inside[:, 1:].astype(np.float32)
