"""The token cache: made once, found again, never trusted when damaged, never required."""

import concurrent.futures
import errno
import json
import math
import os
import shutil
import time
import warnings

import numpy as np
import pytest

from tests.data.helpers import section
from transformer.data import corpora, dataset


@pytest.fixture
def text(tmp_path):
    """A data section over two small files."""
    rng = np.random.default_rng(0)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(bytes(rng.integers(97, 107, 3000, dtype=np.uint8)))
    return section("text", path=f"{tmp_path}/*.txt", sequence_length=32)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def same(a, b):
    return (
        a.fingerprint == b.fingerprint
        and (a.name, a.description) == (b.name, b.description)
        and a.vocabulary.to_dict() == b.vocabulary.to_dict()
        and list(a.splits) == list(b.splits)
        and all(np.array_equal(a.splits[s], b.splits[s]) for s in a.splits)
    )


@pytest.mark.parametrize("vocabulary", ["bytes", "characters"])
def test_second_load_reads_the_cache_and_not_the_text(text, cache, monkeypatch, vocabulary):
    text = section(**{**dict(text.options), "source": "text", "vocabulary": vocabulary, "sequence_length": 32})
    first = dataset.load(text, cache)
    monkeypatch.setattr(corpora, "read_file", lambda path: pytest.fail("the text was read again"))
    second = dataset.load(text, cache)
    assert same(first, second)
    assert isinstance(second.splits["train"], np.memmap)
    assert not second.splits["train"].flags.writeable
    assert second.splits["train"].dtype == (np.uint16 if vocabulary == "bytes" else np.uint8)
    assert len(second.fingerprint) == 12
    assert [p.name for p in cache.iterdir() if p.name.startswith(".")] == []


def test_default_place_follows_xdg(text, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    dataset.load(text)
    assert len(list((tmp_path / "xdg" / "whatif-transformers" / "tokens").iterdir())) == 1


def _truncate(entry):
    os.truncate(entry / "tokens.bin", 100)


def _flip_a_bit(entry):
    raw = bytearray((entry / "tokens.bin").read_bytes())
    raw[1000] ^= 1
    (entry / "tokens.bin").write_bytes(raw)


def _move_a_boundary(entry):
    meta = json.loads((entry / "meta.json").read_text())
    meta["lengths"]["train"] -= 1
    meta["lengths"]["validation"] += 1
    (entry / "meta.json").write_text(json.dumps(meta))


def _tear_meta(entry):
    os.truncate(entry / "meta.json", 30)


def _lose_meta(entry):
    (entry / "meta.json").unlink()


def _foreign_vocabulary(entry):
    meta = json.loads((entry / "meta.json").read_text())
    (entry / "meta.json").write_text(json.dumps({**meta, "vocabulary": {"name": "runes"}}))


@pytest.mark.parametrize(
    "damage", [_truncate, _flip_a_bit, _move_a_boundary, _tear_meta, _lose_meta, _foreign_vocabulary]
)
def test_a_damaged_entry_is_rebuilt_with_a_warning(text, cache, damage):
    first = dataset.load(text, cache)
    intact = {split: np.array(tokens) for split, tokens in first.splits.items()}
    (entry,) = cache.iterdir()
    damage(entry)
    with pytest.warns(UserWarning, match="rebuilding the cached tokens"):
        second = dataset.load(text, cache)
    assert second.fingerprint == first.fingerprint
    assert all(np.array_equal(second.splits[s], intact[s]) for s in intact)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(dataset.load(text, cache), second)


def test_a_truncated_entry_is_noticed_without_hashing_it(text, cache, monkeypatch):
    monkeypatch.setattr(dataset, "_HASHED_ON_LOAD", 0)  # as for a corpus of many gigabytes
    first = dataset.load(text, cache)
    (entry,) = cache.iterdir()
    os.rename(entry / "tokens.bin", entry / "torn")  # leaves the mapped file of `first` alone
    (entry / "tokens.bin").write_bytes((entry / "torn").read_bytes()[:-2])
    with pytest.warns(UserWarning, match=r"tokens\.bin has 12000 bytes instead of 12002"):
        assert same(dataset.load(text, cache), first)


def test_an_unwritable_folder_only_means_no_cache(text, cache, tmp_path):
    (tmp_path / "file").write_text("in the way")
    without = dataset.load(text, tmp_path / "file" / "tokens")
    assert same(without, dataset.load(text, cache))
    assert not without.splits["train"].flags.writeable


def test_a_full_disk_leaves_nothing_behind(text, cache, monkeypatch):
    write = dataset._write_tokens

    def disk_full_then_fine(file, *rest):
        if getattr(file, "name", None):
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, *rest)

    monkeypatch.setattr(dataset, "_write_tokens", disk_full_then_fine)
    data = dataset.load(text, cache)
    assert list(cache.iterdir()) == []
    monkeypatch.undo()
    assert same(data, dataset.load(text, cache))


def test_many_may_fill_the_cache_at_once(text, cache):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda _: dataset.load(text, cache), range(8)))
    assert all(same(data, loaded[0]) for data in loaded)
    assert len(list(cache.iterdir())) == 1


def test_a_neighbour_who_was_first_is_no_problem(text, cache, monkeypatch):
    def neighbour_first(source, target):
        shutil.copytree(source, target)
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(dataset.os, "rename", neighbour_first)
    data = dataset.load(text, cache)
    assert isinstance(data.splits["train"], np.memmap)
    assert [path.name.startswith(".") for path in cache.iterdir()] == [False]


def test_fingerprint_is_about_tokens_and_not_about_where_they_came_from(text, cache, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("a.txt", "b.txt"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    original = dataset.load(text, cache)
    copied = dataset.load(section("text", path=f"{copy}/*.txt", sequence_length=32), cache)
    assert copied.fingerprint == original.fingerprint
    split_elsewhere = section(
        "text", path=f"{copy}/*.txt", sequence_length=32, validation_fraction=0.1, test_fraction=0.1
    )
    assert dataset.load(split_elsewhere, cache).fingerprint != original.fingerprint
    characters = section("text", path=f"{copy}/*.txt", sequence_length=32, vocabulary="characters")
    assert dataset.load(characters, cache).fingerprint != original.fingerprint


def test_warm_stdlib_is_fast(tmp_path):
    times = []
    for _ in range(6):
        start = time.perf_counter()
        dataset.load(section(), tmp_path)
        times.append(time.perf_counter() - start)
    assert min(times[1:]) < times[0] / 2, times  # 0.05 s on a fast machine


def test_bounds_of_real_text(tmp_path):
    marks = dataset.load(section(), tmp_path).bounds("validation")
    assert 2.5 < marks["unigram"] < math.log(128)
    assert 2.0 < marks["bigram"] < marks["unigram"] - 0.5
