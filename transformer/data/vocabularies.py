"""How text becomes tokens."""

from __future__ import annotations

import abc
import copy
import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from transformer.data.corpora import Content, Corpus
from transformer.errors import DataError
from transformer.registry import Registry
from transformer.schema import Data

VOCABULARIES = Registry("data.vocabulary")

PAD, BOS, EOS, MASK = range(256, 260)  # specials of the byte vocabulary
SPECIALS = ("pad", "bos", "eos", "mask", "cls", "sep")  # the order in which a vocabulary is extended; sentinels follow


class Vocabulary(abc.ABC):
    """A bijection between text and token ids below `size`, beside special ids that stand for no text.

    Attributes:
      name: the registry entry.
      size: number of ids.
      eos: id that separates documents, or None where no split has two.
      bytes_per_token: int32 [size], bytes of UTF-8 each id stands for, for bits per byte.
      specials: name -> id of the ids that stand for no text.
      added: names of the specials that objective and source asked for, in the order of their ids.
      joint: what stands between a special token and its neighbours where it is written out.
    """

    name: ClassVar[str]
    size: int
    eos: int | None
    bytes_per_token: np.ndarray
    specials: Mapping[str, int]
    added: tuple[str, ...] = ()
    joint: ClassVar[str] = ""

    def special(self, name: str) -> int:
        """The id of a special token: pad, bos, eos, mask, cls, sep, or sentinel_0, sentinel_1, ...

        Raises:
          KeyError: nobody asked for it.
        """
        return self.specials[name]

    def with_specials(self, names: Iterable[str]) -> Vocabulary:
        """This vocabulary, extended by exactly those of `names` it lacks: pad, bos, eos, mask, cls, sep, sentinels, in
        this order, whatever the order of `names`. Text keeps its ids.

        Raises:
          DataError: the ids no longer fit 16 bits.
        """
        missing = tuple(sorted(set(names) - set(self.specials), key=_special_rank))
        if not missing:
            return self
        extended = copy.copy(self)
        extended.added = (*self.added, *missing)
        extended.specials = {**self.specials, **{name: self.size + i for i, name in enumerate(missing)}}
        extended.size = self.size + len(missing)
        extended.eos = extended.specials.get("eos")
        if extended.size > 2**16:
            raise DataError(f"data.vocabulary={self.name}: {extended.size} ids with special tokens do not fit 16 bits.")
        extended.bytes_per_token = np.concatenate([self.bytes_per_token, np.zeros(len(missing), np.int32)])
        return extended

    @property
    def dtype(self) -> np.dtype:
        """Smallest unsigned type that holds every id."""
        return np.dtype(np.uint8 if self.size <= 2**8 else np.uint16)

    @abc.abstractmethod
    def encode(self, text: str | bytes) -> np.ndarray:
        """Text (str, or bytes of UTF-8) to ids, `dtype` [number of tokens], without specials."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Ids to text. Ids that stand for no text leave no trace; bytes that are no UTF-8 become U+FFFD."""

    def spell(self, ids: Iterable[int] | np.ndarray) -> str:
        """As `decode`, with special tokens written as <name>, but for those that only begin, end or fill a row."""
        names, pieces = {i: name for name, i in self.specials.items()}, []
        for special, run in itertools.groupby(np.asarray(ids).reshape(-1).tolist(), names.__contains__):
            if special:
                pieces += [f"<{names[i]}>" for i in run if names[i] not in ("pad", "bos", "eos")]
            else:
                pieces.append(self.decode(list(run)))
        return self.joint.join(pieces)

    def parse(self, text: str) -> np.ndarray:
        """As `encode`, where <name> stands for a special token: int32 [number of tokens]."""
        marks = {f"<{name}>": i for name, i in self.specials.items()}
        pieces = re.split("(" + "|".join(map(re.escape, marks)) + ")", text) if marks else [text]
        if self.joint and len(pieces) > 1:
            pieces = [piece.strip() for piece in pieces]
        encoded = [[marks[p]] if p in marks else self.encode(p) for p in pieces]
        return np.concatenate(encoded).astype(np.int32)

    @abc.abstractmethod
    def parameters(self) -> dict[str, Any]:
        """JSON data: what the class is made from again."""

    def to_dict(self) -> dict[str, Any]:
        """JSON data from which `from_dict` rebuilds the vocabulary."""
        added = {"added": list(self.added)} if self.added else {}
        return {"name": self.name, **self.parameters(), **added}

    @staticmethod
    def from_dict(saved: dict[str, Any]) -> Vocabulary:
        """The vocabulary that `to_dict` described."""
        parameters = dict(saved)
        name, added = parameters.pop("name"), parameters.pop("added", [])
        return _classes()[name](**parameters).with_specials(added)


def _classes() -> dict[str, type[Vocabulary]]:
    """Name -> class of every vocabulary."""
    known: list[type[Vocabulary]] = Vocabulary.__subclasses__()
    for cls in known:  # grows while it is walked
        known += cls.__subclasses__()
    return {cls.name: cls for cls in known if hasattr(cls, "name")}


def _special_rank(name: str) -> tuple[int, int]:
    """Where a special stands in the fixed order."""
    kind, _, number = name.partition("_")
    return (SPECIALS.index(kind), 0) if kind in SPECIALS else (len(SPECIALS), int(number))


