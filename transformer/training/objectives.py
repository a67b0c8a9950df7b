"""What is predicted: from a batch and a model to a loss for every predicted token."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer.data.batch import Batch, Layout, positions_in_segments
from transformer.data.vocabularies import Vocabulary
from transformer.model.taps import capture
from transformer.registry import Registry
from transformer.schema import Config

OBJECTIVES = Registry("objective.kind")
TINY = 1e-9  # stands for a sum of weights that is zero
OBJECTIVE_OF_FAMILY = {"decoder": "clm"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLosses:
    """Losses of one batch, before any averaging. T is 1 where a row has one target.

    Attributes:
      nll_BT: negative log-likelihood of each target, nats, float32.
      smoothed_BT: what is minimised; equals nll_BT without label smoothing.
      targets_BT: target ids.
      weights_BT: how much each target counts, float32; None: each counts 1.
      correct_BT: whether the most likely prediction is the target.
    """

    nll_BT: jax.Array
    smoothed_BT: jax.Array
    targets_BT: jax.Array
    weights_BT: jax.Array | None
    correct_BT: jax.Array

    def mean(self, values_BT: jax.Array) -> jax.Array:
        """Weighted mean; 0 where nothing counts."""
        if self.weights_BT is None:
            return values_BT.mean()
        return (values_BT * self.weights_BT).sum() / jnp.maximum(self.weights_BT.sum(), TINY)


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, smoothing: float) -> tuple[jax.Array, jax.Array]:
    """Per-token (nll, smoothed loss), both [B, T] in nats (Szegedy et al. 2016 for the smoothing)."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    nll_BT = log_z_BT - target_BT
    if smoothing == 0:
        return nll_BT, nll_BT
    uniform_BT = log_z_BT - logits_BTV.mean(axis=-1)
    return nll_BT, (1 - smoothing) * nll_BT + smoothing * uniform_BT


class Objective:
    """From a batch and a model to a loss for every target. Base of all objectives.

    Args:
      config: a resolved config.
      vocabulary: gives the special tokens their ids; may be None where the objective needs none.
    """

    overlap = 0  # as in Layout
    marks_padding = True

    def __init__(self, config: Config, vocabulary: Vocabulary | None = None):
        self.config, self.vocabulary = config, vocabulary
        self.smoothing = config.objective.label_smoothing

    @classmethod
    def layout(cls, config: Config) -> Layout:
        """How the objective wants the rows of its batches filled."""
        return Layout(config.data.sequence_length, overlap=cls.overlap, marks_padding=cls.marks_padding)

    def prepare(self, batch: Batch, key: jax.Array, first_row: jax.Array | int = 0) -> Batch:
        """Turns a batch as the data gives it into what the model sees; corruption happens here, on the device.

        Args:
          key: of the step, the same for every arm; a fixed one in evaluation.
          first_row: index of the first row: each row draws from a key of its own, so that the size of an evaluation
            batch changes nothing.
        """
        del key, first_row
        return batch

    def losses(self, model: Any, batch: Batch, key: jax.Array | None, train: bool) -> TokenLosses:
        """Losses of a prepared batch.

        Args:
          key: of dropout; None turns it off.
          train: whether batch statistics are used and updated.
        """
        raise NotImplementedError

    def score(self, logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array | None) -> TokenLosses:
        """Losses of given logits."""
        nll_BT, smoothed_BT = cross_entropy(logits_BTV, targets_BT, self.smoothing)
        return TokenLosses(nll_BT, smoothed_BT, targets_BT, weights_BT, logits_BTV.argmax(axis=-1) == targets_BT)

    def score_in_chunks(
        self,
        predict: Callable[[], jax.Array],
        unembed: Callable[[jax.Array], jax.Array],
        targets_BT: jax.Array,
        weights_BT: jax.Array | None,
    ) -> TokenLosses:
        """As `score`, without ever holding the logits of more than `objective.logits_chunk` tokens; the backward pass
        computes them a second time.

        Args:
          predict: the forward pass, whose own logits nobody reads, so that the compiler leaves them out.
          unembed: from states [B, T, D] to logits.
        """
        _, seen = capture(predict, "final")()
        states_ND, targets_N = seen["final"].reshape(-1, seen["final"].shape[-1]), targets_BT.reshape(-1)
        count, size = len(targets_N), min(self.config.objective.logits_chunk, len(targets_N))
        chunks = -(-count // size)
        states_ND = jnp.pad(states_ND, ((0, chunks * size - count), (0, 0)))
        targets_N = jnp.pad(targets_N, (0, chunks * size - count))

        @jax.checkpoint
        def one(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            losses = self.score(unembed(part[0][None]), part[1][None], None)
            return losses.nll_BT[0], losses.smoothed_BT[0], losses.correct_BT[0]

        found = jax.lax.map(one, (states_ND.reshape(chunks, size, -1), targets_N.reshape(chunks, size)))
        nll, smoothed, correct = (x.reshape(-1)[:count].reshape(targets_BT.shape) for x in found)
        return TokenLosses(nll, smoothed, targets_BT, weights_BT, correct)


def apart(segments_BL: jax.Array | None) -> dict[str, jax.Array]:
    """The model's arguments that keep segments apart: nothing where there are none."""
    if segments_BL is None:
        return {}
    return {"segments_BT": segments_BL, "positions_BT": positions_in_segments(segments_BL)}


def next_token_weights(batch: Batch) -> jax.Array | None:
    """Weights [B, L - 1] of the tokens after the first, without those that open a segment: nothing before them in
    their segment says what they are."""
    weights_BL, segments_BL = batch.target_weights(), batch.segments_BL
    if weights_BL is None:
        return None
    if segments_BL is None:
        return weights_BL[:, 1:]
    return weights_BL[:, 1:] * (segments_BL[:, 1:] == segments_BL[:, :-1])


def chunks_fit(config: Config) -> str | None:
    """What is wrong with asking for logits in chunks."""
    if not config.objective.logits_chunk or config.model.head.kind == "lm":
        return None
    return f"objective.logits_chunk={config.objective.logits_chunk} goes with model.head.kind=lm only; set it to 0."


@OBJECTIVES.register("clm", paper="Bengio et al. 2003; Radford et al. 2018", check=chunks_fit)
class CausalLM(Objective):
    """Predict each token of a row from those before it."""

    overlap = 1
    marks_padding = False

    def losses(self, model: Any, batch: Batch, key: jax.Array | None, train: bool) -> TokenLosses:
        inputs_BT, targets_BT = batch.tokens_BL[:, :-1], batch.tokens_BL[:, 1:]
        segments_BT = None if batch.segments_BL is None else batch.segments_BL[:, :-1]
        predict = functools.partial(model, inputs_BT, **apart(segments_BT), dropout_key=key, train=train)
        if self.config.objective.logits_chunk:
            return self.score_in_chunks(predict, model.unembed, targets_BT, next_token_weights(batch))
        return self.score(predict(), targets_BT, next_token_weights(batch))


@OBJECTIVES.register("auto", check=chunks_fit)
def objective_of_family(config: Config, vocabulary: Vocabulary | None = None) -> Objective:
    """The objective the family was made for."""
    return objective_class(config)(config, vocabulary)


def objective_class(config: Config) -> type[Objective]:
    """The objective of a config, `auto` resolved."""
    kind = config.objective.kind
    build: Any = OBJECTIVES[OBJECTIVE_OF_FAMILY[config.model.family] if kind == "auto" else kind].build
    return build


def layout_of(config: Config) -> Layout:
    """How the objective of a config wants its rows."""
    return objective_class(config).layout(config)
