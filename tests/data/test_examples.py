"""Rows of examples: what stands in them, what is refused, and that packing loses nothing."""

import numpy as np
import pytest

from tests.data.helpers import section
from transformer.data import examples
from transformer.data.batch import Layout
from transformer.data.batching import make_row_plan
from transformer.data.corpora import Content, Corpus, Example
from transformer.data.vocabularies import BOS, EOS, PAD, Bytes
from transformer.errors import DataError

PAIRS = [Example(b"deux", b"two"), Example(b"un", b"one"), Example(b"quatre", b"four"), Example(b"a", b"b")]
LABELLED = [Example(b"hello", label=1), Example(b"bye", label=0), Example(b"hi", label=1)]
SEP = Bytes.size  # the first id a byte vocabulary lacks


def load(made, layout, tmp_path, **values):
    content = Content({}, "made up", examples={"train": made, "validation": made[:2]})
    corpus = Corpus("made up", repr(made), lambda: content)
    return examples.load(corpus, section(**values), layout, tmp_path, ["bytes"])


def test_pairs_in_one_row(tmp_path):
    dataset = load(PAIRS, Layout(11, marks_prefix=True), tmp_path)
    rows = dataset.splits["train"]
    assert dataset.vocabulary.special("sep") == SEP
    assert rows.tokens_BL[1].tolist() == [*b"one", SEP, *b"un", EOS, *[PAD] * 5]
    assert rows.weights_BL[1].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert rows.segments_BL[1].tolist() == [1] * 7 + [0] * 5
    assert rows.prefix_length_B.tolist() == [4, 4, 5, 2]


def test_pairs_apart(tmp_path):
    layout = Layout(8, source_length=6, overlap=0, pairs="separate", specials=("bos",))
    rows = load(PAIRS, layout, tmp_path).splits["train"]
    assert rows.tokens_BL[0].tolist() == [*b"deux", EOS, PAD, PAD, PAD]
    assert rows.source_BS[0].tolist() == [*b"two", EOS, PAD, PAD]
    assert rows.source_segments_BS[0].tolist() == [1, 1, 1, 1, 0, 0]
    assert np.array_equal(rows.weights_BL, rows.segments_BL != 0)


def test_single_texts_and_labels(tmp_path):
    rows = load(LABELLED, Layout(6, overlap=0, labels="row", lead="cls", specials=("cls",)), tmp_path).splits["train"]
    assert rows.tokens_BL[1].tolist() == [SEP, *b"bye", PAD, PAD]  # here the first new id is cls
    assert rows.labels.tolist() == [1, 0, 1]
    rows = load(LABELLED, Layout(6), tmp_path).splits["train"]
    assert rows.tokens_BL[0].tolist() == [BOS, *b"hello", EOS]
    assert rows.labels is None


def test_rows_come_from_the_cache_the_second_time(tmp_path):
    layout = Layout(11)
    first = load(PAIRS, layout, tmp_path)
    content = Corpus("made up", repr(PAIRS), lambda: pytest.fail("read again"))
    again = examples.load(content, section(), layout, tmp_path, ["bytes"])
    assert again.fingerprint == first.fingerprint
    assert again.splits["train"].tokens_BL.tolist() == first.splits["train"].tokens_BL.tolist()
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-200])
    assert load(PAIRS, layout, tmp_path).fingerprint == first.fingerprint  # made anew
    assert load(PAIRS[:3], layout, tmp_path).fingerprint != first.fingerprint


# --- What does not fit -----------------------------------------------------------------------------------


def test_a_target_longer_than_its_table_is_refused(tmp_path):
    layout = Layout(5, source_length=6, overlap=0, pairs="separate")
    with pytest.raises(
        DataError, match=r"Example 3 of train takes 6 tokens, but data\.sequence_length leaves room for 4"
    ):
        load(PAIRS, layout, tmp_path)


@pytest.mark.parametrize(("policy", "rows", "last"), [("drop", 3, b"a"), ("cut", 4, b"quat")])
def test_dropping_and_cutting_are_choices_and_told(tmp_path, policy, rows, last):
    layout = Layout(5, source_length=6, overlap=0, pairs="separate")
    dataset = load(PAIRS, layout, tmp_path, too_long=policy)
    found = dataset.splits["train"]
    assert found.rows == rows
    assert f"1 of 4 train examples too long and {'dropped' if policy == 'drop' else 'cut'}" in dataset.description
    texts = [bytes(row[row < 256].tolist()) for row in found.tokens_BL]
    assert last in texts


