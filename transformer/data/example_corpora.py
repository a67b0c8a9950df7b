"""Corpora of examples in files: pairs of sentences, and sentences with a label.

Tatoeba's pairs, SCAN's commands and CLINC's intents come in these forms; so may files of your own.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from transformer.data.corpora import (
    SOURCES,
    SPLITS,
    Content,
    Corpus,
    Example,
    TextParameters,
    file_digest,
    files_by_split,
    find_files,
    read_file,
)
from transformer.errors import ConfigError, DataError
from transformer.schema import Data, field

_SCAN = re.compile(rb"IN: (.*?) OUT: (.*)")


@dataclasses.dataclass(frozen=True)
class PairsParameters(TextParameters):
    """How a line becomes a pair."""

    swap: bool = field(False, "the second column is the source and the first the target")
    distinct_targets: bool = field(True, "a target of a held-out pair stands in no training pair either")


@dataclasses.dataclass(frozen=True)
class LabelledParameters(TextParameters):
    """Which columns are read."""

    text_column: str = field("text", "name of the column with the text")
    label_column: str = field("intent_name", "name of the column with the label")
    out_of_scope: bool = field(True, "read rows labelled `oos`, which belong to no intent, as a class of their own")


def _files_problem(section: Any) -> str | None:
    if not section.path.strip():
        return "needs data.path=FILES (a path, a glob, or several separated by commas)."
    validation, test = section.validation_fraction, section.test_fraction
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        return (
            f"data.validation_fraction={validation} and data.test_fraction={test} must be 0 or more, their sum below 1."
        )
    if not (validation or section.validation_path):
        return "needs a validation split: set data.validation_fraction or data.validation_path."
    return None


def _corpus(section: Data, read: Callable[[], Content]) -> Corpus:
    """A corpus of the files a section names, read by `read`."""
    if problem := _files_problem(section):
        raise ConfigError(f"data.source={section.source}: {problem}")
    patterns = (section.path, section.validation_path, section.test_path)
    digests = [[file_digest(path) for path in find_files(pattern)] for pattern in patterns if pattern]
    return Corpus(f"{section.source}:{section.path}", json.dumps([digests, sorted(map(list, section.options))]), read)


def held_out(text: bytes) -> float:
    """A number from 0 to 1 that a sentence has on every machine: below the test share it is tested on, below that and
    the validation share it is validated on. Letter case and outer white space do not matter."""
    normal = text.decode("utf-8", errors="replace").casefold().strip()
    return int.from_bytes(hashlib.sha256(normal.encode()).digest()[:6], "big") / 2**48


def split_examples(section: Data, examples: list[Example], key: Callable[[Example], bytes]) -> dict[str, list[Example]]:
    """Examples without repetitions, divided by what `key` gives, so that equal ones lie on the same side."""
    test = 0.0 if section.test_path else section.test_fraction
    validation = 0.0 if section.validation_path else section.validation_fraction
    return divide(examples, key, validation, test)


def divide(
    examples: list[Example], key: Callable[[Example], bytes], validation: float, test: float = 0.0
) -> dict[str, list[Example]]:
    """As `split_examples`, by given shares."""
    parts: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for example in dict.fromkeys(examples):
        place = held_out(key(example))
        parts["test" if place < test else "validation" if place < test + validation else "train"].append(example)
    return {split: part for split, part in parts.items() if part or split == "train"}


def _members(path: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a file, or of every file of a .zip archive, without what only explains the archive."""
    raw = read_file(path)
    if not path.endswith(".zip"):
        yield os.path.basename(path), raw
        return
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for name in archive.namelist():
                if not (name.endswith("/") or os.path.basename(name).startswith(("_", "."))):
                    yield name, archive.read(name)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"data.path: cannot read {path!r}: {error}.") from error


# --- Pairs -------------------------------------------------------------------------------------------------------


def read_pairs(pattern: str, swap: bool) -> list[Example]:
    """The pairs of files: lines of two columns separated by a tab, or SCAN's `IN: ... OUT: ...`.

    Raises:
      DataError: a line of another form, or no line at all.
    """
    examples = []
    for path in find_files(pattern):
        for name, raw in _members(path):
            for number, line in enumerate(raw.splitlines(), 1):
                if not line.strip():
                    continue
                found = _SCAN.fullmatch(line)
                columns = found.groups() if found else line.split(b"\t")
                if len(columns) < 2 or not (columns[0].strip() and columns[1].strip()):
                    raise DataError(
                        f"data.path: line {number} of {name} is no pair: it needs two columns separated by a tab, or "
                        "IN: ... OUT: ...."
                    )
                source, target = (column.strip() for column in columns[:2])
                examples.append(Example(source, target) if swap else Example(target, source))
    if not examples:
        raise DataError(f"data.path={pattern!r} holds no pairs.")
    return examples


def _source(example: Example) -> bytes:
    assert example.source is not None
    return example.source


