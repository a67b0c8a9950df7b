"""Signals end a run at the next step boundary, with a checkpoint, and say how to resume."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

STOPPED_BY_USER = 130
PREEMPTED = 75
_PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Interrupts:
    """While entered, turns SIGINT and preemption signals into a request that the loop polls.

    A second SIGINT ends the process at once; what was checkpointed before stays.

    Attributes:
      exit_code: 130 after SIGINT, 75 after a preemption signal, None while nothing was asked.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *_PREEMPTIONS):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.exit_code == STOPPED_BY_USER:
                os.write(2, b"\nstopped at once; the newest checkpoint is kept\n")
                os._exit(STOPPED_BY_USER)
            self.exit_code = STOPPED_BY_USER
            os.write(2, b"\nstopping after this call and saving; press Ctrl-C again to stop at once\n")
        else:
            self.exit_code = PREEMPTED
