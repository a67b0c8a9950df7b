"""How long and how large a run will be, told before it starts."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp


def achievable_flops_per_second(share: float = 0.35) -> float:
    """A share of what one plain float32 product reaches on this machine now: small models stay well below it."""
    x = jnp.ones((512, 512), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    started = time.perf_counter()
    for _ in range(8):
        y = product(x)
    y.block_until_ready()
    return share * 8 * 2 * 512**3 / (time.perf_counter() - started)


def duration(seconds: float) -> str:
    """`12 s`, `7 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
