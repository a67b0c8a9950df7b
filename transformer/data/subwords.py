"""Vocabularies of words and of word pieces, made from the training split alone."""

from __future__ import annotations

import base64
import collections
import dataclasses
import functools
import importlib.util
import io
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from transformer.data.corpora import Corpus
from transformer.data.vocabularies import VOCABULARIES, Vocabulary, as_text, separated
from transformer.errors import DataError
from transformer.schema import Data, field

# A word or a run of punctuation takes one space before it along; what white space is left stands alone.
_PIECES = re.compile(r" ?\w+| ?[^\w\s]+|\s")


class Learned(Vocabulary):
    """A vocabulary whose pieces were counted in a corpus; one more id separates documents where that is asked for."""

    joint = " "
    separated: bool

    def _number(self, bytes_of_pieces: Iterable[int], separated: bool) -> None:
        lengths = [*bytes_of_pieces, *[0] * separated]
        self.separated, self.size = separated, len(lengths)
        if self.size > 2**16:
            raise DataError(
                f"data.vocabulary={self.name}: {self.size} tokens do not fit 16 bits; know fewer of them or use "
                "data.vocabulary=bytes."
            )
        self.bytes_per_token = np.array(lengths, np.int32)
        self.eos = self.size - 1 if separated else None
        self.specials = {"eos": self.size - 1} if separated else {}


class Words(Learned):
    """The words and punctuation marks of a corpus, each with the space before it, and one unknown word.

    Text is read as if a space stood before it, so that a word has one id wherever it stands. What is known comes back
    exactly; what is not comes back as U+FFFD.

    Args:
      words: every known piece once, in the order of their ids; the unknown piece comes after them.
      separated: whether one more id separates documents.
    """

    name = "words"

    def __init__(self, words: Iterable[str], separated: bool):
        self.words = tuple(words)
        self.unknown = len(self.words)
        self._id_of = {word: i for i, word in enumerate(self.words)}
        self._number([*(len(word.encode()) for word in self.words), 1], separated)

    def encode(self, text: str | bytes) -> np.ndarray:
        """As in the base class; raises DataError for bytes that are no UTF-8."""
        pieces = word_pieces(as_text(text, self.name))
        return np.array([self._id_of.get(piece, self.unknown) for piece in pieces], self.dtype)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        values = [int(i) for i in np.asarray(ids).reshape(-1) if i <= self.unknown]
        return "".join(self.words[i] if i != self.unknown else " \ufffd" for i in values).removeprefix(" ")

    def parameters(self) -> dict[str, Any]:
        return {"words": list(self.words), "separated": self.separated}


def word_pieces(text: str) -> list[str]:
    """Words and punctuation marks with the space before them: " a", " b" and "," for "a b,"."""
    return _PIECES.findall(" " + text) if text else []


class WordPieces(Learned):
    """Byte-pair encoding by SentencePiece: any text, characters outside the vocabulary as their bytes.

    The only loss is a literal U+2581, which comes back as a space.

    Args:
      model: the trained SentencePiece model, base64.
      separated: whether one more id, unknown to the model, separates documents.
    """

    name = "bpe"

    def __init__(self, model: str, separated: bool):
        self.model = model
        self._pieces = self._processor.get_piece_size()
        self._number(map(self._bytes_of, range(self._pieces)), separated)

    @functools.cached_property
    def _processor(self) -> Any:
        return _sentencepiece().SentencePieceProcessor(model_proto=base64.b64decode(self.model))

    def _bytes_of(self, index: int) -> int:
        if self._processor.is_unknown(index):
            return 0
        piece = self._processor.id_to_piece(index).replace("\u2581", " ")
        return 1 if self._processor.is_byte(index) else len(piece.encode())

    def encode(self, text: str | bytes) -> np.ndarray:
        """As in the base class; raises DataError for bytes that are no UTF-8."""
        return np.array(self._processor.encode(as_text(text, self.name)), self.dtype)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        return self._processor.decode([int(i) for i in np.asarray(ids).reshape(-1) if i < self._pieces])

    def parameters(self) -> dict[str, Any]:
        return {"model": self.model, "separated": self.separated}


def _sentencepiece() -> Any:
    """The package, imported where it is used.

    Raises:
      DataError: it is not installed.
    """
    if importlib.util.find_spec("sentencepiece") is None:
        raise DataError(
            "data.vocabulary=bpe needs the package sentencepiece; install the extra [bpe] or use data.vocabulary=bytes."
        )
    import sentencepiece

    return sentencepiece


@dataclasses.dataclass(frozen=True)
class WordsParameters:
    """Which words are known."""

    word_min_count: int = field(1, "a word seen less often in the training split is unknown")


@VOCABULARIES.register("words", parameters=WordsParameters)
def word_vocabulary(corpus: Corpus, section: Data) -> Vocabulary:
    """The words and punctuation marks of the training split, the most frequent first.

    Raises:
      DataError: the text is not UTF-8, or holds more words than fit 16 bits.
    """
    counts: collections.Counter[str] = collections.Counter()
    for text in corpus.content.training_texts():
        counts.update(word_pieces(as_text(text, "words")))
    known = [word for word, count in counts.items() if count >= section.word_min_count]
    words = sorted(known, key=lambda word: (-counts[word], word))
    return Words(words, separated(corpus.content))


@dataclasses.dataclass(frozen=True)
class WordPiecesParameters:
    """How many pieces."""

    bpe_size: int = field(8192, "word pieces to learn from the training split, fewer where the text has no more")


@VOCABULARIES.register("bpe", parameters=WordPiecesParameters, paper="Sennrich et al. 2016; Kudo & Richardson 2018")
def word_piece_vocabulary(corpus: Corpus, section: Data) -> Vocabulary:
    """Byte-pair encoding learned from the training split (needs the extra [bpe]).

    Raises:
      DataError: the extra is missing, the text is not UTF-8, or `bpe_size` is too small for it.
    """
    trainer = _sentencepiece().SentencePieceTrainer
    lines = (
        line for text in corpus.content.training_texts() for line in as_text(text, "bpe").split("\n") if line.strip()
    )
    model = io.BytesIO()
    try:
        trainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=section.bpe_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=1 << 20,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=3,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[-1]
        raise DataError(f"data.bpe_size={section.bpe_size} cannot be learned from this text: {reason}") from error
    return WordPieces(base64.b64encode(model.getvalue()).decode(), separated(corpus.content))
