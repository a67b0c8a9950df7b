"""Exact claims about masks and families, each with a sabotage that it must notice."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer import Config, build, replace
from transformer.model import declare, taps
from transformer.model.cross_attention import CrossAttention

V, T, S, PREFIX, D = 17, 6, 5, 2, 16
SMALL = {
    "model.d_model": D,
    "model.num_layers": 2,
    "model.attention.num_heads": 2,
    "model.init.std": 0.5,  # large enough that untrained attention decides something
    "data.sequence_length": 8,
}
DRAW = np.random.default_rng(0)
TARGET = DRAW.integers(0, V, (1, T), dtype=np.int32)
SOURCE, OTHER = DRAW.integers(0, V, (2, 1, S), dtype=np.int32)


def config(family: str, **overrides) -> Config:
    return replace(Config(), {**SMALL, "model.family": family, **overrides})


def called(family: str, **overrides):
    """The model as a function of the target tokens."""
    model = build(config(family, **overrides), V)
    beside = {
        "prefix_decoder": {"prefix_length_B": np.array([PREFIX], np.int32)},
        "encoder_decoder": {"source_BS": SOURCE},
    }
    return lambda tokens: model(tokens, **beside.get(family, {}))


def support(model, at: str, length: int) -> np.ndarray:
    """[t, s]: whether the logits at t depend on what the tap `at` holds at s."""

    def logits(shift_SD):
        return taps.replace(model, **{at: lambda x: x + shift_SD[None]})(TARGET)[0]

    jacobian_TVSD = jax.jit(jax.jacrev(logits))(jnp.zeros((length, D)))
    return np.any(np.asarray(jacobian_TVSD) != 0, axis=(1, 3))


# --- The pattern of each family ----------------------------------------------------------------------------------

CAUSAL = np.tri(T, dtype=bool)
PATTERNS = {
    "encoder": np.ones((T, T), bool),
    "decoder": CAUSAL,
    "prefix_decoder": CAUSAL | (np.arange(T) < PREFIX),
    "encoder_decoder": CAUSAL,
}


def check_pattern(family: str, **overrides) -> None:
    """Bidirectional, causal, causal beyond a prefix; an encoder-decoder reads all of its source besides."""
    model = called(family, **overrides)
    np.testing.assert_array_equal(support(model, "embedding", T), PATTERNS[family])
    if family == "encoder_decoder":
        assert support(model, "encoder.embedding", S).all()


class TestJacobianPattern:
    claim = "jacobian_pattern_by_architecture"

    @pytest.mark.parametrize("family", PATTERNS)
    def test_holds(self, family):
        check_pattern(family)

    @pytest.mark.parametrize(
        ("family", "wrong"),
        [
            ("encoder", {"model.attention.mask": "causal"}),
            ("decoder", {"model.attention.mask": "none"}),
            ("prefix_decoder", {"model.attention.mask": "none"}),
            ("encoder_decoder", {"model.decoder.attention.mask": "none"}),
            ("encoder_decoder", {"model.decoder.residual.cross_attention.branch_gain": 0.0}),
        ],
    )
    def test_sabotage(self, family, wrong):
        with pytest.raises(AssertionError):
            check_pattern(family, **wrong)


# --- Cross-attention ---------------------------------------------------------------------------------------------


def parameters(config: Config) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(declare(config, V), nnx.Param)))
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


def routed(source: np.ndarray) -> dict[str, np.ndarray]:
    """Queries, keys and values of the first layer's cross-attention."""
    names = [f"blocks.0.cross_attention.{name}" for name in ("query", "key", "value")]
    _, seen = taps.capture(build(config("encoder_decoder"), V), *names)(TARGET, source_BS=source)
    return {name.split(".")[-1]: np.asarray(seen[name]) for name in names}


def check_routing() -> None:
    """Another source changes keys and values alone, which are as many as source tokens; queries, as target tokens."""
    before, after = routed(SOURCE), routed(OTHER)
    np.testing.assert_array_equal(before["query"], after["query"])
    assert before["query"].shape[2] == T and before["key"].shape[2] == before["value"].shape[2] == S
    assert not np.allclose(before["key"], after["key"]) and not np.allclose(before["value"], after["value"])


class TestCrossAttentionDefinition:
    claim = "cross_attention_definition"

    def test_holds(self):
        check_routing()
        assert not [name for name in parameters(config("decoder")) if "cross" in name]
        assert [name for name in parameters(config("encoder_decoder")) if "cross" in name]

    def test_sabotage(self, monkeypatch):
        """Keys and values from the decoder's own side."""
        read = CrossAttention.read

        def own(self, x_BTD, q, k, v, positions, context, unplaced):
            return read(self, x_BTD, q, *self.keys_values(x_BTD), positions[:, :1], context, unplaced)

        monkeypatch.setattr(CrossAttention, "read", own)
        with pytest.raises(AssertionError):
            check_routing()
