"""Which windows a step sees: a pure function of (seed, step), and two ways of cutting them out of the tokens.

The data state of a run is therefore one integer, its step: resuming, skipping and sharing are arithmetic.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.batch import Batch, Layout
from transformer.data.vocabularies import Vocabulary
from transformer.errors import DataError
from transformer.registry import Registry
from transformer.schema import Data

SAMPLINGS = Registry("data.sampling")
FEEDS = Registry("data.feed")
PACKINGS = Registry("data.packing")
PACKINGS.register("none")(lambda: False)
PACKINGS.register("segments", paper="Raffel et al. 2020; Krell et al. 2021")(lambda: True)

Read = Callable[[Any, jax.Array], Batch]  # (resident arrays, one row of a chunk) -> batch, inside the step

RESIDENT_BYTES = 1 << 30  # feed=auto keeps training tokens below this on the device


# --- Plans: step -> starts of windows ------------------------------------------------------------------


class Plan(abc.ABC):
    """The order of windows, or of rows. A window is `sequence_length + 1` tokens: inputs, and the same shifted by one.

    Args:
      num_tokens: length of the token array, at least `sequence_length + 1`.
      sequence_length: L, tokens predicted per window.
      batch_size: B, windows per step.
      seed: together with the step decides everything; every process computes the same.
    """

    margin = 1  # tokens beyond the last start, where a window is one token: see `over_rows`

    @classmethod
    def over_rows(cls, rows: int, batch_size: int, seed: int) -> Plan:
        """A plan whose starts are the indices of `rows` rows."""
        return cls(rows + cls.margin, 1, batch_size, seed)

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

    margin = 2

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


def make_row_plan(section: Data, rows: int, batch_size: int, seed: int) -> Plan:
    """The plan `section.sampling` names, for that many rows."""
    plan: Any = SAMPLINGS[section.sampling].build
    return plan.over_rows(rows, batch_size, seed)


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
      resident: arrays kept on the device, from which `chunk` only picks; None where `chunk` holds the batches.
    """

    resident: Any = None

    @abc.abstractmethod
    def chunk(self, first_step: int, num_steps: int) -> np.ndarray:
        """Steps `first_step ... first_step + num_steps - 1`, one row each: what the dataset's `read` needs beside the
        resident arrays to make the batch of a step.

        Returns:
          For windows of text int32 starts [num_steps, B] where the tokens are resident, else int32 tokens
          [num_steps, B, L + 1]; for examples indices [num_steps, B]; for tasks uint32 (seed, step) [num_steps, 2].
        """


@FEEDS.register("device")
class DeviceFeed(Feed):
    """Starts of windows only; the step gathers them from the tokens kept on the device."""

    def __init__(self, plan: Plan, tokens: np.ndarray):
        if len(tokens) >= 2**31:
            raise DataError(
                f"data.feed=device indexes tokens with 32 bits, but the corpus has {len(tokens)}; use data.feed=grain."
            )
        self._plan, self.resident = plan, tokens

    def chunk(self, first_step: int, num_steps: int) -> np.ndarray:
        return np.stack([self._plan.starts(first_step + i) for i in range(num_steps)])


class RowFeed(Feed):
    """Indices of rows; the step picks them from arrays kept on the device.

    Args:
      plan: the order of rows, as windows of one token each.
      rows: a batch of all of them.
    """

    def __init__(self, plan: Plan, rows: Batch):
        self._plan, self.resident = plan, rows

    def chunk(self, first_step: int, num_steps: int) -> np.ndarray:
        return np.stack([self._plan.starts(first_step + i) for i in range(num_steps)])


class KeyFeed(Feed):
    """Seed and step alone: the batch is drawn on the device."""

    def __init__(self, seed: int):
        self._seed = seed % 2**32

    def chunk(self, first_step: int, num_steps: int) -> np.ndarray:
        return np.array([(self._seed, first_step + i) for i in range(num_steps)], np.uint32)


@FEEDS.register("grain")
class GrainFeed(Feed):
    """Windows cut on the host by Grain, a whole batch per element, one thread ahead of the training loop."""

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


# --- What a run draws from -------------------------------------------------------------------------------


class Dataset(abc.ABC):
    """Batches of one corpus or task: of text, of examples, or generated.

    Attributes:
      vocabulary: what the tokens mean, special tokens included.
      fingerprint: 12 hex digits; two runs saw the same data exactly if their fingerprints agree.
      name: name of the corpus or task.
      description: one line for the log.
      layout: how rows are filled.
      splits: split -> what it holds; train and validation always exist.
    """

    vocabulary: Vocabulary
    fingerprint: str
    name: str
    description: str
    layout: Layout
    splits: Mapping[str, Any]

    @abc.abstractmethod
    def bounds(self, split: str) -> dict[str, float]:
        """Marks beside a learning curve, nats per target: what simple predictors of this split score."""

    @abc.abstractmethod
    def feed(self, section: Data, batch_size: int, seed: int) -> Feed:
        """The training batches of one seed."""

    @abc.abstractmethod
    def read(self, batch_size: int) -> Read:
        """How a step makes its batch of that many rows from what the feed gives."""

    @abc.abstractmethod
    def batches(self, split: str, batch_size: int, max_tokens: int | None = None) -> Iterator[Batch]:
        """The evaluation batches of a split, the same for every run; about `max_tokens` tokens, or all of it."""

    def chance(self, split: str) -> float | None:
        """Accuracy of a predictor that knows nothing; None where nobody said."""
        del split
        return None

    @property
    def num_labels(self) -> int:
        """Classes of the labels; 0 where there are none."""
        return 0

    @property
    def tokens_per_byte(self) -> float | None:
        """Training tokens per byte of text; None where losses have no meaning per byte."""
        return None

    @property
    def pad_share(self) -> float:
        """Share of the training positions that is padding."""
        return 0.0


