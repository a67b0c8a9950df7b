"""Number formats and how members of an arm are executed: part of a run's identity, never left to a platform."""

from __future__ import annotations

from typing import Any

from transformer.registry import Registry

DTYPES = Registry("numerics dtype")
DTYPES.names("float32", "bfloat16")

PRECISIONS = Registry("numerics.matmul_precision")
PRECISIONS.names("highest", "high", "default")

EXECUTIONS = Registry("execution")
"""Entries with the trait `together` train all members of an arm that are due as one program."""
EXECUTIONS.names("sequential")


def _whole_devices(config: Any) -> str | None:
    if config.devices.data * config.devices.fsdp == 1:
        return None
    return "spreads members over the devices by itself; leave devices.data and devices.fsdp at 1."


def trains_together(config: Any) -> bool:
    """Whether one process trains all members of the config's arm as one program."""
    return "together" in EXECUTIONS[config.execution].traits


EXECUTIONS.register("population", traits=("together",), check=_whole_devices)(lambda: "population")
