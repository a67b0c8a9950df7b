"""What follows exactly from how embeddings are tied, scaled and initialised, each with a sabotage it must notice."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer import Config, build, replace
from transformer.model import declare
from transformer.model.taps import capture

# --- Tying -------------------------------------------------------------------------------------------------------


def parameters(config: Config, vocab_size: int) -> int:
    state = nnx.to_pure_dict(nnx.state(declare(config, vocab_size), nnx.Param))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


def check_saving(vocab_size: int, d_model: int, untied: dict, saved: int) -> None:
    base = {"model.d_model": d_model, "model.num_layers": 1, "model.attention.num_heads": 4}
    tied, apart = (replace(Config(), {**base, **overrides}) for overrides in ({}, untied))
    assert parameters(apart, vocab_size) - parameters(tied, vocab_size) == saved


class TestTyingParameterSaving:
    claim = "tying_parameter_saving"

    @pytest.mark.parametrize(("vocab_size", "millions"), [(50_000, 38.4), (50_257, 38.6)])
    def test_holds(self, vocab_size, millions):
        saved = vocab_size * 768
        check_saving(vocab_size, 768, {"model.embedding.tie": False}, saved)
        assert round(saved / 1e6, 1) == millions

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_saving(50_000, 768, {"model.embedding.tie": True}, 50_000 * 768)


# --- The first state of the stream -------------------------------------------------------------------------------

WIDTH, LAYERS, V, T = 256, 12, 512, 32
UNIT = {"model.embedding.scale": 0.0}  # sqrt(d_model): unit variance with the shape-dependent schemes
INITIAL = {
    "gpt2": {"model.init.scheme": "gpt2"},
    "plain": {"model.init.scheme": "plain"},
    "lecun, unit embeddings": {"model.init.scheme": "lecun", **UNIT},
    "lecun_depth, unit embeddings": {"model.init.scheme": "lecun_depth", **UNIT},
    "zero": {"model.init.scheme": "zero"},
}


def writes(overrides: dict) -> tuple[np.ndarray, float]:
    """At step 0: the size of each write relative to the stream it is added to, in order; and the cosine between the
    first and the last state of the stream, averaged over tokens."""
    base = {"model.d_model": WIDTH, "model.num_layers": LAYERS, "model.attention.num_heads": 4}
    config = replace(Config(), {**base, "data.sequence_length": T, **overrides})
    model = build(config, V)
    window = np.random.default_rng(0).integers(0, V, (2, T), dtype=np.int32)
    _, seen = jax.jit(capture(model))(jnp.asarray(window))
    size = lambda name: np.sqrt(np.mean(np.square(seen[name]), axis=-1))  # noqa: E731
    ratios, before = [], "embedding"
    for layer in range(LAYERS):
        for write, after in (("attention.output", "residual_mid"), ("ffn.output", "residual")):
            ratios.append(np.mean(size(f"blocks.{layer}.{write}") / size(before)))
            before = f"blocks.{layer}.{after}"
    first, last = np.asarray(seen["embedding"]), np.asarray(seen[before])
    cosine = (first * last).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(last, axis=-1)
    return np.array(ratios), float(cosine.mean())


def is_near_identity(ratios: np.ndarray, cosine: float) -> bool:
    return bool(ratios.max() < 0.15 and cosine > 0.8)


class TestNearIdentityAtInitUsual:
    claim = "residual_near_identity_init"

    @pytest.mark.parametrize("name", ["gpt2", "plain", "lecun, unit embeddings"])
    def test_refuted(self, name):
        """With GPT-2's initial weights the first feed-forward layer writes more than the stream holds, and the last
        state has little to do with the first."""
        ratios, cosine = writes(INITIAL[name])
        assert not is_near_identity(ratios, cosine)
        if name != "lecun, unit embeddings":
            assert ratios[:2].max() > 1 and cosine < 0.5

    def test_sabotage(self):
        assert is_near_identity(*writes(INITIAL["zero"]))


class TestNearIdentityAtInitScaled:
    claim = "residual_near_identity_init"

    @pytest.mark.parametrize("name", ["lecun_depth, unit embeddings", "zero"])
    def test_holds(self, name):
        """It is true of an initialisation that is made for it: zero outputs, or small ones beside unit embeddings."""
        ratios, cosine = writes(INITIAL[name])
        assert is_near_identity(ratios, cosine)
        if name == "zero":
            assert ratios.max() == 0 and cosine == pytest.approx(1.0)

    def test_sabotage(self):
        """The same weights beside embeddings that are not scaled up."""
        without_unit_embeddings = {"model.init.scheme": "lecun_depth"}
        assert not is_near_identity(*writes(without_unit_embeddings))
