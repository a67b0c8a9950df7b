"""Where the text comes from: the standard library's own source, files of the user, or TensorFlow Datasets."""

from __future__ import annotations

import dataclasses
import functools
import glob
import gzip
import hashlib
import json
import os
import platform
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformer.errors import ConfigError, DataError
from transformer.registry import Registry
from transformer.schema import Data, choice, field

SOURCES = Registry("data.source")

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled or paired text.

    Attributes:
      target: the text to predict, to label or to read, UTF-8.
      source: what it is predicted from, UTF-8, or None.
      label: its class, from 0, or None.
    """

    target: bytes
    source: bytes | None = None
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class Content:
    """What a source holds: documents, a stream of text cut into windows, or examples, each of which is a row.

    Attributes:
      documents: split -> documents, as UTF-8 bytes.
      description: one line for the log.
      cut: split -> share of the training tokens that becomes this split, taken from the end of the stream in
        the order train, validation, test. Cutting tokens, not bytes, never tears a character apart.
      examples: split -> examples, where the source has those instead of documents.
      labels: names of the classes, in the order of their numbers.
    """

    documents: dict[str, list[bytes]]
    description: str
    cut: Mapping[str, float] = dataclasses.field(default_factory=dict)
    examples: Mapping[str, list[Example]] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def texts(self) -> Iterator[bytes]:
        """Every text there is, of all splits."""
        for split in dict.fromkeys([*self.documents, *self.examples]):
            yield from self.texts_of(split)

    def texts_of(self, split: str) -> Iterator[bytes]:
        """Every text of one split: its documents, and both sides of its examples."""
        yield from self.documents.get(split, ())
        for example in self.examples.get(split, ()):
            yield example.target
            if example.source is not None:
                yield example.source

    def training_texts(self) -> Iterator[bytes]:
        """The texts of the training split, without the share at its end that is cut off for other splits."""
        kept = 1 - sum(self.cut.values())
        left = int(kept * sum(map(len, self.documents.get("train", ())))) if self.cut else None
        for text in self.texts_of("train"):
            if left is not None and len(text) > left:
                text = text[:left].decode("utf-8", errors="ignore").encode()  # no half character at its end
            if left is not None:
                left -= len(text)
            if text:
                yield text


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Named text, read only when somebody asks for it: with its tokens in the cache, nobody does.

    Attributes:
      name: for messages and reports.
      identity: differs whenever `read` might return something else; cheap to know before reading.
      read: returns the content.
    """

    name: str
    identity: str
    read: Callable[[], Content]

    @functools.cached_property
    def content(self) -> Content:
        return self.read()

    @property
    def documents(self) -> dict[str, list[bytes]]:
        """Split -> documents."""
        return self.content.documents

    @property
    def description(self) -> str:
        """One line for the log."""
        return self.content.description


def is_text(section: Data) -> bool:
    """Whether a source holds documents: no pairs, no labels, and nothing drawn on the device."""
    if SOURCES[section.source].traits & {"pairs", "labels", "drawn"}:
        return False
    return not any(value for name, value in section.options if name in ("tfds_source", "tfds_label"))


# --- stdlib --------------------------------------------------------------------------------------------

# Tests, and tables or GUI parts that some distributions leave out.
_SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "lib2to3",
    "idlelib",
    "turtledemo",
    "tkinter",
    "ensurepip",
    "distutils",
    "pydoc_data",
    "encodings",
    "_pyrepl",
    "venv",
    "__phello__",
    "msilib",
}
_SKIPPED_PREFIXES = ("_sysconfigdata", "turtle.py")
_SMALLEST_STDLIB = 1_000_000  # bytes; a complete one has about 7.6 million


def _is_validation(name: str) -> bool:
    """Whether a file, named relative to the library's root, belongs to the validation split.

    The top-level module decides, by its hash: files of one package share too many lines to stand on both
    sides. With this threshold the same ten modules (and cgitb, until it was removed), just under 5% of the
    bytes, are held out on every Python from 3.10 to 3.13.
    """
    module = name.split("/")[0].removesuffix(".py")
    return int.from_bytes(hashlib.sha256(module.encode()).digest()[:4], "big") / 2**32 < 0.06


