"""What each attention switch promises, beyond the formula that tests/model/test_attention.py checks."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.test_cache import ONE_BY_ONE, check_cached_equals_full
from tests.model.test_causality import check_causal, influence
from tests.tiny import LENGTH, initial, label, logits, one_switch, tiny, tokens
from transformer.errors import ConfigError
from transformer.model import build
from transformer.model.attention_backends import AttentionCall
from transformer.model.attention_weights import WEIGHTS, Sight
from transformer.model.taps import capture, replace
from transformer.schema import Config

A = "model.attention."
NO_POSITION = {"model.position.kind": "none"}


def tapped(overrides: dict, name: str, layer: int = 0) -> np.ndarray:
    """One tapped value at the initial weights."""
    name = f"blocks.{layer}.attention.{name}"
    return np.asarray(capture(build(tiny(overrides)), name)(tokens())[1][name])


def same(a: Config, b: Config, atol: float = 0.0) -> None:
    np.testing.assert_allclose(logits(a), logits(b), atol=atol, rtol=atol)


# --- Key-value heads and widths ----------------------------------------------------------------------------------

FOUR = {A + "num_heads": 4}
SHARED = {**FOUR, A + "num_kv_heads": 2}


def test_as_many_key_value_heads_as_heads_is_plain_attention():
    same(tiny(FOUR), tiny({**FOUR, A + "num_kv_heads": 4}))


def check_groups(repeat) -> None:
    """Sharing is plain attention whose key and value kernels repeat: `repeat` makes them, [D, 2K] -> [D, 4K]."""
    shared, plain = build(tiny(SHARED)), build(tiny(FOUR))
    for few, many in zip(shared.blocks, plain.blocks, strict=True):
        for name in ("key", "value"):
            kernel = getattr(few.attention.branch, name).kernel[...]
            getattr(many.attention.branch, name).kernel[...] = repeat(kernel)
    np.testing.assert_allclose(shared(tokens()), plain(tokens()), atol=1e-5, rtol=1e-5)


def test_neighbouring_heads_share_keys_and_values():
    def in_groups(kernel):
        return jnp.repeat(kernel.reshape(16, 2, 4), 2, axis=1).reshape(16, 16)

    check_groups(in_groups)
    with pytest.raises(AssertionError):  # heads 0 and 2 share in this wrong order
        check_groups(lambda kernel: jnp.tile(kernel, (1, 2)))


@pytest.mark.parametrize(
    ("overrides", "keys", "values"),
    [
        ({}, (2, 8), (2, 8)),
        (SHARED, (2, 4), (2, 4)),
        ({**FOUR, A + "num_kv_heads": 1}, (1, 4), (1, 4)),
        ({A + "head_dim": 6, A + "value_dim": 3}, (2, 6), (2, 3)),
        ({A + "weights": "uniform"}, (2, 0), (2, 8)),
    ],
    ids=lambda x: label(x) if isinstance(x, dict) else "",
)
def test_the_cache_holds_what_is_shared(overrides, keys, values):
    cache = build(tiny(overrides)).empty_cache(3, 5)
    assert {x.shape for x in cache.keys} == {(3, keys[0], 5, keys[1])}
    assert {x.shape for x in cache.values} == {(3, values[0], 5, values[1])}
    check_cached_equals_full(overrides, ONE_BY_ONE)


# --- Window ------------------------------------------------------------------------------------------------------


def test_a_window_reaches_window_minus_one_back_per_layer():
    reach = influence({A + "window": 3, "model.num_layers": 1})
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)[None]
    np.testing.assert_array_equal(reach > 0, (distance >= 0) & (distance < 3))
    with pytest.raises(AssertionError, match="the past is lost"):
        check_causal(influence({A + "window": 3}))


def test_a_window_reaches_as_far_ahead_where_nothing_hides_what_follows():
    reach = influence({A + "window": 3, A + "mask": "none", "model.num_layers": 1})
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)[None]
    np.testing.assert_array_equal(reach > 0, np.abs(distance) < 3)


def test_a_window_as_long_as_the_input_is_no_window():
    same(tiny({A + "window": LENGTH}), tiny())


@pytest.mark.parametrize("weights", ["softmax", "sigmoid_bias", "uniform", "shaped"])
def test_a_window_works_with_the_full_cache(weights):
    check_cached_equals_full({A + "window": 3, A + "weights": weights}, ONE_BY_ONE, spare=2)


# --- Scores ------------------------------------------------------------------------------------------------------

SEEN = np.tril(np.ones((LENGTH, LENGTH), bool))


def test_no_scale_with_matched_weights_starts_as_the_default():
    same(tiny({A + "scale": "none_matched"}), tiny(), atol=2e-5)
    assert not np.allclose(logits(tiny({A + "scale": "none"})), logits(tiny()), atol=1e-2)


def test_matched_weights_are_the_same_draws_only_smaller():
    plain, matched = initial(tiny()), initial(tiny({A + "scale": "none_matched"}))
    for name in plain:
        factor = 8**-0.25 if name.endswith(("query.kernel", "key.kernel")) else 1.0
        np.testing.assert_allclose(matched[name], plain[name] * factor, rtol=1e-6)


def test_a_learned_scale_starts_at_the_default():
    same(tiny({A + "scale": "learned"}), tiny(), atol=2e-5)
    assert initial(tiny({A + "scale": "learned"}))["blocks.0.attention.branch.scale.gain"].tolist() == [1.0, 1.0]


LARGE = {"model.init.std": 3.0}


def test_a_soft_cap_bounds_scores_and_keeps_their_order():
    plain, capped = (tapped({**LARGE, A + "soft_cap": cap}, "scores")[..., SEEN] for cap in (0.0, 50.0))
    assert np.abs(plain).max() > 100 and np.abs(capped).max() <= 50
    np.testing.assert_allclose(capped, 50 * np.tanh(plain / 50), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["rms", "l2"])
def test_norms_on_queries_and_keys_bound_the_scores(kind):
    scores = tapped({**LARGE, A + "qk_norm": kind}, "scores")[..., SEEN]
    assert np.abs(scores).max() <= math.sqrt(8) * 1.001
    assert np.abs(tapped(LARGE, "scores")[..., SEEN]).max() > 10 * math.sqrt(8)


def test_both_norms_start_alike():
    same(tiny({A + "qk_norm": "rms"}), tiny({A + "qk_norm": "l2"}), atol=2e-5)


# --- Weights and sinks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WEIGHTS)
def test_rows_sum_to_one_exactly_where_the_entry_says_so(kind):
    rows = tapped(
        {**LARGE, A + "weights": kind, **({A + "zero_query_init": False} if kind == "shaped" else {})}, "weights"
    )
    assert not rows[..., ~SEEN].any()
    stochastic = np.all(rows >= 0) and np.allclose(rows.sum(-1), 1, atol=1e-5)
    assert stochastic == ("row_stochastic" in WEIGHTS[kind].traits)


def test_a_key_of_zeros_is_softmax_off_by_one():
    same(tiny({A + "sinks": "zero_key"}), tiny({A + "weights": "softmax1"}))


def test_a_learned_sink_starts_as_a_key_of_zeros_and_can_be_closed():
    same(tiny({A + "sinks": "learned"}), tiny({A + "sinks": "zero_key"}))
    model = build(tiny({A + "sinks": "learned"}))
    for block in model.blocks:
        block.attention.branch.weights.sink.logit[...] = jnp.full((2,), -1e4)
    np.testing.assert_allclose(model(tokens()), logits(tiny()), atol=1e-5, rtol=1e-5)


def test_a_sink_takes_weight_from_all_keys_alike():
    without, with_sink = tapped({}, "weights"), tapped({A + "sinks": "zero_key"}, "weights")
    ratio = np.where(SEEN, with_sink, 1) / np.where(SEEN, without, 1)
    share = with_sink.sum(-1, keepdims=True)
    assert np.all(share < 1)
    np.testing.assert_allclose(np.where(SEEN, ratio, share), np.broadcast_to(share, ratio.shape), rtol=1e-4)


@pytest.mark.parametrize("kind", ["sigmoid", "sigmoid_bias"])
def test_only_the_bias_keeps_the_output_from_growing_with_the_number_of_keys(kind):
    rule, rng = WEIGHTS.build(kind, tiny().model.attention), np.random.default_rng(0)

    def rms(n: int) -> float:
        at = jnp.arange(n)[None]
        scores = jnp.asarray(rng.normal(size=(1, 1, 1, n)), jnp.float32)
        weights = np.asarray(rule(scores, Sight(None, at[:, -1:], at)))[0, 0]
        return float(np.sqrt(np.square(weights @ rng.normal(size=(n, 512))).mean()))

    assert (rms(1024) > 4 * rms(16)) == (kind == "sigmoid")
    assert (rms(1024) < 0.2) == (kind == "sigmoid_bias")


def test_shaped_attention_starts_as_the_identity():
    identity = np.broadcast_to(np.eye(LENGTH), (2, 2, LENGTH, LENGTH))
    shaped = {A + "weights": "shaped"}
    np.testing.assert_allclose(tapped(shaped, "weights"), identity, atol=1e-6)
    awake = {**shaped, A + "zero_query_init": False}
    assert not np.allclose(tapped(awake, "weights"), identity, atol=0.1)
    check_causal(influence(awake))


def test_uniform_weights_are_the_mean_over_what_is_seen():
    np.testing.assert_allclose(tapped({A + "weights": "uniform"}, "weights")[0, 0], SEEN / SEEN.sum(-1, keepdims=True))


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_a_fixed_offset_looks_at_one_key(offset):
    rows = tapped({A + "weights": "fixed_offset", A + "offset": offset}, "weights")
    np.testing.assert_array_equal(rows[0, 0], np.eye(LENGTH, k=-offset))


def test_controls_own_no_queries_and_keys_and_name_no_scores():
    for kind in WEIGHTS:
        names = {name.split(".")[4] for name in initial(tiny({A + "weights": kind})) if ".attention.branch." in name}
        _, seen = capture(build(tiny({A + "weights": kind})))(tokens())
        taps = {name.removeprefix("blocks.0.attention.") for name in seen if name.startswith("blocks.0.attention.")}
        absent = "no_scores" in WEIGHTS[kind].traits
        assert absent == ("query" not in names) == ("key" not in names)
        assert taps == {"value", "weights", "heads", "output"} | (set() if absent else {"query", "key", "scores"})


# --- Ties, projections, gate -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tie", "equal"),
    [("none", set()), ("qk", {"query=key"}), ("kv", {"key=value"}), ("qkv", {"query=key", "key=value"})],
)
def test_tied_projections_give_the_same_vectors(tie, equal):
    seen = {name: tapped({A + "tie": tie, **NO_POSITION}, name) for name in ("query", "key", "value")}
    pairs = (("query", "key"), ("key", "value"))
    assert {f"{a}={b}" for a, b in pairs if np.array_equal(seen[a], seen[b])} == equal


def test_tied_values_carry_no_position():
    np.testing.assert_array_equal(tapped({A + "tie": "kv"}, "value"), tapped({A + "tie": "kv", **NO_POSITION}, "key"))


def test_identity_values_are_slices_of_the_input():
    overrides = {A + "value_projection": "identity", "model.norm.kind": "none"}
    embedded = np.asarray(capture(build(tiny(overrides)), "embedding")(tokens())[1]["embedding"])
    np.testing.assert_array_equal(tapped(overrides, "value").transpose(0, 2, 1, 3).reshape(embedded.shape), embedded)


def test_a_block_diagonal_output_is_a_full_one_with_zeros_outside_its_blocks():
    full, blocks = build(tiny()), build(tiny({A + "output_projection": "block_diagonal"}))
    for wide, narrow in zip(full.blocks, blocks.blocks, strict=True):
        kernel = np.asarray(narrow.attention.branch.output.kernel[...])
        dense = np.zeros((16, 16), np.float32)
        for h in range(2):
            dense[8 * h : 8 * h + 8, 8 * h : 8 * h + 8] = kernel[h]
        wide.attention.branch.output.kernel[...] = jnp.asarray(dense)
    np.testing.assert_allclose(blocks(tokens()), full(tokens()), atol=1e-5, rtol=1e-5)


def test_a_closed_gate_stops_the_branch_and_a_new_one_is_half_open():
    model = build(tiny({A + "gate": "sigmoid", "model.norm.embedding": True}))
    gate = np.asarray(capture(model, "blocks.0.attention.gate")(tokens())[1]["blocks.0.attention.gate"])
    assert gate.shape == (2, LENGTH, 16) and 0 < gate.min() < 0.5 < gate.max() < 1
    closed = replace(model, **{f"blocks.{i}.attention.gate": jnp.zeros_like for i in range(2)})
    dead = replace(model, **{f"blocks.{i}.attention.heads": jnp.zeros_like for i in range(2)})
    np.testing.assert_array_equal(closed(tokens()), dead(tokens()))


# --- Number formats and dropout ----------------------------------------------------------------------------------


def check_number_formats(config: Config) -> None:
    """Of a model in bfloat16: scores, weights and logits are exact, nothing else is."""
    _, seen = capture(build(config))(tokens())
    for name, x in seen.items():
        exact = name.endswith(("attention.scores", "attention.weights", "logits"))
        assert x.dtype == (jnp.float32 if exact else jnp.bfloat16), name


@pytest.mark.parametrize("overrides", one_switch(A), ids=label)
def test_bfloat16_models_compute_scores_and_weights_in_float32(overrides):
    check_number_formats(tiny({**overrides, "numerics.compute_dtype": "bfloat16"}))


def test_the_check_notices_a_model_in_single_precision():
    with pytest.raises(AssertionError):
        check_number_formats(tiny())


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_are_dropped_under_every_rule(kind):
    model = build(tiny({A + "weights": kind, "model.dropout": 0.5}))
    heads = "blocks.0.attention.heads"
    run = jax.jit(lambda key: capture(model, heads)(tokens(), dropout_key=key)[1][heads])
    assert not np.allclose(run(jax.random.key(0)), run(jax.random.key(1)))


# --- Combinations that make no sense are refused in words --------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({A + "num_kv_heads": 3}, r"num_heads=2 is not divisible by model\.attention\.num_kv_heads=3"),
        ({A + "num_kv_heads": 4}, r"num_heads=2 is not divisible by"),
        ({A + "num_kv_heads": -1}, r"num_kv_heads=-1 must not be negative"),
        ({A + "window": -1}, r"window=-1 must not be negative"),
        ({A + "soft_cap": -1.0}, r"soft_cap=-1\.0 must not be negative"),
        ({A + "value_dim": -1}, r"value_dim=-1 must not be negative"),
        ({A + "tie": "qk", A + "num_kv_heads": 1}, r"tie=qk: needs as many key heads .*set num_kv_heads=0"),
        ({A + "tie": "qkv", A + "num_kv_heads": 1}, r"tie=qkv: needs as many key heads"),
        ({A + "tie": "kv", A + "value_dim": 4}, r"tie=kv: needs values as wide as keys, .*set value_dim=0"),
        ({A + "tie": "kv", A + "value_projection": "identity"}, r"value_projection=identity: .*choose one of the two"),
        ({A + "value_projection": "identity", A + "num_kv_heads": 1}, r"1 \* 8 is not d_model=16"),
        ({A + "output_projection": "none", A + "head_dim": 6}, r"2 \* 6 is not d_model=16; change one"),
        ({A + "output_projection": "block_diagonal", A + "num_heads": 3, A + "head_dim": 4}, r"not divisible by num_h"),
        ({A + "scale": "none_matched", A + "qk_norm": "rms"}, r"scale=none_matched: .*qk_norm=rms undoes"),
        ({A + "scale": "none_matched", A + "tie": "kv"}, r"scale=none_matched: would shrink the values too"),
        ({A + "scale": "learned", A + "qk_norm": "l2"}, r"qk_norm=l2: already learns one factor per head"),
        ({A + "sinks": "learned", A + "weights": "sigmoid"}, r"sinks=learned: .*weights=sigmoid is none"),
        ({A + "sinks": "zero_key", A + "weights": "softmax1"}, r"sinks=zero_key: .*a zero_key sink already"),
        ({A + "weights": "fixed_offset", A + "offset": -1}, r"offset=-1 is negative; use 0 or more"),
        ({A + "weights": "shaped", A + "tie": "qk"}, r"weights=shaped: .*set model\.attention\.zero_query_init=False"),
        ({A + "offset": 2}, r"offset=2 has no effect"),
    ],
    ids=lambda x: label(x) if isinstance(x, dict) else "",
)
def test_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny(overrides)


def test_what_a_back_end_is_given_is_documented():
    for item in dataclasses.fields(AttentionCall):
        assert item.name in AttentionCall.__doc__


# --- Rows beside the tokens --------------------------------------------------------------------------------------

PERSISTENT = {A + "memory": "persistent", A + "persistent_rows": 3}


def test_persistent_rows_are_seen_by_every_query_and_share_one_softmax():
    weights = tapped(PERSISTENT, "weights")
    assert weights.shape == (2, 2, LENGTH, LENGTH + 3)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    assert np.all(weights[..., LENGTH:] > 0)
    assert np.all(weights[..., :LENGTH][..., np.triu(np.ones((LENGTH, LENGTH), bool), k=1)] == 0)


@pytest.mark.parametrize("overrides", [{}, {A + "window": 2}, {"model.position.kind": "alibi"}], ids=label)
def test_persistent_rows_have_no_position(overrides):
    """Their scores are the plain products of the queries, whatever windows and position biases do to tokens."""
    seen = {"weights": tapped({**PERSISTENT, **overrides}, "weights")}
    seen["query"] = tapped({**PERSISTENT, **overrides, "model.position.kind": "none"}, "query")
    rows = initial(tiny({**PERSISTENT, **overrides}))["blocks.0.attention.branch.memory.key"].reshape(3, 2, 8)
    products = np.einsum("bhtk,nhk->bhtn", seen["query"], rows) / math.sqrt(8)
    log_weights = np.log(seen["weights"][..., LENGTH:])
    scores = log_weights - log_weights[..., :1]
    np.testing.assert_allclose(scores, products - products[..., :1], atol=1e-4)


@pytest.mark.parametrize("scaling", [{}, {"model.position.rope_scaling": "yarn", "model.position.rope_factor": 4.0}])
def test_a_text_with_persistent_rows_may_start_anywhere(scaling):
    """Rotary positions are relative, and rows without one keep them so."""
    model, positions = build(tiny({**PERSISTENT, **scaling})), np.arange(LENGTH)[None]
    for shift in (1, 10, 1000):
        np.testing.assert_allclose(model(tokens(), positions_BT=positions + shift), model(tokens()), atol=2e-3)


def test_persistent_rows_with_no_weight_change_nothing():
    model = build(tiny(PERSISTENT))
    far = {}
    for layer in range(2):
        far[f"blocks.{layer}.attention.weights"] = lambda w: (
            w.at[..., LENGTH:].set(0.0) / w[..., :LENGTH].sum(-1, keepdims=True)
        )
    np.testing.assert_allclose(replace(model, **far)(tokens()), logits(tiny()), atol=1e-5)
    assert not np.allclose(model(tokens()), logits(tiny()), atol=1e-2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({A + "weights": "sigmoid"}, "use weights=softmax"),
        ({A + "persistent_rows": 0}, "has no row"),
        ({"model.position.rope_on": "v_only"}, "use rope_on=qk"),
    ],
)
def test_persistent_rows_refuse_what_they_do_not_go_with(overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny({**PERSISTENT, **overrides})
