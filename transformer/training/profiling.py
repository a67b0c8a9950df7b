"""A profiler trace over a window of steps, to be opened in TensorBoard or Perfetto."""

from __future__ import annotations

from pathlib import Path

import jax


class Profiler:
    """Traces steps `first_step` ... `first_step + num_steps - 1`, counted from 1; `first_step` 0 never traces.

    Attributes:
      boundaries: completed steps at which a call must end, so that the trace holds whole calls.
    """

    def __init__(self, first_step: int, num_steps: int, directory: Path):
        self.directory, self.active = directory, False
        self.boundaries: tuple[int, ...] = (first_step - 1, first_step - 1 + num_steps) if first_step else ()

    def at(self, step: int) -> None:
        """Starts or stops the trace when `step` completed steps are a boundary."""
        if self.active and step >= self.boundaries[1]:
            self.close()
        elif self.boundaries and step == self.boundaries[0]:
            jax.profiler.start_trace(str(self.directory))
            self.active = True

    def close(self) -> None:
        """Writes the trace, if one is running."""
        if self.active:
            jax.profiler.stop_trace()
            self.active = False
