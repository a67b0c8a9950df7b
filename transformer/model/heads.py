"""What stands on top of a stack: from states to predictions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transformer.model.context import Context
from transformer.model.feedforward import gelu
from transformer.model.initialization import parameter
from transformer.model.linear import Linear
from transformer.model.normalization import apply, make_norm
from transformer.model.stack import Stack
from transformer.model.taps import tap
from transformer.registry import Registry
from transformer.schema import Config, Model, choice, field

HEADS = Registry("model.head.kind")
POOLINGS = Registry("model.head.pooling")

Unembed = Callable[[jax.Array], jax.Array]


class Predictor(Stack):
    """A stack with a head: what all families but the encoder of an encoder-decoder are."""

    def __init__(self, config: Config, vocab_size: int):
        model = config.model
        super().__init__(config, vocab_size)
        traits = HEADS[model.head.kind].traits
        self.pools, untied = "per_row" in traits, "over_tokens" in traits and not model.embedding.tie
        self.unembedding = Linear(model.d_model, vocab_size, role="unembedding") if untied else None
        self.logit_scale = model.embedding.logit_scale or 1 / math.sqrt(model.d_model)
        self.head = HEADS.build(model.head.kind, model, vocab_size)

    def predict(self, tokens_BT: jax.Array, context: Context) -> jax.Array:
        """Logits [B, T, V] over the vocabulary, or over the labels of another head, in float32."""
        x_BTD = self.states(tokens_BT, context)
        logits_BTV = self.unembed(x_BTD) if self.head is None else self.head(x_BTD, self.unembed, context)
        return tap("logits", logits_BTV.astype(jnp.float32))

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """Logits over the vocabulary, [B, T, V]."""
        embedding: Any = self.embedding
        logits_BTV = embedding.attend(x_BTD) if self.unembedding is None else self.unembedding(x_BTD)
        return logits_BTV if self.logit_scale == 1 else logits_BTV * self.logit_scale


@HEADS.register("lm", traits=("over_tokens",))
def language_model(model: Model, vocab_size: int) -> None:
    """Logits over the vocabulary for every token: the unembedding alone."""
    return None


@HEADS.register("mlm", paper="Devlin et al. 2019 (BERT), in its published code", traits=("over_tokens",))
class MaskedTokenHead(nnx.Module):
    """Logits over the vocabulary after one more layer, norm(gelu(W x + b)), and with a bias per token."""

    def __init__(self, model: Model, vocab_size: int):
        self.dense = Linear(model.d_model, model.d_model, bias=True)
        self.norm = make_norm(model)
        self.bias = parameter((vocab_size,), "bias")

    def __call__(self, x_BTD: jax.Array, unembed: Unembed, context: Context) -> jax.Array:
        return unembed(apply(self.norm, gelu(self.dense(x_BTD)), context, "head_norm")) + self.bias.astype(x_BTD.dtype)


@dataclasses.dataclass(frozen=True)
class TagParameters:
    num_labels: int = field(2, "classes of the head")


@dataclasses.dataclass(frozen=True)
class ClassifyParameters(TagParameters):
    pooling: str = choice("mean", "transformer.model.heads:POOLINGS", "one vector from the states of a row")


def _some_labels(config: Config) -> str | None:
    labels = config.model.head.num_labels
    return None if labels >= 1 else f"model.head.num_labels={labels} must be at least 1."


@HEADS.register("tag", parameters=TagParameters, check=_some_labels)
class TagHead(nnx.Module):
    """Logits over labels for every token, [B, T, C]."""

    def __init__(self, model: Model, vocab_size: int):
        del vocab_size
        self.output = Linear(model.d_model, model.head.num_labels, bias=True, role="unembedding")

    def __call__(self, x_BTD: jax.Array, unembed: Unembed, context: Context) -> jax.Array:
        del unembed, context
        return self.output(x_BTD)


@HEADS.register("classify", parameters=ClassifyParameters, traits=("per_row",), check=_some_labels)
class ClassifyHead(TagHead):
    """Logits over labels for every row, [B, C], from one vector pooled over its tokens.

    Padding (segment 0) does not count; several documents packed in one row are pooled together.
    """

    def __init__(self, model: Model, vocab_size: int):
        super().__init__(model, vocab_size)
        self.pooling = model.head.pooling

    def __call__(self, x_BTD: jax.Array, unembed: Unembed, context: Context) -> jax.Array:
        segments_BT = context.mask.query_segments_BT
        real_BT = jnp.ones(x_BTD.shape[:2], bool) if segments_BT is None else segments_BT != 0
        return self.output(tap("pooled", POOLINGS.build(self.pooling, x_BTD, real_BT)))


@POOLINGS.register("mean", paper="Reimers & Gurevych 2019 (Sentence-BERT)")
def mean_of_tokens(x_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
    """The mean over real tokens; zero where there is none."""
    weight_BT1 = real_BT[..., None].astype(x_BTD.dtype)
    return (x_BTD * weight_BT1).sum(axis=1) / jnp.maximum(weight_BT1.sum(axis=1), 1)


@POOLINGS.register("cls", paper="Devlin et al. 2019 (BERT)")
def first_token(x_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
    """The first real token, which BERT calls [CLS]."""
    return jnp.take_along_axis(x_BTD, real_BT.argmax(axis=1)[:, None, None], axis=1)[:, 0]


@POOLINGS.register("last", paper="Radford et al. 2018")
def last_token(x_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
    """The last real token, which has seen the whole row even under a causal mask."""
    last_B = real_BT.shape[1] - 1 - real_BT[:, ::-1].argmax(axis=1)
    return jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]
