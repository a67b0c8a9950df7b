"""One member of an arm as its run directory and its views see it, whether it is trained alone or beside others."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from transformer.data.batching import Dataset
from transformer.schema import Config
from transformer.training.interrupts import PREEMPTED, STOPPED_BY_USER
from transformer.training.objectives import objective_class
from transformer.training.run_directory import RunDirectory
from transformer.training.sinks import Sinks

DONE, DIVERGED = 0, 3
EXIT_CODES = {"done": DONE, "diverged": DIVERGED, "preempted": PREEMPTED, "interrupted": STOPPED_BY_USER}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      state: done, diverged, preempted or interrupted.
      summary: what `status.json` holds beside the state: final losses, steps, seconds.
      path: the run directory.
    """

    state: str
    summary: dict[str, Any]
    path: Path

    @property
    def exit_code(self) -> int:
        """0 done, 3 diverged, 75 preempted, 130 stopped by the user."""
        return EXIT_CODES[self.state]


@dataclasses.dataclass
class Progress:
    """What a checkpoint must remember beside the arrays, so that a resumed run writes the same rows.

    Attributes:
      step: completed steps.
      loss_sum, loss_count: train losses since the last row.
      initial_loss: loss of the first step.
      best_loss: lowest validation loss so far.
      training_seconds: time spent in steps, over all attempts; members trained together share it equally.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    initial_loss: float | None = None
    best_loss: float | None = None
    training_seconds: float = 0.0


class Member:
    """Writes the rows, events and status of one run.

    Args:
      config: its resolved config.
      run: its open run directory.
      sinks: the views on it, started.
      progress: where it goes on from.
      dataset: what it is trained on.

    Attributes:
      ended: how it ended; empty while it is trained.
      evaluated: (step, validation loss) of its newest evaluation.
    """

    def __init__(self, config: Config, run: RunDirectory, sinks: Sinks, progress: Progress, dataset: Dataset):
        self.config, self.run, self.sinks, self.progress, self.dataset = config, run, sinks, progress, dataset
        self.tokens_per_step = config.train.batch_size * dataset.layout.positions
        objective = objective_class(config)
        means_text = objective.predicts_tokens and objective.only_text  # else a row of training has no bits per byte
        self.tokens_per_byte = dataset.tokens_per_byte if means_text else None
        self.ended = ""
        self.evaluated: tuple[int, float] = (-1, math.nan)

    @property
    def outcome(self) -> Outcome:
        """How it ended, with what status.json says."""
        return Outcome(self.ended, self.summary, self.run.path)

    # --- training ------------------------------------------------------------------------------------------------

    def record(self, step: int, metrics: dict[str, float], seconds_per_step: float) -> None:
        """Counts one finished step and writes a row if one is due; a loss that is not finite ends the member."""
        progress, train = self.progress, self.config.train
        loss = metrics["loss"]
        if progress.initial_loss is None:
            progress.initial_loss = loss
        progress.step = step
        progress.loss_sum += loss
        progress.loss_count += 1
        finite = math.isfinite(loss)
        if step == 1 or step == train.steps or step % train.log_every == 0 or not finite:
            mean = progress.loss_sum / progress.loss_count
            per_byte = self.tokens_per_byte
            self.write(
                "train",
                {
                    **metrics,
                    "loss": mean,
                    **({} if per_byte is None else {"bits_per_byte": mean / math.log(2) * per_byte}),
                    "tokens_per_second": self.tokens_per_step / (seconds_per_step or 1.0),
                },
            )
            progress.loss_sum, progress.loss_count = 0.0, 0
        if not finite:
            self.end("diverged", diverged_at=step)

    def write(self, split: str, values: dict[str, Any]) -> None:
        """One row of metrics.jsonl, shown to every view."""
        step = self.progress.step
        row = {"step": step, "tokens": step * self.tokens_per_step, "split": split, **values}
        self.run.append(row)
        self.sinks.scalars(row)

    def validated(self, result: dict[str, Any]) -> None:
        """Writes a validation result; its loss picks the best checkpoint, or ends the member if it is not finite."""
        progress, loss = self.progress, result["loss"]
        self.write("validation", result)
        self.evaluated = (progress.step, loss)
        if not math.isfinite(loss):  # the last update can do it, which no later step notices
            self.end("diverged", diverged_at=progress.step)
        elif progress.best_loss is None or loss < progress.best_loss:
            progress.best_loss = loss

    @property
    def metric(self) -> float | None:
        """The validation loss at the present step; None if it was not evaluated here, or is not finite."""
        step, loss = self.evaluated
        return loss if step == self.progress.step and math.isfinite(loss) else None

    def final_row(self, split: str) -> dict[str, Any] | None:
        """The final evaluation of a split, as an attempt measured it that was killed before it could say "done"."""
        return next((row for row in self.run.rows() if row.get("final") and row["split"] == split), None)

    # --- the end -------------------------------------------------------------------------------------------------

    def end(self, state: str, **numbers: Any) -> None:
        """Records how the run ended, with the numbers that sum it up."""
        self.ended = state
        self.summary = {
            "total_steps": self.config.train.steps,
            "fingerprint": self.dataset.fingerprint,
            **numbers,
            "step": self.progress.step,
            "initial_loss": self.progress.initial_loss,
            "best_validation_loss": self.progress.best_loss,
            "training_seconds": round(self.progress.training_seconds, 3),
        }
        self.run.event(state, step=self.progress.step)
        self.run.set_status(state, **self.summary)
        if state == "diverged":
            self.sinks.event(state, {"step": self.progress.step})
        self.sinks.close(state, self.summary)

    def fail(self, error: BaseException) -> None:
        """Records that an error ended the process's attempt; the run can go on from its checkpoint."""
        step = self.progress.step
        self.run.event("failed", step=step, error=type(error).__name__)
        self.run.set_status("failed", step=step)
        self.sinks.event("failed", {"step": step})
        self.sinks.close("failed", {})
