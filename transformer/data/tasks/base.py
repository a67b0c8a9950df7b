"""What a task is: rows drawn on the device, a solver that is always right, a predictor that knows nothing."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.batch import Batch
from transformer.data.vocabularies import Symbols
from transformer.errors import ConfigError
from transformer.registry import Registry
from transformer.schema import Data, choice, field

TASKS = Registry("data.task")
LAYOUTS = Registry("data.task_layout")
LAYOUTS.names("sequence", "pair", "label", "tag")

SPLITS = ("train", "validation", "test")
LEAST = {"task_symbols": 1, "task_labels": 1, "task_shots": 2}  # with fewer there is nothing to ask


class Task(abc.ABC):
    """A generator of rows whose right answers are known.

    Attributes:
      layouts: entries of LAYOUTS the task can be written in.
      splits: names that `sample` takes. `long` rows are longer than any training row.
      symbol_names: names of the symbols.
      vocabulary: the symbols, then the special tokens the task uses.
      entropy: nats per weighted target that no predictor can beat on average; 0 where the answer is certain.
      ceiling: accuracy of the best predictor.

    Args:
      section: the config's `data` section.

    Raises:
      ConfigError: parameters no row can be made with.
    """

    layouts: ClassVar[tuple[str, ...]] = ("sequence",)
    specials: ClassVar[tuple[str, ...]] = ("pad",)
    splits: tuple[str, ...] = SPLITS
    entropy: float = 0.0
    ceiling: float = 1.0
    guess: int = 0  # the symbol a predictor that knows nothing names

    def __init__(self, section: Data):
        self.section = section
        if problem := self.refusal(section):
            raise ConfigError(f"data.task={section.task}: {problem}")
        self.symbol_names = self.symbols()
        self.vocabulary = Symbols(self.symbol_names).with_specials(self.specials)
        self.pad = self.vocabulary.special("pad")

    @classmethod
    def refusal(cls, section: Any) -> str | None:
        """What is wrong with the parameters, those that several tasks have included, or None."""
        for name, least in LEAST.items():
            if (value := getattr(section, name, least)) < least:
                return f"data.{name}={value} must be at least {least}."
        return cls.problem(section)

    @classmethod
    def problem(cls, section: Any) -> str | None:
        """What is wrong with the parameters of this task, or None."""
        return None

    @abc.abstractmethod
    def symbols(self) -> list[str]:
        """Names of the symbols, in the order of their ids."""

    @abc.abstractmethod
    def sample(self, key: jax.Array, batch_size: int, split: str) -> Batch:
        """B rows; pure, and traceable with `batch_size` and `split` static.

        Args:
          key: decides everything that is random.
        """

    @abc.abstractmethod
    def oracle(self, batch: Batch) -> np.ndarray:
        """Predictions from what a model may see, shaped like `targets(batch)`: right on every weighted target, or on a
        share `ceiling` of them."""

    @abc.abstractmethod
    def chance(self, split: str) -> float:
        """Expected accuracy of `trivial` on weighted targets."""

    def trivial(self, batch: Batch) -> np.ndarray:
        """Predictions of one who knows nothing, shaped like `targets(batch)`."""
        return np.full_like(self.targets(batch), self.guess)

    def targets(self, batch: Batch) -> np.ndarray:
        """What is to be predicted: labels, or tokens [B, L]."""
        return np.asarray(batch.tokens_BL if batch.labels is None else batch.labels)

    def weights(self, batch: Batch) -> np.ndarray:
        """How much each of `targets(batch)` counts, float32. Without weights: every label, or every token that has one
        before it."""
        if batch.weights_BL is not None:
            return np.asarray(batch.weights_BL)
        ones = np.ones(self.targets(batch).shape, np.float32)
        if batch.labels is None:
            ones[:, 0] = 0
        return ones

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.vocabulary.size

    @property
    def sequence_length(self) -> int:
        """L of the training rows."""
        return self.shape("train").tokens_BL.shape[1]

    @property
    def source_length(self) -> int:
        """S of the training rows; 0 where nothing stands on an encoder's side."""
        source = self.shape("train").source_BS
        return 0 if source is None else source.shape[1]

    @property
    def num_labels(self) -> int:
        """Classes of the labels; 0 where tokens are predicted."""
        return 0

    def shape(self, split: str) -> Batch:
        """A batch of one row as shapes and dtypes."""
        return jax.eval_shape(lambda key: self.sample(key, 1, split), jax.random.key(0))

    def to_text(self, batch: Batch, row: int = 0) -> str:
        """One row to read: what is given, then each weighted target in brackets."""
        counted = self.weights(batch)[row] > 0
        words = [self.name(token) for token in np.asarray(batch.tokens_BL[row])]
        if batch.labels is None:
            words = [f"[{word}]" if target else word for word, target in zip(words, counted, strict=True)]
        else:
            labels = np.atleast_1d(self.targets(batch)[row])[np.atleast_1d(counted)]
            words += ["->", *(f"[{label}]" for label in labels)]
        if batch.source_BS is not None:
            words = [*(self.name(token) for token in np.asarray(batch.source_BS[row])), "->", *words]
        return " ".join(word for word in words if word != "<pad>")

    def name(self, token: int) -> str:
        """The symbol of an id, or a special token in angle brackets."""
        known = self.symbol_names
        names = {i: f"<{name}>" for name, i in self.vocabulary.specials.items()}
        return known[token] if token < len(known) else names[int(token)]


