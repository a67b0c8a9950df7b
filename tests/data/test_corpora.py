"""Sources of text: what is found, how it is split, and what the user is told when it is not there."""

import gzip
import subprocess
import sys
import types

import numpy as np
import pytest

from tests.data.helpers import section
from transformer.data import corpora, dataset
from transformer.data.corpora import SOURCES
from transformer.errors import ConfigError, DataError


def load_text(tmp_path, path, **values):
    return dataset.load(section("text", path=str(path), **values), tmp_path / "cache")


def whole(data):
    return np.concatenate(list(data.splits.values()))


# --- stdlib --------------------------------------------------------------------------------------------


def test_stdlib_has_the_expected_size_and_validation_share():
    documents = SOURCES.build("stdlib", section()).documents
    sizes = {split: sum(map(len, texts)) for split, texts in documents.items()}
    total = sum(sizes.values())
    assert set(sizes) == {"train", "validation"}
    assert 5e6 < total < 1.2e7
    assert 0.04 < sizes["validation"] / total < 0.06


def test_stdlib_never_splits_a_module():
    names = [name for name, _, _ in corpora._stdlib_files(corpora.sysconfig.get_paths()["stdlib"])]
    sides = {}
    for name in names:
        sides.setdefault(name.split("/")[0].removesuffix(".py"), set()).add(corpora._is_validation(name))
    held_out = {module for module, side in sides.items() if side == {True}}
    assert all(len(side) == 1 for side in sides.values())
    assert {"json", "logging", "collections", "queue", "struct"} <= held_out
    assert "site-packages" not in {part for name in names for part in name.split("/")}


def test_stdlib_separates_documents_with_eos(tmp_path):
    data = dataset.load(section(), tmp_path)
    documents = SOURCES.build("stdlib", section()).documents["validation"]
    assert (data.splits["validation"] == data.vocabulary.eos).sum() == len(documents) - 1
    first = data.splits["validation"][: len(documents[0]) + 1]
    assert data.vocabulary.decode(first) == documents[0].decode()
    assert first[-1] == data.vocabulary.eos


def test_stripped_python_names_the_way_out(monkeypatch, tmp_path):
    (tmp_path / "only.py").write_text("x = 1\n")
    monkeypatch.setattr(corpora.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match=r"data\.source=text data\.path="):
        SOURCES.build("stdlib", section())


# --- text ----------------------------------------------------------------------------------------------


def test_one_file_is_cut_at_its_end_as_in_nanogpt(tmp_path):
    text = bytes(np.random.default_rng(0).integers(32, 127, 10_007, dtype=np.uint8))
    (tmp_path / "input.txt").write_bytes(text)
    data = load_text(tmp_path, tmp_path / "input.txt", sequence_length=16)
    n = len(text)
    assert bytes(data.splits["train"].astype(np.uint8)) == text[: int(n * 0.9)]
    assert bytes(data.splits["validation"].astype(np.uint8)) == text[int(n * 0.9) :]
    assert "test" not in data.splits


def test_test_fraction_is_the_very_end(tmp_path):
    (tmp_path / "input.txt").write_bytes(bytes(range(100)) * 10)
    data = load_text(tmp_path, tmp_path / "input.txt", sequence_length=8, validation_fraction=0.2, test_fraction=0.1)
    assert [(split, len(tokens)) for split, tokens in data.splits.items()] == [
        ("train", 700),
        ("validation", 200),
        ("test", 100),
    ]
    assert data.splits["test"].tolist() == list(range(100))


def test_a_test_share_and_a_validation_file_do_not_mix(tmp_path):
    """On disk the share lies before the file."""
    (tmp_path / "train.txt").write_bytes(b"t" * 900 + b"e" * 100)
    (tmp_path / "validation.txt").write_bytes(b"v" * 200)
    held_out = {"validation_path": f"{tmp_path}/validation.txt", "test_fraction": 0.1}
    for _ in range(2):  # made, then read from the cache
        data = load_text(tmp_path, tmp_path / "train.txt", sequence_length=8, **held_out)
        found = {split: set(bytes(tokens.astype(np.uint8))) for split, tokens in data.splits.items()}
        assert list(found.items()) == [("train", {ord("t")}), ("validation", {ord("v")}), ("test", {ord("e")})]


