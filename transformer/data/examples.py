"""Pairs and labelled texts as padded or packed rows, made once and kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer.data import bounds
from transformer.data.batch import Batch, Layout
from transformer.data.batching import Dataset, Feed, Read, RowFeed, evaluation_rows, make_row_plan, read_rows
from transformer.data.corpora import SPLITS, Corpus, Example
from transformer.data.vocabularies import Vocabulary, make_vocabulary
from transformer.errors import DataError
from transformer.registry import Registry
from transformer.schema import Data

_FORMAT = 2  # raise it whenever the same corpus would give other rows
TOO_LONG = Registry("data.too_long")
TARGET_FIELD, SOURCE_FIELD = "data.sequence_length", "data.source_length"
Room = tuple[int, str]  # how many tokens a text may have, and the field that says so


@dataclasses.dataclass(frozen=True)
class Examples(Dataset):
    """Rows of examples.

    Attributes:
      splits: split -> all rows as one batch of NumPy arrays, integers in their smallest type.
      fingerprint: over all arrays and the vocabulary.
    """

    splits: Mapping[str, Batch]
    vocabulary: Vocabulary
    fingerprint: str
    name: str
    description: str
    layout: Layout

    def feed(self, section: Data, batch_size: int, seed: int) -> Feed:
        rows = self.splits["train"]
        return RowFeed(make_row_plan(section, rows.rows, batch_size, seed), rows)

    def read(self, batch_size: int) -> Read:
        del batch_size
        return read_rows

    def batches(self, split: str, batch_size: int, max_tokens: int | None = None) -> Iterator[Batch]:
        max_rows = None if max_tokens is None else max(1, max_tokens // self.layout.positions)
        return evaluation_rows(self.splits[split], batch_size, max_rows)

    @property
    def num_labels(self) -> int:
        labels = [rows.labels for rows in self.splits.values() if rows.labels is not None]
        return 1 + max((int(np.max(values)) for values in labels if len(values)), default=-1)

    def bounds(self, split: str) -> dict[str, float]:
        """Entropy of the labels, or unigram and bigram entropy of the targets alone; nats per target."""
        rows = self.splits[split]
        if rows.labels is not None:
            return {"label": bounds.entropy(np.bincount(np.asarray(rows.labels)))}
        targets, before = targets_and_contexts(rows, self.layout)
        return {
            "unigram": bounds.entropy(np.bincount(targets)),
            "bigram": bounds.conditional_entropy(targets, before, self.vocabulary.size),
        }

    @property
    def pad_share(self) -> float:
        padding, positions = self.splits["train"].padding()
        return float(padding) / float(positions)


def targets_and_contexts(rows: Batch, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Every target that counts, and the token before it; in front of a segment stands a token of its own."""
    tokens_BL, segments_BL = np.asarray(rows.tokens_BL).astype(np.int64), np.asarray(rows.segments_BL)
    weights = rows.target_weights()
    counts_BL = np.asarray(weights) > 0 if weights is not None else np.ones(tokens_BL.shape, bool)
    start = int(tokens_BL.max(initial=0)) + 1
    before_BL = np.concatenate([np.full_like(tokens_BL[:, :1], start), tokens_BL[:, :-1]], axis=1)
    opens_BL = np.concatenate([np.ones_like(counts_BL[:, :1]), segments_BL[:, 1:] != segments_BL[:, :-1]], axis=1)
    before_BL = np.where(opens_BL, start, before_BL)
    if layout.overlap:  # the first token of a segment is read, never predicted
        counts_BL = counts_BL & ~opens_BL
    return tokens_BL[counts_BL], before_BL[counts_BL]


# --- What to do with examples that do not fit ------------------------------------------------------------


@TOO_LONG.register("error")
def refuse(texts: Sequence[np.ndarray], room: Sequence[Room], where: str) -> None:
    """Stops with a sentence that names the example."""
    for text, (limit, field) in zip(texts, room, strict=True):
        if len(text) > limit:
            raise DataError(
                f"{where} takes {len(text)} tokens, but {field} leaves room for {limit}; raise it, or say "
                "data.too_long=drop to leave such examples out, or data.too_long=cut to shorten them."
            )


@TOO_LONG.register("drop")
def drop(texts: Sequence[np.ndarray], room: Sequence[Room], where: str) -> None:
    """Leaves the example out; the log says how many."""
    del texts, room, where


@TOO_LONG.register("cut")
def cut(texts: Sequence[np.ndarray], room: Sequence[Room], where: str) -> list[np.ndarray]:
    """Keeps as much of the beginning as fits; the log says how many were cut. Where a source shares its row with a
    target, the source is shortened first."""
    del where
    return [text[:limit] for text, (limit, _) in zip(texts, room, strict=True)]


# --- From examples to rows -------------------------------------------------------------------------------


