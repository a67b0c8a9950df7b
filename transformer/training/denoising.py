"""Objectives that corrupt the text and ask for what it was: single tokens, spans, and pairs of passages."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from transformer.data import corruption
from transformer.data.batch import Batch, Layout
from transformer.data.batching import Dataset
from transformer.data.corruption import SpanSizes
from transformer.data.vocabularies import Vocabulary
from transformer.registry import Registry
from transformer.schema import Config, choice, field
from transformer.training.objectives import (
    OBJECTIVES,
    Objective,
    Seq2Seq,
    TokenLosses,
    apart,
    needs,
    present,
    row_weights,
)

RATES = Registry("objective.mask_rate_kind")
REPLACEMENTS = Registry("objective.mask_replacement")

RATES.register("fixed", paper="Devlin et al. 2019")(lambda key, rate: jnp.float32(rate))
RATES.register("uniform", paper="Chang et al. 2022 (MaskGIT); Nie et al. 2025")(
    lambda key, rate: jax.random.uniform(key)
)
# Shares of the chosen tokens that become the mask token, and any token.
REPLACEMENTS.register("bert", paper="Devlin et al. 2019")(lambda: (0.8, 0.1))
REPLACEMENTS.register("mask", paper="Liu et al. 2019, section 4.1; Wettig et al. 2023")(lambda: (1.0, 0.0))


def real_tokens(batch: Batch) -> jax.Array:
    """Whether a token is no padding, bool [B, L]."""
    if batch.segments_BL is None:
        return jnp.ones(batch.tokens_BL.shape, bool)
    return batch.segments_BL != 0


def text_ids(vocabulary: Vocabulary) -> int:
    """How many ids stand for text: all before the first special token."""
    return min([vocabulary.size, *vocabulary.specials.values()])


# --- Single tokens -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MaskParameters:
    mask_rate: float = field(0.15, "share of a row's tokens that are to be predicted")
    mask_rate_kind: str = choice(
        "fixed", "transformer.training.denoising:RATES", "fixed: mask_rate; uniform: another share for every row"
    )
    mask_replacement: str = choice(
        "bert",
        "transformer.training.denoising:REPLACEMENTS",
        "what replaces them; bert: 80% mask, 10% any token, 10% themselves; mask: the mask token alone",
    )


def _mask_problem(config: Config) -> str | None:
    rate = config.objective.mask_rate
    if not 0 < rate <= 1:
        return f"objective.mask_rate={rate} must be above 0 and at most 1."
    return needs(config, families=("encoder",), heads=("lm", "mlm"))


@OBJECTIVES.register("mlm", parameters=MaskParameters, paper="Devlin et al. 2019", check=_mask_problem)
class MaskedLM(Objective):
    """Some tokens are hidden or replaced; predict what they were. All others are no targets."""

    specials = ("mask",)

    def __init__(self, config: Config, vocabulary: Vocabulary | None = None):
        super().__init__(config, vocabulary)
        settings = config.objective
        self.rate, self.rate_kind = settings.mask_rate, settings.mask_rate_kind
        self.shares = REPLACEMENTS.build(settings.mask_replacement)

    def prepare(self, batch: Batch, key: jax.Array, first_row: jax.Array | int = 0) -> Batch:
        """Gives corrupted tokens, the original ones as labels, and weights that are 0 but for chosen tokens."""
        vocabulary = self.known_vocabulary
        keys_B3 = jax.vmap(lambda key: jax.random.split(key, 3))(corruption.row_keys(key, first_row, batch.rows))
        rate_B = jax.vmap(lambda key: RATES.build(self.rate_kind, key, self.rate))(keys_B3[:, 0])
        tokens_BL, ids = batch.tokens_BL, text_ids(vocabulary)
        allowed_BL = real_tokens(batch) & (tokens_BL < ids)
        chosen_BL = corruption.choose(keys_B3[:, 1], allowed_BL, rate_B)
        corrupted_BL = corruption.replace(
            keys_B3[:, 2], tokens_BL, chosen_BL, vocabulary.special("mask"), ids, *self.shares
        )
        counted_BL = chosen_BL.astype(jnp.float32)
        weights_BL = counted_BL if batch.weights_BL is None else counted_BL * batch.weights_BL
        return batch.replace(tokens_BL=corrupted_BL, labels=tokens_BL, weights_BL=weights_BL)

    def losses(self, model: Any, batch: Batch, key: jax.Array | None, train: bool) -> TokenLosses:
        logits_BTV = model(batch.tokens_BL, **apart(batch.segments_BL), dropout_key=key, train=train)
        return self.score(logits_BTV, present(batch.labels, "labels"), batch.weights_BL)


# --- Pairs of passages -------------------------------------------------------------------------------------------


def _pair_problem(config: Config) -> str | None:
    for name, rows in (("train.batch_size", config.train.batch_size), ("eval.batch_size", config.eval.batch_size)):
        if rows % 2:
            return f"exchanges passages between two neighbouring rows, so {name}={rows} must be even."
    if config.data.sequence_length < 4:
        return f"data.sequence_length={config.data.sequence_length} leaves no room for two passages; use 4 or more."
    if config.data.packing != "none":
        return f"exchanges passages of whole rows, so data.packing={config.data.packing} does not go with it; use none."
    if config.model.head.kind == "classify" and config.model.head.num_labels != 2:
        return f"has 2 classes, but model.head.num_labels={config.model.head.num_labels}; set it to 2."
    return needs(config, families=("encoder",), heads=("classify",))


@OBJECTIVES.register("next_sentence", paper="Devlin et al. 2019", check=_pair_problem)
class NextSentence(Objective):
    """Does the second passage follow the first (label 0), or is it another row's (label 1)? Half the rows each.

    A passage is half a window of text. Rows read [cls] first [sep] second. Of rows 0 and 1, 2 and 3, ... one, drawn by
    lot, is given the second passage of the other, so the size of an evaluation batch changes nothing. A model with
    token types (model.embedding.token_types) is told which passage a token belongs to.
    """

    specials = ("cls", "sep")
    predicts_tokens = False

    @classmethod
    def layout(cls, config: Config) -> Layout:
        return dataclasses.replace(super().layout(config), length=config.data.sequence_length - 2)

    def prepare(self, batch: Batch, key: jax.Array, first_row: jax.Array | int = 0) -> Batch:
        rows, half = batch.rows, batch.tokens_BL.shape[1] // 2
        pairs_P = jax.vmap(jax.random.bernoulli)(corruption.row_keys(key, first_row // 2, rows // 2))
        labels_B = jnp.stack([pairs_P, ~pairs_P], axis=1).reshape(rows).astype(jnp.int32)
        other_B = jnp.arange(rows) ^ 1

        def join(x_BL: jax.Array, cls: int, sep: int) -> jax.Array:
            first_BT, second_BT = x_BL[:, :half], x_BL[:, half:]
            second_BT = jnp.where(labels_B[:, None] == 1, second_BT[other_B], second_BT)
            column_B1 = jnp.ones((rows, 1), x_BL.dtype)
            return jnp.concatenate([cls * column_B1, first_BT, sep * column_B1, second_BT], axis=1)

        vocabulary = self.known_vocabulary
        tokens_BL = join(batch.tokens_BL, vocabulary.special("cls"), vocabulary.special("sep"))
        segments_BL = None if batch.segments_BL is None else (join(batch.segments_BL, 1, 1) != 0).astype(jnp.int32)
        weights_BL = batch.weights_BL
        if weights_BL is not None:  # a row that holds padding is no question
            whole_BL = join((weights_BL > 0).astype(jnp.float32), 1, 1).all(axis=1, keepdims=True)
            weights_BL = jnp.broadcast_to(whole_BL, tokens_BL.shape).astype(jnp.float32)
        return Batch(tokens_BL, weights_BL=weights_BL, segments_BL=segments_BL, labels=labels_B)

    def bounds(self, dataset: Dataset, split: str) -> dict[str, float]:
        return {"label": math.log(2)}

    def losses(self, model: Any, batch: Batch, key: jax.Array | None, train: bool) -> TokenLosses:
        told = {}
        if self.config.model.embedding.token_types > 1:
            length = batch.tokens_BL.shape[1]
            second_1T = jnp.arange(length)[None] >= 2 + (length - 2) // 2  # behind [cls] first [sep]
            told["token_types_BT"] = jnp.broadcast_to(second_1T, batch.tokens_BL.shape).astype(jnp.int32)
        logits_BC = model(batch.tokens_BL, **told, **apart(batch.segments_BL), dropout_key=key, train=train)
        return self.score(logits_BC[:, None], present(batch.labels, "labels")[:, None], row_weights(batch))


# --- Spans -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SpanParameters:
    noise_density: float = field(0.15, "share of a row's tokens that are noise")
    mean_span_length: float = field(3.0, "mean length of a noise span, tokens")


def _span_problem(config: Config) -> str | None:
    objective = config.objective
    if not 0 < objective.noise_density < 1:
        return f"objective.noise_density={objective.noise_density} must be above 0 and below 1."
    if objective.mean_span_length < 1:
        return f"objective.mean_span_length={objective.mean_span_length} must be at least 1."
    if config.data.sequence_length < 2:
        return f"data.sequence_length={config.data.sequence_length} leaves nothing beside the noise; use 2 or more."
    if config.data.packing != "none":
        return f"drops spans of whole rows, so data.packing={config.data.packing} does not go with it; use none."
    return needs(config, families=("encoder_decoder",), heads=("lm",))


@OBJECTIVES.register("span", parameters=SpanParameters, paper="Raffel et al. 2020 (T5)", check=_span_problem)
class SpanCorruption(Seq2Seq):
    """Spans of the text are replaced by one sentinel each; the target lists each sentinel and what it hides."""

    only_text = False

    def bounds(self, dataset: Dataset, split: str) -> dict[str, float]:
        return {}  # its targets are text and sentinels, in proportions of their own

    @staticmethod
    def sizes(config: Config) -> SpanSizes:
        """How much noise a row gets."""
        return SpanSizes(config.objective.noise_density, config.objective.mean_span_length)

    @classmethod
    def marks(cls, config: Config) -> tuple[str, ...]:
        """The special tokens that stand for spans, in order."""
        spans, _, _ = cls.sizes(config).largest(config.data.sequence_length)
        return tuple(f"sentinel_{i}" for i in range(spans))

    @classmethod
    def layout(cls, config: Config) -> Layout:
        length = config.data.sequence_length
        return Layout(length, overlap=0, marks_padding=True, specials=("bos", "eos", *cls.marks(config)))

    def prepare(self, batch: Batch, key: jax.Array, first_row: jax.Array | int = 0) -> Batch:
        """Text becomes a source and a target, shorter than the text, of one shape for every row."""
        vocabulary, sizes = self.known_vocabulary, self.sizes(self.config)
        length = batch.tokens_BL.shape[1]
        lengths_B = real_tokens(batch).sum(axis=1)
        keys_B = corruption.row_keys(key, first_row, batch.rows)
        spans = corruption.draw_spans(keys_B, lengths_B, length, sizes)
        marks = jnp.asarray([vocabulary.special(name) for name in self.marks(self.config)], jnp.int32)
        marks_BL = marks[jnp.minimum(spans.index_BL, len(marks) - 1)]
        _, longest_source, longest_target = sizes.largest(length)
        end = vocabulary.special("eos")
        source = corruption.without_noise(batch.tokens_BL, spans, lengths_B, marks_BL, end, longest_source + 1)
        target = self.target(batch, spans, lengths_B, marks_BL, end, longest_target + 1)
        return _pair(batch, source, target)

    def target(self, batch: Batch, spans: Any, lengths_B: Any, marks_BL: Any, end: int, size: int) -> Any:
        """(target tokens [B, size], number of them [B])."""
        del lengths_B
        return corruption.noise_only(batch.tokens_BL, spans, marks_BL, end, size)


@OBJECTIVES.register("denoise", parameters=SpanParameters, paper="Lewis et al. 2020 (BART)", check=_span_problem)
class Denoising(SpanCorruption):
    """Spans of the text are replaced by one mask token each; the target is the whole text."""

    only_text = True
    bounds = Objective.bounds

    @classmethod
    def marks(cls, config: Config) -> tuple[str, ...]:
        return ("mask",)

    def target(self, batch: Batch, spans: Any, lengths_B: Any, marks_BL: Any, end: int, size: int) -> Any:
        del marks_BL, size
        whole = spans._replace(noise_BL=jnp.zeros_like(spans.noise_BL), first_BL=jnp.zeros_like(spans.first_BL))
        tokens_BL, length = batch.tokens_BL, batch.tokens_BL.shape[1]
        return corruption.without_noise(tokens_BL, whole, lengths_B, tokens_BL, end, length + 1)


def _pair(batch: Batch, source: tuple[jax.Array, jax.Array], target: tuple[jax.Array, jax.Array]) -> Batch:
    """Source and target, each with its number of real tokens, as a batch. A row without targets weighs nothing."""
    (source_BS, source_count_B), (tokens_BL, count_B) = source, target
    segments_BL = corruption.real_up_to(count_B, tokens_BL.shape[1])
    weights_BL = segments_BL * (count_B > 1)[:, None].astype(jnp.float32)
    if batch.weights_BL is not None:
        weights_BL = weights_BL * (batch.weights_BL > 0).any(axis=1, keepdims=True)
    return Batch(
        tokens_BL,
        weights_BL=weights_BL,
        segments_BL=segments_BL,
        source_BS=source_BS,
        source_segments_BS=corruption.real_up_to(source_count_B, source_BS.shape[1]),
    )
