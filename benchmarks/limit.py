"""The limit that speeds are compared with: what the machine reaches in one large product of matrices."""

from __future__ import annotations

import time


def matrix_flops_per_second(dtype: str, precision: str, size: int, products: int = 1) -> float:
    """FLOP/s of products of random matrices [size, size]; the best of five runs of so many. Random, because a GPU
    multiplies zeros or ones faster than numbers that occur."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready([product(x, x) for _ in range(products)])
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 * products / best
