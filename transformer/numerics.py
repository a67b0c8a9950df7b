"""Number formats and how members of an arm are executed: part of a run's identity, never left to a platform."""

from __future__ import annotations

from transformer.registry import Registry

DTYPES = Registry("numerics dtype")
for _name in ("float32", "bfloat16"):
    DTYPES.register(_name)(_name)

PRECISIONS = Registry("numerics.matmul_precision")
for _name in ("highest", "high", "default"):
    PRECISIONS.register(_name)(_name)

EXECUTIONS = Registry("execution")
EXECUTIONS.register("sequential")("sequential")
