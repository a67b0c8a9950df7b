"""What is predicted: from a batch and a model to a loss for every predicted token."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer.data import generated
from transformer.data.batch import Batch, Layout, positions_in_segments
from transformer.data.batching import PACKINGS, Dataset
from transformer.data.corpora import SOURCES, is_text
from transformer.data.corruption import row_keys
from transformer.data.vocabularies import Bytes, Vocabulary
from transformer.errors import DataError
from transformer.model.taps import capture
from transformer.registry import Registry
from transformer.schema import Config

OBJECTIVES = Registry("objective.kind")
TINY = 1e-9  # stands for a sum of weights that is zero
OBJECTIVE_OF_FAMILY = {"decoder": "clm", "encoder": "mlm", "prefix_decoder": "prefix", "encoder_decoder": "seq2seq"}


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
    nll_BT = log_z_BT - picked(logits_BTV, targets_BT)
    if smoothing == 0:
        return nll_BT, nll_BT
    uniform_BT = log_z_BT - logits_BTV.mean(axis=-1)
    return nll_BT, (1 - smoothing) * nll_BT + smoothing * uniform_BT


def picked(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """The logit of each target [B, T]. A gather on a CPU. On an accelerator its gradient, a scatter, would need all
    logits stored in float32; a comparison is fused into passes over them that are made anyway."""
    if jax.default_backend() == "cpu":
        return jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    is_target_BTV = jnp.arange(logits_BTV.shape[-1]) == targets_BT[..., None]
    return jnp.where(is_target_BTV, logits_BTV, 0).sum(axis=-1)


def ranks_first(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Whether each target is the most likely prediction [B, T]; of equal ones that is the first, as for `argmax`, which
    takes a CPU longer than the loss itself."""
    target_BT1 = picked(logits_BTV, targets_BT)[..., None]
    is_earlier_BTV = jnp.arange(logits_BTV.shape[-1]) < targets_BT[..., None]
    is_ahead_BTV = ~(logits_BTV <= target_BT1) | (is_earlier_BTV & (logits_BTV == target_BT1))  # NaN is ahead of all
    return ~is_ahead_BTV.any(axis=-1)


class Objective:
    """From a batch and a model to a loss for every target. Base of all objectives.

    Args:
      config: a resolved config.
      vocabulary: gives the special tokens their ids; may be None where the objective needs none.
    """

    overlap = 0  # as in Layout
    marks_padding = True
    specials: tuple[str, ...] = ()
    predicts_tokens = True  # targets are ids of the vocabulary, which stand for bytes of text
    only_text = True  # nearly all of them do, and few are marks such as the end of a row

    def __init__(self, config: Config, vocabulary: Vocabulary | None = None):
        self.config, self.vocabulary = config, vocabulary
        self.smoothing = config.objective.label_smoothing

    @classmethod
    def layout(cls, config: Config) -> Layout:
        """How the objective wants the rows of its batches filled."""
        return Layout(
            config.data.sequence_length, overlap=cls.overlap, marks_padding=cls.marks_padding, specials=cls.specials
        )

    @property
    def known_vocabulary(self) -> Vocabulary:
        """The data's vocabulary; without data, bytes and the specials the objective needs."""
        return self.vocabulary or Bytes().with_specials(self.layout(self.config).specials)

    def prepare(self, batch: Batch, key: jax.Array, first_row: jax.Array | int = 0) -> Batch:
        """Turns a batch as the data gives it into what the model sees; corruption happens here, on the device.

        Args:
          key: of the step, the same for every arm; a fixed one in evaluation.
          first_row: index of the first row: each row draws from a key of its own, so that the size of an evaluation
            batch changes nothing.
        """
        del key, first_row
        return batch

    def bounds(self, dataset: Dataset, split: str) -> dict[str, float]:
        """What simple predictors score on its targets, nats per target."""
        return dataset.bounds(split)

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
        return TokenLosses(nll_BT, smoothed_BT, targets_BT, weights_BT, ranks_first(logits_BTV, targets_BT))

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


def needs(config: Config, families: tuple[str, ...] = (), heads: tuple[str, ...] = ()) -> str | None:
    """What is wrong with the model for an objective that takes these families and heads, or None."""
    for name, value, allowed in (
        ("model.family", config.model.family, families),
        ("model.head.kind", config.model.head.kind, heads),
    ):
        if allowed and value not in allowed:
            return f"needs {name}={' or '.join(allowed)}, and it is {value!r}."
    return chunks_fit(config)


def present(part: jax.Array | None, what: str) -> jax.Array:
    """A part of a batch that an objective cannot do without.

    Raises:
      DataError: the data has none.
    """
    if part is None:
        raise DataError(f"This objective needs {what}, which the data does not have; choose another objective.kind.")
    return part


