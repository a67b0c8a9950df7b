"""Position schemes: what each one guarantees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import LENGTH, initial, tiny, tokens
from transformer.errors import ConfigError, UserError
from transformer.model import build
from transformer.model.positions import POSITIONS
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


def test_rope_needs_an_even_head_dimension():
    with pytest.raises(ConfigError, match=r"model\.position\.kind=rope: .*head dimension 5 is odd; choose another"):
        tiny({"model.attention.head_dim": 5})
    tiny({"model.attention.head_dim": 5, "model.position.kind": "none"})


# --- Nothing of one scheme in another ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "rope"])
def test_embeddings_carry_no_position(kind):
    """What enters the first block is the row of the table, at every position."""
    config = tiny({"model.position.kind": kind})
    _, seen = capture(build(config), "embedding")(tokens())
    np.testing.assert_array_equal(seen["embedding"], initial(config)["embedding.table"][tokens()])


@pytest.mark.parametrize("kind", ["none", "learned"])
def test_queries_and_scores_carry_no_position(kind):
    x = jnp.asarray(RNG.normal(size=(1, 2, LENGTH, K)), jnp.float32)
    positions = jnp.arange(LENGTH, dtype=jnp.int32)[None]
    assert scheme(kind).rotate(x, positions) is x
    assert scheme(kind).bias(positions, positions) is None


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
    assert scheme("rope").max_length is None and scheme("none").max_length is None


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
    position = scheme("learned")
    x, positions = jnp.zeros((1, LENGTH, 16)), jnp.full((1, LENGTH), LENGTH, jnp.int32)
    assert np.isnan(jax.jit(lambda x, p: position.embed(x, p))(x, positions)).all()