def without_leaks(parts: dict[str, list[Example]]) -> int:
    """Removes, in place, pairs whose target also stands in a pair held out more strictly; returns how many."""
    seen: set[bytes] = set()
    removed = 0
    for split in reversed(SPLITS):
        if split in parts:
            kept = [example for example in parts[split] if _normal(example.target) not in seen]
            removed += len(parts[split]) - len(kept)
            seen.update(_normal(example.target) for example in kept)
            parts[split] = kept
    return removed


def _normal(text: bytes) -> bytes:
    return text.decode("utf-8", errors="replace").casefold().strip().encode()


@SOURCES.register(
    "pairs",
    parameters=PairsParameters,
    traits=("pairs",),
    check=lambda config: _files_problem(config.data),
    unread=("data.feed",),
)
def pairs(section: Data) -> Corpus:
    """Source and target sentences: lines of two columns, as Tatoeba's, or SCAN's commands and actions; .gz and .zip.

    What is held out is decided by the source sentence alone, so that none has translations on two sides.

    Raises:
      ConfigError: no path, or impossible fractions.
      DataError: no such file, an unreadable one, or a line that is no pair.
    """

    def read() -> Content:
        parts = split_examples(section, read_pairs(section.path, section.swap), _source)
        for split, pattern in (("validation", section.validation_path), ("test", section.test_path)):
            if pattern:
                parts[split] = read_pairs(pattern, section.swap)
        removed = without_leaks(parts) if section.distinct_targets else 0
        return _content(f"{section.path}, pairs", parts, removed)

    return _corpus(section, read)


def _content(about: str, parts: dict[str, list[Example]], removed: int = 0, labels: tuple[str, ...] = ()) -> Content:
    counts = ", ".join(f"{split} {len(parts[split])}" for split in SPLITS if split in parts)
    note = f"; {removed} left out, their targets being held out" if removed else ""
    for split in ("train", "validation"):
        if not parts.get(split):
            raise DataError(f"{about}: no example is left for the split {split} ({counts}); use more of them.")
    return Content({}, f"{about}: {counts}{note}", examples=parts, labels=labels)


# --- Labels ------------------------------------------------------------------------------------------------------

_SPLIT_OF_NAME = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}


def _rows(name: str, raw: bytes, section: Data) -> Iterator[tuple[bytes, str]]:
    """(text, label) of every row of a comma-separated file with a header."""
    try:
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig")))
        for column in (section.text_column, section.label_column):
            if column not in (reader.fieldnames or ()):
                known = ", ".join(reader.fieldnames or ())
                raise DataError(f"data.path: {name} has no column {column!r}, only: {known}.")
        for row in reader:
            text, label = row[section.text_column], row[section.label_column]
            if text and label and (section.out_of_scope or label != "oos"):
                yield text.strip().encode(), label
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data.path: {name} is not comma-separated text in UTF-8: {error}.") from error


@SOURCES.register(
    "labelled",
    parameters=LabelledParameters,
    traits=("labels",),
    check=lambda config: _files_problem(config.data),
    unread=("data.feed",),
)
def labelled(section: Data) -> Corpus:
    """Texts with a label, from comma-separated files with a header, as CLINC's intents; .gz and .zip.

    In an archive the names of its files say which split they are (train, val or test, before a `_` or the dot); where
    no name says validation, a share of the training texts is, decided by the text alone.

    Raises:
      ConfigError: no path, or impossible fractions.
      DataError: no such file, an unreadable one, a column that is missing, or a label that training does not know.
    """

    def read() -> Content:
        named: dict[str, list[tuple[bytes, str]]] = {split: [] for split in SPLITS}
        for split, paths in files_by_split(section).items():
            for path in paths:
                for name, raw in _members(path):
                    stem = re.split(r"[_.]", os.path.basename(name))[0]
                    here = _SPLIT_OF_NAME.get(stem, split) if path.endswith(".zip") else split
                    named[here].extend(_rows(name, raw, section))
        labels = tuple(sorted({label for _, label in named["train"]}))
        number = {label: i for i, label in enumerate(labels)}

        def examples(rows: Iterable[tuple[bytes, str]], split: str) -> list[Example]:
            unknown = sorted({label for _, label in rows} - set(labels))
            if unknown:
                raise DataError(f"data.path: the split {split} holds the label {unknown[0]!r}, which train does not.")
            return list(dict.fromkeys(Example(text, None, number[label]) for text, label in rows))

        parts = {split: examples(rows, split) for split, rows in named.items() if rows}
        validation = 0.0 if "validation" in parts else section.validation_fraction
        test = 0.0 if "test" in parts else section.test_fraction
        parts |= divide(parts["train"], lambda example: example.target, validation, test)
        return _content(f"{section.path}, {len(labels)} labels", parts, labels=labels)

    return _corpus(section, read)
