"""How long and how large a run will be, told before it starts."""

from __future__ import annotations

import math
import time

import jax
import jax.numpy as jnp

from transformer.platform import compiled

PRODUCTS, ROUNDS, SECONDS = 4, 5, 0.1  # a round; how many at least; how long it goes on looking for a faster one


def achievable_flops_per_second(dtype: str = "float32", precision: str = "highest", share: float = 0.35) -> float:
    """A share of what one plain product reaches on this machine now: small models stay well below it.

    The fastest of several rounds: a core that wakes up or is taken away for a moment slows a round tenfold and says
    nothing about the minutes to come.

    Args:
      dtype, precision: `numerics.compute_dtype` and `numerics.matmul_precision`.
    """
    size = 512 if jax.default_backend() == "cpu" else 4096  # an accelerator would spend a small one on starting it
    x = jnp.ones((size, size), dtype)
    product = compiled(jnp.matmul, precision)
    product(x, x).block_until_ready()
    began, fastest, rounds = time.perf_counter(), math.inf, 0
    while rounds < ROUNDS or (rounds < 10 * ROUNDS and time.perf_counter() - began < SECONDS):
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            y = product(x, x)
        y.block_until_ready()
        fastest, rounds = min(fastest, time.perf_counter() - started), rounds + 1
    return share * PRODUCTS * 2 * size**3 / fastest


def duration(seconds: float) -> str:
    """`12 s`, `7 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
