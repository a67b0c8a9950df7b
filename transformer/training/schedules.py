"""Learning-rate schedules with peak 1. The peak itself is an input of the compiled step, so one executable serves
a whole grid of learning rates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from transformer.registry import Registry
from transformer.schema import Config, field

# A shape maps progress after warm-up, in [0, 1], to a factor that starts at 1, or where one step from there leads.
Shape = Callable[[jax.Array], jax.Array]
SCHEDULES = Registry("optimizer.schedule")


NO_END = ("optimizer.final_fraction",)  # what a schedule that leads to no end does not read


@SCHEDULES.register("constant", unread=NO_END)
def constant(config: Config) -> Shape:
    """Stays at the peak."""
    return jnp.ones_like


@SCHEDULES.register("linear")
def linear(config: Config) -> Shape:
    """Straight line to final_fraction."""
    return lambda progress: 1.0 - (1.0 - config.optimizer.final_fraction) * progress


@SCHEDULES.register("cosine", paper="Loshchilov & Hutter 2017")
def cosine(config: Config) -> Shape:
    """Half a cosine down to final_fraction."""
    end = config.optimizer.final_fraction
    return lambda progress: end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(math.pi * progress))


@dataclasses.dataclass(frozen=True)
class WsdParameters:
    decay_fraction: float = field(0.2, "share of the steps after warm-up spent decaying")


@SCHEDULES.register("wsd", parameters=WsdParameters, paper="Hu et al. 2024 (MiniCPM)")
def warmup_stable_decay(config: Config) -> Shape:
    """Stays at the peak, then a straight line to final_fraction over the last decay_fraction."""
    end, share = config.optimizer.final_fraction, config.optimizer.decay_fraction
    return lambda progress: 1.0 - (1.0 - end) * jnp.clip((progress - (1.0 - share)) / max(share, 1e-9), 0.0, 1.0)


@SCHEDULES.register("inverse_sqrt", paper="Vaswani et al. 2017, eq. 3", unread=NO_END)
def inverse_sqrt(config: Config) -> Shape:
    """Falls with the square root of the step, counted from 1: sqrt(steps of warm-up / step)."""
    warmup, decay_steps = warmup_steps(config), _decay_steps(config)
    return lambda progress: jnp.sqrt(max(1, warmup) / (warmup + 1 + progress * decay_steps))


def warmup_steps(config: Config) -> int:
    """Steps of linear warm-up; 4% of the run where the config leaves it open."""
    asked = config.optimizer.warmup_steps
    return round(0.04 * config.train.steps) if asked < 0 else asked


def _decay_steps(config: Config) -> int:
    return max(1, config.train.steps - warmup_steps(config))


def unit_schedule(config: Config) -> Callable[[jax.Array], jax.Array]:
    """step (int32, from 0) -> learning rate / peak. Warm-up ends at the peak on its last step."""
    warmup, shape = warmup_steps(config), SCHEDULES.build(config.optimizer.schedule, config)
    decay_steps = _decay_steps(config)

    def schedule(step: jax.Array) -> jax.Array:
        rising = (step + 1) / max(1, warmup)
        progress = jnp.clip((step - warmup) / decay_steps, 0.0, 1.0)
        return jnp.where(step < warmup, rising, shape(progress)).astype(jnp.float32)

    return schedule
