"""Position schemes: what each one guarantees."""

from __future__ import annotations

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tests.tiny import LENGTH, declared, initial, label, tiny, tokens
from transformer.errors import ConfigError, UserError
from transformer.model import build
from transformer.model.positions import POSITIONS, ROPE_ON, alibi_slopes, sinusoidal_code, t5_buckets_by_distance
from transformer.model.rope_scaling import ROPE_SCALINGS
from transformer.model.taps import capture

K = 8
RNG = np.random.default_rng(0)
Q, KEY = RNG.normal(size=(2, 1, 1, 1, K)).astype(np.float32)


def scheme(kind: str, overrides: dict | None = None):
    return build(tiny({"model.position.kind": kind, **(overrides or {})})).position


def rotate(x: np.ndarray, position: int, base: float = 10_000.0) -> np.ndarray:
    rope = scheme("rope", {"model.position.rope_base": base})
    return np.asarray(rope.rotate(jnp.asarray(x), jnp.full((1, 1), position, jnp.int32)))


# --- Rotary ------------------------------------------------------------------------------------------------------


def check_relative(rotation) -> None:
    """Scores depend on the distance of two tokens, not on where they stand, and on every distance differently."""
    by_distance = {}
    for distance in range(6):
        scores = [float((rotation(Q, start + distance) * rotation(KEY, start)).sum()) for start in (0, 1, 7, 100)]
        np.testing.assert_allclose(scores, scores[0], atol=1e-4)
        by_distance[distance] = round(scores[0], 4)
    assert len(set(by_distance.values())) == len(by_distance)


def test_rope_is_relative():
    check_relative(rotate)


def test_the_check_notices_absolute_or_missing_rotation():
    for wrong in (lambda x, t: rotate(x, t * t), lambda x, t: x, lambda x, t: x + np.sin(t)):
        with pytest.raises(AssertionError):
            check_relative(wrong)


