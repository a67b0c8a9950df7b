"""Claims about growth and about machines that follow from arithmetic alone, recomputed by the calculators.

Claims that are nothing but stated numbers are recomputed in `ablations/formulas.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from transformer.analysis import formulas, hardware


def exponent(function, sizes: Sequence[int]) -> float:
    return float(np.polyfit(np.log(sizes), np.log([function(n) for n in sizes]), 1)[0])


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
        assert round(nanoseconds, 3) == 0.005
        assert 32 * 9e10 * nanoseconds * 1e-9 == pytest.approx(14.7, abs=0.1)
        assert 32 * 32 * 9e10 * nanoseconds * 1e-9 / 60 == pytest.approx(7.9, abs=0.1)
        with pytest.raises(AssertionError):
            self.check(nanoseconds)

    def test_sabotage(self):
        self.check(1.0)


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
