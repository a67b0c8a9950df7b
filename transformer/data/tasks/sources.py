"""Random sources whose entropy is known: no model can score below it, a good one reaches it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.batch import Batch
from transformer.data.tasks.arithmetic import TABLE_SEED
from transformer.data.tasks.base import TASKS, Longest, Stream
from transformer.data.tasks.sequences import NumberOfSymbols, names
from transformer.schema import Data, field


@dataclasses.dataclass(frozen=True)
class Chain(NumberOfSymbols, Longest):
    """Which chain."""

    task_concentration: float = field(0.3, "Dirichlet parameter of the transition probabilities; small: predictable")


@TASKS.register("markov", parameters=Chain, paper="Shannon 1948")
class Markov(Stream):
    """Rows of `task_length` tokens of one fixed first-order Markov chain, started in its stationary distribution."""

    def __init__(self, section: Data):
        super().__init__(section)
        size = section.task_symbols
        generator = np.random.Generator(np.random.Philox(TABLE_SEED))
        gammas_VV = generator.standard_gamma(section.task_concentration, (size, size)) + 1e-6
        self.transition_VV = gammas_VV / gammas_VV.sum(axis=1, keepdims=True)
        self.stationary_V = stationary(self.transition_VV)
        self.guess = int(self.stationary_V.argmax())
        surprise_VV = -self.transition_VV * np.log(self.transition_VV)
        self.entropy = float(self.stationary_V @ surprise_VV.sum(axis=1))
        self.ceiling = float(self.stationary_V @ self.transition_VV.max(axis=1))

    @classmethod
    def problem(cls, section: Any) -> str | None:
        if section.task_symbols < 2 or section.task_length < 2 or section.task_concentration <= 0:
            return "data.task_symbols and data.task_length must be at least 2, data.task_concentration above 0."
        return None

    def symbols(self) -> list[str]:
        return names(self.section.task_symbols)

    def row(self, key: jax.Array, split: str) -> Batch:
        log_VV = jnp.log(jnp.asarray(self.transition_VV, jnp.float32))
        log_V = jnp.log(jnp.asarray(self.stationary_V, jnp.float32))
        first_key, rest_key = jax.random.split(key)

        def step(token: jax.Array, step_key: jax.Array) -> tuple[jax.Array, jax.Array]:
            token = jax.random.categorical(step_key, log_VV[token])
            return token, token

        first = jax.random.categorical(first_key, log_V)
        _, rest = jax.lax.scan(step, first, jax.random.split(rest_key, self.section.task_length - 1))
        return Batch(jnp.append(first, rest).astype(jnp.int32))

    def predict(self, past: list[int]) -> int:
        return int(self.transition_VV[past[-1]].argmax())

    def chance(self, split: str) -> float:
        return float(self.stationary_V.max())


def stationary(transition_VV: np.ndarray) -> np.ndarray:
    """The distribution [V] that a transition matrix leaves as it is."""
    size = len(transition_VV)
    equations = np.vstack([transition_VV.T - np.eye(size), np.ones(size)])
    solution, *_ = np.linalg.lstsq(equations, np.append(np.zeros(size), 1), rcond=None)
    return np.maximum(solution, 0) / np.maximum(solution, 0).sum()


@dataclasses.dataclass(frozen=True)
class Raster(NumberOfSymbols):
    """The picture that is read line by line."""

    task_columns: int = field(8, "tokens per line")
    task_lines: int = field(8, "lines per row of the batch")
    task_noise: float = field(0.1, "probability that a token differs from the one above it")


@TASKS.register("periodic", parameters=Raster, paper="Child et al. 2019 for strided attention")
class Periodic(Stream):
    """A picture of noisy columns, line by line: a token most likely equals the one a line above."""

    def __init__(self, section: Data):
        super().__init__(section)
        noise, others = section.task_noise, section.task_symbols - 1
        self.ceiling = 1 - noise
        self.entropy = -(1 - noise) * math.log1p(-noise) - (noise * math.log(noise / others) if noise else 0)

    @classmethod
    def problem(cls, section: Any) -> str | None:
        if section.task_symbols < 2 or section.task_columns < 1 or section.task_lines < 2:
            return "data.task_symbols and data.task_lines must be at least 2, data.task_columns at least 1."
        if not 0 <= section.task_noise < 1 - 1 / section.task_symbols:
            return f"data.task_noise={section.task_noise} must be at least 0 and leave the token above the likeliest."
        return None

    def symbols(self) -> list[str]:
        return names(self.section.task_symbols)

    def row(self, key: jax.Array, split: str) -> Batch:
        first_key, noise_key, other_key = jax.random.split(key, 3)
        size, columns, lines = self.section.task_symbols, self.section.task_columns, self.section.task_lines
        top_C = jax.random.randint(first_key, (1, columns), 0, size)
        changed = jax.random.bernoulli(noise_key, self.section.task_noise, (lines - 1, columns))
        steps = jnp.where(changed, jax.random.randint(other_key, (lines - 1, columns), 1, size), 0)
        picture = jnp.concatenate([top_C, steps]).cumsum(axis=0) % size
        place_L = jnp.arange(lines * columns)
        return Batch(picture.reshape(-1).astype(jnp.int32), (place_L >= columns).astype(jnp.float32))

    def predict(self, past: list[int]) -> int:
        return past[-self.section.task_columns]

    def chance(self, split: str) -> float:
        return 1 / self.section.task_symbols