def test_cutting_never_tears_a_character(tmp_path):
    (tmp_path / "input.txt").write_text("äöü€" * 101, encoding="utf-8")
    data = load_text(tmp_path, tmp_path / "input.txt", sequence_length=4, vocabulary="characters")
    assert len(data.splits["train"]) == int(404 * 0.9)
    assert data.vocabulary.decode(whole(data)) == "äöü€" * 101


def test_globs_lists_and_gzip_are_documents_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("bbbb" * 10)
    (tmp_path / "a.txt").write_text("aaaa" * 10)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"cccc" * 10))
    data = load_text(tmp_path, f"{tmp_path}/*.txt, {tmp_path}/c.txt.gz", sequence_length=4)
    eos = data.vocabulary.eos
    expected = [ord("a")] * 40 + [eos] + [ord("b")] * 40 + [eos] + [ord("c")] * 40
    assert whole(data).tolist() == expected


def test_changing_a_file_changes_the_tokens(tmp_path):
    path = tmp_path / "input.txt"
    path.write_text("abcd" * 100)
    stat = path.stat()
    before = load_text(tmp_path, path, sequence_length=8)
    path.write_text("abce" * 100)
    corpora.os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a careless copy would leave it
    after = load_text(tmp_path, path, sequence_length=8)
    assert before.fingerprint != after.fingerprint
    assert "e" in after.vocabulary.decode(after.splits["train"])


@pytest.mark.parametrize("pattern", ["missing.txt", "*.nothing", "input.txt,missing.txt"])
def test_a_missing_file_is_named(tmp_path, monkeypatch, pattern):
    (tmp_path / "input.txt").write_text("text " * 100)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data\.path: '(missing\.txt|\*\.nothing)' matches no file"):
        load_text(tmp_path, pattern)


def test_a_folder_is_refused_with_the_pattern_to_write(tmp_path):
    with pytest.raises(DataError, match=r"is a folder; name its files, e\.g\. .*/\*\.txt"):
        load_text(tmp_path, tmp_path)


def test_empty_and_tiny_files(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="holds no text"):
        load_text(tmp_path, tmp_path / "empty.txt")
    (tmp_path / "tiny.txt").write_text("0123456789" * 10)
    message = r"train 90, validation 10, but one window takes data\.sequence_length \+ 1 = 257.*shorter"
    with pytest.raises(DataError, match=message):
        load_text(tmp_path, tmp_path / "tiny.txt", sequence_length=256)
    assert load_text(tmp_path, tmp_path / "tiny.txt", sequence_length=9).splits["validation"].size == 10


def test_a_torn_gzip_file_is_named(tmp_path):
    (tmp_path / "torn.gz").write_bytes(gzip.compress(b"text " * 1000)[:-20])
    with pytest.raises(DataError, match=r"cannot read .*torn\.gz"):
        load_text(tmp_path, tmp_path / "torn.gz")


@pytest.mark.parametrize(
    ("source", "values", "message"),
    [
        ("text", {}, r"needs data\.path"),
        (
            "text",
            {"path": "x", "validation_fraction": 0.0},
            r"data\.validation_fraction=0\.0 must be above 0",
        ),
        ("text", {"path": "x", "test_fraction": 0.95}, "sum below 1"),
        ("tfds", {}, r"needs data\.tfds_name"),
    ],
)
def test_incomplete_parameters_are_config_errors(source, values, message):
    wrong = section(source, **values)
    problem = SOURCES[source].check(types.SimpleNamespace(data=wrong))
    assert problem
    with pytest.raises(ConfigError, match=message):
        SOURCES.build(source, wrong)


def test_importing_the_data_room_imports_nothing_heavy():
    code = (
        "import sys, transformer.data.vocabularies, transformer.data.tfds_source\n"
        "print('jax' in sys.modules)\n"
        "import transformer.data.dataset, transformer.data.batching\n"
        "print({'grain', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "set()"]