# --- On the device ---------------------------------------------------------------------------------------


def windows(tokens: jax.Array, starts: jax.Array, length: int) -> jax.Array:
    """tokens [N], starts [B] -> [B, length]."""
    return jax.vmap(lambda start: jax.lax.dynamic_slice(tokens, (start,), (length,)))(starts)


def read_windows(layout: Layout, eos: int | None = None) -> Read:
    """Cuts windows of text.

    Args:
      eos: id between two documents; with `layout.packed` documents become segments.
    """

    def read(resident: jax.Array | None, row: jax.Array) -> Batch:
        length = layout.length + layout.overlap
        tokens_BL = row[:, :length] if resident is None else windows(resident, row, length)
        return text_batch(tokens_BL.astype(jnp.int32), layout, eos)

    return read


def text_batch(tokens_BL: jax.Array, layout: Layout, eos: int | None) -> Batch:
    """Windows as a batch: documents told apart if they are to be, an `eos` belonging to the document it ends."""
    if not layout.packed or eos is None:
        return Batch(tokens_BL)
    ends_BL = (tokens_BL == eos).astype(jnp.int32)
    return Batch(tokens_BL, segments_BL=1 + jnp.cumsum(ends_BL, axis=1) - ends_BL)


def read_rows(resident: Batch, row: jax.Array) -> Batch:
    """Picks rows by index [B]; the arrays may be kept in a smaller type."""
    return jax.tree.map(lambda x: x.astype(x.dtype if x.dtype == jnp.float32 else jnp.int32), resident.take(row))


# --- Evaluation ----------------------------------------------------------------------------------------


def evaluation_batches(
    tokens: np.ndarray, layout: Layout, batch_size: int, max_tokens: int | None = None, eos: int | None = None
) -> Iterator[Batch]:
    """Consecutive windows that predict every token exactly once; with `overlap` every token but the first.

    With `overlap` neighbouring windows share one token: the last target of one is the first input of the next. The
    last batch is padded with token 0 and weight 0, so all batches have one shape.

    Args:
      tokens: unsigned integers [number of tokens].
      batch_size: B.
      max_tokens: predict only the first so many tokens; None: all.
      eos: as for `read_windows`.

    Yields:
      Batches with weights: weights_BL[b, l] is 1 where tokens_BL[b, l] is predicted.
    """
    overlap = layout.overlap
    covered = len(tokens) if max_tokens is None else min(len(tokens), max_tokens + overlap)
    window = np.arange(layout.length + overlap)
    stride = layout.length * batch_size
    for first in range(0, covered - overlap, stride):
        places = first + np.arange(batch_size)[:, None] * layout.length + window
        inside = places < covered
        tokens_BL = np.where(inside, tokens[np.minimum(places, covered - 1)], 0).astype(np.int32)
        weights_BL = inside.astype(np.float32)
        weights_BL[:, :overlap] = 0
        batch = text_batch(jnp.asarray(tokens_BL), layout, eos)
        if layout.marks_padding or batch.segments_BL is not None:
            segments_BL = np.ones_like(tokens_BL) if batch.segments_BL is None else np.asarray(batch.segments_BL)
            batch = batch.replace(segments_BL=np.where(inside, segments_BL, 0).astype(np.int32))
        yield batch.replace(tokens_BL=tokens_BL, weights_BL=weights_BL)


def length_buckets(lengths: np.ndarray, batch_size: int, longest: int) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of rows of similar length, so that little of a batch is padding (Khomenko et al. 2016).

    Args:
      lengths: real tokens of each row, int [N].
      longest: width of the longest row.

    Yields:
      (up to B row indices, width): the width is `longest` halved as often as every row of the batch still fits, so
      there are few of them to compile for.
    """
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        width = longest
        while width > 1 and width // 2 >= lengths[rows].max():
            width //= 2
        yield rows, width


def evaluation_rows(rows: Batch, batch_size: int, max_rows: int | None = None) -> Iterator[Batch]:
    """All rows in order, as batches of one shape: the last is filled up with rows that weigh nothing.

    Yields:
      Batches with weights.
    """
    count = rows.rows if max_rows is None else min(rows.rows, max_rows)
    for first in range(0, count, batch_size):
        places = first + np.arange(batch_size)
        inside = places < count
        batch = read_rows(rows, jnp.asarray(np.minimum(places, count - 1)))
        weights_BL = batch.target_weights()
        counted_BL = np.ones(batch.tokens_BL.shape, np.float32) if weights_BL is None else np.asarray(weights_BL)
        yield batch.replace(weights_BL=counted_BL * inside[:, None].astype(np.float32))
