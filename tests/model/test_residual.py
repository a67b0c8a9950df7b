"""Residual gains by name, the parallel block, initialisations made for depth, and layer patterns."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import declared, initial, tiny, tokens
from transformer.errors import ConfigError
from transformer.model import build
from transformer.model.initialization import SCHEMES, path_bits
from transformer.model.layer_pattern import LAYERS, layer_kinds, num_sublayers
from transformer.model.residual import BRANCH_GAINS, SKIP_GAINS
from transformer.model.taps import capture

BOTH = ("attention", "ffn")


def gains(name: str, value: float | str) -> dict:
    return {f"model.residual.{part}.{name}": value for part in BOTH}


# --- Gains -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 6, 18, 100])
def test_deepnorm_constants(layers):
    """Figure 2 of the paper, with a stack of one kind."""
    model = tiny({**gains("skip_gain", "deepnorm"), "model.num_layers": layers, "model.init.std": 0.02}).model
    alpha = SKIP_GAINS.build("deepnorm", model, model.residual.ffn)
    assert alpha == pytest.approx((2 * layers) ** 0.25)
    deep = dataclasses.replace(model, init=dataclasses.replace(model.init, scheme="deepnorm"))
    scheme, shape = SCHEMES.build("deepnorm", deep), (64, 256)
    glorot, beta = math.sqrt(2 / sum(shape)), (8 * layers) ** -0.25
    for role, wanted in (("matrix", glorot), *((r, beta * glorot) for r in ("value", "hidden", "output"))):
        assert scheme(role, shape, path_bits(0, role)).std() == pytest.approx(wanted, rel=0.02), role
    assert scheme("embedding", shape, path_bits(0, "x")).std() == pytest.approx(16**-0.5, rel=0.02)


def test_deepnorm_is_for_one_stack():
    config = tiny()
    two = dataclasses.replace(config, model=dataclasses.replace(config.model, family="encoder_decoder"))
    check = SKIP_GAINS["deepnorm"].check
    assert check(config) is None and "encoder-decoder" in check(two)


def test_numbers_by_name_equal_numbers():
    for name, field, value in (
        ("inv_sqrt_depth", "branch_gain", 0.5),  # two layers of two sublayers
        ("deepnorm", "skip_gain", 4**0.25),
    ):
        by_name, by_number = (build(tiny(gains(field, v)))(tokens()) for v in (name, value))
        np.testing.assert_array_equal(by_name, by_number)
    alone = {"model.ffn.kind": "none", "model.residual.attention.branch_gain": "inv_sqrt_depth"}
    assert build(tiny(alone)).blocks[0].attention.branch_gain == 2**-0.5


def test_layerscale_is_a_gain_per_channel():
    config = tiny({**gains("branch_gain", "layerscale"), **gains("layerscale_init", 0.25)})
    assert declared(config)["blocks.1.ffn.branch_gain.gain"] == ((16,), "residual_gain")
    np.testing.assert_array_equal(initial(config)["blocks.1.ffn.branch_gain.gain"], 0.25)
    np.testing.assert_allclose(build(config)(tokens()), build(tiny(gains("branch_gain", 0.25)))(tokens()), atol=1e-5)


def test_an_unknown_gain_lists_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        tiny({"model.residual.ffn.branch_gain": "learnd_zero"})
    assert str(caught.value) == (
        "model.residual.ffn.branch_gain='learnd_zero' is not one of: learned_zero, layerscale, inv_sqrt_depth, "
        'or a number. Did you mean "learned_zero"?'
    )
    with pytest.raises(ConfigError, match=r"ffn\.skip_gain='rezero' is not one of: deepnorm, or a number\."):
        tiny({"model.residual.ffn.skip_gain": "rezero"})
    assert set(BRANCH_GAINS) == {"learned_zero", "layerscale", "inv_sqrt_depth"}


# --- Parallel ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["pre", "post", "branch", "sandwich", "pre_post"])
def test_parallel_sublayers_read_the_same_and_are_added_once(placement):
    config = tiny(
        {"model.residual.arrangement": "parallel", "model.norm.placement": placement, **gains("skip_gain", 0.5)}
    )
    model = build(config)
    _, seen = capture(model)(tokens())
    x = seen["embedding"]
    block = model.blocks[0]
    written = sum(np.asarray(seen[f"blocks.0.{part}.output"]) for part in BOTH)
    total = 0.5 * np.asarray(x) + written
    wanted = total if block.ffn.out_norm is None else block.ffn.out_norm(jnp.asarray(total))
    np.testing.assert_allclose(seen["blocks.0.residual"], wanted, atol=1e-5)
    assert block.attention.out_norm is None and "blocks.0.residual_mid" not in seen
    # The feed-forward network really reads x, not what attention made of it.
    from transformer.model.context import Context
    from transformer.model.masks import Mask
    from transformer.model.positions import NoPosition

    context = Context(jnp.arange(x.shape[1])[None], Mask(), NoPosition(config))
    np.testing.assert_allclose(block.ffn.write(x, context), seen["blocks.0.ffn.output"], atol=1e-6)
    sequential = capture(build(tiny({"model.norm.placement": placement, **gains("skip_gain", 0.5)})))(tokens())[1]
    assert not np.allclose(sequential["blocks.0.ffn.output"], seen["blocks.0.ffn.output"], atol=1e-3)


def test_parallel_has_one_skip_path():
    with pytest.raises(ConfigError, match="one skip path"):
        tiny({"model.residual.arrangement": "parallel", "model.residual.ffn.skip_gain": 0.5})


# --- Initialisations ---------------------------------------------------------------------------------------------


def stds(scheme: str, shape=(64, 256)) -> dict[str, float]:
    config = tiny({"model.d_model": 64, "model.num_layers": 8, "model.init.scheme": scheme, "model.init.std": 0.02})
    made = SCHEMES.build(scheme, config.model)
    roles = ("matrix", "value", "hidden", "output", "embedding", "unembedding")
    return {role: float(made(role, shape, path_bits(0, role)).std()) for role in roles}


def test_fixup_shrinks_what_is_inside_a_branch():
    reads = ("matrix", "value", "hidden")
    wanted = {"output": 0.0, "embedding": 1 / 8, "unembedding": 1 / 8}
    assert stds("fixup") == pytest.approx({**dict.fromkeys(reads, 1 / 32), **wanted}, rel=0.03)  # 16 branches
    assert stds("lecun")["hidden"] == pytest.approx(1 / 8, rel=0.03)
    heads = {"model.family": "encoder", "model.head.kind": "mlm", "model.d_model": 64, "model.init.std": 0.02}
    made = build(tiny({**heads, "model.init.scheme": "fixup"}))
    assert made.head.dense.kernel[...].std() == pytest.approx(1 / 8, rel=0.05)  # not in a branch
    assert made.blocks[0].ffn.branch.up.kernel[...].std() == pytest.approx(1 / 16, rel=0.05)


@pytest.mark.parametrize("scheme", ["zero", "fixup"])
def test_silent_branches_make_the_stack_the_identity(scheme):
    _, seen = capture(build(tiny({"model.init.scheme": scheme, "model.init.std": 0.02})))(tokens())
    np.testing.assert_array_equal(seen["embedding"], seen["blocks.1.residual"])


# --- Layer patterns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "num_layers", "kinds"),
    [
        ("both", 3, "bbb"),
        ("attention", 2, "aa"),
        ("attention,ffn", 4, "afaf"),
        (" attention * 2 , both,ffn*2", 5, "aabff"),
        ("both*2,attention", 6, "bbabba"),
    ],
)
def test_patterns(text, num_layers, kinds):
    config = tiny({"model.layers": text, "model.num_layers": num_layers})
    assert "".join(kind[0] for kind in layer_kinds(config.model)) == kinds
    assert num_sublayers(config.model) == len(kinds) + kinds.count("b")
    model = build(config)
    assert [(b.attention is not None, b.ffn is not None) for b in model.blocks] == [(k != "f", k != "a") for k in kinds]
    assert np.isfinite(model(tokens())).all()


def test_attention_then_ffn_is_the_ordinary_block_cut_in_two():
    whole, cut = build(tiny({"model.num_layers": 1})), build(tiny({"model.layers": "attention,ffn"}))
    cut.blocks[0].attention = whole.blocks[0].attention
    cut.blocks[1].ffn = whole.blocks[0].ffn
    cut.embedding = whole.embedding
    np.testing.assert_array_equal(whole(tokens()), cut(tokens()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.layers": "atention"}, r"model\.layers='atention' .* Did you mean \"attention\"\?"),
        ({"model.layers": "both,fnn"}, r"model\.layers='fnn' .* Did you mean \"ffn\"\?"),
        ({"model.layers": "both*x"}, "whole number above 0"),
        ({"model.layers": "both*0"}, "whole number above 0"),
        ({"model.layers": "both,,ffn"}, r"model\.layers=''"),
        ({"model.layers": "both*3"}, r"names 3 layers, and model\.num_layers=2"),
        ({"model.layers": "both,ffn", "model.ffn.kind": "none"}, r"model\.ffn\.kind=none removes it"),
    ],
)
def test_wrong_patterns(overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny(overrides)


def test_mixed_stacks_decode_with_a_cache():
    for pattern in ("attention,ffn", "ffn,both", "ffn"):
        model = build(tiny({"model.layers": pattern}))
        cache, parts = model.empty_cache(2, 8), []
        for piece in np.split(tokens(), 4, axis=1):
            logits, cache = model(piece, cache=cache)
            parts.append(logits)
        np.testing.assert_allclose(np.concatenate(parts, axis=1), model(tokens()), atol=2e-5)
    assert set(LAYERS) == {"both", "attention", "ffn"}
