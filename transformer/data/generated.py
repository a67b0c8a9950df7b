"""Rows that a task draws on the device: nothing is stored, (seed, step) says what a step sees."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from transformer.data.batch import Batch, Layout
from transformer.data.batching import Dataset, Feed, KeyFeed, Read, evaluation_rows
from transformer.data.vocabularies import Vocabulary
from transformer.errors import DataError
from transformer.schema import Data

BLOCK = 256  # evaluation rows drawn from one key, so that the size of an evaluation batch changes none
FINAL_ROWS = 2048  # rows of the evaluation at the end, in place of a whole split


class Generator(Protocol):
    """What a task must offer; see `transformer.data.tasks`."""

    vocabulary: Any
    splits: tuple[str, ...]
    entropy: float

    def sample(self, key: jax.Array, batch_size: int, split: str) -> Batch: ...

    @property
    def num_labels(self) -> int: ...

    def chance(self, split: str) -> float: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Generated(Dataset):
    """Batches of a task.

    Attributes:
      task: draws the rows.
      splits: split -> its name.
      fingerprint: over the first rows of every split and the vocabulary.
    """

    task: Generator
    splits: Mapping[str, str]
    vocabulary: Vocabulary
    fingerprint: str
    name: str
    description: str
    layout: Layout

    def feed(self, section: Data, batch_size: int, seed: int) -> Feed:
        del section, batch_size
        return KeyFeed(seed)

    def read(self, batch_size: int) -> Read:
        def read(resident: None, row: jax.Array) -> Batch:
            del resident
            key = jax.random.fold_in(jax.random.key(row[0]), row[1])
            return self._marked(self.task.sample(key, batch_size, "train"))

        return read

    def batches(self, split: str, batch_size: int, max_tokens: int | None = None) -> Iterator[Batch]:
        rows = FINAL_ROWS if max_tokens is None else min(FINAL_ROWS, max(1, max_tokens // self.layout.positions))
        return evaluation_rows(self._rows(split, -(-rows // BLOCK)), batch_size, rows)

    def bounds(self, split: str) -> dict[str, float]:
        """Nats per target that no predictor can beat, where that is more than 0."""
        del split
        return {"floor": float(self.task.entropy)} if self.task.entropy else {}

    @property
    def num_labels(self) -> int:
        return self.task.num_labels

    def chance(self, split: str) -> float:
        """Accuracy of a predictor that knows nothing."""
        return float(self.task.chance(split))

    @functools.lru_cache(maxsize=8)  # noqa: B019 - datasets live as long as the process
    def _rows(self, split: str, blocks: int) -> Batch:
        key = jax.random.key(zlib.crc32(split.encode()))
        draw = jax.jit(lambda key: self._marked(self.task.sample(key, BLOCK, split)))
        drawn = [jax.tree.map(np.asarray, draw(jax.random.fold_in(key, i))) for i in range(blocks)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *drawn)

    def _marked(self, batch: Batch) -> Batch:
        """The batch without a prefix where the objective reads none."""
        return batch if self.layout.marks_prefix else batch.replace(prefix_length_B=None)

    @functools.cached_property
    def pad_share(self) -> float:
        padding, positions = self._rows("train", 1).padding()
        return float(padding) / float(positions)


def fitted(task: Any, layout: Layout) -> Layout:
    """The layout with the lengths of a task's training rows."""
    shape: Batch = task.shape("train")
    source_length = 0 if shape.source_BS is None else shape.source_BS.shape[1]
    return dataclasses.replace(layout, length=shape.tokens_BL.shape[1] - layout.overlap, source_length=source_length)


def load(task: Any, section: Data, layout: Layout) -> Generated:
    """The batches of a task, its rows as long as the task makes them.

    Raises:
      DataError: the objective needs a part of a batch that the task does not give.
    """
    shape: Batch = task.shape("train")
    if layout.pairs == "separate" and shape.source_BS is None:
        raise DataError(
            f"data.task={section.task} gives no source, which an encoder-decoder reads; set data.task_layout=pair."
        )
    wanted = {"row": 1, "token": 2}.get(layout.labels)
    if wanted and (shape.labels is None or shape.labels.ndim != wanted):
        names = {1: "label", 2: "tag"}
        raise DataError(
            f"data.task={section.task} gives no label per {layout.labels}; set data.task_layout={names[wanted]} where "
            "the task has it."
        )
    layout = fitted(task, layout)
    vocabulary = task.vocabulary.with_specials(layout.specials)
    digest = hashlib.sha256(json.dumps(vocabulary.to_dict(), sort_keys=True).encode())
    for split in task.splits:
        for leaf in jax.tree.leaves(task.sample(jax.random.key(0), 2, split)):
            digest.update(np.ascontiguousarray(leaf).tobytes())
    description = f"task {section.task}, rows of {layout.positions} tokens drawn on the device"
    splits = {split: split for split in task.splits}
    return Generated(task, splits, vocabulary, digest.hexdigest()[:12], section.task, description, layout)
