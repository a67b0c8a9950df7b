"""Claims about what the families cost: parameters of a second stack, operations with and without cross-attention."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from transformer import Config, replace
from transformer.analysis import accounting, flops
from transformer.analysis.presets import PRESETS
from transformer.model import declare, split
from transformer.model.initialization import abstract

D, LAYERS = 64, 3


def config(family: str, **overrides: Any) -> Config:
    sizes = {"d_model": D, "num_layers": LAYERS, "attention.num_heads": 1, "vocab_size": 8, "norm.kind": "none"}
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return replace(Config(), {f"model.{name}": value for name, value in {**sizes, "family": family, **changed}.items()})


@functools.cache
def forward(made: Config, target: int, source: int = 0) -> float:
    """Operations in products of one forward pass, without the logits."""
    structure, params, state = split(declare(made))
    ids = [jax.ShapeDtypeStruct((1, length), jnp.int32) for length in (target, source)]

    def run(params, tokens, source_tokens):
        model = nnx.merge(structure, params, nnx.to_pure_dict(state))
        return model(tokens, source_BS=source_tokens) if source else model(tokens)

    counted = flops.count(run, abstract(params, made), *ids).products
    return counted - 2 * target * made.model.vocab_size * made.model.d_model


def parameters(made: Config) -> int:
    return sum(accounting.declared_components(made).values())


# --- Parameters --------------------------------------------------------------------------------------------------


def check_second_stack(**overrides: Any) -> None:
    """One more encoder layer and one more decoder layer, in units of d_model squared."""

    def size(**layers: int) -> int:
        return parameters(config("encoder_decoder", **layers, **overrides))

    more = [size(**{f"{stack}__num_layers": LAYERS + 1}) - size() for stack in ("encoder", "decoder")]
    assert [n / D**2 for n in more] == [12, 16]


class TestSecondStack:
    claim = "encdec_extra_parameters"

    def test_holds(self):
        check_second_stack()
        assert parameters(config("encoder_decoder")) == parameters(config("decoder")) + (12 + 4) * LAYERS * D**2

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_second_stack(cross_attention="none")


# --- Operations --------------------------------------------------------------------------------------------------


def saving(source: int, target: int) -> float:
    """Share of a decoder's operations that an encoder-decoder with as many layers in each stack saves."""
    whole = forward(config("decoder"), target + source)
    return 1 - forward(config("encoder_decoder"), target, source) / whole


def check_inefficient(source: int, target: int) -> None:
    assert saving(source, target) > 0


class TestLongSource:
    claim = "decoder_only_context_cost"

    def test_holds(self):
        """With layers as deep and wide, once source and target are both longer than twice the width: a decoder pays for
        every pair of source and target twice, an encoder-decoder once, but for 4 d² more per token."""
        for source, target in ((2 * D + 1, 2 * D + 1), (8 * D, 2 * D), (8 * D, 8 * D)):
            check_inefficient(source, target)
        assert saving(2 * D, 2 * D) == 0

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_inefficient(D, D)


class TestLongSourceShortAnswer:
    claim = "decoder_only_context_cost"

    def test_refuted(self):
        """A long document with a short answer: the encoder-decoder's saving is negative for any answer shorter than the
        width, however long the document, and both keep as many keys and values."""
        for source in (D, 8 * D, 64 * D):
            with pytest.raises(AssertionError):
                check_inefficient(source, D // 2)

    def test_sabotage(self):
        check_inefficient(64 * D, 2 * D)  # a longer answer turns the comparison round, and the check can tell


# --- A head for many labels --------------------------------------------------------------------------------------


def check_head(labels: int, width: int) -> None:
    head = {"head__kind": "classify", "head__num_labels": labels, "d_model": width}
    assert accounting.declared_components(config("encoder", **head))["head"] == 10_000 * (width + 1)  # a bias each


class TestHeadSize:
    claim = "classification_head_size"

    def test_holds(self):
        """10,000 labels take 10,000 times the width; and reading a text with BERT-base takes a thousandth of GPT-3."""
        check_head(10_000, 64)
        check_head(10_000, 768)
        sizes = [
            sum(accounting.declared_components(PRESETS[name].config()).values()) for name in ("bert_base", "gpt3_175b")
        ]
        assert sizes[1] / sizes[0] > 1000

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_head(9_999, 64)


class TestEncoderIsCheaper:
    claim = "classification_head_size"

    def test_refuted(self):
        """At equal size the two cost the same, to the last operation: what is masked is computed."""
        assert forward(config("encoder"), 32) == forward(config("decoder"), 32)

    def test_sabotage(self):
        assert forward(config("encoder"), 32) < forward(config("decoder", num_layers=LAYERS + 1), 32)
