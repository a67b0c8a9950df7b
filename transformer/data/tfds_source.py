"""Text from TensorFlow Datasets (TFDS), prepared and read without TensorFlow.

TFDS prepares most text sets with nothing of TensorFlow but its file functions. Where TensorFlow is absent, a
stand-in for those is put behind the lazy handle TFDS uses (a private name, hence the upper bound on its
version in pyproject.toml). Whatever goes wrong ends in one `DataError`; no other corpus is ever used instead.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transformer.data.corpora import SPLITS, Content, Corpus, Example
from transformer.data.example_corpora import divide
from transformer.errors import DataError, did_you_mean
from transformer.schema import Data

VALIDATION_FRACTION = 0.1  # of the training tokens, where a set has no validation split
PROBE_SECONDS = 6.0  # how long a server may take to answer at all
NO_LABEL = -1  # what TFDS gives rows whose class is not published
_RECORDS_AT_ONCE = 4096
_OPEN_FILES = 20_000  # TFDS spills a split of more than 1 GB into about a thousand files at once
_REMEDY = "use data.source=stdlib, which needs no network"


def corpus(section: Data) -> Corpus:
    """The corpus that the `tfds_*` fields of the data section describe; TFDS is imported when it is read.

    Raises:
      DataError: the TFDS package is missing.
    """
    folder = os.path.abspath(os.path.expanduser(section.tfds_dir or default_folder()))
    try:
        version = importlib.metadata.version("tensorflow-datasets")
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError(f"data.source=tfds needs the package tensorflow-datasets; install it, or {_REMEDY}.") from error
    identity = json.dumps([section.tfds_feature, section.tfds_source, section.tfds_label, folder, version])
    return Corpus(f"tfds:{section.tfds_name}", identity, lambda: _read(section, folder))


def default_folder() -> str:
    """Where TFDS keeps its data unless told otherwise."""
    return os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")


# --- Reading -------------------------------------------------------------------------------------------


def _read(section: Data, folder: str) -> Content:
    try:
        with _file_functions(), _without_warnings():
            return _content(section, folder)
    except DataError:
        raise
    except Exception as error:  # whatever TFDS or a builder's own code may raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"data.tfds_name={section.tfds_name} cannot be had in {folder} ({reason[:300]}); mend that, "
            f"choose another data.tfds_dir, or {_REMEDY}."
        ) from error


def _content(section: Data, folder: str) -> Content:
    builder = _prepared_builder(section.tfds_name, folder, section.tfds_download)
    feature = _text_feature(builder, section.tfds_feature)
    splits = [split for split in SPLITS if split in builder.info.splits]
    if "train" not in splits:
        raise DataError(
            f"data.tfds_name={section.tfds_name} has no train split, only {', '.join(builder.info.splits)}; "
            "choose another set."
        )
    if section.tfds_source or section.tfds_label:
        return _examples(builder, splits, feature, section)
    documents = {split: _documents(builder, split, feature) for split in splits}
    if not documents["train"]:
        raise DataError(
            f"data.tfds_name={section.tfds_name}: the feature {feature!r} holds no text in its train split."
        )
    description = f"TFDS {builder.info.full_name}, feature {feature}, {len(documents['train'])} training document(s)"
    if "validation" in splits:
        return Content(documents, description)
    description += f"; no validation split, so the last {VALIDATION_FRACTION:.0%} of train serves as one"
    return Content(documents, description, {"validation": VALIDATION_FRACTION})


def _examples(builder: Any, splits: list[str], feature: str, section: Data) -> Content:
    """Pairs or labelled texts. Where a set has no validation split, the texts decide which tenth of train serves."""
    source = _text_feature(builder, section.tfds_source, "tfds_source") if section.tfds_source else ""
    label = section.tfds_label
    if label and label not in builder.info.features:
        raise DataError(
            f"data.tfds_name={builder.name}: data.tfds_label={label!r} is none of its features: "
            f"{', '.join(builder.info.features)}.{did_you_mean(label, builder.info.features)}"
        )
    rows = {split: _values(builder, split, [name for name in (feature, source, label) if name]) for split in splits}
    unlabelled = [s for s in splits if label and s != "train" and all(row[-1] == NO_LABEL for row in rows[s])]
    splits = [split for split in splits if split not in unlabelled]
    names = tuple(sorted({row[-1] for row in rows["train"]})) if label else ()
    number = {name: i for i, name in enumerate(names)}

    def examples(split: str) -> list[Example]:
        for row in rows[split]:
            if label and row[-1] not in number:
                raise DataError(
                    f"data.tfds_name={builder.name}: {split} holds the label {row[-1]!r}, which train does not."
                )
        return [Example(r[0], r[1] if source else None, number[r[-1]] if label else None) for r in rows[split]]

    parts = {split: examples(split) for split in splits}
    counts = ", ".join(f"{split} {len(part)}" for split, part in parts.items())
    description = f"TFDS {builder.info.full_name}, {' <- '.join(filter(None, (feature, source, label)))}: {counts}"
    description += "".join(f"; {split} has no labels and is left out" for split in unlabelled)
    if "validation" not in parts:
        parts.update(divide(parts["train"], lambda e: e.source or e.target, VALIDATION_FRACTION))
        description += f"; no validation split, so about {VALIDATION_FRACTION:.0%} of train serve as one"
    texts = tuple(name.decode("utf-8", errors="replace") if isinstance(name, bytes) else str(name) for name in names)
    return Content({}, description, examples=parts, labels=texts)


def _text_feature(builder: Any, wanted: str, field: str = "tfds_feature") -> str:
    """Name of the feature to read; parts of nested features are written `outer/inner`."""
    names = list(_text_features(builder.info.features))
    if wanted in names:
        return wanted
    if not wanted and len(names) == 1:
        return names[0]
    if not names:
        raise DataError(f"data.tfds_name={builder.name} has no text feature; choose another set.")
    problem = f"data.{field}={wanted!r} is none of" if wanted else f"choose one as data.{field} from"
    hint = did_you_mean(wanted, names) if wanted else ""
    raise DataError(f"data.tfds_name={builder.name}: {problem} its text features: {', '.join(names)}.{hint}")


def _text_features(features: Any, prefix: str = "") -> Iterator[str]:
    import tensorflow_datasets as tfds

    for name, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _text_features(feature, f"{prefix}{name}/")
        elif isinstance(feature, tfds.features.Text):
            yield prefix + name


def _documents(builder: Any, split: str, feature: str) -> list[bytes]:
    """The non-empty texts of a split."""
    return [text for (text,) in _values(builder, split, [feature]) if text]


def _values(builder: Any, split: str, features: list[str]) -> list[tuple[Any, ...]]:
    """The values of some features of every record: bytes, or int for a class. Parsing records here is about ten times
    as fast as TFDS's decoding."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        for record in records.__getitems__(range(start, min(start + _RECORDS_AT_ONCE, len(records)))):
            stored = tf_example_pb2.Example.FromString(record).features.feature
            rows.append(tuple((*stored[f].bytes_list.value, *stored[f].int64_list.value, b"")[0] for f in features))
    return rows


