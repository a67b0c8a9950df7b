"""What the backward pass recomputes instead of keeping: memory for time, with the same gradients (Chen et al. 2016).

The choice is made around a training step, `with recomputing(kind):` while it is traced; blocks ask for it here.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx

from transformer.registry import Registry

REMATS = Registry("train.remat")
"""Builders take f(block, x_BTD, context) and return the same function, differentiated otherwise."""

_chosen: contextvars.ContextVar[str] = contextvars.ContextVar("remat", default="none")

Run = Callable[[Any, jax.Array, Any], jax.Array]


@REMATS.register("none")
def keep_all(run: Run) -> Run:
    """Whatever the backward pass needs is kept."""
    return run


@REMATS.register("block", paper="Chen et al. 2016")
def keep_inputs(run: Run) -> Run:
    """Only what enters a block is kept; the block is computed a second time."""
    return _remat(run, jax.checkpoint_policies.nothing_saveable)


@REMATS.register("dots", paper="Korthikanti et al. 2022 (selective recomputation)")
def keep_projections(run: Run) -> Run:
    """Products with weights are kept; scores, activations and norms are computed a second time."""
    return _remat(run, jax.checkpoint_policies.dots_with_no_batch_dims_saveable)


def _remat(run: Run, policy: Any) -> Run:
    def recomputed(block: Any, x_BTD: jax.Array, context: Any) -> jax.Array:
        # The module is an argument, so that running statistics it updates leave the recomputed part properly.
        return nnx.remat(lambda block, x_BTD: run(block, x_BTD, context), policy=policy)(block, x_BTD)

    return recomputed


@contextlib.contextmanager
def recomputing(kind: str) -> Iterator[None]:
    """Blocks run inside are differentiated as `kind` says."""
    token = _chosen.set(kind)
    try:
        yield
    finally:
        _chosen.reset(token)


def run_block(run: Run, block: Any, x_BTD: jax.Array, context: Any) -> jax.Array:
    """`run(block, x_BTD, context)` under the present choice."""
    return REMATS.build(_chosen.get(), run)(block, x_BTD, context)
