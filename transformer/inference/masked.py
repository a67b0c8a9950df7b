"""Filling free places of a text with a model that sees both sides; fixed places stay as they are."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer.data.batch import positions_in_segments
from transformer.errors import UserError
from transformer.registry import Registry
from transformer.schema import Config, Decode, field

FILLERS = Registry("decode.fill")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskPredict:
    """All free places at once, then those that were least certain again, fewer each time (Ghazvininejad et al. 2019).

    Attributes:
      iterations: passes over the text; in pass i of n the (n - i) / n least certain free places are masked.
    """

    iterations: int = 10

    def problem(self) -> str | None:
        """What is wrong with the settings, or None."""
        return None if self.iterations >= 1 else f"iterations={self.iterations} predicts nothing; use at least 1."

    def fill(self, predict: Any, tokens_BT: jax.Array, free_BT: jax.Array, key: jax.Array) -> jax.Array:
        """The filled texts; `predict(tokens, masked)` gives log-probabilities [B, T, V]."""
        count_B1 = free_BT.sum(axis=1, keepdims=True)

        def once(i: jax.Array, carry: Any) -> Any:
            tokens_BT, certainty_BT = carry
            again_B1 = count_B1 * (self.iterations - i) // self.iterations
            rank_BT = jnp.argsort(jnp.argsort(certainty_BT, axis=1), axis=1)
            masked_BT = free_BT & (rank_BT < again_B1)
            log_p_BTV = predict(tokens_BT, masked_BT)
            tokens_BT = jnp.where(masked_BT, log_p_BTV.argmax(axis=-1).astype(jnp.int32), tokens_BT)
            return tokens_BT, jnp.where(masked_BT, log_p_BTV.max(axis=-1), certainty_BT)

        certainty_BT = jnp.where(free_BT, -jnp.inf, jnp.inf)
        return jax.lax.fori_loop(0, self.iterations, once, (tokens_BT, certainty_BT))[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gibbs:
    """One free place at a time, drawn anew given all the others (Wang & Cho 2019).

    Starts from all free places masked. A masked model need not be the conditional of any one distribution over texts,
    so this is resampling in the manner of Gibbs, without its guarantee.

    Attributes:
      steps: places drawn per row, with repetition.
      temperature: of the draws.
    """

    steps: int = 100
    temperature: float | jax.Array = 1.0

    def problem(self) -> str | None:
        """What is wrong with the settings, or None."""
        if self.steps < 1:
            return f"steps={self.steps} draws nothing; use at least 1."
        if not 0 < self.temperature < float("inf"):
            return f"temperature={self.temperature} must be a positive number."
        return None

    def fill(self, predict: Any, tokens_BT: jax.Array, free_BT: jax.Array, key: jax.Array) -> jax.Array:
        """The filled texts; `predict(tokens, masked)` gives log-probabilities [B, T, V]. Places never drawn stay
        masked until the end and then take their likeliest token."""
        T = tokens_BT.shape[1]

        def once(i: jax.Array, carry: Any) -> Any:
            tokens_BT, blank_BT = carry
            place_key, token_key = jax.random.split(jax.random.fold_in(key, i))
            place_B = jax.random.categorical(place_key, jnp.where(free_BT, 0.0, -jnp.inf))
            here_BT = jnp.arange(T) == place_B[:, None]
            log_p_BTV = predict(tokens_BT, blank_BT | here_BT)
            log_p_BV = jnp.take_along_axis(log_p_BTV, place_B[:, None, None], axis=1)[:, 0]
            drawn_B = jax.random.categorical(token_key, log_p_BV / self.temperature).astype(jnp.int32)
            return jnp.where(here_BT, drawn_B[:, None], tokens_BT), blank_BT & ~here_BT

        tokens_BT, blank_BT = jax.lax.fori_loop(0, self.steps, once, (tokens_BT, free_BT))
        likeliest_BT = predict(tokens_BT, blank_BT).argmax(axis=-1).astype(jnp.int32)
        return jnp.where(blank_BT, likeliest_BT, tokens_BT)


def fill(
    model: Any,
    tokens_BT: np.ndarray,
    free_BT: np.ndarray,
    mask_token: int,
    sampler: MaskPredict | Gibbs | None = None,
    *,
    segments_BT: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Fills the free places of every row, in one compiled loop.

    Args:
      model: one that sees both sides, trained to predict masked tokens.
      tokens_BT: token ids; those at free places do not matter.
      free_BT: which places are to be filled.
      mask_token: the id the model was trained to read as "missing". It is never an answer.
      sampler: by default mask-predict with ten passes.
      segments_BT: as the model takes them; 0 is padding.
      seed: of the draws.

    Returns:
      Token ids [B, T], int32, equal to `tokens_BT` wherever it is not free.

    Raises:
      UserError: a causal model, shapes that differ, a row without a free place, free padding, impossible settings.
    """
    tokens_BT, free_BT = np.asarray(tokens_BT, np.int32), np.asarray(free_BT, bool)
    sampler = MaskPredict() if sampler is None else sampler
    if model.causal:
        raise UserError("This model sees only what precedes: it cannot fill places; use generate, which continues.")
    if tokens_BT.shape != free_BT.shape:
        raise UserError(f"tokens have shape {tokens_BT.shape} and free places {free_BT.shape}; they must agree.")
    if not free_BT.any(axis=1).all():
        raise UserError(f"Row {free_BT.any(axis=1).argmin()} has no free place: there is nothing to fill.")
    if segments_BT is not None and (free_BT & (np.asarray(segments_BT) == 0)).any():
        raise UserError("A free place is padding (segment 0): padding is never filled.")
    if problem := sampler.problem():
        raise UserError(problem)
    structure, weights = nnx.split(model)
    key = jax.random.key(seed)
    return np.asarray(_fill(structure, weights, tokens_BT, free_BT, np.int32(mask_token), sampler, segments_BT, key))