@pytest.mark.parametrize("base", [100.0, 10_000.0])
@pytest.mark.parametrize("position", [0, 1, 5, 1000])
def test_rope_turns_complex_numbers(base, position):
    """Pair (j, j + K/2) is a complex number turned by position * base^(-2j/K) (Su et al. 2021, equation 15)."""
    pairs = Q[..., : K // 2].astype(np.complex128) + 1j * Q[..., K // 2 :]
    turned = pairs * np.exp(1j * position * base ** (-2 * np.arange(K // 2) / K))
    wanted = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotate(Q, position, base), wanted, atol=1e-4)


def test_rope_keeps_lengths():
    np.testing.assert_allclose(np.linalg.norm(rotate(Q, 37)), np.linalg.norm(Q), rtol=1e-5)


def test_a_rope_model_does_not_change_when_all_positions_move():
    model, window = build(tiny()), tokens()
    moved = 50 + jnp.arange(LENGTH, dtype=jnp.int32)[None]
    np.testing.assert_allclose(model(window, positions_BT=moved), model(window), atol=1e-4)
    stretched = 3 * jnp.arange(LENGTH, dtype=jnp.int32)[None]
    assert not np.allclose(model(window, positions_BT=stretched), model(window), atol=1e-2)


def test_rope_leaves_the_last_of_an_odd_number_of_values_alone():
    rope, at = scheme("rope", {"model.position.rope_on": "qkv_with_inverse"}), jnp.full((1, 1), 3, jnp.int32)
    odd = jnp.asarray(RNG.normal(size=(1, 1, 1, 7)), jnp.float32)
    np.testing.assert_array_equal(rope.rotate_value(odd, at)[..., 6], odd[..., 6])
    np.testing.assert_array_equal(rope.rotate_value(odd, at)[..., :6], rope.rotate_value(odd[..., :6], at))


def test_rope_needs_an_even_head_dimension():
    with pytest.raises(ConfigError, match=r"model\.position\.kind=rope: .*head dimension 5 is odd; choose another"):
        tiny({"model.attention.head_dim": 5})
    tiny({"model.attention.head_dim": 5, "model.position.kind": "none"})


# --- Nothing of one scheme in another ----------------------------------------------------------------------------


# The one place each kind acts in.
ACTS = {
    "none": None,
    "sinusoidal": "embed",
    "learned": "embed",
    "rope": "rotate",
    "alibi": "bias",
    "t5": "bias",
}
OWNS_A_TABLE = {"learned", "t5"}


def check_acts_in_one_place(position, place: str | None) -> None:
    at = jnp.arange(1, LENGTH, dtype=jnp.int32)[None]
    x = jnp.asarray(RNG.normal(size=(1, 2, LENGTH - 1, K)), jnp.float32)
    embedded = jnp.asarray(RNG.normal(size=(1, LENGTH - 1, 16)), jnp.float32)
    acts = {
        "embed": position.embed(embedded, at) is not embedded,
        "rotate": position.rotate(x, at) is not x,
        "rotate_value": position.rotate_value(x, at) is not x,
        "unrotate_output": position.unrotate_output(x, at) is not x,
        "bias": position.bias(at, at) is not None,
    }
    assert {name for name, does in acts.items() if does} == ({place} if place else set())


def test_every_kind_acts_in_its_place_and_nowhere_else():
    assert ACTS.keys() == set(POSITIONS)
    for kind, place in ACTS.items():
        check_acts_in_one_place(scheme(kind), place)


def test_the_check_notices_a_second_place():
    class Both(type(scheme("alibi"))):  # the old embedding is still there when ALiBi is switched on
        def embed(self, x_BTD, positions_BT):
            return x_BTD + 0.0

    with pytest.raises(AssertionError):
        check_acts_in_one_place(Both(tiny()), "bias")


@pytest.mark.parametrize("kind", POSITIONS)
def test_parameters_of_a_kind_are_its_own_table(kind):
    names = {name for name in declared(tiny({"model.position.kind": kind})) if "position" in name}
    assert names == ({"position.table"} if kind in OWNS_A_TABLE else set())


def primitives(jaxpr) -> Counter:
    """How often each primitive occurs, inner programs included."""
    found = Counter()
    for equation in jaxpr.eqns:
        found[equation.primitive.name] += 1
        for inner in jaxprs_in_params(equation.params):
            found += primitives(inner)
    return found


def reaches_the_output(variable, jaxpr) -> bool:
    live = {id(x) for x in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(x) in live for x in equation.outvars):
            live |= {id(x) for x in equation.invars}
    return id(variable) in live


def program(kind: str):
    """The forward pass as a function of positions, without a mask, which would use them too."""
    model = build(tiny({"model.position.kind": kind, "model.attention.mask": "none"}))
    return jax.make_jaxpr(lambda at: model(tokens(), positions_BT=at))(jnp.arange(LENGTH, dtype=jnp.int32)[None]).jaxpr


@pytest.mark.parametrize("kind", POSITIONS)
def test_the_program_holds_no_operation_of_another_kind(kind):
    jaxpr, without = program(kind), primitives(program("none"))
    [positions] = jaxpr.invars
    assert reaches_the_output(positions, jaxpr) == (kind != "none")
    added = primitives(jaxpr) - without
    assert bool(added["sin"] and added["cos"]) == (kind in ("sinusoidal", "rope"))
    assert (added["gather"] > 0) == (kind in OWNS_A_TABLE)
    assert not (without - primitives(jaxpr)), "an operation of the model went away"


def bag_of_words(overrides: dict) -> bool:
    """Whether the last token's logits stay the same when the tokens before it change places."""
    model = build(tiny({"model.num_layers": 1, **overrides}))
    window = np.array([[1, 2, 3, 4, 5, 6, 7, 8]], np.int32)
    shuffled = np.array([[4, 1, 7, 2, 6, 3, 5, 8]], np.int32)
    return np.allclose(model(window)[:, -1], model(shuffled)[:, -1], atol=1e-5)


@pytest.mark.parametrize("kind", POSITIONS)
def test_only_none_is_blind_to_order_in_one_layer(kind):
    assert bag_of_words({"model.position.kind": kind}) == (kind == "none")


# --- Learned -----------------------------------------------------------------------------------------------------


def test_learned_adds_the_row_of_each_position():
    config = tiny({"model.position.kind": "learned"})
    weights = initial(config)
    _, seen = capture(build(config), "embedding")(tokens())
    wanted = weights["embedding.table"][tokens()] + weights["position.table"][None]
    np.testing.assert_allclose(seen["embedding"], wanted, atol=1e-6)


def test_learned_table_is_as_long_as_the_window_unless_told():
    assert scheme("learned").max_length == LENGTH
    assert scheme("learned", {"model.position.max_length": 20}).max_length == 20
    assert all(scheme(kind).max_length is None for kind in POSITIONS if kind != "learned")


def test_learned_refuses_more_tokens_than_rows():
    with pytest.raises(UserError, match=r"9 tokens .*only 8 positions; .*larger model\.position\.max_length"):
        build(tiny({"model.position.kind": "learned"}))(tokens(2, LENGTH + 1))


def check_outside_is_nan(config) -> None:
    positions = np.arange(LENGTH, dtype=np.int32)[None].copy()
    positions[:, -1] = LENGTH  # one beyond the last row
    out, seen = capture(build(config), "embedding")(tokens(), positions_BT=positions)
    assert np.isnan(out[:, -1]).all()
    assert np.isfinite(seen["embedding"][:, :-1]).all()


def test_learned_gives_nan_outside_the_table_instead_of_the_last_row():
    check_outside_is_nan(tiny({"model.position.kind": "learned"}))
    with pytest.raises(AssertionError):
        check_outside_is_nan(tiny({"model.position.kind": "learned", "model.position.max_length": LENGTH + 1}))


def test_learned_gives_nan_under_jit_too():
    model = build(tiny({"model.position.kind": "learned"}))
    positions = jnp.full((1, LENGTH), LENGTH, jnp.int32)
    assert np.isnan(jax.jit(lambda p: model(tokens(), positions_BT=p))(positions)).all()


BEYOND = {"clamp": [0, 3, 3, 3], "wrap": [0, 3, 0, 3]}  # rows of a table of four for positions 0, 3, 4, 7


@pytest.mark.parametrize("policy", BEYOND)
def test_learned_beyond_the_table_as_asked(policy):
    overrides = {"model.position.kind": "learned", "model.position.out_of_range": policy}
    config = tiny({**overrides, "model.position.max_length": 4})
    assert build(config).position.max_length is None
    at, zeros = jnp.array([[0, 3, 4, 7]], jnp.int32), jnp.zeros((1, 4, 16))
    np.testing.assert_array_equal(
        build(config).position.embed(zeros, at)[0], initial(config)["position.table"][BEYOND[policy]]
    )
    assert np.isfinite(build(config)(tokens(2, 20))).all()


def test_learned_interpolation_stretches_the_table():
    overrides = {"model.position.kind": "learned", "model.position.out_of_range": "interpolate"}
    config = tiny({**overrides, "model.position.max_length": 4})
    position, table = build(config).position, initial(config)["position.table"]
    inside = position.embed(jnp.zeros((1, 4, 16)), jnp.arange(4, dtype=jnp.int32)[None])
    np.testing.assert_array_equal(inside[0], table)
    outside = position.embed(jnp.zeros((1, 7, 16)), jnp.arange(7, dtype=jnp.int32)[None])[0]
    wanted = np.stack([np.interp(np.arange(7) / 2, np.arange(4), column) for column in table.T], axis=1)
    np.testing.assert_allclose(outside, wanted, atol=1e-6)


@pytest.mark.parametrize("policy", ["clamp", "wrap", "interpolate"])
def test_policies_change_nothing_inside_the_table(policy):
    learned = tiny({"model.position.kind": "learned"})
    asked = tiny({"model.position.kind": "learned", "model.position.out_of_range": policy})
    np.testing.assert_array_equal(build(asked)(tokens()), build(learned)(tokens()))


# --- Sinusoidal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [10_000.0, 100.0])
def test_sinusoidal_by_loop(base):
    made = sinusoidal_code(jnp.array([[0, 1, 50]], jnp.int32), 6, base)
    for t, position in enumerate((0, 1, 50)):
        for i in range(3):
            angle = position / base ** (2 * i / 6)
            np.testing.assert_allclose(made[0, t, 2 * i : 2 * i + 2], [math.sin(angle), math.cos(angle)], atol=1e-5)


def test_sinusoidal_is_added_to_the_scaled_embedding():
    config = tiny({"model.position.kind": "sinusoidal", "model.embedding.scale": 0.0})
    _, seen = capture(build(config), "embedding")(tokens())
    wanted = 4 * initial(config)["embedding.table"][tokens()] + sinusoidal_code(jnp.arange(LENGTH), 16)
    np.testing.assert_allclose(seen["embedding"], wanted, atol=1e-6)


# --- Variants of rotary ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ROPE_ON)
def test_rope_on_against_a_loop(on):
    """Scores see R(t - s) between query and key; values are turned by R(s), by R(s - t) where outputs turn back."""
    rope = scheme("rope", {"model.position.rope_on": on})
    q, k, v = RNG.normal(size=(3, LENGTH, K)).astype(np.float32)
    at = 5 + jnp.arange(LENGTH, dtype=jnp.int32)[None]
    heads = [jnp.asarray(x)[None, None] for x in (q, k, v)]
    scores = rope.rotate(heads[0], at) @ rope.rotate(heads[1], at).swapaxes(-1, -2)
    made = rope.unrotate_output(jax.nn.softmax(scores) @ rope.rotate_value(heads[2], at), at)[0, 0]

    def turned(x, angle_in_positions):
        pairs = (x[: K // 2] + 1j * x[K // 2 :]) * np.exp(
            1j * angle_in_positions * 10_000.0 ** (-2 * np.arange(K // 2) / K)
        )
        return np.concatenate([pairs.real, pairs.imag])

    for t in range(LENGTH):
        scores_S = np.array([q[t] @ (k[s] if on == "v_only" else turned(k[s], s - t)) for s in range(LENGTH)])
        weights_S = np.exp(scores_S - scores_S.max())
        weights_S /= weights_S.sum()
        shift = {"qk": lambda s, t: 0, "qkv_no_inverse": lambda s, t: 5 + s}.get(on, lambda s, t: s - t)
        wanted = sum(w * turned(v[s], shift(s, t)) for s, w in enumerate(weights_S))
        np.testing.assert_allclose(made[t], wanted, atol=1e-4)


@pytest.mark.parametrize("on", ROPE_ON)
def test_all_but_plainly_rotated_values_are_relative(on):
    model, window = build(tiny({"model.position.rope_on": on})), tokens()
    moved = model(window, positions_BT=50 + jnp.arange(LENGTH, dtype=jnp.int32)[None])
    is_relative = np.allclose(moved, model(window), atol=1e-3)
    assert is_relative == ("absolute" not in ROPE_ON[on].traits)


@pytest.mark.parametrize("on", ["qkv_no_inverse", "qkv_with_inverse", "v_only"])
def test_rotated_values_tell_order_in_one_layer(on):
    assert not bag_of_words({"model.position.rope_on": on})


@pytest.mark.parametrize(("fraction", "turning"), [(1.0, 4), (0.75, 3), (0.5, 2), (0.25, 1)])
def test_rope_fraction_keeps_the_fastest_pairs(fraction, turning):
    whole = rotate(Q, 7)
    rope = scheme("rope", {"model.position.rope_fraction": fraction})
    made = rope.rotate(jnp.asarray(Q), jnp.full((1, 1), 7, jnp.int32))
    turns = np.tile(np.arange(K // 2) < turning, 2)
    np.testing.assert_array_equal(made[..., turns], whole[..., turns])
    np.testing.assert_array_equal(made[..., ~turns], Q[..., ~turns])


def test_partial_rotary_with_its_own_spectrum_is_the_same_with_another_base():
    """GPT-NeoX turns the first K p features with frequencies base^(-2j / (K p)): p-RoPE with base^(1 / p)."""
    share, base = 0.5, 100.0
    rope = scheme("rope", {"model.position.rope_fraction": share, "model.position.rope_base": base ** (1 / share)})
    at = jnp.array([[3, 9]], jnp.int32)
    x = jnp.asarray(RNG.normal(size=(1, 1, 2, K)), jnp.float32)
    to_pairs = np.array([0, 1, 4, 5, 2, 3, 6, 7])  # features of the turning pairs first
    narrow = build(tiny({"model.position.rope_base": base})).position.rotate(x[..., to_pairs][..., : K // 2], at)
    made = rope.rotate(x, at)[..., to_pairs]
    np.testing.assert_allclose(made[..., : K // 2], narrow, atol=1e-5)
    np.testing.assert_array_equal(made[..., K // 2 :], x[..., to_pairs][..., K // 2 :])


# --- Scalings of rotary ------------------------------------------------------------------------------------------

HALF, LONG = 16, 64  # pairs in a head; a text eight times as long as the window of the training


def scaling(kind: str, **parameters):
    overrides = {f"model.position.{name}": value for name, value in parameters.items()}
    return ROPE_SCALINGS.build(kind, tiny({"model.position.rope_scaling": kind, **overrides}))


def frequencies(kind: str, length: int = LENGTH, **parameters) -> np.ndarray:
    at = jnp.arange(length, dtype=jnp.int32)[None]
    return np.asarray(scaling(kind, **parameters).frequencies(HALF, at)).reshape(HALF)


PLAIN = 10_000.0 ** (-np.arange(HALF) / HALF)


def by_parts(original: int, factor: float, fast: float, slow: float) -> np.ndarray:
    """Peng et al. 2023, equations 17 to 21, pair by pair."""
    out = []
    for frequency in PLAIN:
        turns = original / (2 * math.pi / frequency)
        ramp = 0.0 if turns < slow else 1.0 if turns > fast else (turns - slow) / (fast - slow)
        out.append((1 - ramp) * frequency / factor + ramp * frequency)
    return np.array(out)


@pytest.mark.parametrize(
    ("kind", "parameters", "wanted"),
    [
        ("none", {}, PLAIN),
        ("linear", {"rope_factor": 8.0}, PLAIN / 8),
        ("ntk", {"rope_factor": 8.0}, (10_000.0 * 8 ** (32 / 30)) ** (-np.arange(HALF) / HALF)),
        ("dynamic_ntk", {}, (10_000.0 * 8 ** (32 / 30)) ** (-np.arange(HALF) / HALF)),
        ("dynamic_ntk", {"rope_original_length": 32}, (10_000.0 * 2 ** (32 / 30)) ** (-np.arange(HALF) / HALF)),
        ("yarn", {"rope_factor": 8.0, "rope_original_length": 512}, by_parts(512, 8.0, 32.0, 1.0)),
        (
            "yarn",
            {"rope_factor": 2.0, "rope_original_length": 99, "rope_beta_fast": 4.0, "rope_beta_slow": 0.5},
            by_parts(99, 2.0, 4.0, 0.5),
        ),
    ],
)
def test_scaled_frequencies(kind, parameters, wanted):
    np.testing.assert_allclose(frequencies(kind, LONG, **parameters), wanted, rtol=1e-5)


def test_ntk_stretches_the_slowest_pair_by_the_factor_and_the_fastest_not_at_all():
    ratio = frequencies("ntk", rope_factor=8.0) / frequencies("none")
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(1 / 8, rel=1e-5) and np.all(np.diff(ratio) < 0)


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_factor_one_is_no_scaling(kind):
    np.testing.assert_allclose(frequencies(kind, rope_factor=1.0), frequencies("none"), rtol=1e-6)
    assert scaling(kind, rope_factor=1.0).attention_factor == 1.0
    np.testing.assert_allclose(
        build(tiny({"model.position.rope_scaling": kind, "model.position.rope_factor": 1.0}))(tokens()),
        build(tiny())(tokens()),
        atol=1e-5,
    )


def test_dynamic_ntk_leaves_short_texts_alone_to_the_bit():
    dynamic = build(tiny({"model.position.rope_scaling": "dynamic_ntk"}))
    np.testing.assert_array_equal(dynamic(tokens()), build(tiny())(tokens()))
    assert not np.allclose(dynamic(tokens(2, 12)), build(tiny())(tokens(2, 12)), atol=1e-3)


def test_dynamic_ntk_goes_by_the_longest_position_of_each_row():
    at = jnp.array([[0, 1, 2], [0, 1, 15]], jnp.int32)
    made = np.asarray(scaling("dynamic_ntk").frequencies(HALF, at)).reshape(2, HALF)
    np.testing.assert_allclose(made[0], PLAIN, rtol=1e-5)
    np.testing.assert_allclose(made[1], (10_000.0 * 2 ** (32 / 30)) ** (-np.arange(HALF) / HALF), rtol=1e-5)


@pytest.mark.parametrize(("asked", "made"), [(0.0, 0.1 * math.log(4) + 1), (1.5, 1.5), (1.0, 1.0)])
def test_yarn_sharpens_scores(asked, made):
    overrides = {"model.position.rope_scaling": "yarn", "model.position.rope_attention_factor": asked}
    q = scheme("rope", overrides).rotate(jnp.asarray(Q), jnp.full((1, 1), 3, jnp.int32))
    np.testing.assert_allclose(np.linalg.norm(q) / np.linalg.norm(Q), made, rtol=1e-5)


def test_yarn_leaves_the_size_of_values_alone():
    overrides = {"model.position.rope_scaling": "yarn", "model.position.rope_on": "qkv_with_inverse"}
    rope, at = scheme("rope", overrides), jnp.full((1, 1), 3, jnp.int32)
    np.testing.assert_allclose(rope.unrotate_output(rope.rotate_value(jnp.asarray(Q), at), at), Q, atol=1e-6)


# --- Added to the scores -----------------------------------------------------------------------------------------

AT = np.array([[0, 1, 2, 9], [4, 5, 0, 1]], np.int32)  # with a gap, and two documents in a row
WIDE = {"model.position.t5_buckets": 8, "model.position.t5_max_distance": 16}


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16])
def test_alibi_slopes_of_powers_of_two(heads):
    np.testing.assert_allclose(alibi_slopes(heads), [2 ** (-8 * i / heads) for i in range(1, heads + 1)], rtol=1e-6)


def test_alibi_slopes_of_other_numbers():
    """Twelve heads: the eight slopes of 8, then the odd ones among the sixteen of 16."""
    eight, sixteen = [2.0**-i for i in range(1, 9)], [2 ** (-i / 2) for i in range(1, 17)]
    np.testing.assert_allclose(alibi_slopes(12), eight + sixteen[0:8:2], rtol=1e-6)
    np.testing.assert_allclose(alibi_slopes(3), [2.0**-4, 2.0**-8, 2.0**-2], rtol=1e-6)
    assert all(len(set(alibi_slopes(heads))) == heads for heads in range(1, 33))


def test_alibi_by_loop():
    made = np.asarray(scheme("alibi").bias(jnp.asarray(AT), jnp.asarray(AT)))
    assert made.shape == (2, 2, 4, 4)
    for b, h, t, s in np.ndindex(made.shape):
        assert made[b, h, t, s] == -abs(int(AT[b, t]) - int(AT[b, s])) * 2.0 ** (-4 * (h + 1))


def t5_bucket(offset: int, causal: bool, buckets: int, longest: int) -> int:
    """Raffel et al. 2020: key minus query -> row of the table."""
    first = 0
    if causal:
        distance = max(-offset, 0)
    else:
        buckets //= 2
        first, distance = (buckets if offset > 0 else 0), abs(offset)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    position = math.log(distance / exact) / math.log(longest / exact)
    return first + min(exact + int(position * (buckets - exact) + 1e-9), buckets - 1)


@pytest.mark.parametrize("causal", [True, False])
def test_t5_by_loop(causal):
    position = scheme("t5", WIDE | ({} if causal else {"model.attention.mask": "none"}))
    table = np.asarray(position.table[...])
    made = np.asarray(position.bias(jnp.asarray(AT), jnp.asarray(AT)))
    assert position.causal == causal and table.shape == (8, 2)
    for b, h, t, s in np.ndindex(made.shape):
        assert made[b, h, t, s] == table[t5_bucket(int(AT[b, s]) - int(AT[b, t]), causal, 8, 16), h]


@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (16, 128), (8, 16), (16, 64)])
def test_t5_buckets(buckets, longest):
    made = t5_buckets_by_distance(buckets, longest)
    assert [t5_bucket(-n, True, buckets, longest) for n in range(longest + 1)] == list(made)
    assert made[0] == 0 and made[-1] == buckets - 1 and set(np.diff(made)) <= {0, 1}


def test_t5_tells_directions_apart_only_without_a_causal_mask():
    at = jnp.arange(LENGTH, dtype=jnp.int32)[None]
    for mask, both in (("none", True), ("causal", False)):
        bias = np.asarray(scheme("t5", {"model.attention.mask": mask}).bias(at, at))[0, 0]
        later = bias[np.triu_indices(LENGTH, 1)]
        assert (len(set(later.tolist())) > 1) == both


@pytest.mark.parametrize("kind", ["alibi", "t5"])
def test_biases_are_relative_and_differ_between_heads(kind):
    at = jnp.arange(LENGTH, dtype=jnp.int32)[None]
    bias = scheme(kind).bias(at, at)
    np.testing.assert_array_equal(bias, scheme(kind).bias(at + 1000, at + 1000))
    assert bias.dtype == jnp.float32 and not np.array_equal(bias[:, 0], bias[:, 1])


@pytest.mark.parametrize(
    "overrides",
    [{"model.position.kind": kind} for kind in POSITIONS] + [{"model.position.rope_on": on} for on in ROPE_ON],
    ids=label,
)
def test_bfloat16_stays_bfloat16(overrides):
    _, seen = capture(build(tiny({"numerics.compute_dtype": "bfloat16", **overrides})))(tokens())
    assert seen["blocks.1.residual"].dtype == seen["blocks.0.attention.value"].dtype == jnp.bfloat16
