"""Pairs and labelled texts from files and from TFDS: what is read, what is held out, what is refused."""

import gzip
import zipfile

import pytest

from tests.data.helpers import real_data, section
from transformer.data.corpora import SOURCES, Example
from transformer.errors import ConfigError, DataError

# A little of a language, with sentences that have several translations on either side.
PAIRS = [(f"word {i % 90} here", f"mot {i % 70} {i // 90} ici") for i in range(180)]


def content(source, **values):
    return SOURCES.build(source, section(source, **values)).content


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join(f"{a}\t{b}\tattribution" for a, b in PAIRS) + "\n\n", encoding="utf-8")
    return str(path)


def sides(examples):
    return {e.source.lower() for e in examples}, {e.target.lower() for e in examples}


def test_no_sentence_stands_on_two_sides(pairs_file):
    read = content("pairs", path=pairs_file, validation_fraction=0.2, test_fraction=0.2)
    parts = {split: sides(examples) for split, examples in read.examples.items()}
    assert list(parts) == ["train", "validation", "test"]
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for one, other in zip(parts[a], parts[b], strict=True):
            assert not one & other, (a, b)
    kept = sum(map(len, read.examples.values()))
    assert 0 < 180 - kept < 90 and f"{180 - kept} left out" in read.description
    whole = content("pairs", path=pairs_file, validation_fraction=0.2, test_fraction=0.2, distinct_targets=False)
    assert sum(map(len, whole.examples.values())) == 180  # the check above has something to find
    assert sides(whole.examples["train"])[1] & sides(whole.examples["test"])[1]


def test_a_file_that_is_held_out_leaks_no_better(pairs_file, tmp_path):
    held = tmp_path / "held.tsv"
    held.write_text("".join(f"another {a}\t{b}\n" for a, b in PAIRS[:10]), encoding="utf-8")
    for name in ("validation_path", "test_path"):
        read = content("pairs", path=pairs_file, **{name: str(held)})
        targets = {b.lower().encode() for _, b in PAIRS[:10]}
        assert not targets & {e.target.lower() for e in read.examples["train"]}
        whole = content("pairs", path=pairs_file, distinct_targets=False, **{name: str(held)})
        assert targets & {e.target.lower() for e in whole.examples["train"]}


def test_the_split_depends_on_the_sentence_and_on_nothing_else(pairs_file, tmp_path):
    shuffled = tmp_path / "shuffled.tsv"
    lines = [f"{a.upper()} \t{b}" for a, b in PAIRS]
    shuffled.write_text("\n".join(lines[::-1] + lines[:20]), encoding="utf-8")  # other case, order, and repetitions
    one, other = (content("pairs", path=path) for path in (pairs_file, str(shuffled)))
    for split in one.examples:
        assert sides(one.examples[split]) == sides(other.examples[split])
    assert len(other.examples["train"]) == len(one.examples["train"])


def test_columns_can_be_swapped_and_archives_are_opened(pairs_file, tmp_path):
    with zipfile.ZipFile(tmp_path / "pairs.zip", "w") as archive:
        archive.write(pairs_file, "fra.txt")
        archive.writestr("_about.txt", "no pairs in here")
    plain, zipped = content("pairs", path=pairs_file), content("pairs", path=str(tmp_path / "pairs.zip"))
    assert plain.examples == zipped.examples
    assert Example(b"mot 0 0 ici", b"word 0 here") in [e for part in plain.examples.values() for e in part]
    swapped = content("pairs", path=pairs_file, swap=True)
    assert Example(b"word 0 here", b"mot 0 0 ici") in [e for part in swapped.examples.values() for e in part]


def test_commands_and_actions_keep_the_test_split_they_come_with(tmp_path):
    (tmp_path / "train.txt.gz").write_bytes(
        gzip.compress("\n".join(f"IN: walk {i} OUT: I_WALK I_{i % 5}" for i in range(60)).encode())
    )
    (tmp_path / "test.txt").write_text("IN: walk 99 OUT: I_WALK I_4\n")
    read = content("pairs", path=f"{tmp_path}/train.txt.gz", test_path=f"{tmp_path}/test.txt", distinct_targets=False)
    assert read.examples["test"] == [Example(b"I_WALK I_4", b"walk 99")]
    assert len(read.examples["train"]) + len(read.examples["validation"]) == 60
    assert not sides(read.examples["train"])[0] & sides(read.examples["validation"])[0]


