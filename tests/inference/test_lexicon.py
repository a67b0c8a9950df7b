"""A dictionary learned from pairs, and the score it is compared by."""

import re

import pytest

from transformer.errors import UserError
from transformer.inference.lexicon import Lexicon
from transformer.inference.translate import bleu

WORDS = {"chat": "cat", "chien": "dog", "noir": "black", "petit": "small", "le": "the"}


def pairs() -> list[tuple[str, str]]:
    """Sentences of two or three words in another order, so that only counting tells which word is which."""
    made = []
    for animal in ("chat", "chien"):
        for colour in ("noir", "petit"):
            made.append((f"Le {animal} {colour}.", f"The {WORDS[colour]} {WORDS[animal]}."))
        made.append((f"Le {animal}", f"The {WORDS[animal]}"))  # without a full stop, which is beside every other word
    return made


def test_every_word_finds_its_translation():
    lexicon = Lexicon(pairs(), iterations=20)
    assert {word: lexicon.translate(word).lower() for word in WORDS} == WORDS
    assert lexicon.translate("Le chien noir.") == "The dog black."
    assert lexicon.translate("Le zèbre") == "The zèbre"


def test_a_sentence_of_right_words_is_a_perfect_translation():
    """Names, contractions and the beginning of a sentence are spelled as in the targets."""
    pytest.importorskip("sacrebleu", reason="needs the extra [translate]")
    targets = ["Did you know that I saw Tom?", "I don't think Tom lives in Boston.", "It wasn't Tom's, you know."]
    code: dict[str, str] = {}  # a made-up word for each
    sources = [
        " ".join(code.setdefault(word.lower(), f"x{len(code)}") for word in re.findall(r"[\w']+|[?.,]", target))
        for target in targets
    ]
    lexicon = Lexicon([*zip(sources, targets, strict=True), *(5 * [(made, word) for word, made in code.items()])])
    told = [lexicon.translate(source) for source in sources]
    assert bleu(told, [[target] for target in targets])[0] == pytest.approx(100), told


def test_one_iteration_is_not_enough():
    """The test above can fail: after one step every word beside another is as likely."""
    lexicon = Lexicon(pairs(), iterations=1)
    assert {word: lexicon.translate(word).lower() for word in WORDS} != WORDS


def test_bleu_is_perfect_for_any_reference_and_low_for_word_salad():
    pytest.importorskip("sacrebleu", reason="needs the extra [translate]")
    references = [["the cat sat on the mat", "a cat sat there now"], ["it is raining outside today"]]
    score, signature = bleu(["a cat sat there now", "it is raining outside today"], references)
    assert score == pytest.approx(100)
    assert "tok:13a" in signature
    assert bleu(["mat the on sat cat the", "today outside raining is it"], references)[0] < 20


def test_without_sacrebleu_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"install the extra \[translate\]"):
        bleu(["a"], [["a"]])
