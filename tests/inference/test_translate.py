"""`--checks=translate`: translations in the order of their sources, and their BLEU beside a lexicon's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import tiny
from transformer.data.vocabularies import EOS
from transformer.errors import UserError
from transformer.inference import translate
from transformer.inference.checks import CHECKS, Subject
from transformer.inference.generate import generate
from transformer.inference.sampling import Beam, Greedy
from transformer.training.run import LoadedRun, load_dataset, make_program

PAIRS = {
    "model.family": "encoder_decoder",
    "data.source": "pairs",
    "data.sequence_length": 32,
    "data.source_length": 32,
}
WORDS = ("un deux trois quatre cinq", "one two three four five")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Sentences of one to five words and a number, word by word the same in both languages."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    french, english = (words.split() for words in WORDS)
    lines = [
        f"{' '.join(french[: 1 + i % 5])} {i}\t{' '.join(english[: 1 + i % 5])} {i}"
        for i in range(100, 300)
        for _ in range(1 + i % 2)  # some twice: one source then has two references
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(translate, "BATCH", 16)


def subject(path: Path, overrides: dict[str, Any] | None = None) -> Subject:
    base = {"model.vocab_size": 0, "model.num_layers": 1, "data.path": str(path), "data.validation_fraction": 0.4}
    config = tiny({**base, **PAIRS, **(overrides or {})})
    dataset = load_dataset(config)
    program = make_program(config, dataset)
    state = program.init(0)
    return Subject(
        LoadedRun(program.model(state), config, dataset.vocabulary, program, state, 0), dataset, "validation"
    )


@pytest.fixture(scope="module")
def pairs(path) -> Subject:
    return subject(path)


def test_buckets_change_no_translation(pairs):
    """Each row as it is translated alone, from a source without padding."""
    run, rows = pairs.run, pairs.dataset.splits["validation"]
    found = translate.translations(run, rows)
    assert len(found) == rows.rows > translate.BATCH
    lengths = translate.source_lengths(rows)
    for i in (0, int(lengths.argmin()), int(lengths.argmax()), rows.rows - 1):
        source = np.asarray(rows.source_BS[i : i + 1, : lengths[i]])
        alone = generate(
            run.model, [[run.vocabulary.special("bos")]], 32, stop_tokens=[EOS], source_BS=source.astype(np.int32)
        ).new[0]
        np.testing.assert_array_equal(found[i], alone[alone != EOS])


def test_buckets_save_padding(pairs):
    rows = pairs.dataset.splits["validation"]
    lengths = translate.source_lengths(rows)
    assert 0 < translate.source_padding(rows) < 1 - lengths.sum() / rows.source_BS.size


def test_perfect_translations_score_100_and_others_less(pairs, monkeypatch):
    def perfect(run, rows, sampler):
        return [row[row < 256] for row in np.asarray(rows.tokens_BL)]

    monkeypatch.setattr(translate, "translations", perfect)
    shown = CHECKS.build("translate", pairs)
    assert shown["bleu"] == pytest.approx(100)
    assert 20 < shown["lexicon_bleu"] < 100  # every word is known but the numbers, which stay what they are
    assert "version:2" in shown["signature"] and 0 < shown["pad_share"] < 1
    assert shown["translations"].count("reference  ") == min(translate.SHOWN, shown["sentences"])
    monkeypatch.setattr(translate, "translations", lambda *arguments: perfect(*arguments)[::-1])
    assert CHECKS.build("translate", pairs)["bleu"] < 60


def test_translations_are_greedy_or_by_beam(path, monkeypatch):
    used = []

    def recorded(run, rows, sampler):
        used.append(sampler)
        return [np.zeros(0, np.int32)] * rows.rows

    monkeypatch.setattr(translate, "translations", recorded)
    for overrides in ({}, {"decode.sampler": "beam", "decode.beams": 3}):
        assert CHECKS.build("translate", subject(path, overrides))["sampler"] == overrides.get(
            "decode.sampler", "greedy"
        )
    assert used == [Greedy(), Beam(3, 1.0)]


def test_unknown_words_match_nothing(path, monkeypatch):
    """The number that ends every sentence is too rare to be known: a perfect model says a mark in its place."""
    few = subject(path, {"data.vocabulary": "words", "data.word_min_count": 5})
    monkeypatch.setattr(translate, "translations", lambda run, rows, sampler: list(np.asarray(rows.tokens_BL)))
    shown = CHECKS.build("translate", few)
    assert translate.UNKNOWN in shown["translations"] and translate.NEVER_SAID in shown["translations"]
    assert 0 < shown["bleu"] < 70


def test_shortened_pairs_are_no_references(path):
    """Sources of 10 characters at least: 22 hold all but the two longest kinds, targets likewise."""
    short = {"data.too_long": "cut", "data.sequence_length": 20, "data.source_length": 20}
    whole, cut = (subject(path, overrides) for overrides in ({}, short))
    kept = translate.uncut(cut.run, cut.dataset.splits["validation"])
    said = set(translate.sentences(cut.run, kept))
    all_of_them = translate.sentences(whole.run, whole.dataset.splits["validation"])
    assert said == {pair for pair in all_of_them if max(map(len, pair)) < 20 - 1}
    assert 0 < len(said) < len(set(all_of_them))


def test_a_table_of_positions_leaves_room_for_bos(path):
    one = subject(path, {"model.position.kind": "learned"})
    rows = one.dataset.splits["validation"].take(slice(0, 2))
    assert max(map(len, translate.translations(one.run, rows))) <= 31


def test_beams_go_through_the_same_batches(pairs):
    rows = pairs.dataset.splits["validation"].take(slice(0, 5))
    greedy, one_beam = (translate.translations(pairs.run, rows, sampler) for sampler in (None, Beam(1)))
    assert all(map(np.array_equal, greedy, one_beam))


def test_a_sentence_may_have_several_references():
    said = ["the cat sat on the mat"]
    assert translate.bleu(said, [["a dog stood in the yard", said[0]]])[0] == pytest.approx(100)
    assert translate.bleu(said, [["a dog stood in the yard"]])[0] < 20


def test_what_cannot_be_translated_is_refused(path, pairs, monkeypatch, tmp_path):
    (tmp_path / "text.txt").write_text("abc" * 400)
    text = {"data.source": "text", "data.path": f"{tmp_path}/text.txt", "data.source_length": 0}
    with pytest.raises(UserError, match="--checks=translate needs a run on pairs"):
        CHECKS.build("translate", subject(path, text))
    with pytest.raises(UserError, match=r"data\.packing=none"):
        CHECKS.build("translate", subject(path, {"data.packing": "segments"}))
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"install the extra \[translate\]"):
        translate.bleu(["a"], [["a"]])