@functools.partial(jax.jit, static_argnames=("structure",))
def _fill(
    structure: Any,
    weights: Any,
    tokens_BT: jax.Array,
    free_BT: jax.Array,
    mask_token: jax.Array,
    sampler: MaskPredict | Gibbs,
    segments_BT: jax.Array | None,
    key: jax.Array,
) -> jax.Array:
    model = nnx.merge(structure, weights)
    apart = {} if segments_BT is None else {"positions_BT": positions_in_segments(segments_BT)}  # as in training

    def predict(tokens_BT: jax.Array, masked_BT: jax.Array) -> jax.Array:
        logits_BTV = model(jnp.where(masked_BT, mask_token, tokens_BT), segments_BT=segments_BT, **apart)
        answers_V = jnp.arange(logits_BTV.shape[-1]) != mask_token
        return jax.nn.log_softmax(jnp.where(answers_V, logits_BTV, -jnp.inf))

    return sampler.fill(predict, tokens_BT, free_BT, key)


# --- Settings of a config ----------------------------------------------------------------------------------------


def _checked(config: Config) -> str | None:
    """The problem of the chosen way to fill, with the names that its fields have in a config."""
    found = FILLERS.build(config.decode.fill, config.decode).problem()
    return None if found is None else f"decode.fill_{found}"


@dataclasses.dataclass(frozen=True)
class MaskPredictParameters:
    fill_iterations: int = field(10, "passes over the text")


@FILLERS.register("mask_predict", parameters=MaskPredictParameters, paper="Ghazvininejad et al. 2019", check=_checked)
def mask_predict(decode: Decode) -> MaskPredict:
    """All gaps at once, then the least certain ones again, fewer in each pass."""
    return MaskPredict(decode.fill_iterations)


@dataclasses.dataclass(frozen=True)
class GibbsParameters:
    fill_steps: int = field(100, "places drawn per row, with repetition")
    fill_temperature: float = field(1.0, "logits are divided by it")


@FILLERS.register("gibbs", parameters=GibbsParameters, paper="Wang & Cho 2019", traits=("random",), check=_checked)
def gibbs(decode: Decode) -> Gibbs:
    """One gap at a time, drawn anew given all the others."""
    return Gibbs(decode.fill_steps, decode.fill_temperature)