# --- Preparing -----------------------------------------------------------------------------------------


def _prepared_builder(name: str, folder: str, download: bool) -> Any:
    """A builder whose ArrayRecord files lie in `folder`, downloaded and prepared first if need be."""
    import tensorflow_datasets as tfds

    # Builders of these sub-packages are not found by name before the import, unless TensorFlow is there.
    import tensorflow_datasets.summarization
    import tensorflow_datasets.text
    import tensorflow_datasets.translate

    tfds.disable_progress_bar()
    known = tfds.list_builders(with_community_datasets=False)
    base = name.split("/")[0].split(":")[0]
    if base not in known and not os.path.isdir(os.path.join(folder, base)):
        raise DataError(f"data.tfds_name={name!r} is no TFDS builder.{did_you_mean(base, known)}")
    builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    if not builder.is_prepared():
        if not download:
            raise DataError(
                f"data.tfds_name={name} is not prepared in {folder} and data.tfds_download=False forbids "
                f"fetching it; allow that once where there is a network, or {_REMEDY}."
            )
        _prepare(builder, name, folder)
    return builder


def _prepare(builder: Any, name: str, folder: str) -> None:
    """Downloads and prepares, and leaves no empty folders behind when that fails."""
    unreachable: list[str] = []
    existed = os.path.isdir(folder)
    _allow_open_files()
    try:
        # TFDS prints to stdout, which belongs to the commands.
        with _watched_downloads(unreachable), contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
    except Exception as error:
        if unreachable:
            raise DataError(
                f"data.tfds_name={name} is not in {folder} and its source is out of reach: {unreachable[0]}. "
                f"Try again with a network, or {_REMEDY}."
            ) from error
        raise
    finally:
        if not builder.is_prepared():
            _remove_empty_folders(os.path.join(folder, "downloads"))
            _remove_empty_folders(os.path.join(folder, builder.name))
            if not existed:
                _remove_empty_folders(folder)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps absl's warnings off the screen: TFDS warns of every set that is not prepared yet."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _remove_empty_folders(root: str) -> None:
    """Removes every folder at or below `root` that holds no file."""
    for path, _, _ in os.walk(root, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(path)


def _allow_open_files() -> None:
    """Raises the soft limit on open files as far as needed and allowed."""
    if importlib.util.find_spec("resource") is None:  # not on Windows
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def _watched_downloads(unreachable: list[str]) -> Iterator[None]:
    """Asks each server for a sign of life before TFDS downloads from it, and notes those that give none.

    TFDS would try ten times, more than three minutes, and wait without limit where a firewall drops packets.
    """
    from tensorflow_datasets.core.download import downloader

    open_url = downloader._open_url

    def open_if_alive(url: str, **kwargs: Any) -> Any:
        problem = _probe(url)
        if problem:
            unreachable.append(f"{url} ({problem})")
            raise ConnectionError(unreachable[-1])
        return open_url(url, **kwargs)

    downloader._open_url = open_if_alive
    try:
        yield
    finally:
        downloader._open_url = open_url


def _probe(url: str) -> str | None:
    """What keeps `url` from answering within PROBE_SECONDS, or None. Only http addresses are asked."""
    if not url.startswith("http"):
        return None
    import requests

    problem: list[str | None] = []

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=PROBE_SECONDS) as response:
                down = response.status_code in (500, 502, 503, 504)
                problem.append(f"it answers {response.status_code}" if down else None)
        except requests.RequestException as error:
            problem.append(type(error).__name__)

    # In a thread of its own, because no timeout of `requests` covers a name server that does not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 0.5)
    return problem[0] if problem else f"no answer in {PROBE_SECONDS:g} seconds"