def _stdlib_files(root: str) -> list[tuple[str, str, os.stat_result]]:
    """(name relative to `root`, path, stat) of every file used, sorted by name."""
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in _SKIPPED_FOLDERS and not s.startswith("config-")]
        for name in names:
            if name.endswith(".py") and not name.startswith(_SKIPPED_PREFIXES):
                path = os.path.join(folder, name)
                files.append((os.path.relpath(path, root).replace(os.sep, "/"), path, os.stat(path)))
    return sorted(files)


@SOURCES.register("stdlib", unread=("data.too_long",))
def stdlib(section: Data) -> Corpus:
    """The source code of Python's own standard library, read where it is installed: 7.6 MB, no network.

    Raises:
      DataError: this Python carries no readable standard library (some are zipped or stripped).
    """
    root = sysconfig.get_paths()["stdlib"]
    files = _stdlib_files(root)
    size = sum(stat.st_size for _, _, stat in files)
    if size < _SMALLEST_STDLIB:
        raise DataError(
            f"data.source=stdlib finds only {size} bytes of Python source in {root} (this Python is zipped "
            "or minimal); train on text of your own with data.source=text data.path=FILES."
        )

    def read() -> Content:
        documents: dict[str, list[bytes]] = {"train": [], "validation": []}
        for name, path, _ in files:
            text = Path(path).read_bytes().replace(b"\r\n", b"\n")
            if text:
                documents["validation" if _is_validation(name) else "train"].append(text)
        description = f"Python {platform.python_version()} standard library, {len(files)} files, {size / 1e6:.2f} MB"
        return Content(documents, description)

    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, _, stat in files]
    return Corpus("stdlib", json.dumps([platform.python_version(), stamps]), read)


# --- text ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TextParameters:
    """Where the files are and what is held out."""

    path: str = field("", "text files: a path, a glob, or several separated by commas; .gz is unpacked")
    validation_path: str = field("", "files that are the validation split; empty: a share of data.path")
    test_path: str = field("", "files that are the test split; empty: a share of data.path")
    validation_fraction: float = field(0.1, "share of the tokens, before the test share, for validation")
    test_fraction: float = field(0.0, "share of the tokens, at the very end, for testing")


def _text_problem(section: Any) -> str | None:
    if not section.path.strip():
        return "needs data.path=FILES (a path, a glob, or several separated by commas)."
    validation, test = section.validation_fraction, section.test_fraction
    if not (validation > 0 and test >= 0 and validation + test < 1):
        return (
            f"data.validation_fraction={validation} must be above 0, data.test_fraction={test} not below 0, "
            "and their sum below 1."
        )
    return None


def find_files(pattern_list: str) -> list[str]:
    """The files a `data.path` names: patterns in the order given, the matches of each sorted, none twice."""
    found: dict[str, None] = {}
    for pattern in filter(None, (p.strip() for p in pattern_list.split(","))):
        expanded = os.path.expanduser(pattern)
        matches = [expanded] if os.path.exists(expanded) else sorted(glob.glob(expanded, recursive=True))
        files = [m for m in matches if os.path.isfile(m)]
        if not files:
            reason = f'is a folder; name its files, e.g. "{pattern}/*.txt"' if matches else "matches no file"
            raise DataError(f"data.path: {pattern!r} {reason} (looked from {os.getcwd()}).")
        found.update(dict.fromkeys(files))
    return list(found)


def files_by_split(section: Any) -> dict[str, list[str]]:
    """The files of `train`, and of `validation` and `test` where they are named; what these name is not trained on.

    Raises:
      DataError: a pattern matches no file, none is left for training, or a file is in both other splits.
    """
    patterns = {"train": section.path, "validation": section.validation_path, "test": section.test_path}
    files = {split: find_files(pattern) for split, pattern in patterns.items() if pattern}
    validation, test = ({os.path.realpath(path) for path in files.get(split, ())} for split in ("validation", "test"))
    if validation & test:
        raise DataError("data.validation_path and data.test_path name the same file; name it in one of them.")
    files["train"] = [path for path in files["train"] if os.path.realpath(path) not in validation | test]
    if not files["train"]:
        raise DataError("data.path names no file beside those of data.validation_path and data.test_path; add some.")
    return files


def read_file(path: str) -> bytes:
    """The content of a file, unpacked where its name ends in .gz.

    Raises:
      DataError: it cannot be read.
    """
    try:
        raw = Path(path).read_bytes()
        return gzip.decompress(raw) if path.endswith(".gz") else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data.path: cannot read {path!r}: {error}.") from error


