"""What is measured on a trained member beside its loss: a probe is one registry entry, an ablation names its probes.

The traits of a probe are the metrics it adds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.batching import Dataset
from transformer.data.ngram import KneserNey
from transformer.inference.generate import generate
from transformer.inference.sampling import Sample
from transformer.registry import Registry
from transformer.schema import Config
from transformer.training.objectives import cross_entropy
from transformer.training.step import Program, TrainState

PROBES = Registry("Ablation.probes")
ALWAYS = ("loss", "validation_loss", "accuracy", "exact_match")  # what a final evaluation measures


class Probe(Protocol):
    """Measures one trained member."""

    def __call__(self, config: Config, program: Program, state: TrainState, dataset: Dataset) -> dict[str, float]: ...


@PROBES.register("prefix_loss", traits=("prefix_loss", "teacher_forced_loss"))
def prefix_loss(config: Config, program: Program, state: TrainState, dataset: Dataset) -> dict[str, float]:
    """Loss when the future is really absent: each prefix is given alone and only its next token is scored.

    A causal model scores the same as under teacher forcing. A model that was allowed to look at the tokens it
    predicts shows here what it has learned to do without them. The last position of a window is left out: there is no
    future behind it to look at.

    Returns:
      `prefix_loss` (nats per token) over 64 windows at 8 prefix lengths, and `teacher_forced_loss` at the same places.
    """
    length = config.data.sequence_length
    tokens = np.asarray(dataset.splits["validation"][: 64 * (length + 1)]).astype(np.int32)
    windows = tokens[: len(tokens) // (length + 1) * (length + 1)].reshape(-1, length + 1)
    lengths = np.unique(np.linspace(1, length - 1, min(8, length - 1)).astype(int))

    last_token_loss, forced_loss = _prefix_losses(program)
    alone = [float(last_token_loss(state, windows[:, :n], windows[:, n])) for n in lengths]
    forced = np.asarray(forced_loss(state, jnp.asarray(windows)))[lengths - 1]
    return {"prefix_loss": float(np.mean(alone)), "teacher_forced_loss": float(forced.mean())}


@functools.lru_cache(maxsize=1)
def _prefix_losses(program: Program) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Compiled once for all members of an arm."""

    @jax.jit
    def last_token_loss(state: TrainState, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        logits = program.model(state)(inputs)
        return cross_entropy(logits[:, -1:], targets[:, None], 0.0)[0].mean()

    @jax.jit
    def forced_loss(state: TrainState, windows: jax.Array) -> jax.Array:
        logits = program.model(state)(windows[:, :-1])
        return cross_entropy(logits, windows[:, 1:], 0.0)[0].mean(axis=0)

    return last_token_loss, forced_loss


@PROBES.register("exposure", traits=("exposure_gap", "judged_after_text", "judged_after_own"))
def exposure(config: Config, program: Program, state: TrainState, dataset: Dataset) -> dict[str, float]:
    """What is written after the model's own words, beside what is written after a true text.

    64 rows are continued by sampling at temperature 1, half a window each: once after half a window of validation text,
    once after as many tokens that the model wrote itself (behind a true beginning of eight). A Kneser-Ney model of the
    training text, which knows nothing of either, judges the two continuations.

    Returns:
      `judged_after_text` and `judged_after_own` (nats per token), and `exposure_gap`, the second less the first;
      nothing for a model that sees the future, since it cannot write.
    """
    model = program.model(state)
    if not getattr(model, "causal", False):
        return {}
    half, rows = config.data.sequence_length // 2, 64
    tokens = np.asarray(dataset.splits["validation"][: rows * half]).astype(np.int32).reshape(-1, half)
    start = tokens[:, : min(8, half // 2)]
    written = generate(model, start, half - start.shape[1], Sample(), seed=config.seed)
    judge = _judge(_Text(dataset.fingerprint, np.asarray(dataset.splits["train"])), program.vocab_size)
    nats = []
    for prefix in (tokens, np.stack(written.rows)):
        whole = np.stack(generate(model, prefix, half, Sample(), seed=config.seed + 1).rows)
        nats.append(float(np.mean([-np.log(judge.probabilities(row))[half - 1 :].mean() for row in whole])))
    return {"judged_after_text": nats[0], "judged_after_own": nats[1], "exposure_gap": nats[1] - nats[0]}


@dataclasses.dataclass(frozen=True)
class _Text:
    """Tokens, known by their fingerprint."""

    fingerprint: str
    tokens: np.ndarray = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=1)
def _judge(text: _Text, vocab_size: int) -> KneserNey:
    """Counted once for all members of an arm."""
    return KneserNey(text.tokens, vocab_size)


def metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    """What a finished member of an ablation with these probes has.

    Raises:
      ConfigError: an unknown probe.
    """
    return (*ALWAYS, *(metric for name in names for metric in sorted(PROBES[name].traits)))


def measure(names: tuple[str, ...], config: Config, **member: Any) -> dict[str, float]:
    """All named probes of one member, with products as precise as its own."""
    found: dict[str, float] = {}
    with jax.default_matmul_precision(config.numerics.matmul_precision):
        for name in names:
            found.update(PROBES.build(name, config=config, **member))
    return found
