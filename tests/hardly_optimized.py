"""For tests that compile many small programs and run each a few times: optimizing them costs more than it saves.

A room takes part by importing the fixture into its conftest.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def hardly_optimized() -> Iterator[None]:
    """LLVM leaves out most of its work. What other tests compile, and the commands that tests start, is as usual."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