# --- Streams: what is next? --------------------------------------------------------------------------------------


class Stream(Task):
    """A task whose weighted tokens follow from the tokens before them."""

    def sample(self, key: jax.Array, batch_size: int, split: str) -> Batch:
        return jax.vmap(lambda row_key: self.row(row_key, split))(jax.random.split(key, batch_size))

    @abc.abstractmethod
    def row(self, key: jax.Array, split: str) -> Batch:
        """One row, without the batch axis."""

    @abc.abstractmethod
    def predict(self, past: list[int]) -> int:
        """The token that follows `past`."""

    def oracle(self, batch: Batch) -> np.ndarray:
        tokens_BL, weights_BL = np.asarray(batch.tokens_BL), self.weights(batch)
        predictions = np.full_like(tokens_BL, self.pad)
        for b, place in np.argwhere(weights_BL > 0):
            predictions[b, place] = self.predict(tokens_BL[b, :place].tolist())
        return predictions


def padded(tokens_L: jax.Array, weights_L: jax.Array, keep_L: jax.Array, pad: int) -> Batch:
    """A row of the tokens that are kept, in their order, with padding behind them."""
    order_L = jnp.argsort(~keep_L, stable=True)
    kept_L = keep_L[order_L]
    return Batch(
        jnp.where(kept_L, tokens_L[order_L], pad).astype(jnp.int32),
        weights_BL=jnp.where(kept_L, weights_L[order_L], 0).astype(jnp.float32),
        segments_BL=kept_L.astype(jnp.int32),
    )


# --- Questions and answers ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a question and its answer become a row."""

    task_layout: str = choice(
        "sequence",
        "transformer.data.tasks.base:LAYOUTS",
        "question and answer in one row, as source and target, with a label per row, or with one at a token",
    )


@dataclasses.dataclass(frozen=True)
class Longest:
    """How long rows are."""

    task_length: int = field(
        16, "longest question while training; the split `long` holds longer ones, up to twice that"
    )


@dataclasses.dataclass(frozen=True)
class Length(Longest, Layout):
    """How long the questions are."""

    task_min_length: int = field(0, "shortest question while training; 0: all have task_length")


class Question(NamedTuple):
    """One question and its answer.

    Attributes:
      question_S: int32 symbols.
      answer_A: int32 symbols.
      start: the token from which the first symbol of the answer is predicted; None: the special token `sep`.
      question_length, answer_length: how much of the two is meant; None: all of it.
      place: index into the question of the token the answer is about, for the layout `tag`.
    """

    question_S: jax.Array
    answer_A: jax.Array
    start: Any = None
    question_length: Any = None
    answer_length: Any = None
    place: Any = None


