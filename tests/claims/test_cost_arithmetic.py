"""Numbers that follow from arithmetic alone, recomputed by the calculators; a wrong figure is refuted by the right one.

A stated number is a number with the digits it was given in: it is right if rounding ours to them gives it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from transformer.analysis import formulas, hardware, memory

GB, TB = 1e9, 1e12


def agrees(ours: float, stated: float, digits: int) -> bool:
    """Whether `ours` rounded to so many significant digits is `stated`."""
    return math.isclose(float(f"{ours:.{digits - 1}e}"), stated, rel_tol=1e-9)


def exponent(function, sizes: Sequence[int]) -> float:
    return float(np.polyfit(np.log(sizes), np.log([function(n) for n in sizes]), 1)[0])


# --- Score matrices ----------------------------------------------------------------------------------------------


class TestMatrixSizes:
    claim = "attention_matrix_sizes"

    @staticmethod
    def check(half: int, single: int) -> None:
        assert memory.attention_matrix_bytes(131_072, itemsize=half) == 32 * 2**30
        assert agrees(memory.attention_matrix_bytes(128_000, itemsize=half) / GB, 33, 2)
        assert agrees(memory.attention_matrix_bytes(100_000, itemsize=half) / GB, 20, 2)
        assert agrees(memory.attention_matrix_bytes(100_000, itemsize=single) / GB, 40, 2)

    def test_holds(self):
        self.check(half=2, single=4)

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            self.check(half=4, single=4)


class TestFlashExampleOneLayer:
    claim = "flash_memory_examples"

    def test_holds(self):
        assert agrees(memory.attention_matrix_bytes(64_000, heads=64) / GB, 524, 3)

    def test_sabotage(self):
        assert not agrees(memory.attention_matrix_bytes(65_536, heads=64) / GB, 524, 3)


class TestFlashExampleAllLayers:
    claim = "flash_memory_examples"
    SIZES = (128_000, 32, 32)  # tokens, heads, layers

    def test_refuted(self):
        """16.8e12 is the number of entries: in half precision they take 33.6 TB, in single precision 67.1 TB."""
        assert not any(agrees(memory.attention_matrix_bytes(*self.SIZES, itemsize=i) / TB, 16.8, 3) for i in (2, 4))
        assert agrees(memory.attention_matrix_bytes(*self.SIZES, itemsize=2) / TB, 33.6, 3)
        assert agrees(memory.attention_matrix_bytes(*self.SIZES, itemsize=4) / TB, 67.1, 3)

    def test_sabotage(self):
        assert agrees(memory.attention_matrix_bytes(*self.SIZES, itemsize=1) / TB, 16.8, 3)  # of one byte each


# --- Pairs -------------------------------------------------------------------------------------------------------


class TestPairCounts:
    claim = "attention_pair_counts"

    @staticmethod
    def check(causal: bool) -> None:
        pairs = [formulas.attention_pairs(n, causal=causal) for n in (1_000, 100_000, 1_000_000, 300_000)]
        assert pairs == [1e6, 1e10, 1e12, 9e10]
        assert pairs[3] * 1e-9 == 90 and 32 * pairs[3] * 1e-9 / 60 == 48

    def test_holds(self):
        self.check(causal=False)

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            self.check(causal=True)


class TestPairTime:
    claim = "attention_pair_counts"

    @staticmethod
    def check(nanoseconds: float) -> None:
        """48 minutes for 32 layers, or nearly so."""
        assert 32 * formulas.attention_pairs(300_000) * nanoseconds * 1e-9 / 60 > 24

    def test_refuted(self):
        """A pair of one head of width 128 takes 512 operations, 0.005 ns at 1e14 a second: 15 seconds for 32 layers,
        and 8 minutes with 32 heads each."""
        nanoseconds = 4 * 128 / 1e14 * 1e9
        assert agrees(nanoseconds, 0.005, 1)
        assert 32 * 9e10 * nanoseconds * 1e-9 == pytest.approx(14.7, abs=0.1)
        assert 32 * 32 * 9e10 * nanoseconds * 1e-9 / 60 == pytest.approx(7.9, abs=0.1)
        with pytest.raises(AssertionError):
            self.check(nanoseconds)

    def test_sabotage(self):
        self.check(1.0)


class TestSparseNumbers:
    claim = "sparse_numbers"

    @staticmethod
    def check(causal: bool) -> None:
        full, local = formulas.attention_pairs(64_000), formulas.attention_pairs(64_000, 256, causal)
        assert (agrees(full, 4e9, 1), agrees(local, 16e6, 2), full / local) == (True, True, 250)
        full, local = formulas.attention_pairs(100_000), formulas.attention_pairs(100_000, 256, causal)
        assert (full, local) == (1e10, 25.6e6) and agrees(full / local, 390, 2)
        assert agrees(4 * full / GB, 40, 2) and agrees(4 * local / 1e6, 100, 2)

    def test_holds(self):
        self.check(causal=False)

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            self.check(causal=True)


class TestGenerationIsQuadratic:
    claim = "generation_total_quadratic"

    @staticmethod
    def check(cache: bool) -> None:
        assert exponent(lambda n: formulas.generated_pairs(n, cache), [1_000, 2_000, 4_000]) == pytest.approx(
            2, abs=0.01
        )

    def test_holds(self):
        self.check(cache=True)
        assert formulas.generated_pairs(1000, cache=True) == pytest.approx(1000**2 / 2, rel=0.002)

    def test_sabotage(self):
        """Without a cache the order is cubic: n^3 / 3."""
        assert formulas.generated_pairs(1000, cache=False) == pytest.approx(1000**3 / 3, rel=0.002)
        with pytest.raises(AssertionError):
            self.check(cache=False)


# --- FlashAttention ----------------------------------------------------------------------------------------------


class TestFlashTraffic:
    claim = "flash_io_complexity"
    WIDTHS, MEMORY = (16, 32, 64, 128), 2**15

    def check(self, power: float) -> None:
        """Traffic in proportion to length^2 * width^power / memory."""
        moved = hardware.flash_attention_traffic
        assert exponent(lambda n: moved(n, 64, self.MEMORY), [2048, 4096, 8192]) == pytest.approx(2, abs=0.1)
        assert exponent(lambda m: moved(4096, 64, m), [2**13, 2**14, 2**15]) == pytest.approx(-1, abs=0.1)
        assert exponent(lambda d: moved(8192, d, self.MEMORY), self.WIDTHS) == pytest.approx(power, abs=0.1)

    def test_refuted(self):
        """Counted load by load, traffic grows with the square of the width: n²d²/M, a factor d more than claimed."""
        with pytest.raises(AssertionError):
            self.check(power=1)
        self.check(power=2)

    def test_sabotage(self, monkeypatch):
        """With blocks that do not shrink as heads widen the claim would be true, and the check can tell."""
        monkeypatch.setattr(hardware, "flash_block_size", lambda fast_memory, head_dim: fast_memory // 256)
        self.check(power=1)


class TestFlashBlockSize:
    claim = "flash_block_size"

    def test_holds(self):
        assert hardware.flash_block_size(128 * 1024 // 2, head_dim=64) == 256

    def test_sabotage(self):
        assert hardware.flash_block_size(128 * 1024 // 2, head_dim=128) == 128
        assert hardware.flash_block_size(128 * 1024 // 4, head_dim=64) == 128


class TestFlashIsComputeBound:
    claim = "flash_compute_bound"
    RIDGE = hardware.ridge_point(peak=312e12, bandwidth=1.555e12)  # A100 40 GB, bfloat16: 201 operations per byte
    MEMORY = 192 * 1024 // 2  # elements of one multiprocessor's shared memory

    def check(self, head_dim: int, fast_memory: int) -> None:
        naive = hardware.naive_attention_traffic(8192, head_dim)
        tiled = hardware.flash_attention_traffic(8192, head_dim, fast_memory)
        assert hardware.attention_intensity(8192, head_dim, naive) < self.RIDGE
        assert hardware.attention_intensity(8192, head_dim, tiled) > self.RIDGE, "still bound by memory"

    def test_holds(self):
        """At heads of width 64. In this count, which knows no second-level cache, wider heads stay bound by memory."""
        self.check(64, self.MEMORY)
        with pytest.raises(AssertionError, match="still bound by memory"):
            self.check(128, self.MEMORY)

    def test_sabotage(self):
        with pytest.raises(AssertionError, match="still bound by memory"):
            self.check(64, self.MEMORY // 4)


# --- Training a large model --------------------------------------------------------------------------------------

LARGE = 175 * 10**9


class TestAdamMemory:
    claim = "adam_memory_total"

    @staticmethod
    def check(policy: str) -> None:
        parts = memory.training_state_bytes(LARGE, policy)
        assert [parts[name] / GB for name in ("weights", "gradients", "optimizer")] == [350, 350, 700]
        assert sum(parts.values()) / TB == 1.4

    def test_holds(self):
        """If everything is kept in half precision."""
        self.check("half")

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            self.check("float32")


class TestAdamMemoryMixed:
    claim = "adam_memory_total"

    def test_refuted(self):
        """In mixed precision, the usual choice, moments and master weights are single: 16 bytes a parameter, 2.8 TB."""
        with pytest.raises(AssertionError):
            TestAdamMemory.check("mixed")
        assert sum(memory.training_state_bytes(LARGE, "mixed").values()) / TB == 2.8

    def test_sabotage(self):
        TestAdamMemory.check("half")


class TestAllReduceVolume:
    claim = "allreduce_volume"

    def test_refuted(self):
        """The gradients take 350 GB in half precision, and in a ring each device sends nearly twice that: 699 GB."""
        gradients = memory.training_state_bytes(LARGE, "half")["gradients"]
        sent = hardware.all_reduce_bytes(gradients, 1000) / GB
        assert agrees(sent, 699, 3) and not agrees(sent, 175, 3)
        assert agrees(hardware.reduce_scatter_bytes(gradients, 1000) / GB, 350, 3)

    def test_sabotage(self):
        assert agrees(hardware.reduce_scatter_bytes(LARGE, 1000) / GB, 175, 3)  # one byte each, and half of the ring


class TestShardedShare:
    claim = "zero3_share"

    @staticmethod
    def check(stage: int) -> None:
        weights = memory.training_state_bytes(LARGE, "mixed")["weights"]
        assert hardware.sharded_state_bytes(weights, 0, 0, 1000, stage) == 350e6

    def test_holds(self):
        self.check(stage=3)
        parts = memory.training_state_bytes(LARGE, "mixed")
        assert hardware.sharded_state_bytes(*parts.values(), devices=1000, stage=3) / GB == pytest.approx(2.8)

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            self.check(stage=2)


class TestContextPrice:
    claim = "context_cost_arithmetic"

    @staticmethod
    def check(tokens_each: int) -> None:
        assert formulas.reading_price(10_000_000, tokens_each, 3.0) == 30_000
        assert 10_000_000 * tokens_each / 1_000_000 == 10_000

    def test_holds(self):
        self.check(1_000)

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            self.check(750)
