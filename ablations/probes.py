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

from transformer.data.batch import Batch
from transformer.data.batching import Dataset
from transformer.data.dataset import Text
from transformer.data.ngram import KneserNey
from transformer.inference.generate import generate
from transformer.inference.sampling import Sample
from transformer.model.taps import capture
from transformer.registry import Registry
from transformer.schema import Config
from transformer.training.evaluation import evaluate
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
    windows = jnp.asarray(tokens[: len(tokens) // (length + 1) * (length + 1)].reshape(-1, length + 1))
    lengths = np.unique(np.linspace(1, length - 1, min(8, length - 1)).astype(int))

    losses = _prefix_losses(program)
    *alone, forced = (np.asarray(losses(state, windows, int(n))) for n in (*lengths, length))
    last = [loss_T[n - 1] for loss_T, n in zip(alone, lengths, strict=True)]
    return {"prefix_loss": float(np.mean(last)), "teacher_forced_loss": float(forced[lengths - 1].mean())}


@functools.lru_cache(maxsize=1)
def _prefix_losses(program: Program) -> Callable[[TrainState, jax.Array, int], jax.Array]:
    """Compiled once for all lengths and all members of an arm."""

    @jax.jit
    def losses(state: TrainState, windows_BL: jax.Array, length: jax.Array) -> jax.Array:
        """Mean loss [T] at each position where the first `length` tokens are a document and the rest is padding."""
        tokens_BT, targets_BT = windows_BL[:, :-1], windows_BL[:, 1:]
        real_T = (jnp.arange(tokens_BT.shape[1]) < length).astype(jnp.int32)
        logits_BTV = program.model(state)(tokens_BT, segments_BT=jnp.broadcast_to(real_T, tokens_BT.shape))
        return cross_entropy(logits_BTV, targets_BT, 0.0)[0].mean(axis=0)

    return losses


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


@PROBES.register("writes", traits=("largest_write", "largest_late_write"))
def writes(config: Config, program: Program, state: TrainState, dataset: Dataset) -> dict[str, float]:
    """How much sublayers add to what they are given: the root mean square of a write over that of the stream before it.

    Returns:
      The largest over all sublayers, and over the second half of them, on 64 rows of the validation split; nothing for
      a model that lacks a skip, whose sublayers do not add.
    """
    gains = config.model.residual
    if not (gains.attention.skip_gain and gains.ffn.skip_gain):
        return {}
    batch = next(iter(dataset.batches("validation", 64)))
    sizes = np.asarray(_write_sizes(program)(state, batch))
    return {"largest_write": float(sizes.max()), "largest_late_write": float(sizes[len(sizes) // 2 :].max())}


@functools.lru_cache(maxsize=1)
def _write_sizes(program: Program) -> Callable[[TrainState, Batch], jax.Array]:
    """Compiled once for all members of an arm."""

    def rms(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean())

    @jax.jit
    def sizes(state: TrainState, batch: Batch) -> jax.Array:
        """What each sublayer adds, relative to the stream it is added to, in the order of the forward pass."""
        _, seen = capture(program.evaluate_batch)(state, batch)
        stream, found = seen["embedding"], []
        for name, x in seen.items():
            if name.endswith((".attention.output", ".ffn.output")):
                found.append(rms(x) / rms(stream))
            elif name.endswith((".residual_mid", ".residual")):
                stream = x
        return jnp.stack(found)

    return sizes


@PROBES.register("longer_text", traits=("rise_2x", "rise_4x", "rise_8x"))
def longer_text(config: Config, program: Program, state: TrainState, dataset: Dataset) -> dict[str, float]:
    """What windows longer than those of training do to the loss.

    The same tokens are scored each time: as many as half a training window holds, at the end of a window of the trained
    length and of windows two, four and eight times as long that end in the same place. None stands near the beginning
    of a window, and no window slides. A model that makes use of the further context gets better.

    Returns:
      Loss in the longer window less that in the trained one (nats per token), at 64 places of the validation split, or
      as many as it has; nothing for what is no running text, or too little of it.
    """
    length, places = config.data.sequence_length, 64
    tokens = dataset.splits["validation"] if isinstance(dataset, Text) else np.zeros(0)
    places = min(places, len(tokens) // (8 * length + 1))
    if not places:
        return {}
    windows = np.asarray(tokens[: places * (8 * length + 1)]).astype(np.int32).reshape(places, -1)
    losses = _end_losses(program)
    trained, *longer = (float(losses(state, windows[:, -n * length - 1 :], length // 2)) for n in (1, 2, 4, 8))
    return {f"rise_{n}x": loss - trained for n, loss in zip((2, 4, 8), longer, strict=True)}


@functools.lru_cache(maxsize=1)
def _end_losses(program: Program) -> Callable[[TrainState, np.ndarray, int], jax.Array]:
    """Compiled once a length for all members of an arm."""

    @functools.partial(jax.jit, static_argnums=2)
    def losses(state: TrainState, windows_NL: jax.Array, count: int) -> jax.Array:
        """Mean loss of the last `count` tokens of each window."""

        def of_one(window_L: jax.Array) -> jax.Array:
            logits_BTV = program.model(state)(window_L[None, :-1])[:, -count:]
            return cross_entropy(logits_BTV, window_L[None, -count:], 0.0)[0].mean()

        return jax.lax.map(of_one, windows_NL, batch_size=8).mean()

    return losses


@PROBES.register("longer_questions", traits=("long_accuracy",))
def longer_questions(config: Config, program: Program, state: TrainState, dataset: Dataset) -> dict[str, float]:
    """Accuracy (points) on questions longer than those of training, up to twice as long.

    Returns:
      `long_accuracy`; nothing for data without such questions.
    """
    if "long" not in dataset.splits:
        return {}
    return {"long_accuracy": 100.0 * evaluate(program, state, dataset, "long")["accuracy"]}


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
