"""Addition, addition modulo p, parity, exclusive or."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.tasks.base import TASKS, Layout, Length, Question, QuestionAnswer, Sized
from transformer.schema import Data, field

TABLE_SEED = 20_170_612  # of whatever is drawn once and then fixed: the same tables in every run


@dataclasses.dataclass(frozen=True)
class Digits(Length):
    """How sums are written."""

    task_reversed: bool = field(True, "the sum starts with its last digit, as in adding by hand")


@TASKS.register("add", parameters=Digits, paper="Nogueira et al. 2021; Lee et al. 2023 for the reversed sum")
class Add(Sized):
    """The sum of two decimal numbers of `task_length` digits, leading zeros written, in one digit more."""

    def symbols(self) -> list[str]:
        return [*"0123456789", "+"]

    def question(self, key: jax.Array, split: str) -> Question:
        length_key, digit_key = jax.random.split(key)
        n, longest = self.draw_length(length_key, split), self.lengths(split)[1]
        place_N = jnp.arange(longest)
        # Lowest digit first.
        a_N, b_N = jnp.where(place_N < n, jax.random.randint(digit_key, (2, longest), 0, 10), 0)

        def column(carry: jax.Array, digits: jax.Array) -> tuple[jax.Array, jax.Array]:
            total = digits.sum() + carry
            return total // 10, total % 10

        carry, sum_N = jax.lax.scan(column, jnp.int32(0), jnp.stack([a_N, b_N], axis=1))
        sum_A = jnp.append(sum_N, carry)  # behind place n all digits are 0, so that a carry stands at place n
        place_S = jnp.arange(2 * longest + 1)
        first_S = a_N[jnp.clip(n - 1 - place_S, 0, longest - 1)]
        second_S = b_N[jnp.clip(2 * n - place_S, 0, longest - 1)]
        question_S = jnp.where(place_S == n, 10, jnp.where(place_S < n, first_S, second_S))
        answer_A = sum_A if self.section.task_reversed else sum_A[jnp.maximum(n - jnp.arange(longest + 1), 0)]
        if not self.ragged:
            return Question(question_S, answer_A)
        return Question(question_S, jnp.append(answer_A, 0).at[n + 1].set(self.eos), None, 2 * n + 1, n + 2)

    def solve(self, question: list[int], start: int) -> list[int]:
        a, b = (
            "".join(map(str, digits)) for digits in (question[: len(question) // 2], question[len(question) // 2 + 1 :])
        )
        written = str(int(a) + int(b)).zfill(len(a) + 1)
        digits = [int(digit) for digit in written]
        return (digits[::-1] if self.section.task_reversed else digits) + [self.eos] * self.ragged

    def chance(self, split: str) -> float:
        low, high = self.lengths(split)
        lengths = range(low, high + 1)
        no_carry = [(10**n + 1) / (2 * 10**n) for n in lengths]  # share of pairs below 10 ** n
        return sum(n / 10 + p for n, p in zip(lengths, no_carry, strict=True)) / sum(
            n + 1 + self.ragged for n in lengths
        )


@dataclasses.dataclass(frozen=True)
class Modulus(Layout):
    """Which sums, and which of them are for training."""

    task_modulus: int = field(31, "p of addition modulo p")
    task_train_share: float = field(0.8, "share of all pairs to train on; the rest is validation and test, half each")


@TASKS.register("modadd", parameters=Modulus, paper="Power et al. 2022, Grokking")
class ModularAddition(QuestionAnswer):
    """(a + b) mod p, tested on pairs that were never trained on; every sum is equally frequent in every split."""

    layouts = ("sequence", "pair", "label")

    def __init__(self, section: Data):
        super().__init__(section)
        p = section.task_modulus
        trained = self._trained(section)
        held_out = (p - trained + 1) // 2
        generator = np.random.Generator(np.random.Philox(TABLE_SEED))
        first = np.stack([generator.permutation(p) for _ in range(p)])  # [sum, pairs of that sum]
        pairs = np.stack([first, (np.arange(p)[:, None] - first) % p], axis=-1).astype(np.int32)
        cuts = np.split(pairs, [trained, trained + held_out], axis=1)
        self.pairs = {split: part.reshape(-1, 2) for split, part in zip(self.splits, cuts, strict=True)}

    @staticmethod
    def _trained(section: Any) -> int:
        """Training pairs per sum."""
        return round(section.task_modulus * section.task_train_share)

    @classmethod
    def problem(cls, section: Any) -> str | None:
        if section.task_modulus < 3 or not 1 <= cls._trained(section) <= section.task_modulus - 2:
            return (
                f"data.task_modulus={section.task_modulus} and data.task_train_share={section.task_train_share} "
                "leave no pair for one of the splits; take a modulus of at least 3 and a share that leaves two per sum."
            )
        return super().problem(section)

    def symbols(self) -> list[str]:
        self.answers = range(self.section.task_modulus)
        return [str(i) for i in self.answers]

    def question(self, key: jax.Array, split: str) -> Question:
        pairs = jnp.asarray(self.pairs[split])
        pair = pairs[jax.random.randint(key, (), 0, len(pairs))]
        return Question(pair, (pair.sum(keepdims=True)) % self.section.task_modulus)

    def solve(self, question: list[int], start: int) -> list[int]:
        return [sum(question) % self.section.task_modulus]


@TASKS.register("parity", parameters=Length, paper="Hahn 2020")
class Parity(Sized):
    """Whether a row of bits holds an odd number of ones."""

    layouts = ("sequence", "pair", "label")
    answers = range(2)

    def symbols(self) -> list[str]:
        return ["0", "1"]

    def question(self, key: jax.Array, split: str) -> Question:
        length_key, bit_key = jax.random.split(key)
        n, longest = self.draw_length(length_key, split), self.lengths(split)[1]
        bits_S = jax.random.bernoulli(bit_key, shape=(longest,)).astype(jnp.int32)
        odd = jnp.where(jnp.arange(longest) < n, bits_S, 0).sum(keepdims=True) % 2
        return Question(bits_S, odd, None, n if self.ragged else None)

    def solve(self, question: list[int], start: int) -> list[int]:
        return [question.count(1) % 2]


@TASKS.register("xor", parameters=Layout, paper="Minsky & Papert 1969")
class Xor(QuestionAnswer):
    """Whether two bits differ: the smallest function no linear map computes."""

    layouts = ("sequence", "pair", "label")
    answers = range(2)

    def symbols(self) -> list[str]:
        return ["0", "1"]

    def question(self, key: jax.Array, split: str) -> Question:
        bits_S = jax.random.bernoulli(key, shape=(2,)).astype(jnp.int32)
        return Question(bits_S, (bits_S[:1] != bits_S[1:]).astype(jnp.int32))

    def solve(self, question: list[int], start: int) -> list[int]:
        return [question[0] ^ question[1]]
