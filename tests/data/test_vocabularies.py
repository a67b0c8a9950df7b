"""Vocabularies: round trips, byte counts, special tokens and errors."""

import importlib.util
import json

import numpy as np
import pytest

from tests.data.helpers import section
from transformer.data import subwords
from transformer.data.corpora import Content, Corpus, Example
from transformer.data.vocabularies import (
    VOCABULARIES,
    Vocabulary,
    make_vocabulary,
    vocabulary_identity,
)
from transformer.errors import DataError

TEXT = "To be,\tor not  — naïve 🙂 café\r\n\x00"
PREFIXED = {"words"}  # read as if a space stood before the text, which then counts as one byte of its first word
needs_sentencepiece = pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None, reason="needs the extra [bpe]"
)
ALL = [pytest.param(name, marks=needs_sentencepiece if name == "bpe" else ()) for name in VOCABULARIES]


def corpus(cut=None, examples=None, **documents: list[bytes]) -> Corpus:
    return Corpus("made up", "", lambda: Content(documents, "made up", cut or {}, examples or {}))


def build(name: str, *documents: str, **values) -> Vocabulary:
    texts = [d.encode() for d in documents or (TEXT,)]
    return make_vocabulary(section(vocabulary=name, **values), corpus(train=texts))


@pytest.mark.parametrize("name", ALL)
def test_round_trip_and_byte_counts(name):
    vocabulary = build(name)
    ids = vocabulary.encode(TEXT)
    assert ids.dtype == vocabulary.dtype
    assert ids.max() < vocabulary.size
    assert np.array_equal(ids, vocabulary.encode(TEXT.encode()))
    assert vocabulary.decode(ids) == TEXT
    assert vocabulary.bytes_per_token.dtype == np.int32
    assert vocabulary.bytes_per_token.shape == (vocabulary.size,)
    assert vocabulary.bytes_per_token[ids].sum() == len(TEXT.encode()) + (name in PREFIXED)
    assert vocabulary.encode("").tolist() == [] and vocabulary.decode([]) == ""


@pytest.mark.parametrize("name", ALL)
def test_special_tokens_are_written_out_and_read(name):
    vocabulary = build(name).with_specials(["pad", "mask", "sep", "sentinel_0"])
    assert vocabulary.parse(TEXT).tolist() == vocabulary.encode(TEXT).tolist()
    assert vocabulary.spell(vocabulary.encode(TEXT)) == TEXT
    space = vocabulary.joint
    text = f"To{space}<mask><sep>{space}be<sentinel_0>".replace("><", f">{space}<").replace("be<", f"be{space}<")
    ids = vocabulary.parse(text)
    named = [i for i in ids if i in vocabulary.specials.values()]
    assert named == [vocabulary.special(special) for special in ("mask", "sep", "sentinel_0")]
    assert vocabulary.spell([*ids, vocabulary.special("pad")]) == text


@pytest.mark.parametrize("name", ALL)
def test_saved_as_json_and_back(name):
    vocabulary = build(name, "abc", "cabz", "xyz")
    for saved in (vocabulary, vocabulary.with_specials(["sep", "pad", "sentinel_2"])):
        again = Vocabulary.from_dict(json.loads(json.dumps(saved.to_dict())))
        assert again.to_dict() == saved.to_dict()
        assert (again.name, again.size, again.eos) == (saved.name, saved.size, saved.eos)
        assert again.specials == saved.specials
        assert again.decode(again.encode("cabz")) == "cabz"


@pytest.mark.parametrize("name", ALL)
def test_the_same_text_gives_the_same_ids(name):
    texts = ["the cat sat on the mat", "the dog sat on the log"]
    one, two = build(name, *texts), build(name, *texts)
    assert one.to_dict() == two.to_dict()
    assert np.array_equal(one.encode("the cat"), two.encode("the cat"))


@pytest.mark.parametrize("name", ALL)
def test_ids_without_text_leave_no_trace(name):
    vocabulary = build(name, "ab", "c").with_specials(["cls", "sentinel_0"])
    ids = vocabulary.encode("ab").tolist()
    assert vocabulary.bytes_per_token[vocabulary.eos] == 0
    strange = [vocabulary.eos, vocabulary.special("cls"), vocabulary.special("sentinel_0"), vocabulary.size + 3]
    assert vocabulary.decode([strange[0], *ids, *strange]) == "ab"


def test_bytes_have_the_documented_ids():
    vocabulary = build("bytes")
    assert vocabulary.size == 260
    assert vocabulary.eos == 258
    assert vocabulary.encode(bytes(range(256))).tolist() == list(range(256))
    assert vocabulary.bytes_per_token.tolist() == [1] * 256 + [0] * 4
    assert vocabulary.to_dict() == {"name": "bytes"}  # as stored by earlier runs


