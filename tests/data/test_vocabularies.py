"""Vocabularies: round trips, byte counts and errors."""

import json

import numpy as np
import pytest

from transformer.data.corpora import Content, Corpus
from transformer.data.vocabularies import VOCABULARIES, Vocabulary
from transformer.errors import DataError

TEXT = "To be,\tor not — naïve 🙂 café\r\n\x00"


def corpus(**documents: list[bytes]) -> Corpus:
    return Corpus("made up", "", lambda: Content(documents, "made up"))


def build(name: str, *documents: str) -> Vocabulary:
    return VOCABULARIES.build(name, corpus(train=[d.encode() for d in documents or (TEXT,)]))


@pytest.mark.parametrize("name", list(VOCABULARIES))
def test_round_trip_and_byte_counts(name):
    vocabulary = build(name)
    ids = vocabulary.encode(TEXT)
    assert ids.dtype == vocabulary.dtype
    assert ids.max() < vocabulary.size
    assert np.array_equal(ids, vocabulary.encode(TEXT.encode()))
    assert vocabulary.decode(ids) == TEXT
    assert vocabulary.bytes_per_token.dtype == np.int32
    assert vocabulary.bytes_per_token.shape == (vocabulary.size,)
    assert vocabulary.bytes_per_token[ids].sum() == len(TEXT.encode())


@pytest.mark.parametrize("name", list(VOCABULARIES))
def test_saved_as_json_and_back(name):
    vocabulary = build(name, "abc", "xyz")
    again = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert again.to_dict() == vocabulary.to_dict()
    assert (again.name, again.size, again.eos) == (vocabulary.name, vocabulary.size, vocabulary.eos)
    assert again.decode(again.encode("cabz")) == "cabz"


@pytest.mark.parametrize("name", list(VOCABULARIES))
def test_ids_without_text_leave_no_trace(name):
    vocabulary = build(name, "ab", "c")
    a, b = vocabulary.encode("ab")
    assert vocabulary.bytes_per_token[vocabulary.eos] == 0
    assert vocabulary.decode([a, vocabulary.eos, b, vocabulary.size + 3]) == "ab"


def test_bytes_have_the_documented_ids():
    vocabulary = build("bytes")
    assert vocabulary.size == 260
    assert vocabulary.eos == 258
    assert vocabulary.encode(bytes(range(256))).tolist() == list(range(256))
    assert vocabulary.bytes_per_token.tolist() == [1] * 256 + [0] * 4


def test_characters_are_sorted_and_get_eos_only_between_documents():
    one = VOCABULARIES.build("characters", corpus(train=[b"cab"], validation=[b"bad"], test=[b"e"]))
    assert one.characters == "abcde"
    assert (one.size, one.eos) == (5, None)
    many = VOCABULARIES.build("characters", corpus(train=[b"cab", b"d"]))
    assert (many.size, many.eos) == (5, 4)


@pytest.mark.parametrize("unknown", ["z", "€", "🙂"])
def test_an_unknown_character_is_named(unknown):
    with pytest.raises(DataError, match=rf"does not know '{unknown}' \(U\+{ord(unknown):04X}\)"):
        build("characters", "abc").encode(f"ab{unknown}c")


def test_text_that_is_not_utf8_names_the_other_vocabulary():
    with pytest.raises(DataError, match=r"not UTF-8 .*data\.vocabulary=bytes"):
        VOCABULARIES.build("characters", corpus(train=[b"caf\xe9"]))


# --- Special tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(VOCABULARIES))
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
    assert np.array_equal(extended.encode("abc"), plain.encode("abc"))
    assert extended.decode([*plain.encode("abc"), extended.special("sentinel_1")]) == "abc"
    again = Vocabulary.from_dict(json.loads(json.dumps(extended.to_dict())))
    assert (again.specials, again.size) == (extended.specials, extended.size)


def test_nobody_asks_and_nothing_is_added():
    plain = build("bytes")
    assert plain.with_specials([]) is plain
    assert plain.with_specials(["mask", "eos"]) is plain
    assert "added" not in plain.to_dict()
    with pytest.raises(KeyError):
        plain.special("cls")
