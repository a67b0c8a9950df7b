"""Packing documents into one row, and padding one, changes no logit of any document."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny import LENGTH, VOCAB, called, label, one_switch, tiny, tokens, traits
from transformer.model import build

VARIANTS = [{}, *one_switch("model.")]
HALF = LENGTH // 2
FIRST, SECOND = tokens(2, HALF, seed=1), tokens(2, HALF, seed=2)
PACKED = np.concatenate([FIRST, SECOND], axis=1)
SEGMENTS = np.repeat([[1, 2], [1, 2]], HALF, axis=1).astype(np.int32)
POSITIONS = np.tile(np.arange(HALF), 2)[None].astype(np.int32)


def check_packed(overrides: dict, segments: np.ndarray) -> None:
    config = tiny(overrides)
    forward = called(build(config), config)
    if config.model.family == "encoder_decoder":  # each document reads its own source
        source = {"source_BS": PACKED[:, ::-1], "source_segments_BS": SEGMENTS, "source_positions_BS": POSITIONS}
        packed = forward(PACKED, segments_BT=segments, positions_BT=POSITIONS, **source)
        pairs = [(FIRST, PACKED[:, ::-1][:, :HALF]), (SECOND, PACKED[:, ::-1][:, HALF:])]
        alone = np.concatenate([forward(target, source_BS=source) for target, source in pairs], axis=1)
    else:
        packed = forward(PACKED, segments_BT=segments, positions_BT=POSITIONS)
        alone = np.concatenate([forward(FIRST), forward(SECOND)], axis=1)
    np.testing.assert_allclose(packed, alone, atol=2e-5, rtol=2e-5)


def check_padding(overrides: dict, pad_segment: int) -> None:
    """Padding before or after is not seen, whatever tokens stand there."""
    config = tiny(overrides)
    forward = called(build(config), config)
    alone, pad = forward(SECOND), np.full_like(SECOND, VOCAB - 1)
    for real in (slice(0, HALF), slice(HALF, LENGTH)):
        row = np.concatenate([SECOND, pad] if real.start == 0 else [pad, SECOND], axis=1)
        segments, positions = np.full_like(row, pad_segment), np.zeros_like(row[:1])
        segments[:, real], positions[:, real] = 1, np.arange(HALF)
        padded = np.asarray(forward(row, segments_BT=segments, positions_BT=positions))
        assert np.isfinite(padded).all()
        padded = padded[:, real] if padded.ndim == 3 else padded
        np.testing.assert_allclose(padded, alone, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("overrides", [o for o in VARIANTS if "per_row" not in traits(o)], ids=label)
def test_packed_documents_do_not_see_each_other(overrides):
    check_packed(overrides, SEGMENTS)


@pytest.mark.parametrize("overrides", VARIANTS, ids=label)
def test_padding_changes_nothing(overrides):
    check_padding(overrides, 0)


def test_the_checks_notice_missing_segments():
    with pytest.raises(AssertionError):
        check_packed({}, np.ones_like(SEGMENTS))
    with pytest.raises(AssertionError):
        check_padding({}, 1)


def test_default_positions_count_through_the_row():
    model = build(tiny({"model.position.kind": "learned"}))
    explicit = model(PACKED, positions_BT=np.arange(LENGTH, dtype=np.int32)[None])
    np.testing.assert_array_equal(model(PACKED), explicit)
    assert not np.allclose(model(PACKED), model(PACKED, positions_BT=POSITIONS), atol=1e-3)
