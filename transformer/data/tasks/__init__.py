"""Synthetic tasks: rows drawn on the device, each with an oracle, a trivial predictor and its chance level.

`base` says what a task is; the other modules hold the tasks by kind. A new task is one class with one registry entry.
"""

from __future__ import annotations

from transformer.data.tasks import arithmetic, images, language, recall, sequences, sources  # noqa: F401
from transformer.data.tasks.base import TASKS, Task
from transformer.schema import Data


def make_task(section: Data) -> Task:
    """The task that `section.task` names.

    Raises:
      ConfigError: an unknown task, or parameters no row can be made with.
    """
    return TASKS.build(section.task, section)
