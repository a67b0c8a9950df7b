"""Number formats and how members of an arm are executed: part of a run's identity, never left to a platform."""

from __future__ import annotations

from transformer.registry import Registry

DTYPES = Registry("numerics dtype")
DTYPES.names("float32", "bfloat16")

PRECISIONS = Registry("numerics.matmul_precision")
PRECISIONS.names("highest", "high", "default")

EXECUTIONS = Registry("execution")
"""Entries with the trait `together` train all members of an arm that are due as one program."""
EXECUTIONS.names("sequential")
EXECUTIONS.register("population", traits=("together",))(lambda: "population")