def row_weights(batch: Batch) -> jax.Array | None:
    """Weights [B, 1] of whole rows: the largest weight in the row; None where every row counts 1."""
    return None if batch.weights_BL is None else batch.weights_BL.max(axis=1, keepdims=True)


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
    chunk = config.objective.logits_chunk
    if not chunk or (config.model.head.kind == "lm" and "in_chunks" in OBJECTIVES[objective_name(config)].traits):
        return None
    problem = "model.head.kind=lm" if config.model.head.kind != "lm" else "objective.kind=clm, prefix or in_context"
    return f"objective.logits_chunk={chunk} goes with {problem} only; set it to 0."


def _needs_tokens(config: Config) -> str | None:
    return needs(config, families=("decoder", "prefix_decoder"), heads=("lm", "mlm"))


@OBJECTIVES.register("clm", paper="Bengio et al. 2003; Radford et al. 2018", traits=("in_chunks",), check=_needs_tokens)
class CausalLM(Objective):
    """Predict each token of a row from those before it; of a pair, the tokens of the target alone."""

    overlap = 1
    marks_padding = False

    def losses(self, model: Any, batch: Batch, key: jax.Array | None, train: bool) -> TokenLosses:
        inputs_BT, targets_BT = batch.tokens_BL[:, :-1], batch.tokens_BL[:, 1:]
        segments_BT = None if batch.segments_BL is None else batch.segments_BL[:, :-1]
        arguments = {**apart(segments_BT), **self.extra(batch), "dropout_key": key, "train": train}
        predict = functools.partial(model, inputs_BT, **arguments)
        if self.config.objective.logits_chunk:
            return self.score_in_chunks(predict, model.unembed, targets_BT, next_token_weights(batch))
        return self.score(predict(), targets_BT, next_token_weights(batch))

    def extra(self, batch: Batch) -> dict[str, jax.Array]:
        """Further arguments of the model."""
        del batch
        return {}


def _needs_prefix(config: Config) -> str | None:
    if config.data.packing != "none":
        return f"takes one prefix per row, so data.packing={config.data.packing} does not go with it; use none."
    return needs(config, families=("prefix_decoder",), heads=("lm",))


@OBJECTIVES.register(
    "prefix", paper="Liu et al. 2018; Raffel et al. 2020, section 3.2.1", traits=("in_chunks",), check=_needs_prefix
)
class PrefixLM(CausalLM):
    """The start of a row is read in both directions, the rest predicted. The prefix of a pair is its source; of text it
    has any length, each equally likely."""

    marks_padding = True

    @classmethod
    def layout(cls, config: Config) -> Layout:
        return dataclasses.replace(super().layout(config), marks_prefix=True)

    def prepare(self, batch: Batch, key: jax.Array, first_row: jax.Array | int = 0) -> Batch:
        prefix_B, length = batch.prefix_length_B, batch.tokens_BL.shape[1]
        if prefix_B is None:
            keys_B = row_keys(key, first_row, batch.rows)
            prefix_B = jax.vmap(lambda key: jax.random.randint(key, (), 1, length))(keys_B)
        behind_BL = (jnp.arange(length) >= prefix_B[:, None]).astype(jnp.float32)
        weights_BL = batch.target_weights()
        weights_BL = behind_BL if weights_BL is None else weights_BL * behind_BL
        return batch.replace(prefix_length_B=prefix_B, weights_BL=weights_BL)

    def extra(self, batch: Batch) -> dict[str, jax.Array]:
        return {"prefix_length_B": present(batch.prefix_length_B, "prefixes")}


@OBJECTIVES.register(
    "in_context", paper="Garg et al. 2022; Chan et al. 2022", traits=("by_shot", "in_chunks"), check=_needs_tokens
)
class InContext(CausalLM):
    """As clm, on rows whose targets are the answers to one question after another; `loss_by_position` and
    `accuracy_by_position` then run over the answers that count, in their order; `eval.py --checks=shots`
    numbers answers by the examples before them."""

    def losses(self, model: Any, batch: Batch, key: jax.Array | None, train: bool) -> TokenLosses:
        losses = super().losses(model, batch, key, train)
        if losses.weights_BT is None:
            return losses
        order_BT = jnp.argsort(losses.weights_BT <= 0, axis=1, stable=True)  # targets first, in their order
        return jax.tree.map(lambda x_BT: jnp.take_along_axis(x_BT, order_BT, axis=1), losses)