# --- The stand-in for TensorFlow's file functions ------------------------------------------------------


@contextlib.contextmanager
def _file_functions() -> Iterator[None]:
    """Lends TFDS the file functions of TensorFlow while none is installed."""
    if importlib.util.find_spec("tensorflow"):
        yield
        return
    from tensorflow_datasets.core.utils import lazy_imports_utils

    # Not sys.modules["tensorflow"]: TFDS takes that as a sign that tensors may come along, and fails on them.
    handle = lazy_imports_utils.tensorflow.__dict__
    handle["_module"] = _stand_in()
    try:
        yield
    finally:
        handle.pop("_module", None)


class _File:
    """tf.io.gfile.GFile for local files: text is UTF-8 and line ends are left as they are."""

    def __init__(self, name: str | os.PathLike, mode: str = "r"):
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
        self._file: Any = open(os.fspath(name), mode, encoding=encoding, newline=newline)  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


def _stand_in() -> types.SimpleNamespace:
    """As much of the `tensorflow` module as TFDS's downloader, extractor and text builders touch."""

    def as_text(value: str | bytes, encoding: str = "utf-8") -> str:
        return value.decode(encoding) if isinstance(value, bytes) else value

    gfile = types.SimpleNamespace(
        GFile=_File,
        exists=os.path.exists,
        isdir=os.path.isdir,
        listdir=os.listdir,
        glob=lambda pattern: sorted(glob.glob(os.fspath(pattern))),
        remove=os.remove,
        rmtree=shutil.rmtree,
        makedirs=lambda path: Path(path).mkdir(parents=True, exist_ok=True),
        copy=lambda source, target, overwrite=False: shutil.copyfile(source, target),
    )
    errors = (
        "UnimplementedError FailedPreconditionError PermissionDeniedError AbortedError "
        "ResourceExhaustedError NotFoundError"
    )
    return types.SimpleNamespace(
        io=types.SimpleNamespace(gfile=gfile),
        compat=types.SimpleNamespace(
            as_text=as_text, as_str_any=lambda x: as_text(x) if isinstance(x, bytes) else str(x)
        ),
        errors=types.SimpleNamespace(**{name: type(name, (Exception,), {}) for name in errors.split()}),
        bool=np.bool_,
        int32=np.int32,
        int64=np.int64,
        float32=np.float32,
    )
