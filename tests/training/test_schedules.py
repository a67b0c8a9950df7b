"""Learning-rate schedules: their shape, and that the peak and the end are where the config says."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny import tiny
from transformer.training.schedules import SCHEDULES, unit_schedule, warmup_steps

STEPS, WARMUP, FINAL = 50, 10, 0.1


def rates(kind: str, **overrides) -> np.ndarray:
    """The factor at every step of a run."""
    config = tiny(
        {
            "train.steps": STEPS,
            "optimizer.schedule": kind,
            "optimizer.warmup_steps": WARMUP,
            "optimizer.final_fraction": FINAL,
            **{f"optimizer.{name}": value for name, value in overrides.items()},
        }
    )
    return np.asarray(unit_schedule(config)(jnp.arange(config.train.steps)))


def check_shape(x: np.ndarray, final: float) -> None:
    """Rises in equal steps to the peak, reached on the last step of warm-up; never rises again; ends at `final`."""
    np.testing.assert_allclose(x[:WARMUP], np.arange(1, WARMUP + 1) / WARMUP, rtol=1e-6)
    assert x.max() == x[WARMUP - 1] == 1.0 and x[WARMUP] >= 0.9
    assert np.all(np.diff(x[WARMUP - 1 :]) <= 1e-7)
    # The end is reached with the last step or with the one that would follow it.
    last_decrease = x[-2] - x[-1]
    assert final - 1e-6 <= x[-1] <= final + 1.5 * last_decrease + 1e-6


@pytest.mark.parametrize("kind", SCHEDULES)
def test_shape(kind):
    final = {"constant": 1.0, "inverse_sqrt": math.sqrt(WARMUP / STEPS)}  # these take no final fraction
    check_shape(rates(kind), final.get(kind, FINAL))


def test_the_check_notices_other_shapes():
    for wrong in (
        np.roll(rates("cosine"), 1),
        rates("cosine") * 0.99,
        rates("cosine", final_fraction=0.3),
        rates("cosine", warmup_steps=9),
        rates("constant"),
    ):
        with pytest.raises(AssertionError):
            check_shape(wrong, FINAL)


def test_kinds_against_optax():
    decay = STEPS - WARMUP
    theirs = {
        "constant": optax.constant_schedule(1.0),
        "linear": optax.linear_schedule(1.0, FINAL, decay),
        "cosine": optax.cosine_decay_schedule(1.0, decay, FINAL),
        "wsd": optax.linear_schedule(1.0, FINAL, round(0.2 * decay), transition_begin=round(0.8 * decay)),
        "inverse_sqrt": lambda t: math.sqrt(WARMUP / (WARMUP + t)),
    }
    assert set(theirs) == set(SCHEDULES)
    slope = 1.2 * math.pi / 2 / decay / 0.2  # one step to either side is a matter of convention
    for kind, schedule in theirs.items():
        wanted = np.array([schedule(t) for t in range(decay)])
        np.testing.assert_allclose(rates(kind)[WARMUP:], wanted, atol=slope, err_msg=kind)


def test_wsd_is_stable_then_straight():
    for share in (0.2, 0.5):
        x = rates("wsd", decay_fraction=share)[WARMUP:]
        decay = round(share * len(x))
        np.testing.assert_allclose(x[: len(x) - decay], 1.0)
        np.testing.assert_allclose(np.diff(x[-decay:]), -(1 - FINAL) / decay, rtol=0.05)
    assert np.all(rates("wsd", decay_fraction=0.0)[WARMUP:-1] == 1.0)


def test_inverse_sqrt_is_equation_3_of_the_paper():
    """d_model^-0.5 * min(step^-0.5, step * warmup^-1.5), steps counted from 1, divided by its peak."""
    for warmup in (WARMUP, 1, STEPS):
        step = np.arange(1, STEPS + 1)
        published = 512**-0.5 * np.minimum(step**-0.5, step * warmup**-1.5)
        found = rates("inverse_sqrt", warmup_steps=warmup)
        np.testing.assert_allclose(found, published / published.max(), rtol=1e-5)
    np.testing.assert_allclose(rates("inverse_sqrt", warmup_steps=0), np.arange(1, STEPS + 1) ** -0.5, rtol=1e-5)


def test_cosine_is_halfway_in_the_middle():
    middle = rates("cosine")[WARMUP + (STEPS - WARMUP) // 2]
    assert middle == pytest.approx((1 + FINAL) / 2, abs=0.03)


def test_warmup_steps():
    assert warmup_steps(tiny({"train.steps": 100, "optimizer.warmup_steps": -1})) == 4
    assert warmup_steps(tiny({"train.steps": 100, "optimizer.warmup_steps": 7})) == 7
    assert rates("cosine", warmup_steps=0)[0] == pytest.approx(1.0, abs=0.01)
    everything = rates("cosine", warmup_steps=STEPS)
    np.testing.assert_allclose(everything, np.arange(1, STEPS + 1) / STEPS, rtol=1e-6)


def test_runs_of_one_step():
    for kind in SCHEDULES:
        config = tiny({"train.steps": 1, "optimizer.schedule": kind, "optimizer.warmup_steps": 0})
        assert np.isfinite(unit_schedule(config)(jnp.int32(0)))