@OBJECTIVES.register(
    "seq2seq",
    paper="Sutskever et al. 2014; Vaswani et al. 2017",
    check=lambda config: needs(config, families=("encoder_decoder",), heads=("lm",)),
)
class Seq2Seq(Objective):
    """Predict the target of a pair from its source and the target's tokens so far, beginning with `bos`."""

    @classmethod
    def layout(cls, config: Config) -> Layout:
        length = config.data.sequence_length
        return Layout(
            length,
            source_length=config.data.source_length or length,
            overlap=0,
            marks_padding=True,
            pairs="separate",
            specials=("bos",),
        )

    def losses(self, model: Any, batch: Batch, key: jax.Array | None, train: bool) -> TokenLosses:
        bos = self.known_vocabulary.special("bos")
        logits_BTV = model(
            shifted_right(batch.tokens_BL, batch.segments_BL, bos),
            **apart(batch.segments_BL),
            **source_of(batch),
            dropout_key=key,
            train=train,
        )
        return self.score(logits_BTV, batch.tokens_BL, batch.target_weights())


def shifted_right(tokens_BL: jax.Array, segments_BL: jax.Array | None, bos: int) -> jax.Array:
    """What a decoder reads while it predicts `tokens_BL`: each segment moved by one, `bos` in front."""
    moved_BL = jnp.concatenate([jnp.full_like(tokens_BL[:, :1], bos), tokens_BL[:, :-1]], axis=1)
    if segments_BL is None:
        return moved_BL
    return jnp.where(positions_in_segments(segments_BL) == 0, bos, moved_BL)


def source_of(batch: Batch) -> dict[str, jax.Array]:
    """The model's arguments that carry the source, positions starting again with every segment."""
    segments_BS = batch.source_segments_BS
    arguments = {"source_BS": present(batch.source_BS, "sources")}
    if segments_BS is not None:
        positions_BS = positions_in_segments(segments_BS)
        arguments |= {"source_segments_BS": segments_BS, "source_positions_BS": positions_BS}
    return arguments


@OBJECTIVES.register(
    "classify",
    paper="Radford et al. 2018; Devlin et al. 2019",
    check=lambda config: needs(config, ("encoder", "decoder", "prefix_decoder"), ("classify",)),
)
class Classify(Objective):
    """Predict the label of a row from its pooled states."""

    predicts_tokens = False

    @classmethod
    def layout(cls, config: Config) -> Layout:
        lead = "cls" if config.model.head.pooling == "cls" else ""
        return dataclasses.replace(super().layout(config), lead=lead, labels="row", specials=(lead,) if lead else ())

    def losses(self, model: Any, batch: Batch, key: jax.Array | None, train: bool) -> TokenLosses:
        logits_BC = model(batch.tokens_BL, **apart(batch.segments_BL), dropout_key=key, train=train)
        return self.score(logits_BC[:, None], present(batch.labels, "labels")[:, None], row_weights(batch))


@OBJECTIVES.register(
    "tag",
    paper="Collobert et al. 2011",
    check=lambda config: needs(config, ("encoder", "decoder", "prefix_decoder"), ("tag",)),
)
class Tag(Objective):
    """Predict the label of every token."""

    predicts_tokens = False

    @classmethod
    def layout(cls, config: Config) -> Layout:
        return dataclasses.replace(super().layout(config), labels="token")

    def losses(self, model: Any, batch: Batch, key: jax.Array | None, train: bool) -> TokenLosses:
        logits_BTC = model(batch.tokens_BL, **apart(batch.segments_BL), dropout_key=key, train=train)
        return self.score(logits_BTC, present(batch.labels, "labels"), batch.target_weights())


def _resolved_fits(config: Config) -> str | None:
    name = objective_name(config)
    check = OBJECTIVES[name].check
    problem = None if check is None else check(config)
    return chunks_fit(config) if problem is None else f"stands for {name} here, which {problem}"


@OBJECTIVES.register("auto", check=_resolved_fits)
def objective_of_family(config: Config, vocabulary: Vocabulary | None = None) -> Objective:
    """The objective head, family and data were made for: classify and tag by the head; else clm for a decoder, mlm for
    an encoder, prefix for a prefix decoder, and for an encoder-decoder seq2seq on pairs and span on text."""
    return objective_class(config)(config, vocabulary)


def objective_name(config: Config) -> str:
    """The objective of a config, `auto` resolved."""
    if config.objective.kind != "auto":
        return config.objective.kind
    if config.model.head.kind in ("classify", "tag"):
        return config.model.head.kind
    name = OBJECTIVE_OF_FAMILY[config.model.family]
    return "span" if name == "seq2seq" and is_text(config.data) else name


def objective_class(config: Config) -> type[Objective]:
    """The class of `objective_name`."""
    build: Any = OBJECTIVES[objective_name(config)].build
    return build


@functools.lru_cache(maxsize=64)
def layout_of(config: Config) -> Layout:
    """How the objective of a config wants its rows; those of a task are as long as the task makes them."""
    layout, source = objective_class(config).layout(config), config.data.source
    if "drawn" in SOURCES[source].traits:
        layout = generated.fitted(SOURCES.build(source, config.data), layout)
    return dataclasses.replace(layout, packed=PACKINGS.build(config.data.packing))


from transformer.training import denoising  # noqa: E402, F401
