"""The time told before a run starts."""

from __future__ import annotations

import pytest

from transformer.analysis import estimate


class Clock:
    """Time that passes by a list of steps, one a look, and then by the last."""

    def __init__(self, *steps: float):
        self.now, self.steps = 0.0, list(steps)

    def perf_counter(self) -> float:
        self.now += self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        return self.now


def test_slow_rounds_say_nothing(monkeypatch):
    """A core that is taken away for a second in all rounds but one does not make a run a hundred times longer."""
    flops = 2 * 512**3 * estimate.PRODUCTS
    for slow in (1.0, 0.01):
        monkeypatch.setattr(estimate, "time", Clock(0.0, *[slow] * 8, 0.01))
        assert estimate.achievable_flops_per_second(share=1.0) == pytest.approx(flops / 0.01)


def test_a_machine_that_is_always_slow_is_called_slow(monkeypatch):
    monkeypatch.setattr(estimate, "time", Clock(1.0))
    assert estimate.achievable_flops_per_second(share=1.0) == pytest.approx(2 * 512**3 * estimate.PRODUCTS)


def test_durations_are_read_at_a_glance():
    assert [estimate.duration(s) for s in (0.2, 89, 300, 9000)] == ["1 s", "89 s", "5 min", "2.5 h"]
