"""TFDS without TensorFlow and without a network: real builders over tiny archives, and telling errors."""

import importlib.util
import io
import os
import shutil
import socket
import sys
import tarfile
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import requests

from tests.data.helpers import real_data, section
from transformer.data import dataset, tfds_source
from transformer.errors import DataError

without_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None,
    reason="TensorFlow is installed, so nothing stands in for it",
)


def seed_downloads(folder, name, content):
    """Puts `content` where TFDS looks for the one file of a builder it has downloaded before."""
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.core.download import resource

    ((url, info),) = tfds.builder_cls(name).url_infos.items()
    path = epath.Path(folder) / "downloads" / name / resource.get_dl_fname(url, info.checksum)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    resource.write_info_file(url=url, path=path, dataset_name=name, original_fname=os.path.basename(url), url_info=info)


def tfds_section(folder, name="tiny_shakespeare", **values):
    return section("tfds", tfds_name=name, tfds_dir=str(folder), sequence_length=16, **values)


# --- Preparing and reading -----------------------------------------------------------------------------


@without_tensorflow
def test_a_text_file_is_prepared_and_equals_the_same_file_read_as_text(tmp_path):
    text = ("To be, or not to be: that is the question.\n" * 400).encode()
    seed_downloads(tmp_path / "data", "tiny_shakespeare", text)
    (tmp_path / "input.txt").write_bytes(text)
    data = dataset.load(tfds_section(tmp_path / "data", vocabulary="characters"), tmp_path / "cache")
    same = section(
        "text",
        path=str(tmp_path / "input.txt"),
        vocabulary="characters",
        sequence_length=16,
        validation_fraction=0.05,
        test_fraction=0.05,
    )
    twin = dataset.load(same, tmp_path / "cache")
    assert {split: len(tokens) for split, tokens in data.splits.items()} == {
        "train": 15_480,
        "validation": 860,
        "test": 860,
    }
    assert data.vocabulary.eos is None
    assert data.fingerprint == twin.fingerprint
    assert "tensorflow" not in sys.modules


