"""What each family sees of its input, and what an encoder-decoder makes of its source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import LENGTH, VOCAB, called, declared, initial, nudged, tiny, tokens
from transformer.config import config_hash, difference, identity, replace, resolve, stack_config, to_dict
from transformer.errors import ConfigError, UserError
from transformer.model import build, taps

ROOT = Path(__file__).resolve().parents[2]
SOURCE = LENGTH - 3  # tokens of the source that `called` binds
PREFIX = 3
ENCODER_DECODER = {"model.family": "encoder_decoder"}


def jacobian(overrides: dict, at: str, length: int) -> np.ndarray:
    """[t, s, D]: by how much the first logit at t moves with each coordinate of what the tap `at` holds at s."""
    config = tiny({"model.num_layers": 1, **overrides})
    model = called(nudged(build(config)), config)

    def first_logits(shift_SD):
        return taps.replace(model, **{at: lambda x: x + shift_SD[None]})(tokens())[0, :, 0]

    return np.asarray(jax.jit(jax.jacrev(first_logits))(jnp.zeros((length, config.model.d_model))))


def support(overrides: dict, at: str = "embedding", length: int = LENGTH) -> np.ndarray:
    """[t, s]: whether the logits at t depend on s at all."""
    return np.any(jacobian(overrides, at, length) != 0, axis=-1)


FULL, CAUSAL = np.ones((LENGTH, LENGTH), bool), np.tri(LENGTH, dtype=bool)
SEEN = {
    "decoder": CAUSAL,
    "encoder": FULL,
    "prefix_decoder": CAUSAL | (np.arange(LENGTH) < PREFIX),
    "encoder_decoder": CAUSAL,
}
OF_THE_SOURCE = {"full": np.ones((LENGTH, SOURCE), bool), "pooled": np.ones((LENGTH, SOURCE), bool)}


@pytest.mark.parametrize("family", SEEN)
def test_a_family_sees_what_its_matrix_says(family):
    np.testing.assert_array_equal(support({"model.family": family}), SEEN[family])


@pytest.mark.parametrize("kind", OF_THE_SOURCE)
def test_cross_attention_sees_the_whole_source(kind):
    overrides = {**ENCODER_DECODER, "model.cross_attention": kind}
    np.testing.assert_array_equal(support(overrides, "encoder.embedding", SOURCE), OF_THE_SOURCE[kind])


@pytest.mark.parametrize("changes", [{"model.attention.backend": "fused"}, {"model.attention.memory": "persistent"}])
def test_a_pooled_source_takes_from_attention_what_it_can_use(changes):
    """It has no scores: no kernel that knows softmax only, no keys and values of its own."""
    config = tiny({**ENCODER_DECODER, "model.cross_attention": "pooled", **changes})
    assert np.isfinite(build(config)(tokens(), source_BS=tokens(length=SOURCE))).all()
    assert not [name for name in declared(config) if "cross_attention" in name and "memory" in name]
    assert [name for name in declared(config) if "memory" in name] or "model.attention.memory" not in changes


def test_a_pooled_source_has_no_order():
    """Every state of the encoder counts alike, which full cross-attention does not grant."""
    spread = {}
    for kind in ("full", "pooled"):
        at_source = jacobian({**ENCODER_DECODER, "model.cross_attention": kind}, "encoder.final", SOURCE)
        spread[kind] = np.ptp(at_source, axis=1).max() / np.abs(at_source).max()
    assert spread["pooled"] < 1e-5 and spread["full"] > 0.1


def test_without_cross_attention_there_is_no_encoder():
    config = tiny({**ENCODER_DECODER, "model.cross_attention": "none"})
    assert declared(config) == declared(tiny())
    model = build(config)
    np.testing.assert_array_equal(model(tokens(), source_BS=tokens(seed=1)), model(tokens(), source_BS=tokens(seed=2)))


def test_families_share_every_weight_they_have_in_common():
    decoder = initial(tiny())
    for family in SEEN:
        weights = initial(tiny({"model.family": family}))
        # The last kernel of a branch starts smaller the more branches there are: three a layer instead of two.
        common = [n for n in decoder if family != "encoder_decoder" or not n.endswith(("output.kernel", "down.kernel"))]
        assert decoder.keys() <= weights.keys()
        for name in common:
            np.testing.assert_array_equal(weights[name], decoder[name], err_msg=name)


# --- The source --------------------------------------------------------------------------------------------------


def test_a_memory_is_as_good_as_the_source():
    model, source = build(tiny(ENCODER_DECODER)), tokens(seed=1)
    np.testing.assert_array_equal(model(tokens(), memory=model.encode(source)), model(tokens(), source_BS=source))
    for wrong in ({}, {"source_BS": source, "memory": model.encode(source)}):
        with pytest.raises(UserError, match=r"either source_BS or memory"):
            model(tokens(), **wrong)


@pytest.mark.parametrize("kind", ["full", "pooled"])
@pytest.mark.parametrize("position", ["rope", "t5", "learned"])
def test_padding_of_the_source_changes_nothing(kind, position):
    config = tiny({**ENCODER_DECODER, "model.cross_attention": kind, "model.position.kind": position})
    model, source, pad = build(config), tokens(length=5, seed=1), np.full((2, 3), VOCAB - 1, np.int32)
    segments = np.repeat([[1, 0]], [5, 3], axis=1).repeat(2, axis=0)
    padded = model(tokens(), source_BS=np.concatenate([source, pad], axis=1), source_segments_BS=segments)
    np.testing.assert_allclose(padded, model(tokens(), source_BS=source), atol=2e-5, rtol=2e-5)
    unmarked = model(tokens(), source_BS=np.concatenate([source, pad], axis=1))
    assert not np.allclose(unmarked, padded, atol=1e-3)


@pytest.mark.parametrize("family", SEEN)
def test_a_row_of_padding_stays_finite_and_alone(family):
    config = tiny({"model.family": family})
    model = called(build(config), config)
    segments = np.ones((2, LENGTH), np.int32)
    segments[1] = 0
    out = np.asarray(model(tokens(), segments_BT=segments))
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[0], model(tokens())[0], atol=2e-5, rtol=2e-5)


def test_an_empty_source_is_read_as_nothing_however_long_it_is():
    model = build(tiny(ENCODER_DECODER))
    empty = [model(tokens(), source_BS=tokens(length=n), source_segments_BS=np.zeros((2, n), np.int32)) for n in (3, 7)]
    assert np.isfinite(empty[0]).all()
    np.testing.assert_allclose(empty[0], empty[1], atol=2e-5, rtol=2e-5)


# --- Overrides of one stack --------------------------------------------------------------------------------------

OVERRIDES = {
    **ENCODER_DECODER,
    "model.encoder.num_layers": 3,
    "model.encoder.norm.kind": "rmsnorm",
    "model.decoder.ffn.kind": "swiglu",
    "model.residual.cross_attention.branch_gain": 0.5,
}


def test_a_stack_may_differ():
    names = declared(tiny(OVERRIDES))
    layers = {name.split(".")[2] for name in names if name.startswith("encoder.blocks")}
    assert layers == {"0", "1", "2"} and "blocks.2.ffn.branch.up.kernel" not in names
    assert "blocks.0.ffn.branch.gate.kernel" in names and "encoder.blocks.0.ffn.branch.gate.kernel" not in names
    encoder, decoder = (stack_config(tiny(OVERRIDES), stack).model for stack in ("encoder", "decoder"))
    assert (encoder.norm.kind, decoder.norm.kind) == ("rmsnorm", "layernorm")
    assert (encoder.family, encoder.residual.cross_attention.branch_gain) == ("encoder", 1.0)
    assert (decoder.family, decoder.residual.cross_attention.branch_gain) == ("encoder_decoder", 0.5)


def test_parameters_of_a_kind_the_stack_does_not_use_are_dropped():
    config = tiny({**ENCODER_DECODER, "model.position.rope_base": 50.0, "model.encoder.position.kind": "learned"})
    assert stack_config(config, "decoder").model.position.rope_base == 50.0
    assert stack_config(config, "encoder").model.position.kind == "learned"


def test_a_table_of_positions_is_as_long_as_the_sources():
    learned = {**ENCODER_DECODER, "model.position.kind": "learned"}
    rows = [declared(tiny({**learned, "data.source_length": n}))["encoder.position.table"][0][0] for n in (0, 5)]
    assert rows == [LENGTH, 5] and declared(tiny(learned))["position.table"][0][0] == LENGTH


def test_overrides_survive_the_round_trip_and_are_part_of_the_identity():
    config = tiny(OVERRIDES)
    assert resolve(to_dict(config)) == config and replace(config, {}) == config
    assert identity(config)["model.encoder.num_layers"] == 3
    without = {path: value for path, value in OVERRIDES.items() if path != "model.encoder.num_layers"}
    assert difference(tiny(without), config) == {"model.encoder.num_layers": (None, 3)}
    assert config_hash(tiny(without)) != config_hash(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.encoder.num_layers": 2}, r"only model\.family=encoder_decoder has two stacks, and it is 'decoder'"),
        ({**ENCODER_DECODER, "model.encoder.num_layrs": 2}, r'Did you mean "model\.encoder\.num_layers"'),
        ({**ENCODER_DECODER, "model.encoder.d_model": 8}, r"model\.d_model cannot differ between the two stacks"),
        ({**ENCODER_DECODER, "model.encoder.norm.kind": "x"}, r"In the encoder .*'x' is not one of: layernorm"),
        ({**ENCODER_DECODER, "model.encoder.num_layers": "2"}, r"model\.encoder\.num_layers='2' has the wrong type"),
        ({**ENCODER_DECODER, "model.decoder.attention.num_heads": 3}, r"In the decoder .*not divisible by"),
        ({"model.residual.cross_attention.skip_gain": 0.5}, r"only model\.cross_attention=full or pooled reads it"),
        ({"model.cross_attention": "pooled"}, r"only model\.family=encoder_decoder reads it"),
        ({**ENCODER_DECODER, "model.residual.cross_attention.skip_gain": "deepnorm"}, r"that of a single stack"),
        ({"model.head.kind": "tag", "model.head.num_labels": 0}, r"num_labels=0 must be at least 1"),
        ({"model.head.pooling": "cls"}, r"only model\.head\.kind=classify reads it"),
    ],
)
def test_what_cannot_be_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny(overrides)


# --- Heads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "wanted"), [("cls", [0, 2]), ("last", [3, 4]), ("mean", [1.5, 3])])
def test_pooling_counts_real_tokens_only(pooling, wanted):
    from transformer.model.heads import POOLINGS

    states = jnp.arange(5.0)[None, :, None].repeat(2, axis=0)
    real = jnp.asarray([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]], bool)
    np.testing.assert_allclose(POOLINGS.build(pooling, states, real)[:, 0], wanted)


def test_heads_have_the_promised_shapes():
    for kind, shape in {"classify": (2, 5), "tag": (2, LENGTH, 5), "mlm": (2, LENGTH, VOCAB)}.items():
        labels = {} if kind == "mlm" else {"model.head.num_labels": 5}
        config = tiny({"model.family": "encoder", "model.head.kind": kind, **labels})
        assert build(config)(tokens()).shape == shape
        # A head over labels needs no map back to the vocabulary.
        untied = declared(replace(config, {"model.embedding.tie": False}))
        assert ("unembedding.kernel" in untied) == (kind == "mlm")


def test_token_types_and_their_default():
    model = build(tiny({"model.family": "encoder", "model.embedding.token_types": 2}))
    zeros = np.zeros((2, LENGTH), np.int32)
    np.testing.assert_array_equal(model(tokens()), model(tokens(), token_types_BT=zeros))
    assert not np.allclose(model(tokens()), model(tokens(), token_types_BT=zeros + 1), atol=1e-3)


def test_the_embedding_is_shared_or_not():
    assert "encoder.embedding.table" not in declared(tiny(ENCODER_DECODER))
    apart = declared(tiny({**ENCODER_DECODER, "model.share_embedding": False}))
    assert apart["encoder.embedding.table"] == apart["embedding.table"]


def test_a_head_that_pools_has_nothing_to_decode():
    with pytest.raises(UserError, match=r"pools over the whole row"):
        build(tiny({"model.head.kind": "classify"})).empty_cache(1, 4)


# --- The command line --------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "train.py", "--config=configs/base.py", *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_stacks_on_the_command_line():
    family = "--config.model.family=encoder_decoder"
    done = command(family, "--config.model.encoder.num_layers=3", "--print_config")
    assert done.returncode == 0, done.stderr
    assert "model.encoder.num_layers = 3" in done.stdout and "model.decoder.num_layers" not in done.stdout
    wrong = command(family, "--config.model.encoder.num_layrs=3", "--print_config")
    assert wrong.returncode == 2 and 'Did you mean "model.encoder.num_layers"?' in wrong.stderr


def test_help_explains_stacks_without_listing_every_field_again():
    listed = command("--help").stdout
    assert "model.encoder.FIELD" in listed and "model.decoder.FIELD" in listed
    assert "model.encoder.num_layers" not in listed and listed.count("  model.norm.kind") == 1
