"""Number formats and how members of an arm are executed: part of a run's identity, never left to a platform."""

from __future__ import annotations

from transformer.registry import Registry

DTYPES = Registry("numerics dtype")
DTYPES.names("float32", "bfloat16")

PRECISIONS = Registry("numerics.matmul_precision")
PRECISIONS.names("highest", "high", "default")

EXECUTIONS = Registry("execution")
EXECUTIONS.names("sequential")