class Bytes(Vocabulary):
    """The 256 bytes and four specials: any text, no training, no unknown token."""

    name = "bytes"
    size = 260
    eos = EOS

    def __init__(self) -> None:
        self.specials = {"pad": PAD, "bos": BOS, "eos": EOS, "mask": MASK}
        self.bytes_per_token = (np.arange(self.size) < 256).astype(np.int32)

    def encode(self, text: str | bytes) -> np.ndarray:
        raw = text.encode() if isinstance(text, str) else text
        return np.frombuffer(raw, np.uint8).astype(self.dtype)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        values = np.asarray(ids).reshape(-1)
        return values[values < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def parameters(self) -> dict[str, Any]:
        return {}


class Characters(Vocabulary):
    """The distinct characters of a corpus, sorted, as in nanoGPT's character-level example.

    Args:
      characters: every known character once, in the order of their ids.
      separated: whether one more id separates documents.
    """

    name = "characters"

    def __init__(self, characters: str, separated: bool):
        self.characters = characters
        self.separated = separated
        self.eos = len(characters) if separated else None
        self.specials = {"eos": len(characters)} if separated else {}
        self.size = len(characters) + separated
        if self.size > 2**16:
            raise DataError(
                f"data.vocabulary=characters: {len(characters)} distinct characters do not fit 16 bits; "
                "use data.vocabulary=bytes."
            )
        lengths = [len(c.encode()) for c in characters] + [0] * separated
        self.bytes_per_token = np.array(lengths, np.int32)
        codes = _code_points(characters)
        self._id_of = np.full(int(codes.max(initial=0)) + 1, -1, np.int32)  # code point -> id
        self._id_of[codes] = np.arange(len(codes))

    def encode(self, text: str | bytes) -> np.ndarray:
        """As in the base class.

        Raises:
          DataError: the text is not UTF-8 or holds a character the corpus does not.
        """
        codes = _code_points(as_text(text, self.name))
        last = len(self._id_of) - 1
        ids = np.where(codes <= last, self._id_of[np.minimum(codes, last)], -1)
        if (ids < 0).any():
            unknown = chr(codes[np.argmax(ids < 0)])
            raise DataError(
                f"data.vocabulary=characters does not know {unknown!r} (U+{ord(unknown):04X}), which is "
                f"none of the corpus's {len(self.characters)} characters; leave it out or use "
                "data.vocabulary=bytes."
            )
        return ids.astype(self.dtype)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        values = np.asarray(ids).reshape(-1)
        return "".join(self.characters[i] for i in values if i < len(self.characters))

    def parameters(self) -> dict[str, Any]:
        return {"characters": self.characters, "separated": self.separated}


class Symbols(Vocabulary):
    """The named symbols of a synthetic task, written with spaces between them.

    Args:
      symbols: every name once, in the order of the ids; no name holds a space.
    """

    name = "symbols"
    joint = " "

    def __init__(self, symbols: Iterable[str]):
        self.symbols = tuple(symbols)
        self.size, self.eos, self.specials = len(self.symbols), None, {}
        self.bytes_per_token = np.zeros(self.size, np.int32)  # a loss per byte would mean nothing
        self._id_of = {symbol: i for i, symbol in enumerate(self.symbols)}

    def encode(self, text: str | bytes) -> np.ndarray:
        """As in the base class.

        Raises:
          DataError: a word that names no symbol.
        """
        words = as_text(text, self.name).split()
        for word in words:
            if word not in self._id_of:
                raise DataError(f"{word!r} names no symbol of this task; they are: {' '.join(self.symbols)}.")
        return np.array([self._id_of[word] for word in words], self.dtype)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        return " ".join(self.symbols[i] for i in np.asarray(ids).reshape(-1) if i < len(self.symbols))

    def parameters(self) -> dict[str, Any]:
        return {"symbols": list(self.symbols)}


def as_text(text: str | bytes, vocabulary: str) -> str:
    """Bytes of UTF-8 as str.

    Raises:
      DataError: they are no UTF-8; names `vocabulary`.
    """
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"data.vocabulary={vocabulary}: the text is not UTF-8 ({error}); use data.vocabulary=bytes."
        ) from error


def _code_points(text: str) -> np.ndarray:
    """Unicode code points, uint32 [number of characters]."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), "<u4")


def separated(content: Content) -> bool:
    """Whether a split has several documents, so that something must stand between them."""
    return any(len(documents) > 1 for documents in content.documents.values())


def make_vocabulary(section: Data, corpus: Corpus) -> Vocabulary:
    """The vocabulary that `section.vocabulary` names, for a corpus.

    Raises:
      ConfigError, DataError: the vocabulary's own; see its entry.
    """
    return VOCABULARIES.build(section.vocabulary, corpus, section)


def vocabulary_identity(section: Data) -> list[Any]:
    """Differs whenever `make_vocabulary` might make another vocabulary of the same corpus: the name, then what is
    set of the parameters that only it reads."""
    parameters = VOCABULARIES[section.vocabulary].parameters
    own = {field.name for field in dataclasses.fields(parameters)} if parameters else ()
    return [section.vocabulary, *sorted([name, value] for name, value in section.options if name in own)]


@VOCABULARIES.register("bytes")
def bytes_vocabulary(corpus: Corpus, section: Data) -> Vocabulary:
    """256 bytes and 4 specials, the same for every corpus."""
    return Bytes()


@VOCABULARIES.register("characters", paper="Karpathy 2015, char-rnn; nanoGPT's shakespeare_char")
def character_vocabulary(corpus: Corpus, section: Data) -> Vocabulary:
    """The distinct characters of all splits, and an end-of-document id where a split has several documents.

    Raises:
      DataError: the text is not UTF-8.
    """
    known: set[str] = set()
    for text in corpus.content.texts():
        known.update(as_text(text, "characters"))
    return Characters("".join(sorted(known)), separated(corpus.content))


from transformer.data import subwords  # noqa: E402, F401
