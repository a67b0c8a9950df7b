"""Rows of examples and tasks as questions: what a model is given, and what it should answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer.data.batch import Batch


@dataclasses.dataclass(frozen=True)
class Question:
    """The last stretch of targets in a row, and what stands before it.

    Attributes:
      prompt: tokens the decoder reads first.
      wanted: the targets.
      source: what an encoder reads beside them, or None.
      limit: most tokens an answer may have.
    """

    prompt: np.ndarray
    wanted: np.ndarray
    source: np.ndarray | None
    limit: int

    @property
    def given(self) -> np.ndarray:
        """What the answer follows from, to read."""
        return self.prompt if self.source is None else self.source


def questions(batch: Batch, lead: Sequence[int] = (), eos: int | None = None) -> list[Question]:
    """One question per row that has a target; of packed rows about their last segment.

    Args:
      batch: prepared by the objective, with NumPy arrays.
      lead: what a decoder reads before a row.
      eos: ends an answer, which may then be as long as the row has room for; others are as long as the targets.
    """
    found = []
    for row in range(batch.rows):
        part: Any = batch.take(row)
        tokens_L, source = part.tokens_BL, part.source_BS
        segments_L = np.ones_like(tokens_L) if part.segments_BL is None else part.segments_BL
        counts_L = segments_L > 0 if part.weights_BL is None else part.weights_BL > 0
        if not counts_L.any():
            continue
        end = int(np.flatnonzero(counts_L)[-1]) + 1
        segment = segments_L[end - 1]
        first = int((segments_L == segment).argmax())
        others = np.flatnonzero(~counts_L[first:end])
        begin = first + int(others[-1]) + 1 if len(others) else first
        if begin == first and not lead:
            begin += 1  # the first token of a text is read, not predicted
        if source is not None and part.source_segments_BS is not None:
            source = source[part.source_segments_BS == segment]
        prompt, wanted = np.array([*lead, *tokens_L[first:begin]], np.int32), tokens_L[begin:end]
        limit = len(tokens_L) - begin if wanted[-1] == eos else len(wanted)
        found.append(Question(prompt, wanted, source, limit))
    return found