def file_digest(path: str) -> str:
    """SHA-256 of a file, hex; raises DataError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"data.path: cannot read {path!r}: {error}.") from error


@SOURCES.register(
    "text", parameters=TextParameters, check=lambda config: _text_problem(config.data), unread=("data.too_long",)
)
def text(section: Data) -> Corpus:
    """Text files of your own, one document each; the end of the token stream is held out, as in nanoGPT.

    Raises:
      ConfigError: no path, or impossible fractions.
      DataError: a pattern that matches no file, an unreadable file, or nothing but empty files.
    """
    problem = _text_problem(section)
    if problem:
        raise ConfigError(f"data.source=text: {problem}")
    files = files_by_split(section)
    trained, held_out = files["train"], {split: paths for split, paths in files.items() if split != "train"}
    given = {"validation": section.validation_path, "test": section.test_path}
    cut = {"validation": section.validation_fraction, "test": section.test_fraction}
    cut = {split: share for split, share in cut.items() if split not in held_out}

    def documents_of(pattern: str, paths: list[str]) -> list[bytes]:
        documents = [document for document in map(read_file, paths) if document]
        if not documents:
            raise DataError(f"data.path={pattern!r} holds no text: {len(paths)} empty file(s) found.")
        return documents

    def read() -> Content:
        documents = {"train": documents_of(section.path, trained)}
        size = sum(map(len, documents["train"]))
        about = f"{section.path}, {len(documents['train'])} file(s), {size} bytes"
        for split, paths in held_out.items():
            documents[split] = documents_of(given[split], paths)
            about += f"; {split} {given[split]}"
        return Content(documents, about, cut)

    identity = json.dumps(
        [[file_digest(path) for path in trained], cut]
        + [[split, *map(file_digest, paths)] for split, paths in held_out.items()]
    )
    return Corpus(f"text:{section.path}", identity, read)


# --- tfds ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TfdsParameters:
    """Which data set of TensorFlow Datasets, and where it is kept."""

    tfds_name: str = field("", "builder, e.g. tiny_shakespeare, lm1b or glue/sst2")
    tfds_feature: str = field("", "text feature to read; empty: the only one there is")
    tfds_source: str = field("", "text feature from which tfds_feature is predicted, e.g. commands of scan/simple")
    tfds_label: str = field("", "feature with the label of each text, a class or a text, e.g. intent_name of clinc_oos")
    tfds_dir: str = field("", "data folder; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    tfds_download: bool = field(True, "download and prepare what the data folder lacks")


def _tfds_problem(section: Any) -> str | None:
    if not section.tfds_name.strip():
        return "needs data.tfds_name=NAME, e.g. tiny_shakespeare."
    return None


@SOURCES.register("tfds", parameters=TfdsParameters, check=lambda config: _tfds_problem(config.data))
def tfds(section: Data) -> Corpus:
    """A text feature of a TensorFlow Datasets builder, or pairs or labels; TensorFlow itself is not needed.

    Raises:
      ConfigError: no builder named.
      DataError: the set cannot be had, or holds no such text.
    """
    problem = _tfds_problem(section)
    if problem:
        raise ConfigError(f"data.source=tfds: {problem}")
    from transformer.data import tfds_source

    return tfds_source.corpus(section)


# --- tasks ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TaskParameters:
    """Which synthetic task."""

    task: str = choice("copy", "transformer.data.tasks:TASKS", "task whose rows are drawn on the device")


@SOURCES.register(
    "task",
    parameters=TaskParameters,
    traits=("drawn",),
    check=lambda config: _task_problem(config.data),
    unread=("data.vocabulary", "data.packing", "data.too_long", "data.sampling", "data.feed"),
)
def task(section: Data) -> Any:
    """A synthetic task with known answers; its rows are drawn on the device and never stored."""
    from transformer.data.tasks import make_task

    return make_task(section)


def _task_problem(section: Any) -> str | None:
    from transformer.data.tasks import TASKS

    problem = TASKS[section.task].build.refusal(section)  # type: ignore[attr-defined]
    return f"with data.task={section.task}, {problem}" if problem else None


from transformer.data import example_corpora  # noqa: E402, F401
