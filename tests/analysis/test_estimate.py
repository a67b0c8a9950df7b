"""The time told before a run starts."""

from __future__ import annotations

import jax
import pytest

from tests.tiny import BATCH, LENGTH, tiny
from transformer.analysis import estimate
from transformer.training import run
from transformer.training.run import load_dataset, make_program


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


@pytest.mark.parametrize(
    "family",
    [{}, {"model.family": "encoder_decoder", "data.task_layout": "pair"}],
    ids=["decoder", "encoder_decoder"],
)
def test_a_task_is_costed_by_its_own_rows(monkeypatch, family):
    """Whatever data.sequence_length says: the task makes its rows."""
    monkeypatch.setattr(estimate, "achievable_flops_per_second", lambda *numerics: 1e9)
    told = []
    for length in (LENGTH, 64 * LENGTH):
        task = {"data.source": "task", "data.task": "copy", "data.task_length": 3, "data.sequence_length": length}
        config = tiny({"model.vocab_size": 0, **task, **family})
        dataset = load_dataset(config)
        program = make_program(config, dataset)
        drawn = jax.eval_shape(dataset.read(BATCH), None, jax.ShapeDtypeStruct((2,), "uint32"))
        assert program.layout == dataset.layout
        assert program.abstract_batch.tokens_BL.shape == drawn.tokens_BL.shape
        told.append(run._costs(program, config, program.init(0)))
    assert told[0] == told[1]
    tokens = config.train.steps * BATCH * dataset.layout.positions
    assert f"{tokens / 1e6:.2f}M tokens" in told[0]
