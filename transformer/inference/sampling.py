"""How the next token is chosen from logits: the likeliest, or one drawn from a distribution that is cut and reshaped.

The steps stand in a fixed order, each reading what the one before left: temperature, then top-k, then top-p over the
k that remain (renormalised), then min-p relative to the likeliest, then one draw.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from transformer.errors import UserError
from transformer.registry import Registry
from transformer.schema import Config, Decode, field

SAMPLERS = Registry("decode.sampler")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Greedy:
    """The likeliest token; among equals the one with the smallest id."""

    def pick(self, logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
        """Token ids [B], int32."""
        return logits_BV.argmax(axis=-1).astype(jnp.int32)

    def problem(self) -> str | None:
        """What is wrong with the settings, or None."""
        return None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sample:
    """One draw from softmax(logits / temperature), cut to its likeliest tokens.

    Attributes:
      temperature: below 1 sharpens, above 1 flattens; 0 is the limit, the likeliest token.
      top_k: only the k likeliest tokens (Fan et al. 2018); None: all.
      top_p: only the smallest set of likeliest tokens whose probability reaches p (Holtzman et al. 2020); None: all.
      min_p: only tokens at least min_p times as probable as the likeliest (Nguyen et al. 2024); None: all.

    Among equally likely tokens those with smaller ids come first, so top-k keeps exactly k.
    """

    temperature: float | jax.Array = 1.0
    top_k: int | None = dataclasses.field(default=None, metadata={"static": True})
    top_p: float | jax.Array | None = None
    min_p: float | jax.Array | None = None

    def pick(self, logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
        """Token ids [B], int32, drawn with one key per row."""
        scores_BC, ids_BC = self.candidates(logits_BV)
        drawn_B = jax.vmap(jax.random.categorical)(keys_B, scores_BC)
        return drawn_B.astype(jnp.int32) if ids_BC is None else jnp.take_along_axis(ids_BC, drawn_B[:, None], 1)[:, 0]

    def candidates(self, logits_BV: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Unnormalised log-probabilities [B, C], -inf where cut, and the ids [B, C] they belong to; None: 0, 1, ...

        Raises:
          UserError: top_k is larger than the vocabulary.
        """
        vocab_size = logits_BV.shape[-1]
        if self.top_k is not None and self.top_k > vocab_size:
            raise UserError(f"top_k={self.top_k} is larger than the vocabulary of {vocab_size} tokens; lower it.")
        scores_BC, ids_BC = logits_BV.astype(jnp.float32) / self.temperature, None
        if self.top_k is not None or self.top_p is not None:
            scores_BC, ids_BC = jax.lax.top_k(scores_BC, self.top_k or vocab_size)  # sorted; ties by id
        if self.top_p is not None:
            p_BC = jax.nn.softmax(scores_BC, axis=-1)
            before_BC = jnp.cumsum(p_BC, axis=-1) - p_BC
            first = jnp.arange(scores_BC.shape[-1]) == 0  # kept whatever rounding does
            scores_BC = jnp.where(first | (before_BC < self.top_p), scores_BC, -jnp.inf)
        if self.min_p is not None:
            highest_B1 = scores_BC.max(axis=-1, keepdims=True)
            scores_BC = jnp.where(scores_BC >= highest_B1 + jnp.log(self.min_p), scores_BC, -jnp.inf)
        return scores_BC, ids_BC

    def problem(self) -> str | None:
        """What is wrong with the settings, or None."""
        temperature, top_k, top_p, min_p = self.temperature, self.top_k, self.top_p, self.min_p
        if not 0 <= temperature < float("inf"):
            return f"temperature={temperature} must be 0 (greedy) or a positive number."
        if top_k is not None and top_k < 1:
            return f"top_k={top_k} leaves no token to choose; use at least 1."
        if top_p is not None and not 0 < top_p <= 1:
            return f"top_p={top_p} must be above 0 and at most 1, which keeps everything."
        if min_p is not None and not 0 < min_p <= 1:
            return f"min_p={min_p} must be above 0 and at most 1, which keeps the likeliest alone."
        return None


def probabilities(logits_BV: jax.Array, sample: Sample) -> jax.Array:
    """The distribution [B, V] that `sample` draws from."""
    scores_BC, ids_BC = sample.candidates(logits_BV)
    p_BC = jax.nn.softmax(scores_BC, axis=-1)
    if ids_BC is None:
        return p_BC
    rows_B1 = jnp.arange(len(p_BC))[:, None]
    return jnp.zeros(logits_BV.shape, p_BC.dtype).at[rows_B1, ids_BC].set(p_BC)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beam:
    """The likeliest texts found while following the `beams` best at a time.

    A text's score is its log-probability / (its new tokens)^length_penalty. A finished text keeps its place among the
    beams and competes with the growing ones by score, so one beam is greedy decoding exactly, and as many beams as
    there are texts is exhaustive search.

    Attributes:
      beams: texts followed per prompt.
      length_penalty: 0 compares sums of log-probabilities, which favours short texts; 1 means of them.
    """

    beams: int = dataclasses.field(default=4, metadata={"static": True})
    length_penalty: float | jax.Array = 1.0

    def problem(self) -> str | None:
        """What is wrong with the settings, or None."""
        if self.beams < 1:
            return f"beams={self.beams} follows no text; use at least 1."
        if not 0 <= self.length_penalty < float("inf"):
            return f"length_penalty={self.length_penalty} must be 0 (none) or a positive number."
        return None


Sampler = Greedy | Sample | Beam


# --- Settings of a config ----------------------------------------------------------------------------------------


def _checked(config: Config) -> str | None:
    """The problem of the chosen sampler, with the names that its fields have in a config."""
    found = SAMPLERS.build(config.decode.sampler, config.decode).problem()
    return None if found is None else f"decode.{found}"


@SAMPLERS.register("greedy")
def greedy(decode: Decode) -> Greedy:
    """The likeliest token each time."""
    return Greedy()


@dataclasses.dataclass(frozen=True)
class SampleParameters:
    temperature: float = field(0.8, "logits are divided by it; 0: greedy")
    top_k: int = field(0, "only the k likeliest tokens; 0: all")
    top_p: float = field(1.0, "only the likeliest tokens that reach this probability together; 1: all")
    min_p: float = field(0.0, "only tokens at least this share as probable as the likeliest; 0: all")


@SAMPLERS.register(
    "sample",
    parameters=SampleParameters,
    paper="Fan et al. 2018; Holtzman et al. 2020; Nguyen et al. 2024",
    traits=("random",),
    check=_checked,
)
def sample(decode: Decode) -> Any:
    """A draw after temperature, top-k, top-p and min-p, in this order."""
    return Sample(
        decode.temperature,
        top_k=decode.top_k or None,
        top_p=None if decode.top_p == 1 else decode.top_p,
        min_p=decode.min_p or None,
    )


@dataclasses.dataclass(frozen=True)
class BeamParameters:
    beams: int = field(4, "texts followed at a time")
    length_penalty: float = field(1.0, "exponent of the length that log-probabilities are divided by; 0: none")


@SAMPLERS.register("beam", parameters=BeamParameters, paper="Graves 2012; Wu et al. 2016", check=_checked)
def beam(decode: Decode) -> Beam:
    """The text with the best score among those followed."""
    return Beam(decode.beams, decode.length_penalty)
