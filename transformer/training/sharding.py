"""Where arrays lie when a run uses several devices: one mesh, Auto axes, the same program on any number of them.

Axes: `data` splits the batch and copies parameters; `fsdp` splits the batch and also parameters, moments and gradients
(Rajbhandari et al. 2020, stage 3). The compiler derives all communication from where the state lies, where the batch
lies and constraints on the residual stream at the boundaries of blocks. `tensor` and `sequence` have their place in
the mesh and size 1: nothing is split over them yet.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transformer.errors import ConfigError
from transformer.model.taps import observing
from transformer.schema import Config

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH = ("data", "fsdp")
ONE_DEVICE = {"devices.data": 1, "devices.fsdp": 1}


class Placement:
    """How one run lies on its devices.

    Args:
      config: a resolved config.

    Raises:
      ConfigError: the mesh needs more devices than there are.
    """

    def __init__(self, config: Config):
        devices = config.devices
        shape = (devices.data, devices.fsdp, 1, 1)
        wanted, found = math.prod(shape), jax.device_count()
        if wanted > found:
            raise ConfigError(
                f"devices.data={devices.data} x devices.fsdp={devices.fsdp} needs {wanted} devices, but there "
                f"{'is' if found == 1 else 'are'} {found}; make them smaller."
            )
        self.mesh = Mesh(np.asarray(jax.devices()[:wanted]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 4)
        self.fsdp = devices.fsdp

    def named(self, *spec: Any) -> NamedSharding:
        """A sharding over this mesh."""
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def of_leaf(self, leaf: Any) -> NamedSharding:
        """A parameter or moment: its largest axis that fsdp divides is split; where there is none, it is copied."""
        fitting = [axis for axis, size in enumerate(leaf.shape) if size % self.fsdp == 0 and size > 1]
        if self.fsdp == 1 or not fitting:
            return self.named()
        split = max(fitting, key=lambda axis: leaf.shape[axis])
        return self.named(*["fsdp" if axis == split else None for axis in range(len(leaf.shape))])

    def place(self, state: Any) -> Any:
        """The state, moved to where it belongs."""
        return jax.device_put(state, jax.tree.map(self.of_leaf, state))

    def constrain_state(self, state: Any) -> Any:
        """Keeps the state where it belongs; for use inside a step."""
        return jax.lax.with_sharding_constraint(state, jax.tree.map(self.of_leaf, state))

    def constrain_batch(self, batch: Any) -> Any:
        """Splits every array of a batch along its rows; for use inside a step."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.named(BATCH)), batch)

    def abstract(self, state: Any) -> Any:
        """Shapes of a state that also say where its arrays lie."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.of_leaf(x)), state)

    @contextlib.contextmanager
    def constraining_blocks(self) -> Iterator[None]:
        """While a forward pass is traced inside, the residual stream is split along the batch after every block."""

        def observe(name: str, x: jax.Array) -> jax.Array:
            boundary = name.endswith(("residual", "embedding"))
            return jax.lax.with_sharding_constraint(x, self.named(BATCH)) if boundary else x

        with observing(observe):
            yield


def make_placement(config: Config) -> Placement | None:
    """The placement of a run; None on one device, whose program knows nothing of meshes."""
    return None if config.devices.data * config.devices.fsdp == 1 else Placement(config)