def archive_of_labels(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, rows in files.items():
            text = "text,intent,intent_name\r\n" + "".join(f'"{text}",0,{label}\r\n' for text, label in rows)
            archive.writestr(f"{name}.csv", text)
    return str(path)


def test_labels_are_numbered_by_name_and_splits_by_the_names_of_files(tmp_path):
    path = archive_of_labels(
        tmp_path / "intents.zip",
        train=[("play, a song", "music"), ("is it raining", "weather"), ("play, a song", "music")],
        train_ood=[("what is love", "oos")],
        val=[("will it snow", "weather")],
        test=[("sing", "music")],
        test_ood=[("why", "oos")],
    )
    read = content("labelled", path=path)
    assert read.labels == ("music", "oos", "weather")
    assert read.examples == {
        "train": [
            Example(b"play, a song", None, 0),
            Example(b"is it raining", None, 2),
            Example(b"what is love", None, 1),
        ],
        "validation": [Example(b"will it snow", None, 2)],
        "test": [Example(b"sing", None, 0), Example(b"why", None, 1)],
    }
    within = content("labelled", path=path, out_of_scope=False)
    assert within.labels == ("music", "weather") and [e.label for e in within.examples["test"]] == [0]


def test_labelled_files_without_a_validation_split_give_up_a_share(tmp_path):
    path = tmp_path / "all.csv"
    path.write_text("text,intent_name\n" + "".join(f"text number {i},{'ab'[i % 2]}\n" for i in range(100)))
    read = content("labelled", path=str(path), validation_fraction=0.3)
    assert len(read.examples["train"]) + len(read.examples["validation"]) == 100
    assert 15 < len(read.examples["validation"]) < 45


@pytest.mark.parametrize("named", ["val", "test"])
def test_what_no_file_is_named_for_is_a_share(tmp_path, named):
    """And no row is lost."""
    rows = {"train": [(f"text {i}", "ab"[i % 2]) for i in range(100)], named: [("other", "a")]}
    path = archive_of_labels(tmp_path / "some.zip", **rows)
    read = content("labelled", path=path, validation_fraction=0.2, test_fraction=0.2)
    sizes = {split: len(part) for split, part in read.examples.items()}
    given = {"val": "validation"}.get(named, named)
    assert sizes.keys() == {"train", "validation", "test"} and sizes[given] == 1 and sum(sizes.values()) == 101
    assert all(size > 5 for split, size in sizes.items() if split != given)


def test_text_files_may_be_the_validation_split(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name} text\n" * 20)
    read = content(
        "text", path=f"{tmp_path}/train.txt", validation_path=f"{tmp_path}/valid.txt", test_path=f"{tmp_path}/test.txt"
    )
    assert {split: documents[0][:5] for split, documents in read.documents.items()} == {
        "train": b"train",
        "validation": b"valid",
        "test": b"test ",
    }
    assert not read.cut
    partly = content("text", path=f"{tmp_path}/train.txt", test_path=f"{tmp_path}/test.txt")
    assert set(partly.documents) == {"train", "test"} and partly.cut == {"validation": 0.1}


def test_what_is_held_out_is_not_trained_on(tmp_path):
    for name in ("one", "two", "valid"):
        (tmp_path / f"{name}.txt").write_text(f"{name} text\n" * 20)
        (tmp_path / f"{name}.csv").write_text(f"text,intent_name\n{name} text,a\n")
    (tmp_path / "link.txt").symlink_to(tmp_path / "valid.txt")
    held = {"validation_path": f"{tmp_path}/valid.txt"}
    read = content("text", path=f"{tmp_path}/*.txt", **held)
    assert [text[:5] for text in read.documents["train"]] == [b"one t", b"two t"]
    assert [text[:5] for text in read.documents["validation"]] == [b"valid"]
    read = content("labelled", path=f"{tmp_path}/*.csv", validation_path=f"{tmp_path}/valid.csv", test_fraction=0.0)
    assert {e.target for e in read.examples["train"]} == {b"one text", b"two text"}
    with pytest.raises(DataError, match="names no file beside those"):
        content("text", path=f"{tmp_path}/link.txt", **held)
    with pytest.raises(DataError, match="name the same file"):
        content("text", path=f"{tmp_path}/one.txt", test_path=f"{tmp_path}/valid.txt", **held)


def test_a_table_in_another_encoding_is_named(tmp_path):
    (tmp_path / "latin.csv").write_bytes("text,intent_name\ncafé,x\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv is not comma-separated text in UTF-8: .*0xe9"):
        content("labelled", path=f"{tmp_path}/latin.csv")


@pytest.mark.parametrize(
    ("source", "text", "values", "error", "message"),
    [
        ("pairs", "no pair here", {}, DataError, r"line 1 of file\.txt is no pair"),
        ("pairs", "one\ttwo\nthree\t\n", {}, DataError, r"line 2 of file\.txt is no pair"),
        ("pairs", "", {}, DataError, "holds no pairs"),
        ("pairs", "a\tb\n", {}, DataError, "no example is left for the split validation"),
        ("pairs", "a\tb\n", {"validation_fraction": 0.0}, ConfigError, "needs a validation split"),
        ("pairs", "a\tb\n", {"test_fraction": 0.95}, ConfigError, "sum below 1"),
        ("labelled", "text,label\nhi,x\n", {}, DataError, "has no column 'intent_name', only: text, label"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, source, text, values, error, message):
    (tmp_path / "file.txt").write_text(text)
    with pytest.raises(error, match=message):
        content(source, path=f"{tmp_path}/file.txt", **values)


def test_a_label_that_training_does_not_know_is_named(tmp_path):
    path = archive_of_labels(tmp_path / "x.zip", train=[("a", "known")], val=[("b", "strange")])
    with pytest.raises(DataError, match="validation holds the label 'strange'"):
        content("labelled", path=path)


@pytest.mark.parametrize("source", ["pairs", "labelled"])
def test_torn_archives_and_missing_paths(tmp_path, source):
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(DataError, match=r"cannot read .*torn\.zip"):
        content(source, path=f"{tmp_path}/torn.zip")
    with pytest.raises(ConfigError, match=r"needs data\.path"):
        content(source)
    with pytest.raises(DataError, match="matches no file"):
        content(source, path=f"{tmp_path}/nothing.txt")


# --- The real ones ---------------------------------------------------------------------------------------------


def test_tatoeba():
    read = content(
        "pairs", path=f"{real_data()}/tatoeba_fra_eng/fra-eng.zip", validation_fraction=0.02, test_fraction=0.02
    )
    sizes = {split: len(examples) for split, examples in read.examples.items()}
    assert sizes == {"train": 136_470, "validation": 2872, "test": 2835}


@pytest.mark.parametrize(
    ("name", "total", "test"), [("simple", 16_728, 4182), ("length", 16_990, 3920), ("addprim_jump", 14_670, 7706)]
)
def test_scan(name, total, test):
    """Training commands without repetitions (`jump` makes up a tenth of addprim_jump), and the whole test split."""
    folder = real_data() / "scan"
    read = content(
        "pairs",
        path=f"{folder}/{name}_train.txt.gz",
        test_path=f"{folder}/{name}_test.txt.gz",
        distinct_targets=False,
    )
    kept = len(read.examples["train"]) + len(read.examples["validation"])
    assert len(read.examples["test"]) == test
    assert kept == (total if name != "addprim_jump" else 13_204)


def test_clinc():
    read = content("labelled", path=f"{real_data()}/clinc_oos/clinc_oos.zip")
    assert len(read.labels) == 151 and "oos" in read.labels
    assert {split: len(examples) for split, examples in read.examples.items()} == {
        "train": 15_098,  # two of 15,000 stand there twice
        "validation": 3100,
        "test": 5500,
    }


def test_tfds_sets_become_pairs_and_labels():
    folder = f"{real_data()}/tfds_prepared"
    scan = content(
        "tfds",
        tfds_name="scan/length",
        tfds_feature="actions",
        tfds_source="commands",
        tfds_dir=folder,
        tfds_download=False,
    )
    files = real_data() / "scan"
    same = content(
        "pairs", path=f"{files}/length_train.txt.gz", test_path=f"{files}/length_test.txt.gz", distinct_targets=False
    )
    assert {s: set(e) for s, e in scan.examples.items()} == {s: set(e) for s, e in same.examples.items()}
    clinc = content(
        "tfds",
        tfds_name="clinc_oos",
        tfds_feature="text",
        tfds_label="intent_name",
        tfds_dir=folder,
        tfds_download=False,
    )
    assert len(clinc.labels) == 150 and len(clinc.examples["train"]) == 15_000
    with pytest.raises(DataError, match=r"data\.tfds_label='intent_nam' is none of its features.*intent_name"):
        content("tfds", tfds_name="clinc_oos", tfds_feature="text", tfds_label="intent_nam", tfds_dir=folder)
    with pytest.raises(DataError, match=r"data\.tfds_source='command' is none of .*commands"):
        content("tfds", tfds_name="scan/length", tfds_feature="actions", tfds_source="command", tfds_dir=folder)