@without_tensorflow
def test_an_archive_is_unpacked_and_a_missing_validation_split_is_cut_from_train(tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        folders = {"train/pos": 40, "train/neg": 40, "train/unsup": 3, "test/pos": 10, "test/neg": 10}
        for name, count in folders.items():
            for i in range(count):
                review = f"{name} review number {i:03d}".encode()
                entry = tarfile.TarInfo(f"aclImdb/{name}/{i}_7.txt")
                entry.size = len(review)
                tar.addfile(entry, io.BytesIO(review))
    seed_downloads(tmp_path, "imdb_reviews", archive.getvalue())
    data = dataset.load(tfds_section(tmp_path, "imdb_reviews"), tmp_path / "cache")
    train, validation, test = (data.splits[s] for s in ("train", "validation", "test"))
    joined = np.concatenate([train, validation])
    assert len(train) == int(len(joined) * 0.9)
    assert (joined == data.vocabulary.eos).sum() == 79
    assert "no validation split, so the last 10% of train" in data.description
    pieces = np.split(test, np.flatnonzero(test == data.vocabulary.eos))
    reviews = {data.vocabulary.decode(piece) for piece in pieces}
    assert reviews == {f"test/{label} review number {i:03d}" for label in ("pos", "neg") for i in range(10)}


def test_cached_tokens_need_neither_tfds_nor_its_data(tmp_path, monkeypatch):
    seed_downloads(tmp_path / "data", "tiny_shakespeare", b"All the world's a stage. " * 100)
    first = dataset.load(tfds_section(tmp_path / "data"), tmp_path / "cache")
    shutil.rmtree(tmp_path / "data")
    monkeypatch.setattr(tfds_source, "_read", lambda *_: pytest.fail("TFDS was asked again"))
    assert dataset.load(tfds_section(tmp_path / "data"), tmp_path / "cache").fingerprint == first.fingerprint


def test_a_set_with_several_texts_asks_which(tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder("scan/simple", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"data\.tfds_name=scan: choose one as data\.tfds_feature from .*commands"):
        tfds_source._text_feature(builder, "")
    with pytest.raises(DataError, match=r'data\.tfds_feature=.comands. is none of .* Did you mean "commands"'):
        tfds_source._text_feature(builder, "comands")
    assert tfds_source._text_feature(builder, "actions") == "actions"


# --- Errors --------------------------------------------------------------------------------------------


def load_offline(folder, **values):
    """The message of the error, and how long it took to come."""
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        dataset.load(tfds_section(folder, **values), folder.parent / "cache")
    return str(caught.value), time.perf_counter() - start


def check_message(message, folder):
    assert str(folder) in message
    assert "tiny_shakespeare" in message
    assert "https://raw.githubusercontent.com/karpathy/char-rnn/" in message
    assert "data.source=stdlib" in message
    assert "\n" not in message


def test_a_split_without_labels_is_left_out(monkeypatch):
    """As the test split of GLUE's sets, whose rows all hold -1."""
    rows = {"train": [(b"good", 1), (b"bad", 0)], "validation": [(b"fine", 1)], "test": [(b"what", -1), (b"else", -1)]}
    monkeypatch.setattr(tfds_source, "_values", lambda builder, split, names: rows[split])
    info = SimpleNamespace(full_name="glue/sst2/2.0.0", features={"label": None})
    builder = SimpleNamespace(name="glue", info=info)
    read = tfds_source._examples(builder, list(rows), "sentence", section(tfds_label="label"))
    assert read.examples.keys() == {"train", "validation"} and "test has no labels and is left out" in read.description
    rows["test"][0] = (b"what", 2)
    with pytest.raises(DataError, match="test holds the label 2, which train does not"):
        tfds_source._examples(builder, list(rows), "sentence", section(tfds_label="label"))


def test_offline_fails_fast_and_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise requests.ConnectionError("name resolution failed")

    monkeypatch.setattr(requests, "get", no_network)
    message, seconds = load_offline(tmp_path / "data")
    check_message(message, tmp_path / "data")
    assert seconds < 10
    assert not (tmp_path / "data").exists()


def test_a_firewall_that_swallows_packets_is_given_up_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        message, seconds = load_offline(tmp_path / "data")
    check_message(message, tmp_path / "data")
    assert seconds < 5


def test_a_name_server_that_never_answers_is_given_up_on(monkeypatch):
    monkeypatch.setattr(tfds_source, "PROBE_SECONDS", 0.1)
    forever = threading.Event()

    def hang(*_, **__):
        forever.wait(30)
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "get", hang)
    start = time.perf_counter()
    assert tfds_source._probe("https://example.org/") == "no answer in 0.1 seconds"
    assert time.perf_counter() - start < 5
    forever.set()


def test_failure_keeps_what_was_there(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "_probe", lambda url: "down")
    other = tmp_path / "data" / "downloads" / "other" / "file.txt"
    other.parent.mkdir(parents=True)
    other.write_text("downloaded earlier")
    load_offline(tmp_path / "data")
    assert set((tmp_path / "data").rglob("*")) == {other, other.parent, other.parent.parent}


def test_download_forbidden(tmp_path):
    message, _ = load_offline(tmp_path / "data", tfds_download=False)
    assert "is not prepared in" in message
    assert "data.tfds_download=False forbids" in message
    assert str(tmp_path / "data") in message


def test_unknown_builder_suggests_the_right_one(tmp_path):
    start = time.perf_counter()
    with pytest.raises(DataError, match=r'is no TFDS builder\. Did you mean "tiny_shakespeare"'):
        dataset.load(tfds_section(tmp_path, "tiny_shakspeare"), tmp_path / "cache")
    assert time.perf_counter() - start < 10


def test_whatever_a_builder_raises_becomes_one_sentence(tmp_path):
    seed_downloads(tmp_path, "imdb_reviews", b"this is no archive")
    with pytest.raises(DataError) as caught:
        dataset.load(tfds_section(tmp_path, "imdb_reviews"), tmp_path / "cache")
    assert "imdb_reviews cannot be had in" in str(caught.value)
    assert "data.source=stdlib" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- The real thing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [False, True], ids=["prepared-here", "prepared-before"])
def test_real_tiny_shakespeare_is_the_same_through_text_and_tfds(tmp_path, prepared):
    source = real_data()
    folder = source / "tfds_prepared"
    if not prepared:
        folder = tmp_path / "data"
        shutil.copytree(source / "tfds_cache", folder)
    data = dataset.load(tfds_section(folder, vocabulary="characters"), tmp_path / "cache")
    path = str(source / "tiny_shakespeare" / "input.txt")
    fractions = {"validation_fraction": 0.05, "test_fraction": 0.05}
    twin = dataset.load(
        section("text", path=path, vocabulary="characters", sequence_length=16, **fractions),
        tmp_path / "cache",
    )
    assert data.vocabulary.size == twin.vocabulary.size == 65
    assert {s: len(t) for s, t in data.splits.items()} == {
        "train": 1_003_854,
        "validation": 55_770,
        "test": 55_770,
    }
    assert all(np.array_equal(data.splits[s], twin.splits[s]) for s in data.splits)
    assert data.fingerprint == twin.fingerprint


def test_a_source_is_not_a_label():
    """Their rows lie in the cache under names of their own."""
    named = [
        tfds_source.corpus(tfds_section("data", **{field: "x"})).identity for field in ("tfds_source", "tfds_label")
    ]
    assert named[0] != named[1]