@pytest.mark.parametrize(
    ("target", "source", "kept"),
    [
        (b"12345", b"abcdefgh", b"abcde|12345"),
        (b"123456789abcdef", b"xyz", b"x|123456789"),
        (b"1234", b"ab", b"ab|1234"),
    ],
)
def test_of_a_pair_in_one_row_the_source_is_cut_first(tmp_path, target, source, kept):
    """The whole target is kept while there is a place for the source."""
    made = [Example(target, source), Example(b"1", b"a")]
    rows = load(made, Layout(11, marks_prefix=True), tmp_path, too_long="cut").splits["train"]
    text = [token for token in rows.tokens_BL[0].tolist() if token not in (EOS, PAD)]
    assert bytes(ord("|") if token == SEP else token for token in text) == kept


def test_a_pair_that_does_not_fit_its_row_is_refused_by_the_rows_length(tmp_path):
    with pytest.raises(
        DataError, match=r"Example 1 of train takes 9 tokens, but data\.sequence_length leaves room for"
    ):
        load([Example(b"12345", b"abcdefghi")], Layout(11, marks_prefix=True), tmp_path)


def test_a_row_that_would_be_padding_throughout_is_refused(tmp_path):
    with pytest.raises(DataError, match="Example 2 of train has an empty target: its row would be padding"):
        load([PAIRS[0], Example(b"", b"x")], Layout(9), tmp_path)


def test_what_the_objective_needs_and_the_data_lacks(tmp_path):
    with pytest.raises(DataError, match="has no source"):
        load(LABELLED, Layout(9, source_length=9, overlap=0, pairs="separate"), tmp_path)
    with pytest.raises(DataError, match="has no labels"):
        load(PAIRS, Layout(9, overlap=0, labels="row"), tmp_path)
    with pytest.raises(DataError, match=r"data\.packing=segments does not go with"):
        load(LABELLED, Layout(9, overlap=0, labels="row", packed=True), tmp_path)


# --- Packing and order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", ["joined", "separate"])
def test_packing_keeps_every_example(tmp_path, pairs):
    source_length, overlap = (12, 0) if pairs == "separate" else (0, 1)
    alone = Layout(24, source_length=source_length, overlap=overlap, pairs=pairs)
    single = load(PAIRS, alone, tmp_path)
    packed = load(PAIRS, Layout(**{**alone.__dict__, "packed": True}), tmp_path)
    assert packed.splits["train"].rows < single.splits["train"].rows
    assert packed.pad_share < single.pad_share

    def pieces(rows, part, segments):
        tokens, ids = getattr(rows, part), getattr(rows, segments)
        return sorted(row[i == n].tolist() for row, i in zip(tokens, ids, strict=True) for n in range(1, i.max() + 1))

    for part, segments in (("tokens_BL", "segments_BL"), ("source_BS", "source_segments_BS")):
        if getattr(single.splits["train"], part) is not None:
            both = [pieces(dataset.splits["train"], part, segments) for dataset in (single, packed)]
            assert both[0] == both[1]
    assert packed.splits["train"].weights_BL.sum() == single.splits["train"].weights_BL.sum()


@pytest.mark.parametrize("sampling", ["epochs", "replacement"])
def test_plans_over_rows_reach_every_row_and_none_beyond(sampling):
    plan = make_row_plan(section(sampling=sampling), 7, 4, seed=1)
    drawn = np.concatenate([plan.starts(step) for step in range(70)])
    assert set(drawn.tolist()) == set(range(7))
    if sampling == "epochs":
        assert sorted(drawn[:7].tolist()) == list(range(7))


def test_bounds_count_targets_alone(tmp_path):
    made = [Example(b"x" if i % 2 else b"y", b"a" if i % 2 else b"b") for i in range(8)]
    layout = Layout(3, source_length=3, overlap=0, pairs="separate")
    marks = load(made, layout, tmp_path).bounds("train")
    assert marks["unigram"] == pytest.approx(1.5 * np.log(2))  # eos half the time, x and y a quarter each
    assert marks["bigram"] == pytest.approx(0.5 * np.log(2))  # eos is certain after a letter
    labels = load(LABELLED, Layout(6, overlap=0, labels="row"), tmp_path).bounds("train")
    assert labels == {"label": pytest.approx(np.log(3) - 2 / 3 * np.log(2))}
