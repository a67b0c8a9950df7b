"""A corpus as flat token arrays with a fingerprint, made once and kept on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transformer.data import bounds, examples, generated
from transformer.data.batch import Batch, Layout
from transformer.data.batching import (
    Dataset,
    Feed,
    Read,
    evaluation_batches,
    make_feed,
    make_plan,
    read_windows,
)
from transformer.data.corpora import SOURCES, SPLITS, Corpus, is_text
from transformer.data.vocabularies import VOCABULARIES, Vocabulary, make_vocabulary, vocabulary_identity
from transformer.errors import DataError
from transformer.platform import cache_root
from transformer.schema import Data

_FORMAT = 2  # raise it whenever the same corpus would give other tokens or another layout on disk
_UNSPECIFIED = Layout(0)  # of tokens just read; `load` puts in the real one
_HASHED_ON_LOAD = 1 << 28  # bytes; up to here (well under a second) every byte of a cached corpus is checked


@dataclasses.dataclass(frozen=True)
class Text(Dataset):
    """A stream of tokens per split, cut into windows.

    Attributes:
      splits: split -> tokens, uint8 or uint16 [number of tokens], read-only, mapped from the cache.
      fingerprint: over all tokens, the split boundaries and the vocabulary, whatever the source was called.
    """

    splits: Mapping[str, np.ndarray]
    vocabulary: Vocabulary
    fingerprint: str
    name: str
    description: str
    layout: Layout

    def bounds(self, split: str) -> dict[str, float]:
        """Unigram and bigram entropy of a split's own text, nats per token."""
        tokens = self.splits[split]
        return {
            "unigram": bounds.unigram_entropy(tokens),
            "bigram": bounds.bigram_entropy(tokens, self.vocabulary.size),
        }

    def feed(self, section: Data, batch_size: int, seed: int) -> Feed:
        tokens = self.splits["train"]
        return make_feed(section.feed, make_plan(section, len(tokens), batch_size, seed), tokens)

    def read(self, batch_size: int) -> Read:
        return read_windows(self.layout, self.vocabulary.eos)

    def batches(self, split: str, batch_size: int, max_tokens: int | None = None) -> Iterator[Batch]:
        return evaluation_batches(self.splits[split], self.layout, batch_size, max_tokens, self.vocabulary.eos)

    @functools.cached_property
    def tokens_per_byte(self) -> float:
        counts = bounds.count(self.splits["train"])
        return int(counts.sum()) / max(1, int(counts @ self.vocabulary.bytes_per_token[: len(counts)].astype(np.int64)))


def load(section: Data, cache_dir: str | os.PathLike | None = None, layout: Layout | None = None) -> Dataset:
    """The data `section` asks for: tokens from the cache if they are there, else made and put there.

    Args:
      section: the config's `data` section.
      layout: how the objective wants its rows; None: windows of text for a causal language model.
      cache_dir: folder of cached token arrays; None: `$XDG_CACHE_HOME/whatif-transformers/tokens`, or below
        `~/.cache`. A folder that cannot be written means that nothing is kept.

    Raises:
      ConfigError: an unknown source or vocabulary, or a parameter the source needs and lacks.
      DataError: the corpus cannot be had, or a split is shorter than one window.
    """
    layout = layout or Layout(section.sequence_length)
    corpus = SOURCES.build(section.source, section)
    VOCABULARIES[section.vocabulary]  # raises for an unknown name before any text is read
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    if not isinstance(corpus, Corpus):
        return generated.load(corpus, section, layout)
    if not is_text(section):
        return examples.load(corpus, section, layout, folder, vocabulary_identity(section))
    if layout.pairs == "separate" or layout.labels:
        wanted = "pairs of source and target" if layout.pairs == "separate" else "labels"
        raise DataError(
            f"data.source={section.source} is plain text, and this objective needs {wanted}; choose another source or "
            "objective.kind."
        )
    entry = folder / _key(corpus, section)
    dataset = _open_entry(entry) or _materialise(corpus, section, entry)
    dataset = dataclasses.replace(dataset, layout=layout, vocabulary=dataset.vocabulary.with_specials(layout.specials))
    _check_lengths(dataset, section)
    return dataset


def default_cache_dir() -> Path:
    """Where token arrays are kept unless told otherwise."""
    return cache_root() / "tokens"


def _key(corpus: Corpus, section: Data) -> str:
    payload = json.dumps([_FORMAT, corpus.name, corpus.identity, *vocabulary_identity(section)])
    return hashlib.sha256(payload.encode()).hexdigest()[:32]


def _check_lengths(dataset: Text, section: Data) -> None:
    window = section.sequence_length + 1
    sizes = {split: len(tokens) for split, tokens in dataset.splits.items()}
    if min(sizes.values()) < window:
        listed = ", ".join(f"{split} {size}" for split, size in sizes.items())
        raise DataError(
            f"data.source={section.source} ({dataset.description}) is too small: its tokens are {listed}, "
            f"but one window takes data.sequence_length + 1 = {window}; use more text or a shorter "
            "data.sequence_length."
        )


# --- Making tokens -------------------------------------------------------------------------------------


