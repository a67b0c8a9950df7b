"""A structured mask means what its fields say: compared with loops over every query and key."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from transformer.model.masks import MASKS, Mask

B, T = 2, 7
POSITIONS = {
    "one row for all": np.arange(T)[None],
    "restarting": np.array([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1]]),
}
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]])
PREFIX = np.array([3, 0])


def by_loop(mask: Mask, query_positions: np.ndarray, key_positions: np.ndarray) -> np.ndarray:
    """[B, T, S], one pair at a time."""
    allowed = np.zeros((B, query_positions.shape[1], key_positions.shape[1]), bool)
    for b, i, j in np.ndindex(allowed.shape):
        t = query_positions[b % len(query_positions), i]
        s = key_positions[b % len(key_positions), j]
        sees = True
        if mask.causal and s > t:
            sees = mask.prefix_length_B is not None and s < mask.prefix_length_B[b]
        if mask.window is not None and abs(t - s) >= mask.window:
            sees = False
        if mask.query_segments_BT is not None:
            ids = mask.query_segments_BT[b, i], mask.key_segments_BS[b, j]
            if ids[0] != ids[1] or ids[1] == 0:
                sees = False
        allowed[b, i, j] = sees
    return allowed


def check_dense(mask: Mask, positions: np.ndarray, made_as: Mask | None = None) -> None:
    made = (made_as or mask).dense(jnp.asarray(positions), jnp.asarray(positions))
    assert made is not None and made.ndim == 4 and made.shape[1] == 1 and made.dtype == bool
    np.testing.assert_array_equal(np.broadcast_to(made[:, 0], (B, T, T)), by_loop(mask, positions, positions))


COMBINATIONS = [
    pytest.param(causal, window, prefix, segments, positions, id=f"{causal}-{window}-{prefix}-{segments}-{positions}")
    for causal, window, prefix, segments, positions in itertools.product(
        (True, False), (None, 1, 3), (False, True), (False, True), POSITIONS
    )
    if causal or window or segments
]


def make(causal, window, prefix, segments):
    return Mask(
        causal,
        window,
        jnp.asarray(PREFIX) if prefix else None,
        jnp.asarray(SEGMENTS) if segments else None,
        jnp.asarray(SEGMENTS) if segments else None,
    )


@pytest.mark.parametrize(("causal", "window", "prefix", "segments", "positions"), COMBINATIONS)
def test_dense_against_loops(causal, window, prefix, segments, positions):
    check_dense(make(causal, window, prefix, segments), POSITIONS[positions])


def test_a_query_with_cached_keys():
    mask, query, keys = Mask(), np.array([[4, 5]]), np.arange(8)[None]
    made = mask.dense(jnp.asarray(query), jnp.asarray(keys))
    np.testing.assert_array_equal(np.broadcast_to(made[:, 0], (B, 2, 8)), by_loop(mask, query, keys))


def test_no_rule_is_no_array():
    positions = jnp.arange(T)[None]
    assert Mask(causal=False).dense(positions, positions) is None


def test_the_check_notices_a_wrong_rule():
    right = make(True, 3, False, True)
    for wrong in (
        make(False, 3, False, True),
        make(True, 4, False, True),
        make(True, 3, True, True),
        make(True, 3, False, False),
    ):
        with pytest.raises(AssertionError):
            check_dense(right, POSITIONS["one row for all"], made_as=wrong)


def test_kinds_follow_the_family():
    assert {kind: [MASKS.build(kind, causal) for causal in (True, False)] for kind in MASKS} == {
        "auto": [True, False],
        "causal": [True, True],
        "none": [False, False],
    }