def test_characters_are_sorted_and_get_eos_only_between_documents():
    characters = section(vocabulary="characters")
    one = make_vocabulary(characters, corpus(train=[b"cab"], validation=[b"bad"], test=[b"e"]))
    assert one.characters == "abcde"
    assert (one.size, one.eos) == (5, None)
    many = make_vocabulary(characters, corpus(train=[b"cab", b"d"]))
    assert (many.size, many.eos) == (5, 4)
    assert many.to_dict() == {"name": "characters", "characters": "abcd", "separated": True}
    pairs = {"train": [Example(b"ba", b"c")], "test": [Example(b"d")]}
    assert make_vocabulary(characters, corpus(examples=pairs)).characters == "abcd"


@pytest.mark.parametrize("unknown", ["z", "€", "🙂"])
def test_an_unknown_character_is_named(unknown):
    with pytest.raises(DataError, match=rf"does not know '{unknown}' \(U\+{ord(unknown):04X}\)"):
        build("characters", "abc").encode(f"ab{unknown}c")


@pytest.mark.parametrize("name", [name for name in ALL if name.values[0] != "bytes"])
def test_text_that_is_not_utf8_names_the_other_vocabulary(name):
    with pytest.raises(DataError, match=rf"data\.vocabulary={name}.*not UTF-8 .*data\.vocabulary=bytes"):
        make_vocabulary(section(vocabulary=name), corpus(train=[b"caf\xe9"]))


# --- Words -------------------------------------------------------------------------------------------------------


def test_a_word_has_one_id_wherever_it_stands():
    vocabulary = build("words", "jump", "run left, jump right")
    assert subwords.word_pieces("jump left, j'ai") == [" jump", " left", ",", " j", "'", "ai"]
    assert vocabulary.words == (" jump", " left", " right", " run", ",")  # the most frequent first
    assert vocabulary.encode("jump jump").tolist() == [0, 0]


def test_words_come_from_the_training_split_alone_and_others_are_unknown():
    text = corpus(train=[b"a a b"], validation=[b"c"])
    vocabulary = make_vocabulary(section(vocabulary="words"), text)
    assert vocabulary.words == (" a", " b")
    assert vocabulary.decode(vocabulary.encode("a c b")) == "a \ufffd b"
    rare = make_vocabulary(section(vocabulary="words", word_min_count=2), text)
    assert rare.words == (" a",) and rare.encode("b").tolist() == [rare.unknown]


def test_what_is_cut_off_for_validation_teaches_no_word():
    text = corpus(cut={"validation": 0.4}, train=["ä b".encode(), b"c d"])
    assert make_vocabulary(section(vocabulary="words"), text).words == (" b", " ä")


# --- Word pieces -------------------------------------------------------------------------------------------------


@needs_sentencepiece
def test_word_pieces_shorten_text_and_spell_out_what_they_do_not_know():
    vocabulary = build("bpe", "low lower lowest\n" * 20, bpe_size=280)
    assert len(vocabulary.encode("lowest lower")) < 6
    assert vocabulary.decode(vocabulary.encode("a\n\t☃  low")) == "a\n\t☃  low"


@needs_sentencepiece
def test_too_few_word_pieces_are_refused():
    with pytest.raises(DataError, match=r"data\.bpe_size=20 cannot be learned"):
        build("bpe", "low lower lowest", bpe_size=20)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr(subwords.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"data\.vocabulary=bpe needs .*extra \[bpe\]"):
        build("bpe", "abc")


def test_parameters_of_a_vocabulary_are_part_of_its_identity():
    assert vocabulary_identity(section()) == ["bytes"]
    assert vocabulary_identity(section("text", path="x", vocabulary="characters")) == ["characters"]
    assert vocabulary_identity(section(vocabulary="bpe", bpe_size=300)) == ["bpe", ["bpe_size", 300]]


# --- Special tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_specials_follow_the_text_in_a_fixed_order(name):
    plain = build(name, "ab", "c")
    wanted = ["sentinel_1", "sep", "pad", "sentinel_0", "cls", "mask", "eos", "bos", "sentinel_10"]
    order = ["pad", "bos", "eos", "mask", "cls", "sep", "sentinel_0", "sentinel_1", "sentinel_10"]
    extended = plain.with_specials(wanted)
    new = [s for s in order if s not in plain.specials]
    assert [extended.special(s) for s in new] == list(range(plain.size, plain.size + len(new)))
    assert extended.size == plain.size + len(new) == len(extended.bytes_per_token)
    assert all(extended.special(s) == i for s, i in plain.specials.items())
    assert extended.eos == extended.special("eos")
    assert np.array_equal(extended.encode("ab"), plain.encode("ab"))
    assert extended.decode([*plain.encode("ab"), extended.special("sentinel_1")]) == "ab"
    again = Vocabulary.from_dict(json.loads(json.dumps(extended.to_dict())))
    assert (again.specials, again.size) == (extended.specials, extended.size)


def test_nobody_asks_and_nothing_is_added():
    plain = build("bytes")
    assert plain.with_specials([]) is plain
    assert plain.with_specials(["mask", "eos"]) is plain
    assert "added" not in plain.to_dict()
    with pytest.raises(KeyError):
        plain.special("cls")
