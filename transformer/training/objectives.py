"""What is predicted: from a batch and a model to a loss for every predicted token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer.registry import Registry
from transformer.schema import Config

OBJECTIVES = Registry("objective.kind")
OBJECTIVE_OF_FAMILY = {"decoder": "clm"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLosses:
    """Losses of one batch, before any averaging.

    Attributes:
      nll_BT: negative log-likelihood of each target, nats, float32.
      smoothed_BT: what is minimised; equals nll_BT without label smoothing.
      targets_BT: target ids.
    """

    nll_BT: jax.Array
    smoothed_BT: jax.Array
    targets_BT: jax.Array


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


@OBJECTIVES.register("clm", paper="Bengio et al. 2003; Radford et al. 2018")
def causal_lm(config: Config) -> Callable[..., TokenLosses]:
    """Predict each token of a window from those before it."""

    def losses(model: Any, tokens: jax.Array, dropout_key: jax.Array | None, train: bool) -> TokenLosses:
        inputs_BT, targets_BT = tokens[:, :-1], tokens[:, 1:]
        logits_BTV = model(inputs_BT, dropout_key=dropout_key, train=train)
        return TokenLosses(*cross_entropy(logits_BTV, targets_BT, config.objective.label_smoothing), targets_BT)

    return losses


@OBJECTIVES.register("auto")
def objective_of_family(config: Config) -> Callable[..., TokenLosses]:
    """The objective the family was made for."""
    return OBJECTIVES.build(OBJECTIVE_OF_FAMILY[config.model.family], config)
