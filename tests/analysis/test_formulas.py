"""The formulas against sums written out, and against counts of real programs."""

from __future__ import annotations

import numpy as np
import pytest

from transformer.analysis import formulas, hardware


@pytest.mark.parametrize(("length", "window"), [(7, 0), (7, 3), (7, 1), (7, 9)])
def test_causal_pairs(length, window):
    t, s = np.arange(length)[:, None], np.arange(length)[None]
    seen = (s <= t) & (t - s < (window or length))
    assert formulas.attention_pairs(length, window, causal=True) == seen.sum()
    assert formulas.attention_pairs(length) == length**2


def test_generated_pairs():
    assert formulas.generated_pairs(9, cache=True) == sum(range(1, 10))
    assert formulas.generated_pairs(9, cache=False) == sum(n * n for n in range(1, 10))


@pytest.mark.parametrize("projections", [True, False])
@pytest.mark.parametrize("ratio", [4.0, 6.0])
def test_both_cost_the_same_at_the_crossover(projections, ratio):
    length = int(formulas.crossover_length(64, ratio, projections))
    cost = formulas.block_flops(length, 64, ratio)
    assert cost["attention"] + projections * cost["projections"] == cost["ffn"]


def ring(chunks: np.ndarray) -> tuple[np.ndarray, float]:
    """A ring all-reduce of [devices, size], step by step: (result, elements each device sent)."""
    devices = len(chunks)
    parts = np.array(np.split(chunks.astype(float), devices, axis=1)).swapaxes(0, 1)  # [device, part, ...]
    sent = 0
    for phase in range(2):
        for step in range(devices - 1):
            moving = [(d, (d - step + phase) % devices) for d in range(devices)]
            values = [parts[d, part].copy() for d, part in moving]
            sent += values[0].size
            for (d, part), value in zip(moving, values, strict=True):
                to = (d + 1) % devices
                parts[to, part] = value if phase else parts[to, part] + value
    return parts.reshape(devices, -1), sent


def test_a_ring_sends_what_the_formula_says():
    chunks = np.random.default_rng(0).integers(0, 9, (4, 12))
    summed, sent = ring(chunks)
    np.testing.assert_array_equal(summed, np.tile(chunks.sum(0), (4, 1)))
    assert sent == hardware.all_reduce_bytes(12, 4) == 2 * hardware.reduce_scatter_bytes(12, 4)


def test_sharding_stage_by_stage():
    sizes = [hardware.sharded_state_bytes(100, 200, 400, 10, stage) for stage in range(4)]
    assert sizes == [700, 340, 160, 70]


def test_the_roofline_bends_at_the_ridge():
    ridge = hardware.ridge_point(peak=100.0, bandwidth=4.0)
    assert ridge == 25.0
    assert hardware.attainable(ridge / 2, 100.0, 4.0) == 50.0 and hardware.attainable(2 * ridge, 100.0, 4.0) == 100.0
    assert hardware.seconds(100.0, 8.0, 100.0, 4.0) == 2.0 and hardware.seconds(300.0, 8.0, 100.0, 4.0) == 3.0


def test_one_block_moves_everything_once():
    """With room for the whole problem, keys, values, queries and outputs pass once."""
    length, width = 16, 16
    moved = hardware.flash_attention_traffic(length, width, fast_memory=4 * width * length)
    assert moved == 2 * length * width + length * (3 * width + 4)