@dataclasses.dataclass
class _Row:
    """One row under construction: pieces that follow each other, each a segment of its own."""

    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    weights: list[np.ndarray] = dataclasses.field(default_factory=list)
    sources: list[np.ndarray] = dataclasses.field(default_factory=list)
    prefix: int = 0
    label: int = 0

    @property
    def size(self) -> tuple[int, int]:
        return sum(map(len, self.tokens)), sum(map(len, self.sources))


class _Builder:
    """Lays examples out as `layout` says."""

    def __init__(self, layout: Layout, vocabulary: Vocabulary, too_long: str):
        self.layout, self.vocabulary, self.too_long = layout, vocabulary, TOO_LONG[too_long]
        self.long = 0

    def rows(self, examples: Sequence[Example], split: str) -> Batch:
        """All rows of a split."""
        self.long, made = 0, []
        for number, example in enumerate(examples):
            row = self._row(example, f"Example {number + 1} of {split}")
            if row is not None:
                made.append(row)
        if not made:
            raise DataError(f"No example of {split} is left; raise data.sequence_length.")
        return self._arrays(self._pack(made) if self.layout.packed else made)

    def _row(self, example: Example, where: str) -> _Row | None:
        special, layout = self.vocabulary.special, self.layout
        encoded = [self.vocabulary.encode(example.target).astype(np.int32)]
        if example.source is not None:
            encoded.append(self.vocabulary.encode(example.source).astype(np.int32))
        for text, name in zip(encoded, ("target", "source"), strict=False):
            if not len(text):
                raise DataError(f"{where} has an empty {name}: its row would be padding throughout; remove it.")
        separate = layout.pairs == "separate"
        if separate and example.source is None:
            raise DataError(f"{where} has no source, and this objective predicts targets from sources.")
        length = layout.length + layout.overlap
        lead = [special(layout.lead)] if layout.lead else []
        if separate:
            room = [(length - 1, TARGET_FIELD), (layout.source_length - 1, SOURCE_FIELD)]
        elif example.source is None:
            lead = lead or ([] if layout.labels else [special("bos")])
            room = [(length - len(lead) - (not layout.labels), TARGET_FIELD)]
        else:
            spare = length - len(lead) - 2
            target = min(len(encoded[0]), spare - 1)  # a place is left for the source
            room = [(spare - 1, TARGET_FIELD), (spare - target, TARGET_FIELD)]
        if any(len(text) > limit for text, (limit, _) in zip(encoded, room, strict=True)):
            self.long += 1
            kept = self.too_long.build(encoded, room, where)
            if kept is None or not all(map(len, kept)):
                return None
            encoded = kept
        return self._laid_out(example, encoded, lead)

    def _laid_out(self, example: Example, encoded: list[np.ndarray], lead: list[int]) -> _Row:
        special, target = self.vocabulary.special, encoded[0]
        row = _Row(label=example.label or 0)
        if self.layout.pairs == "separate":
            row.tokens = [np.append(target, special("eos"))]
            row.sources = [np.append(encoded[1], special("eos"))]
            row.weights = [np.ones(len(row.tokens[0]), np.float32)]
        elif self.layout.labels:
            row.tokens = [np.concatenate([lead, target, *([[special("sep")], encoded[1]] if encoded[1:] else [])])]
            row.weights = [np.ones(len(row.tokens[0]), np.float32)]
        else:
            front = np.concatenate([lead, *([encoded[1], [special("sep")]] if encoded[1:] else [])])
            row.tokens = [np.concatenate([front, target, [special("eos")]])]
            row.prefix = len(front)
            row.weights = [(np.arange(len(row.tokens[0])) >= row.prefix).astype(np.float32)]
        return row

    def _pack(self, rows: list[_Row], open_rows: int = 64) -> list[_Row]:
        """First fit into the last `open_rows` rows, in the order of the examples."""
        length, source_length = self.layout.length + self.layout.overlap, self.layout.source_length
        packed: list[_Row] = []
        for row in rows:
            for host in packed[-open_rows:]:
                if host.size[0] + row.size[0] <= length and host.size[1] + row.size[1] <= source_length:
                    host.tokens += row.tokens
                    host.weights += row.weights
                    host.sources += row.sources
                    break
            else:
                packed.append(row)
        return packed

    def _arrays(self, rows: list[_Row]) -> Batch:
        layout, pad = self.layout, self.vocabulary.special("pad")
        length = layout.length + layout.overlap
        tokens_BL, segments_BL = self._fill([row.tokens for row in rows], length, pad)
        weights_BL, _ = self._fill([row.weights for row in rows], length, 0)
        batch = Batch(tokens_BL, weights_BL=weights_BL.astype(np.float32), segments_BL=segments_BL)
        if layout.pairs == "separate":
            source_BS, source_segments_BS = self._fill([row.sources for row in rows], layout.source_length, pad)
            batch = batch.replace(source_BS=source_BS, source_segments_BS=source_segments_BS)
        if layout.marks_prefix:
            batch = batch.replace(prefix_length_B=np.array([row.prefix for row in rows], np.int32))
        if layout.labels:
            batch = batch.replace(labels=np.array([row.label for row in rows], np.int32))
        return batch

    def _fill(self, rows: list[list[np.ndarray]], length: int, pad: int) -> tuple[Any, Any]:
        """(values [B, length], segments [B, length]) of rows given as pieces."""
        out = np.full((len(rows), length), pad, self.vocabulary.dtype)
        segments = np.zeros((len(rows), length), np.uint8 if max(map(len, rows)) < 256 else np.uint16)
        for b, pieces in enumerate(rows):
            start = 0
            for number, piece in enumerate(pieces, 1):
                out[b, start : start + len(piece)] = piece
                segments[b, start : start + len(piece)] = number
                start += len(piece)
        return out, segments