class QuestionAnswer(Task):
    """A task whose rows are a question, a token that asks for the answer, and the answer.

    Layout `sequence` writes all three into one row, `pair` gives the question to an encoder, `label` and `tag` make the
    answer, a single symbol out of `answers`, the class of the row or of one token.

    Attributes:
      answers: ids of the symbols a label stands for, where an answer is one symbol.
      ended: whether answers vary in length, and the special token `eos` ends them.
    """

    layouts: ClassVar[tuple[str, ...]] = ("sequence", "pair")
    specials: ClassVar[tuple[str, ...]] = ("pad", "eos", "sep")
    answers: range | None = None

    def __init__(self, section: Data):
        super().__init__(section)
        self.eos, self.sep = self.vocabulary.special("eos"), self.vocabulary.special("sep")
        if self.answers is not None:
            self.guess = self.answers.start

    @classmethod
    def problem(cls, section: Any) -> str | None:
        if section.task_layout not in cls.layouts:
            return f"data.task_layout={section.task_layout} is not one of its layouts: {', '.join(cls.layouts)}."
        return None

    @abc.abstractmethod
    def question(self, key: jax.Array, split: str) -> Question:
        """One question with its answer."""

    @abc.abstractmethod
    def solve(self, question: list[int], start: int) -> list[int]:
        """The answer, worked out another way than `question` does: the oracle."""

    @property
    def num_labels(self) -> int:
        return len(self.answers or ()) if self.section.task_layout in ("label", "tag") else 0

    def sample(self, key: jax.Array, batch_size: int, split: str) -> Batch:
        lay_out = getattr(self, f"_{self.section.task_layout}")
        return jax.vmap(lambda row_key: lay_out(self.question(row_key, split)))(jax.random.split(key, batch_size))

    def _sequence(self, asked: Question) -> Batch:
        tokens_L, end, n = self._joined(asked, asked.answer_A, asked.answer_length)
        place_L = jnp.arange(len(tokens_L))
        weights_L = ((place_L > n) & (place_L < end)).astype(jnp.float32)
        return Batch(tokens_L, weights_L, self._segments(asked, place_L < end), prefix_length_B=jnp.int32(n + 1))

    def _pair(self, asked: Question) -> Batch:
        nothing = asked._replace(question_S=asked.question_S[:0], question_length=None)
        tokens_L, end, _ = self._joined(nothing, asked.answer_A, asked.answer_length)
        place_L = jnp.arange(len(tokens_L))
        source_S = asked.question_S.astype(jnp.int32)
        inside_S = None
        if asked.question_length is not None:
            inside_S = jnp.arange(len(source_S)) < asked.question_length
            source_S = jnp.where(inside_S, source_S, self.pad)
        return Batch(
            tokens_L,
            ((place_L > 0) & (place_L < end)).astype(jnp.float32),
            None if asked.answer_length is None else (place_L < end).astype(jnp.int32),
            source_S,
            None if inside_S is None else inside_S.astype(jnp.int32),
        )

    def _label(self, asked: Question) -> Batch:
        assert self.answers is not None
        tokens_L, end, _ = self._joined(asked, asked.answer_A[:0], None)
        segments_L = self._segments(asked, jnp.arange(len(tokens_L)) < end)
        return Batch(
            tokens_L, segments_BL=segments_L, labels=(asked.answer_A[0] - self.answers.start).astype(jnp.int32)
        )

    def _tag(self, asked: Question) -> Batch:
        assert self.answers is not None
        place_S = jnp.arange(len(asked.question_S))
        here_S = place_S == asked.place
        inside_S = place_S < (len(place_S) if asked.question_length is None else asked.question_length)
        label = asked.answer_A[0] - self.answers.start
        return Batch(
            jnp.where(inside_S, asked.question_S, self.pad).astype(jnp.int32),
            here_S.astype(jnp.float32),
            self._segments(asked, inside_S),
            labels=jnp.where(here_S, label, 0).astype(jnp.int32),
        )

    def _joined(self, asked: Question, answer_A: jax.Array, answer_length: Any) -> tuple[jax.Array, Any, Any]:
        """(question, start and answer without gaps, then padding; where the padding begins; length of the question)."""
        size_S, size_A = len(asked.question_S), len(answer_A)
        n = size_S if asked.question_length is None else asked.question_length
        a = size_A if answer_length is None else answer_length
        start = self.sep if asked.start is None else asked.start
        place_L = jnp.arange(size_S + 1 + size_A)
        tokens_L = jnp.where(place_L == n, start, self.pad)
        if size_S:
            tokens_L = jnp.where(place_L < n, asked.question_S[jnp.minimum(place_L, size_S - 1)], tokens_L)
        if size_A:
            inside_L = (place_L > n) & (place_L <= n + a)
            tokens_L = jnp.where(inside_L, answer_A[jnp.clip(place_L - n - 1, 0, size_A - 1)], tokens_L)
        return tokens_L.astype(jnp.int32), n + 1 + a, n

    @staticmethod
    def _segments(asked: Question, inside_L: jax.Array) -> jax.Array | None:
        ragged = asked.question_length is not None or asked.answer_length is not None
        return inside_L.astype(jnp.int32) if ragged else None

    def trivial(self, batch: Batch) -> np.ndarray:
        first = 0 if batch.labels is None or self.answers is None else self.answers.start
        return np.full_like(self.targets(batch), self.guess - first)

    def oracle(self, batch: Batch) -> np.ndarray:
        predictions = np.full_like(self.targets(batch), self.pad)
        for b in range(batch.rows):
            question, start, place = self._asked(batch, b)
            answer = self.solve(question, start)
            if batch.labels is None:
                predictions[b, place : place + len(answer)] = answer[: predictions.shape[1] - place]
            else:
                assert self.answers is not None
                predictions[b, ...] = answer[0] - self.answers.start
        return predictions

    def _asked(self, batch: Batch, b: int) -> tuple[list[int], int, int]:
        """(question, start, place of the answer in the row) of row b."""
        row = np.asarray(batch.tokens_BL[b])
        if batch.source_BS is not None:
            source = np.asarray(batch.source_BS[b])
            return source[source != self.pad].tolist(), int(row[0]), 1
        if batch.prefix_length_B is not None:
            n = int(batch.prefix_length_B[b]) - 1
            return row[:n].tolist(), int(row[n]), n + 1
        real = row[row != self.pad].tolist()
        if self.section.task_layout == "tag":
            return real, self.sep, 0
        return real[:-1], real[-1], 0

    def chance(self, split: str) -> float:
        assert self.answers is not None
        return 1 / len(self.answers)


class Sized(QuestionAnswer):
    """Questions of one length, or of every length from `task_min_length` to `task_length` (parameters `Length`)."""

    splits = (*SPLITS, "long")

    @classmethod
    def problem(cls, section: Any) -> str | None:
        length, shortest = section.task_length, section.task_min_length
        if not (length >= 1 and 0 <= shortest <= length):
            return f"data.task_length={length} must be at least 1 and data.task_min_length={shortest} from 0 to it."
        return super().problem(section)

    @property
    def ragged(self) -> bool:
        """Whether lengths vary."""
        return self.section.task_min_length > 0

    def lengths(self, split: str) -> tuple[int, int]:
        """(shortest, longest) question of a split."""
        longest, shortest = self.section.task_length, self.section.task_min_length
        if split == "long":
            return (longest + 1 if shortest else 2 * longest), 2 * longest
        return (shortest or longest), longest

    def draw_length(self, key: jax.Array, split: str) -> Any:
        """A length of the split; a plain number where there is only one."""
        low, high = self.lengths(split)
        return jax.random.randint(key, (), low, high + 1) if self.ragged else high
