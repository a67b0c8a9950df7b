"""Batches are trees without their absent parts; positions start again with every segment."""

import jax
import numpy as np

from transformer.data.batch import Batch, positions_in_segments

TOKENS = np.arange(12, dtype=np.int32).reshape(2, 6)
SEGMENTS = np.array([[1, 1, 2, 2, 2, 0], [3, 3, 3, 3, 1, 1]], np.int32)


def test_absent_parts_are_no_leaves():
    assert len(jax.tree.leaves(Batch(TOKENS))) == 1
    batch = Batch(TOKENS, segments_BL=SEGMENTS, labels=np.array([4, 5]))
    assert len(jax.tree.leaves(batch)) == 3
    second = batch.take(slice(1, None))
    assert (second.rows, second.labels.tolist(), second.weights_BL) == (1, [5], None)


def test_positions_start_again_with_every_segment():
    wanted = [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 1]]
    assert positions_in_segments(SEGMENTS).tolist() == wanted


def test_padding_is_no_target_unless_weights_say_otherwise():
    assert Batch(TOKENS).target_weights() is None
    padded = Batch(TOKENS, segments_BL=SEGMENTS)
    assert padded.target_weights().tolist() == (SEGMENTS != 0).astype(float).tolist()
    weights = np.full(TOKENS.shape, 0.5, np.float32)
    assert padded.replace(weights_BL=weights).target_weights() is weights