def specials(layout: Layout, content_has_sources: bool) -> tuple[str, ...]:
    """The special tokens that rows of examples are written with."""
    joined = content_has_sources and layout.pairs == "joined"
    bos = () if layout.labels or layout.lead or content_has_sources else ("bos",)
    return ("pad", "eos", *bos, *(("sep",) if joined else ()), *layout.specials)


# --- The cache: <key>.npz, complete or absent ------------------------------------------------------------


def load(corpus: Corpus, section: Data, layout: Layout, folder: Path, vocabulary_id: list[Any]) -> Examples:
    """The rows of a corpus of examples, from the cache or made and put there.

    Raises:
      DataError: no examples, an empty one, or one that does not fit and may not be dropped or cut.
    """
    if layout.packed and (layout.labels or layout.marks_prefix):
        raise DataError("data.packing=segments does not go with one label or prefix per row; use data.packing=none.")
    payload = [_FORMAT, corpus.name, corpus.identity, vocabulary_id, dataclasses.asdict(layout), section.too_long]
    path = folder / f"{hashlib.sha256(json.dumps(payload).encode()).hexdigest()[:32]}.npz"
    return _read(path, layout) or _make(corpus, section, layout, path)


def _make(corpus: Corpus, section: Data, layout: Layout, path: Path) -> Examples:
    content = corpus.content
    has_sources = any(example.source is not None for examples in content.examples.values() for example in examples)
    if layout.labels and any(e.label is None for examples in content.examples.values() for e in examples):
        raise DataError(f"{corpus.name} has no labels, which this objective needs; choose another objective.kind.")
    if layout.labels == "token":
        raise DataError(f"{corpus.name} has labels of texts, not of tokens; use model.head.kind=classify.")
    vocabulary = make_vocabulary(section, corpus).with_specials(specials(layout, has_sources))
    builder, splits, notes = _Builder(layout, vocabulary, section.too_long), {}, []
    for split in (s for s in (*SPLITS, *content.examples) if s in content.examples and s not in splits):
        splits[split] = builder.rows(content.examples[split], split)
        if builder.long:
            done = "dropped" if section.too_long == "drop" else "cut"
            notes.append(f"{builder.long} of {len(content.examples[split])} {split} examples too long and {done}")
    flat = {f"{split}.{name}": x for split, rows in splits.items() for name, x in _parts(rows).items()}
    meta = {
        "vocabulary": vocabulary.to_dict(),
        "fingerprint": _fingerprint(flat, vocabulary),
        "name": corpus.name,
        "description": "; ".join([content.description, *notes]),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".new", delete=False) as file:
            np.savez(file, **{**flat, "meta": np.array(json.dumps(meta))})  # type: ignore[arg-type]
        os.replace(file.name, path)
    except OSError:  # no permission or no room: made again next time
        pass
    return _dataset(flat, meta, layout)


def _read(path: Path, layout: Layout) -> Examples | None:
    """A cached entry, or None where there is none or it is damaged."""
    try:
        with np.load(path) as stored:
            flat = {name: stored[name] for name in stored.files if name != "meta"}
            meta = json.loads(str(stored["meta"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    dataset = _dataset(flat, meta, layout)
    return dataset if _fingerprint(flat, dataset.vocabulary) == meta["fingerprint"] else None


def _dataset(flat: Mapping[str, np.ndarray], meta: Mapping[str, Any], layout: Layout) -> Examples:
    splits: dict[str, dict[str, Any]] = {}
    for name, x in flat.items():
        split, part = name.rsplit(".", 1)
        splits.setdefault(split, {})[part] = x
    batches = {split: Batch(**parts) for split, parts in splits.items()}
    vocabulary = Vocabulary.from_dict(meta["vocabulary"])
    return Examples(batches, vocabulary, meta["fingerprint"], meta["name"], meta["description"], layout)


def _parts(rows: Batch) -> dict[str, np.ndarray]:
    named = ((f.name, getattr(rows, f.name)) for f in dataclasses.fields(rows))
    return {name: np.asarray(x) for name, x in named if x is not None}


def _fingerprint(flat: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> str:
    digest = hashlib.sha256(json.dumps(vocabulary.to_dict(), sort_keys=True).encode())
    for name in sorted(flat):
        digest.update(f"{name} {flat[name].shape} {flat[name].dtype}".encode())
        digest.update(np.ascontiguousarray(flat[name]).tobytes())
    return digest.hexdigest()[:12]
