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
