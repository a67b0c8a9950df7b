"""Small languages: who does what to whom, what a word means here, which verb agrees, brackets, translation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.batch import Batch
from transformer.data.tasks.arithmetic import TABLE_SEED
from transformer.data.tasks.base import (
    SPLITS,
    TASKS,
    Layout,
    Length,
    Longest,
    Question,
    QuestionAnswer,
    Sized,
    Stream,
    padded,
)
from transformer.schema import Data, field

NOUNS = ["dog", "man", "cat", "bird", "girl", "boy", "horse", "fox"]
VERBS = ["bites", "sees", "chases", "likes"]


@TASKS.register("role", parameters=Layout)
class Role(QuestionAnswer):
    """Who acts, or who suffers, in "dog bites man": order is the only cue."""

    layouts = ("sequence", "pair", "label")
    answers = range(len(NOUNS))

    def symbols(self) -> list[str]:
        return [*NOUNS, *VERBS, "agent?", "patient?"]

    def question(self, key: jax.Array, split: str) -> Question:
        noun_key, verb_key, role_key = jax.random.split(key, 3)
        pair = jax.random.permutation(noun_key, len(NOUNS))[:2]
        verb = len(NOUNS) + jax.random.randint(verb_key, (), 0, len(VERBS))
        role = jax.random.bernoulli(role_key).astype(jnp.int32)
        return Question(jnp.stack([pair[0], verb, pair[1]]), pair[role][None], len(NOUNS) + len(VERBS) + role)

    def solve(self, question: list[int], start: int) -> list[int]:
        asks_for_agent = self.symbol_names[start] == "agent?"
        return [question[0] if asks_for_agent else question[2]]

    def trivial(self, batch: Batch) -> np.ndarray:
        """One who sees a bag of words: names one of the two nouns, always by the same order."""
        predictions = super().trivial(batch)
        for b in range(batch.rows):
            question, _, place = self._asked(batch, b)
            predictions[(b, place) if batch.labels is None else b] = min(question[0], question[2])
        return predictions

    def chance(self, split: str) -> float:
        return 1 / 2


@dataclasses.dataclass(frozen=True)
class Cue(Length):
    """Where the word stands that decides."""

    task_cue: int = field(-3, "place of the cue, counted from the homonym; positive: to its right")


@TASKS.register("homonym", parameters=Cue)
class Homonym(Sized):
    """The sense of "bank", set by the word `task_cue` places away; all other words are decoys of both kinds."""

    layouts = ("sequence", "pair", "label", "tag")
    answers = range(2)
    kinds = ("money", "river")
    words = 4  # of each kind

    @classmethod
    def problem(cls, section: Any) -> str | None:
        shortest = section.task_min_length or section.task_length
        if not 1 <= abs(section.task_cue) < shortest:
            return (
                f"data.task_cue={section.task_cue} must lie inside every row: from 1 to {shortest - 1}, left or right."
            )
        return super().problem(section)

    def symbols(self) -> list[str]:
        return [*self.kinds, *(f"{kind}{i}" for i in range(self.words) for kind in self.kinds), "bank"]

    def question(self, key: jax.Array, split: str) -> Question:
        length_key, word_key, place_key = jax.random.split(key, 3)
        n, longest = self.draw_length(length_key, split), self.lengths(split)[1]
        cue = self.section.task_cue
        words_S = 2 + jax.random.randint(word_key, (longest,), 0, 2 * self.words)
        place = jax.random.randint(place_key, (), max(0, -cue), n - max(0, cue))
        sense = words_S[place + cue] % 2
        question_S = words_S.at[place].set(2 + 2 * self.words)
        return Question(question_S, sense[None], None, n if self.ragged else None, None, place)

    def solve(self, question: list[int], start: int) -> list[int]:
        names = [self.symbol_names[token] for token in question]
        cue = names[names.index("bank") + self.section.task_cue]
        return [self.kinds.index(cue.rstrip("0123456789"))]


@dataclasses.dataclass(frozen=True)
class Nesting:
    """How hard the sentences are."""

    task_depth: int = field(1, "most relative clauses nested in one another while training; in `long` up to twice that")
    task_attractors: int = field(2, "most nouns between a head noun and what follows it")


@TASKS.register("agreement", parameters=Nesting, paper="Linzen et al. 2016; Gulordava et al. 2018")
class Agreement(Stream):
    """Each verb agrees with the head noun of its clause, across other nouns and nested clauses.

    "dog near cats that men are is": the verbs, which count, close the clauses from the inside out. The split `long`
    nests deeper than training does.
    """

    splits = (*SPLITS, "long")

    @classmethod
    def problem(cls, section: Any) -> str | None:
        if section.task_depth < 0 or section.task_attractors < 0:
            return "data.task_depth and data.task_attractors must not be negative."
        return None

    def symbols(self) -> list[str]:
        singular = ["dog", "man", "cat", "bird"]
        plural = ["dogs", "men", "cats", "birds"]
        self.nouns = 2 * len(singular)
        self.guess = self.nouns  # is
        return [*(word for pair in zip(singular, plural, strict=True) for word in pair), "is", "are", "near", "that"]

    def row(self, key: jax.Array, split: str) -> Batch:
        depth_key, count_key, noun_key = jax.random.split(key, 3)
        deepest, most = self.section.task_depth, self.section.task_attractors
        low, high = (deepest + 1, max(2 * deepest, 1)) if split == "long" else (0, deepest)
        clauses = high + 1
        depth = jax.random.randint(depth_key, (), low, high + 1)
        count_C = jax.random.randint(count_key, (clauses,), 0, most + 1)
        nouns_CA = jax.random.randint(noun_key, (clauses, most + 1), 0, self.nouns)
        is_, near, that = self.nouns, self.nouns + 2, self.nouns + 3
        # A clause: (that) noun (near noun)*; its verb stands behind all clauses inside it.
        link_CA = jnp.full((clauses, most + 1), near).at[:, 0].set(that)
        words_C = jnp.stack([link_CA, nouns_CA], axis=2).reshape(clauses, -1)
        here_C = jnp.arange(clauses) <= depth
        keep_CA = here_C[:, None] & (jnp.arange(most + 1) <= count_C[:, None])
        keep_C = jnp.repeat(keep_CA, 2, axis=1).at[0, 0].set(False)
        verbs_C = is_ + nouns_CA[::-1, 0] % 2
        tokens_L = jnp.concatenate([words_C.reshape(-1), verbs_C])
        kept_L = jnp.concatenate([keep_C.reshape(-1), here_C[::-1]])
        return padded(tokens_L, (jnp.arange(len(tokens_L)) >= words_C.size).astype(jnp.float32), kept_L, self.pad)

    def predict(self, past: list[int]) -> int:
        words = [self.name(token) for token in past]
        open_heads: list[str] = []
        for before, word in zip(["that", *words], words, strict=False):
            if word in ("is", "are"):
                open_heads.pop()
            elif before == "that" and word != "that":
                open_heads.append(word)
        plural = open_heads[-1] in ("dogs", "men", "cats", "birds")
        return self.nouns + plural

    def chance(self, split: str) -> float:
        return 1 / 2


@dataclasses.dataclass(frozen=True)
class Brackets(Longest):
    """Which brackets, how deep, and what counts."""

    task_types: int = field(2, "kinds of brackets")
    task_max_depth: int = field(0, "deepest nesting; 0: half the length")
    task_all_targets: bool = field(False, "opening brackets count too, so that a model learns to write such words")


@TASKS.register("dyck", parameters=Brackets, paper="Chomsky & Schützenberger 1963; Hewitt et al. 2020")
class Dyck(Stream):
    """Balanced words of `task_length` brackets; which bracket closes is certain, whether one opens is a coin."""

    splits = (*SPLITS, "long")

    def __init__(self, section: Data):
        super().__init__(section)
        if section.task_all_targets:
            self.entropy, self.ceiling, _ = self._expected(section.task_length)

    @classmethod
    def problem(cls, section: Any) -> str | None:
        if section.task_length < 2 or section.task_length % 2 or section.task_types < 1 or section.task_max_depth < 0:
            return (
                "data.task_length must be even and at least 2, data.task_types at least 1, and data.task_max_depth not "
                "negative."
            )
        return None

    def symbols(self) -> list[str]:
        pairs = ["()", "[]", "{}", "<>"][: self.section.task_types]
        pairs += [f"({i} )" for i in range(len(pairs), self.section.task_types)]
        self.types = self.section.task_types
        self.guess = self.types
        opening = [pair[0] if len(pair) == 2 else pair.split()[0] for pair in pairs]
        closing = [pair[1] if len(pair) == 2 else f"){i}" for i, pair in enumerate(pairs)]
        return [*opening, *closing]

    def length(self, split: str) -> int:
        """L of a split."""
        return self.section.task_length * (2 if split == "long" else 1)

    def row(self, key: jax.Array, split: str) -> Batch:
        length = self.length(split)
        deepest = self.section.task_max_depth or length

        def step(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
            depth, stack = carry
            place, coin, kind = inputs
            opens = (depth == 0) | (coin & (depth < jnp.minimum(length - place, deepest)))
            token = jnp.where(opens, kind, self.types + stack[jnp.maximum(depth - 1, 0)])
            stack = stack.at[depth].set(jnp.where(opens, kind, stack[depth]))
            return (depth + jnp.where(opens, 1, -1), stack), token

        coin_key, kind_key = jax.random.split(key)
        coins_L = jax.random.bernoulli(coin_key, shape=(length,))
        kinds_L = jax.random.randint(kind_key, (length,), 0, self.types)
        start = jnp.int32(0), jnp.zeros(length + 1, jnp.int32)
        _, tokens_L = jax.lax.scan(step, start, (jnp.arange(length), coins_L, kinds_L))
        closes_L = (tokens_L >= self.types).astype(jnp.float32)
        return Batch(tokens_L.astype(jnp.int32), None if self.section.task_all_targets else closes_L)

    def predict(self, past: list[int]) -> int:
        stack: list[int] = []
        for token in past:
            if token < self.types:
                stack.append(token)
            else:
                stack.pop()
        # An open bracket is closed with at least the probability with which any one kind is opened.
        return self.types + stack[-1] if stack else 0

    def chance(self, split: str) -> float:
        if self.section.task_all_targets:
            return self._expected(self.length(split))[2]
        return 1 / self.types

    def _expected(self, length: int) -> tuple[float, float, float]:
        """(entropy in nats, accuracy of `predict`, accuracy of `trivial`), means over the tokens after the first, from
        the distribution of the depth at each of them."""
        deepest = self.section.task_max_depth or length
        probability = {1: 1.0}  # of each depth, after the first token
        sums = np.zeros(3)
        for place in range(1, length):
            following: dict[int, float] = {}
            for depth, p in probability.items():
                opens = 1.0 if depth == 0 else 0.5 * (depth < min(length - place, deepest))
                coin = 0.0 if opens in (0.0, 1.0) else float(np.log(2))
                right = 1 / self.types if depth == 0 else 1 - opens
                sums += p * np.array([coin + opens * np.log(self.types), right, (1 - opens) / self.types])
                for then, q in ((depth + 1, opens), (depth - 1, 1 - opens)):
                    if q:
                        following[then] = following.get(then, 0.0) + p * q
            probability = following
        entropy, ceiling, chance = sums / (length - 1)
        return float(entropy), float(ceiling), float(chance)


@dataclasses.dataclass(frozen=True)
class Languages(Layout):
    """Size of the two languages."""

    task_clauses: int = field(3, "most clauses of a sentence while training; in `long` up to twice that")
    task_words: int = field(8, "nouns, verbs and adjectives, of each")


@TASKS.register("translation", parameters=Languages)
class Translation(QuestionAnswer):
    """Clauses `[adjective] noun verb` into `verb noun [adjective]`, word for word by a fixed lexicon, verb and
    adjective in the gender of the noun."""

    splits = (*SPLITS, "long")

    def __init__(self, section: Data):
        super().__init__(section)
        self.guess = self.eos
        generator = np.random.Generator(np.random.Philox(TABLE_SEED))
        words = section.task_words
        self.noun, self.verb, self.adjective = (generator.permutation(words) for _ in range(3))
        self.gender = generator.permutation(np.arange(words) % 2)

    @classmethod
    def problem(cls, section: Any) -> str | None:
        if section.task_clauses < 1 or section.task_words < 1:
            return "data.task_clauses and data.task_words must be at least 1."
        return super().problem(section)

    def symbols(self) -> list[str]:
        kinds = {"noun": "N", "verb": "Vm Vf", "adj": "Am Af"}  # source words, and the forms of their translations
        words = range(self.section.task_words)
        source = [f"{kind}{i}" for kind in kinds for i in words]
        return [*source, *(f"{form}{i}" for forms in kinds.values() for form in forms.split() for i in words)]

    def lengths(self, split: str) -> tuple[int, int]:
        """(fewest, most) clauses of a split."""
        most = self.section.task_clauses
        return (most + 1, 2 * most) if split == "long" else (1, most)

    def question(self, key: jax.Array, split: str) -> Question:
        count_key, word_key, adjective_key = jax.random.split(key, 3)
        words, (low, high) = self.section.task_words, self.lengths(split)
        clauses = jax.random.randint(count_key, (), low, high + 1)
        noun_C, verb_C, adjective_C = jax.random.randint(word_key, (3, high), 0, words)
        here_C = jnp.arange(high) < clauses
        has_C = here_C & jax.random.bernoulli(adjective_key, shape=(high,))
        gender_C = jnp.asarray(self.gender)[noun_C]

        noun, verb, adjective = (jnp.asarray(table) for table in (self.noun, self.verb, self.adjective))
        source = jnp.stack([2 * words + adjective_C, noun_C, words + verb_C], axis=1)
        target = jnp.stack(
            [
                (4 + gender_C) * words + verb[verb_C],
                3 * words + noun[noun_C],
                (6 + gender_C) * words + adjective[adjective_C],
            ],
            axis=1,
        )
        keep_source = jnp.stack([has_C, here_C, here_C], axis=1)
        keep_target = jnp.stack([here_C, here_C, has_C], axis=1)
        source_row = padded(source.reshape(-1), jnp.ones(3 * high), keep_source.reshape(-1), self.pad)
        target_row = padded(target.reshape(-1), jnp.ones(3 * high), keep_target.reshape(-1), self.pad)
        n = keep_source.sum()
        answer_A = jnp.append(target_row.tokens_BL, self.pad).at[n].set(self.eos)
        return Question(source_row.tokens_BL, answer_A, None, n, n + 1)

    def solve(self, question: list[int], start: int) -> list[int]:
        return [token for token, _ in self.aligned(question)] + [self.eos]

    def aligned(self, question: list[int]) -> list[tuple[int, int]]:
        """The translation as (target token, index of the source word it translates)."""
        words = self.section.task_words
        translated: list[tuple[int, int]] = []
        adjective: list[int] = []
        for place, token in enumerate(question):
            kind, word = divmod(token, words)
            if kind == 2:
                adjective = [place]
            elif kind == 0:
                noun_place, noun = place, word
            else:
                gender = int(self.gender[noun])
                translated.append(((4 + gender) * words + int(self.verb[word]), place))
                translated.append((3 * words + int(self.noun[noun]), noun_place))
                for at in adjective:
                    translated.append(((6 + gender) * words + int(self.adjective[question[at] % words]), at))
                adjective = []
        return translated

    def chance(self, split: str) -> float:
        mean_words = 2.5 * sum(self.lengths(split)) / 2
        return 1 / (mean_words + 1)