def _materialise(corpus: Corpus, section: Data, entry: Path) -> Text:
    """Tokenises a corpus into `entry`, or in memory where no entry can be written."""
    content = corpus.content  # read outside the `try`: its errors are not about the cache
    vocabulary = make_vocabulary(section, corpus)
    about = {"name": corpus.name, "description": content.description}
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".new-") as scratch:
            fresh = Path(scratch) / "entry"
            fresh.mkdir()
            with open(fresh / "tokens.bin", "wb") as file:
                lengths = _cut(_write_tokens(file, content.documents, vocabulary), content.cut)
            fingerprint = _fingerprint(np.memmap(fresh / "tokens.bin", vocabulary.dtype, "r"), lengths, vocabulary)
            meta = {
                **about,
                "vocabulary": vocabulary.to_dict(),
                "lengths": lengths,
                "fingerprint": fingerprint,
            }
            (fresh / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
            _publish(fresh, entry)
        return _read_entry(entry)
    except OSError:  # no permission or no room: keep the tokens in memory, make them again next time
        buffer = io.BytesIO()
        lengths = _cut(_write_tokens(buffer, content.documents, vocabulary), content.cut)
        tokens = np.frombuffer(buffer.getvalue(), vocabulary.dtype)
        return _dataset(tokens, lengths, vocabulary, _fingerprint(tokens, lengths, vocabulary), **about)


def _write_tokens(file: BinaryIO, documents: Mapping[str, list[bytes]], vocabulary: Vocabulary) -> dict[str, int]:
    """Appends the tokens of all splits, `eos` between two documents; returns split -> number of tokens."""
    lengths = {}
    for split in (s for s in SPLITS if s in documents):
        start = file.tell()
        for i, document in enumerate(documents[split]):
            if i:
                file.write(vocabulary.dtype.type(vocabulary.eos).tobytes())
            file.write(vocabulary.encode(document).data)
        lengths[split] = (file.tell() - start) // vocabulary.dtype.itemsize
    return lengths


def _cut(lengths: Mapping[str, int], cut: Mapping[str, float]) -> dict[str, int]:
    """Split lengths, in the order in which they lie on disk, after giving the end of the training stream to the splits
    in `cut`."""
    result, total, share = dict(lengths), lengths["train"], 0.0
    for split in ("test", "validation"):
        if cut.get(split):
            share += cut[split]
            start = int(total * (1 - share))
            result["train"], result[split] = start, result["train"] - start
    inside = ["train", *(split for split in SPLITS if cut.get(split))]
    return {split: result[split] for split in (*inside, *(s for s in lengths if s not in inside))}


def _fingerprint(tokens: np.ndarray, lengths: Mapping[str, int], vocabulary: Vocabulary) -> str:
    order = list(lengths)
    unusual = [order] if order != [split for split in SPLITS if split in lengths] else []
    header = json.dumps([vocabulary.to_dict(), lengths, *unusual], sort_keys=True)
    digest = hashlib.sha256(header.encode())
    digest.update(tokens.data)
    return digest.hexdigest()[:12]


def _dataset(
    tokens: np.ndarray,
    lengths: Mapping[str, int],
    vocabulary: Vocabulary,
    fingerprint: str,
    name: str,
    description: str,
) -> Text:
    """Slices the one array that holds all splits, one behind the other."""
    splits, start = {}, 0
    for split, length in lengths.items():
        splits[split] = tokens[start : start + length]
        start += length
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    return Text(ordered, vocabulary, fingerprint, name, description, _UNSPECIFIED)


# --- The cache: <key>/{tokens.bin, meta.json}, complete or absent --------------------------------------


def _publish(fresh: Path, entry: Path) -> None:
    """Puts a finished entry in its place by one rename."""
    if _open_entry(entry, warn=False) is None:
        shutil.rmtree(entry, ignore_errors=True)
    try:
        os.rename(fresh, entry)
    except OSError:
        if not entry.is_dir():  # otherwise another process has just put the same entry there
            raise


def _open_entry(entry: Path, warn: bool = True) -> Text | None:
    """A cached entry, or None where there is none or it is damaged."""
    if not entry.is_dir():
        return None
    try:
        return _read_entry(entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if warn:
            warnings.warn(f"rebuilding the cached tokens in {entry}: {error}", stacklevel=3)
        return None


def _read_entry(entry: Path) -> Text:
    """Raises ValueError, among others, for an entry that is not what was written."""
    meta: dict[str, Any] = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
    vocabulary = Vocabulary.from_dict(meta["vocabulary"])
    lengths, path = meta["lengths"], entry / "tokens.bin"
    expected, size = sum(lengths.values()) * vocabulary.dtype.itemsize, path.stat().st_size
    if size != expected:
        raise ValueError(f"tokens.bin has {size} bytes instead of {expected}")
    tokens = np.memmap(path, vocabulary.dtype, "r")
    if size <= _HASHED_ON_LOAD and _fingerprint(tokens, lengths, vocabulary) != meta["fingerprint"]:
        raise ValueError("the tokens do not match their fingerprint")
    return _dataset(tokens, lengths, vocabulary, meta["fingerprint"], meta["name"], meta["description"])
