"""Finding again what stood earlier in the row, or in training."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.batch import Batch
from transformer.data.tasks.arithmetic import TABLE_SEED
from transformer.data.tasks.base import SPLITS, TASKS, Layout, Longest, Question, QuestionAnswer, Sized, Stream
from transformer.data.tasks.sequences import Alphabet, NumberOfSymbols, names
from transformer.schema import Data, field

FILLERS = 8  # symbols that mean nothing


@dataclasses.dataclass(frozen=True)
class Block(NumberOfSymbols, Longest):
    """What is repeated."""


@TASKS.register("induction", parameters=Block, paper="Olsson et al. 2022")
class Induction(Stream):
    """A block of distinct symbols, `task_length` at most and half of that at least, over and over again.

    Every token of the repetitions follows from what stood behind its last occurrence. Rows are twice as long as the
    longest block; in the split `long` four times.
    """

    splits = (*SPLITS, "long")

    @classmethod
    def problem(cls, section: Any) -> str | None:
        if not 2 <= section.task_length <= section.task_symbols:
            return f"data.task_length={section.task_length} must be from 2 to data.task_symbols={section.task_symbols}."
        return None

    def symbols(self) -> list[str]:
        return names(self.section.task_symbols)

    def row(self, key: jax.Array, split: str) -> Batch:
        period_key, block_key = jax.random.split(key)
        longest = self.section.task_length
        period = jax.random.randint(period_key, (), (longest + 1) // 2, longest + 1)
        block_P = jax.random.permutation(block_key, self.section.task_symbols)[:longest]
        place_L = jnp.arange(longest * (4 if split == "long" else 2))
        return Batch(block_P[place_L % period].astype(jnp.int32), (place_L > period).astype(jnp.float32))

    def predict(self, past: list[int]) -> int:
        earlier = past[:-1]
        return past[earlier.index(past[-1]) + 1]

    def chance(self, split: str) -> float:
        return 1 / self.section.task_symbols


@dataclasses.dataclass(frozen=True)
class Pairs(NumberOfSymbols):
    """How much is to be remembered."""

    task_pairs: int = field(8, "key-value pairs per row")
    task_queries: int = field(0, "keys that are asked for; 0: all")


@TASKS.register("mqar", parameters=Pairs, paper="Arora et al. 2023, Zoology")
class MultiQueryRecall(Stream):
    """Key-value pairs, then the same keys in another order, each followed by its value."""

    @classmethod
    def problem(cls, section: Any) -> str | None:
        if not 1 <= section.task_pairs <= section.task_symbols:
            return f"data.task_pairs={section.task_pairs} must be from 1 to data.task_symbols={section.task_symbols}."
        if not 0 <= section.task_queries <= section.task_pairs:
            return f"data.task_queries={section.task_queries} must be from 0 to data.task_pairs={section.task_pairs}."
        return None

    def symbols(self) -> list[str]:
        size = self.section.task_symbols
        self.guess = size
        return [*(f"k{i}" for i in range(size)), *names(size)]

    def row(self, key: jax.Array, split: str) -> Batch:
        key_key, value_key, query_key = jax.random.split(key, 3)
        size, pairs = self.section.task_symbols, self.section.task_pairs
        keys_N = jax.random.permutation(key_key, size)[:pairs]
        values_N = size + jax.random.randint(value_key, (pairs,), 0, size)
        asked_Q = jax.random.permutation(query_key, pairs)[: self.section.task_queries or pairs]
        order = jnp.concatenate([jnp.arange(pairs), asked_Q])
        tokens_L = jnp.stack([keys_N[order], values_N[order]], axis=1).reshape(-1)
        place_L = jnp.arange(len(tokens_L))
        return Batch(tokens_L.astype(jnp.int32), ((place_L > 2 * pairs) & (place_L % 2 == 1)).astype(jnp.float32))

    def predict(self, past: list[int]) -> int:
        return past[past.index(past[-1]) + 1]

    def chance(self, split: str) -> float:
        return 1 / self.section.task_symbols


@TASKS.register("delay", parameters=Alphabet, paper="Hochreiter & Schmidhuber 1997")
class Delay(Sized):
    """The first symbol of the row, asked for after `task_length` others that mean nothing."""

    layouts = ("sequence", "pair", "label")

    def symbols(self) -> list[str]:
        self.answers = range(self.section.task_symbols)
        return [*names(self.section.task_symbols), *names(FILLERS, ".")]

    def question(self, key: jax.Array, split: str) -> Question:
        length_key, first_key, rest_key = jax.random.split(key, 3)
        n, longest = self.draw_length(length_key, split), self.lengths(split)[1]
        first = jax.random.randint(first_key, (1,), 0, self.section.task_symbols)
        rest_S = self.section.task_symbols + jax.random.randint(rest_key, (longest,), 0, FILLERS)
        return Question(jnp.concatenate([first, rest_S]), first, None, n + 1 if self.ragged else None)

    def solve(self, question: list[int], start: int) -> list[int]:
        return question[:1]


@dataclasses.dataclass(frozen=True)
class Haystack(Alphabet):
    """Where the needle lies and what looks like it. `task_length` counts pairs of tokens."""

    task_distractors: int = field(0, "further facts with other keys")
    task_position: float = field(-1.0, "place of the fact as a share of the row, from 0 to 1; -1: anywhere")


@TASKS.register("needle", parameters=Haystack, paper="Liu et al. 2023; Kamradt 2023")
class Needle(Sized):
    """One key-value fact among `task_length` pairs of meaningless tokens; its key is asked for at the end."""

    layouts = ("sequence", "pair", "label")

    @classmethod
    def problem(cls, section: Any) -> str | None:
        most = min(section.task_symbols, section.task_min_length or section.task_length) - 1
        if not 0 <= section.task_distractors <= most:
            return f"data.task_distractors={section.task_distractors} must be from 0 to {most}, to fit into every row."
        if not (section.task_position == -1 or 0 <= section.task_position <= 1):
            return f"data.task_position={section.task_position} must be from 0 to 1, or -1."
        return super().problem(section)

    def symbols(self) -> list[str]:
        size = self.section.task_symbols
        self.answers = range(size, 2 * size)
        return [*(f"k{i}" for i in range(size)), *names(size), *names(FILLERS, ".")]

    def question(self, key: jax.Array, split: str) -> Question:
        length_key, place_key, order_key, key_key, value_key, filler_key = jax.random.split(key, 6)
        size, position = self.section.task_symbols, self.section.task_position
        n, longest = self.draw_length(length_key, split), self.lengths(split)[1]
        if position < 0:
            place = jax.random.randint(place_key, (), 0, n)
        else:
            place = jnp.round(position * (n - 1)).astype(jnp.int32)
        # Slots in random order, the needle's first and those behind the end of the row last.
        slot_N = jnp.arange(longest)
        score_N = jnp.where(slot_N < n, jax.random.uniform(order_key, (longest,)), 2).at[place].set(-1)
        rank_N = jnp.argsort(jnp.argsort(score_N))
        keys_V = jax.random.permutation(key_key, size)
        values_V = size + jax.random.randint(value_key, (size,), 0, size)
        fact_N = jnp.minimum(rank_N, size - 1)
        facts_N2 = jnp.stack([keys_V[fact_N], values_V[fact_N]], axis=1)
        filler_N2 = 2 * size + jax.random.randint(filler_key, (longest, 2), 0, FILLERS)
        question_S = jnp.where((rank_N <= self.section.task_distractors)[:, None], facts_N2, filler_N2).reshape(-1)
        return Question(question_S, values_V[:1], keys_V[0], 2 * n if self.ragged else None)

    def solve(self, question: list[int], start: int) -> list[int]:
        return [question[question.index(start) + 1]]


@dataclasses.dataclass(frozen=True)
class Knowledge(Layout):
    """How many facts there are."""

    task_facts: int = field(1024, "facts to be learned by heart")
    task_relations: int = field(4, "relations per subject")
    task_objects: int = field(16, "different answers")


@TASKS.register("facts", parameters=Knowledge, paper="Geva et al. 2021; Nichani et al. 2024")
class Facts(QuestionAnswer):
    """A fixed random table, subject and relation to object: nothing but memory helps, and every split holds it all."""

    layouts = ("sequence", "pair", "label")

    def __init__(self, section: Data):
        super().__init__(section)
        generator = np.random.Generator(np.random.Philox(TABLE_SEED))
        self.objects = generator.permutation(np.arange(section.task_facts) % section.task_objects).astype(np.int32)

    @classmethod
    def problem(cls, section: Any) -> str | None:
        if min(section.task_facts, section.task_relations, section.task_objects) < 1:
            return "data.task_facts, data.task_relations and data.task_objects must all be at least 1."
        return super().problem(section)

    def symbols(self) -> list[str]:
        objects, relations = self.section.task_objects, self.section.task_relations
        self.answers = range(objects)
        self.first_relation, self.first_subject = objects, objects + relations
        subjects = -(-self.section.task_facts // relations)
        return [
            *(f"object{i}" for i in range(objects)),
            *(f"relation{i}" for i in range(relations)),
            *(f"subject{i}" for i in range(subjects)),
        ]

    def question(self, key: jax.Array, split: str) -> Question:
        fact = jax.random.randint(key, (1,), 0, self.section.task_facts)
        subject, relation = fact // self.section.task_relations, fact % self.section.task_relations
        return Question(
            self.first_subject + subject, jnp.asarray(self.objects)[fact], self.first_relation + relation[0]
        )

    def solve(self, question: list[int], start: int) -> list[int]:
        subject, relation = question[0] - self.first_subject, start - self.first_relation
        return [int(self.objects[subject * self.section.task_relations + relation])]

    def chance(self, split: str) -> float:
        return float((self.objects == 0).mean())


@dataclasses.dataclass(frozen=True)
class Pointers(Layout):
    """What is pointed at."""

    task_items: int = field(8, "items in a row")
    task_values: int = field(8, "different items")


@TASKS.register("two_pointer", parameters=Pointers)
class TwoPointer(QuestionAnswer):
    """Both items that one token points at, named together by one answer: one look at two places.

    With positions that only enter the scores (rotary, ALiBi), a single softmax mixes the two values and loses their
    order; with positions added to the embedding the values can tell.
    """

    layouts = ("sequence", "pair", "label")

    @classmethod
    def problem(cls, section: Any) -> str | None:
        if section.task_items < 2 or section.task_values < 1:
            return "data.task_items must be at least 2 and data.task_values at least 1."
        return super().problem(section)

    def symbols(self) -> list[str]:
        items, values = self.section.task_items, self.section.task_values
        self.first_pointer = values
        self.answers = range(values + items * items, values + items * items + values * values)
        return [
            *names(values),
            *(f"#{i},{j}" for i in range(items) for j in range(items)),
            *(f"{a}{b}" if values <= 26 else f"{a},{b}" for a in names(values) for b in names(values)),
        ]

    def question(self, key: jax.Array, split: str) -> Question:
        item_key, pointer_key = jax.random.split(key)
        items, values = self.section.task_items, self.section.task_values
        x_S = jax.random.randint(item_key, (items,), 0, values)
        i, j = jax.random.permutation(pointer_key, items)[:2]
        assert self.answers is not None
        return Question(x_S, (self.answers.start + x_S[i] * values + x_S[j])[None], self.first_pointer + i * items + j)

    def solve(self, question: list[int], start: int) -> list[int]:
        assert self.answers is not None
        i, j = divmod(start - self.first_pointer, self.section.task_items)
        return [self.answers[question[i] * self.section.task_values + question[j]]]


class InContext(Stream):
    """Inputs and outputs of a function drawn anew for every row; an output counts once the row determines it."""

    inputs: int
    outputs: int

    def symbols(self) -> list[str]:
        self.guess = self.inputs
        return [*(f"x{i}" for i in range(self.inputs)), *(f"y{i}" for i in range(self.outputs))]

    def pairs(self, x_N: jax.Array, y_N: jax.Array, known_N: jax.Array) -> Batch:
        """A row of inputs [N] and outputs [N], of which the known ones count."""
        tokens_L = jnp.stack([x_N, self.inputs + y_N], axis=1).reshape(-1)
        weights_L = jnp.stack([jnp.zeros_like(known_N), known_N], axis=1).reshape(-1)
        return Batch(tokens_L.astype(jnp.int32), weights_L.astype(jnp.float32))

    def examples_before(self, place_N: np.ndarray) -> np.ndarray:
        """How many whole input-output pairs stand before the tokens at these places of a row."""
        return place_N // 2

    def chance(self, split: str) -> float:
        return 1 / self.outputs


def seen_before(x_N: jax.Array) -> jax.Array:
    """Whether a value stands earlier in the row, bool [N]."""
    return jnp.tril(x_N[:, None] == x_N[None, :], k=-1).any(axis=1)


@dataclasses.dataclass(frozen=True)
class LabelMap(NumberOfSymbols):
    """How many shots, inputs and labels."""

    task_shots: int = field(24, "input-output pairs per row")
    task_labels: int = field(4, "different outputs")


@TASKS.register("icl_map", parameters=LabelMap, paper="Brown et al. 2020; Chan et al. 2022")
class InContextMap(InContext):
    """A random label for each input, another one in every row; an output counts where its input stood before."""

    def symbols(self) -> list[str]:
        self.inputs, self.outputs = self.section.task_symbols, self.section.task_labels
        return super().symbols()

    def row(self, key: jax.Array, split: str) -> Batch:
        map_key, input_key = jax.random.split(key)
        labels_V = jax.random.randint(map_key, (self.inputs,), 0, self.outputs)
        x_N = jax.random.randint(input_key, (self.section.task_shots,), 0, self.inputs)
        return self.pairs(x_N, labels_V[x_N], seen_before(x_N))

    def predict(self, past: list[int]) -> int:
        return past[past.index(past[-1]) + 1]


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """How many shots, over which field."""

    task_shots: int = field(24, "input-output pairs per row")
    task_prime: int = field(7, "inputs and outputs are numbers modulo this prime")


@TASKS.register("icl_linear", parameters=LinearMap, paper="Garg et al. 2022, over a finite field")
class InContextLinear(InContext):
    """y = a x + b modulo a prime, with another a and b in every row; an output counts once two inputs, or its own, are
    known."""

    @classmethod
    def problem(cls, section: Any) -> str | None:
        p = section.task_prime
        if p < 2 or any(p % d == 0 for d in range(2, int(p**0.5) + 1)):
            return f"data.task_prime={p} is no prime number."
        return None

    def symbols(self) -> list[str]:
        self.inputs = self.outputs = self.section.task_prime
        return super().symbols()

    def row(self, key: jax.Array, split: str) -> Batch:
        function_key, input_key = jax.random.split(key)
        a, b = jax.random.randint(function_key, (2,), 0, self.inputs)
        x_N = jax.random.randint(input_key, (self.section.task_shots,), 0, self.inputs)
        seen_N = seen_before(x_N)
        distinct_N = jnp.cumsum(~seen_N) - ~seen_N  # different inputs before this one
        return self.pairs(x_N, (a * x_N + b) % self.inputs, seen_N | (distinct_N >= 2))

    def predict(self, past: list[int]) -> int:
        p = self.inputs
        known = {x: y - p for x, y in zip(past[:-1:2], past[1::2], strict=True)}
        if past[-1] in known:
            return p + known[past[-1]]
        (x1, y1), (x2, y2), *_ = known.items()
        a = (y2 - y1) * pow(x2 - x1, -1, p) % p
        return p + (y1 + a * (past[-1] - x1)) % p
