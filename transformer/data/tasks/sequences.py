"""Sequence in, sequence out: copying, reversing, sorting, rotating; and one answer about a whole sequence."""

from __future__ import annotations

import abc
import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from transformer.data.tasks.base import TASKS, Length, Question, Sized
from transformer.schema import field


@dataclasses.dataclass(frozen=True)
class NumberOfSymbols:
    """How many symbols there are."""

    task_symbols: int = field(16, "size of the alphabet")


@dataclasses.dataclass(frozen=True)
class Alphabet(NumberOfSymbols, Length):
    """Length and number of symbols."""


def names(size: int, prefix: str = "") -> list[str]:
    """Names of `size` symbols: letters where they suffice, else numbers, behind a prefix."""
    return [f"{prefix}{chr(97 + i) if size <= 26 else i}" for i in range(size)]


class Transduction(Sized):
    """The answer is a function of the question, as long as the question."""

    def symbols(self) -> list[str]:
        return names(self.section.task_symbols)

    @abc.abstractmethod
    def transform(self, x_S: jax.Array, n: Any) -> jax.Array:
        """The answer [S] to the first `n` symbols; what lies behind them means nothing."""

    def question(self, key: jax.Array, split: str) -> Question:
        length_key, symbol_key = jax.random.split(key)
        n, longest = self.draw_length(length_key, split), self.lengths(split)[1]
        x_S = jax.random.randint(symbol_key, (longest,), 0, self.section.task_symbols)
        answer_S = self.transform(x_S, n)
        if not self.ragged:
            return Question(x_S, answer_S)
        return Question(x_S, jnp.append(answer_S, 0).at[n].set(self.eos), None, n, n + 1)

    def solve(self, question: list[int], start: int) -> list[int]:
        return self.answer(question) + [self.eos] * self.ragged

    @abc.abstractmethod
    def answer(self, question: list[int]) -> list[int]:
        """The answer to a question."""

    def chance(self, split: str) -> float:
        mean = sum(self.lengths(split)) / 2
        return mean / self.section.task_symbols / (mean + self.ragged)


@TASKS.register("copy", parameters=Alphabet, paper="Graves et al. 2014, Neural Turing Machines")
class Copy(Transduction):
    """Repeat the sequence."""

    def transform(self, x_S: jax.Array, n: Any) -> jax.Array:
        return x_S

    def answer(self, question: list[int]) -> list[int]:
        return question


@TASKS.register("reverse", parameters=Alphabet)
class Reverse(Transduction):
    """The sequence backwards: positions decide."""

    def transform(self, x_S: jax.Array, n: Any) -> jax.Array:
        return x_S[jnp.maximum(n - 1 - jnp.arange(len(x_S)), 0)]

    def answer(self, question: list[int]) -> list[int]:
        return question[::-1]


@TASKS.register("sort", parameters=Alphabet)
class Sort(Transduction):
    """The symbols in alphabetical order: positions do not matter."""

    def transform(self, x_S: jax.Array, n: Any) -> jax.Array:
        return jnp.sort(jnp.where(jnp.arange(len(x_S)) < n, x_S, self.section.task_symbols))

    def answer(self, question: list[int]) -> list[int]:
        return sorted(question)


@dataclasses.dataclass(frozen=True)
class Rotation(Alphabet):
    """How far."""

    task_shift: int = field(1, "places the sequence is rotated to the left")


@TASKS.register("shift", parameters=Rotation)
class Shift(Transduction):
    """The sequence rotated by a fixed number of places."""

    def transform(self, x_S: jax.Array, n: Any) -> jax.Array:
        return x_S[(jnp.arange(len(x_S)) + self.section.task_shift) % n]

    def answer(self, question: list[int]) -> list[int]:
        k = self.section.task_shift % len(question)
        return question[k:] + question[:k]


@TASKS.register("majority", parameters=Alphabet)
class Majority(Sized):
    """The most frequent symbol; of equally frequent ones, the one that came first."""

    layouts = ("sequence", "pair", "label")

    def symbols(self) -> list[str]:
        self.answers = range(self.section.task_symbols)
        return names(self.section.task_symbols)

    def question(self, key: jax.Array, split: str) -> Question:
        length_key, symbol_key = jax.random.split(key)
        n, longest = self.draw_length(length_key, split), self.lengths(split)[1]
        x_S = jax.random.randint(symbol_key, (longest,), 0, self.section.task_symbols)
        is_VS = (x_S == jnp.arange(self.section.task_symbols)[:, None]) & (jnp.arange(longest) < n)
        # Counts first; a later first place only breaks ties, and symbols that are absent have no count.
        score_V = is_VS.sum(axis=1) * (longest + 1) - is_VS.argmax(axis=1)
        return Question(x_S, score_V.argmax()[None], None, n if self.ragged else None)

    def solve(self, question: list[int], start: int) -> list[int]:
        return [collections.Counter(question).most_common(1)[0][0]]  # equal counts in the order of first places
