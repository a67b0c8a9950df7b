"""The training loop: dispatch a call, read the numbers of the call before, write what is due."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.batching import Dataset, Feed
from transformer.schema import Config
from transformer.training.checkpoint import Checkpoints
from transformer.training.evaluation import evaluate
from transformer.training.interrupts import Interrupts
from transformer.training.profiling import Profiler
from transformer.training.run_directory import RunDirectory
from transformer.training.sinks import Sinks
from transformer.training.step import METRICS, Program, TrainState, flat_state

SECONDS_PER_CALL = 0.5  # long enough to hide dispatch, short enough for Ctrl-C and a living progress bar


class Diverged(Exception):
    """The loss stopped being finite: a result, not a crash."""

    def __init__(self, step: int):
        super().__init__(f"loss is not finite at step {step}")
        self.step = step


@dataclasses.dataclass
class Progress:
    """What a checkpoint must remember beside the arrays, so that a resumed run writes the same rows.

    Attributes:
      step: completed steps.
      loss_sum, loss_count: train losses since the last row.
      initial_loss: loss of the first step.
      best_loss: lowest validation loss so far.
      training_seconds: time spent in steps, over all attempts.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    initial_loss: float | None = None
    best_loss: float | None = None
    training_seconds: float = 0.0


@dataclasses.dataclass
class _Call:
    """One dispatched call whose numbers have not been read yet."""

    first_step: int
    num_steps: int
    metrics: dict[str, jax.Array]
    dispatched: float


class Loop:
    """Trains one member from `progress.step` to `train.steps`.

    Raises:
      Diverged: from `run`, once the loss is not finite; all finite steps before it are recorded.
    """

    def __init__(
        self,
        config: Config,
        program: Program,
        dataset: Dataset,
        feed: Feed,
        run: RunDirectory,
        sinks: Sinks,
        checkpoints: Checkpoints,
        interrupts: Interrupts,
        progress: Progress,
    ):
        self.program, self.config = program, config
        self.dataset, self.feed = dataset, feed
        self.run_directory, self.sinks, self.checkpoints = run, sinks, checkpoints
        self.interrupts, self.progress = interrupts, progress
        self.hyper = program.hyperparameters(config)
        self.resident = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), feed.resident)
        train = self.config.train
        self.tokens_per_step = train.batch_size * dataset.layout.positions
        self.profiler = Profiler(train.profile_step, train.profile_steps, run.path / "profile")
        self.last_evaluated = (-1, math.nan)
        self.pending: _Call | None = None
        self.last_finished = 0.0
        self.seconds_per_step: float | None = None

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self, state: TrainState) -> TrainState:
        """Runs to the end, or to the step boundary after an interrupt; always leaves a checkpoint behind."""
        train, progress = self.config.train, self.progress
        step = progress.step
        state = self._compile(state)
        while step < train.steps and self.interrupts.exit_code is None:
            num_steps = self._next_call(step)
            if step in self.profiler.boundaries:
                self._finish()  # the trace holds whole calls, and none of the call before
                self.profiler.at(step)
            state, self.pending = self._dispatch(state, step, num_steps)
            step += num_steps
            if self.seconds_per_step is None:
                self._finish()
            if step == train.steps or _due(step, train.eval_every):
                self._finish()
                self._evaluate(state)
            if step == train.steps or _due(step, train.checkpoint_every):
                self._finish()
                self._checkpoint(state)
        self._finish()
        self.profiler.close()
        if self.interrupts.exit_code is not None and progress.step not in self.checkpoints.steps():
            self._checkpoint(state)
        return state

    def _compile(self, state: TrainState) -> TrainState:
        """A call of zero steps: compiles, changes nothing, and keeps compilation out of every timing."""
        empty = self._padded(self.feed.chunk(0, 1))
        state, _ = self.program.train_steps(state, self.resident, empty, jnp.int32(0), jnp.int32(0), self.hyper)
        return state

    def _padded(self, chunk: np.ndarray) -> np.ndarray:
        """A chunk filled up to the size the program was compiled for; one row stands for every step."""
        full = np.zeros((self.program.max_steps_per_call, *chunk.shape[1:]), chunk.dtype)
        full[: len(chunk) if len(chunk) > 1 else None] = chunk
        return full

    def _next_call(self, step: int) -> int:
        """Steps until something is due, or as many as fill `SECONDS_PER_CALL`; one at first, to show a loss early."""
        train = self.config.train
        limit = self.program.max_steps_per_call
        if not train.steps_per_call:
            limit = max(1, min(limit, int(SECONDS_PER_CALL / self.seconds_per_step))) if self.seconds_per_step else 1
        ends = [train.steps]
        ends += [step - step % every + every for every in (train.eval_every, train.checkpoint_every) if every]
        return min([limit, *(end - step for end in [*ends, *self.profiler.boundaries] if end > step)])

    def _dispatch(self, state: TrainState, step: int, num_steps: int) -> tuple[TrainState, _Call]:
        """Starts a call, then reads the numbers of the one before while this one computes."""
        one_batch = self.config.train.overfit_one_batch
        chunk = self._padded(self.feed.chunk(0, 1) if one_batch else self.feed.chunk(step, num_steps))
        started = time.perf_counter()
        state, metrics = self.program.train_steps(
            state, self.resident, chunk, jnp.int32(step), jnp.int32(num_steps), self.hyper
        )
        self._finish()
        return state, _Call(step, num_steps, metrics, started)

    def _finish(self) -> None:
        """Waits for the pending call, times it and records its steps."""
        if self.pending is None:
            return
        call, self.pending = self.pending, None
        metrics = {name: np.asarray(call.metrics[name], np.float64) for name in METRICS}
        now = time.perf_counter()
        seconds = now - max(call.dispatched, self.last_finished)
        self.last_finished = now
        self.seconds_per_step = seconds / call.num_steps
        self.progress.training_seconds += seconds
        for i in range(call.num_steps):
            self._record(call.first_step + i + 1, {name: float(metrics[name][i]) for name in METRICS})

    # --- what is written -----------------------------------------------------------------------------------------

    def _record(self, step: int, metrics: dict[str, float]) -> None:
        """Counts one finished step, and writes a row if one is due."""
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
            per_byte = self.dataset.tokens_per_byte
            self._write(
                "train",
                {
                    **metrics,
                    "loss": mean,
                    **({} if per_byte is None else {"bits_per_byte": mean / math.log(2) * per_byte}),
                    "tokens_per_second": self.tokens_per_step / (self.seconds_per_step or 1.0),
                },
            )
            progress.loss_sum, progress.loss_count = 0.0, 0
        if not finite:
            self.profiler.close()
            raise Diverged(step)

    def _write(self, split: str, values: dict[str, Any]) -> None:
        step = self.progress.step
        row = {"step": step, "tokens": step * self.tokens_per_step, "split": split, **values}
        self.run_directory.append(row)
        self.sinks.scalars(row)

    def _evaluate(self, state: TrainState) -> None:
        """The fixed validation subset; its loss picks the best checkpoint."""
        result = self._measure(state, "validation", self.config.eval.tokens)
        self._write("validation", result)
        if self.progress.best_loss is None or result["loss"] < self.progress.best_loss:
            self.progress.best_loss = result["loss"]
        self.last_evaluated = (self.progress.step, result["loss"])

    def _checkpoint(self, state: TrainState) -> None:
        step, loss = self.last_evaluated
        metric = loss if step == self.progress.step and math.isfinite(loss) else None
        metadata = {**dataclasses.asdict(self.progress), "fingerprint": self.dataset.fingerprint}
        self.checkpoints.save(self.progress.step, flat_state(state), metadata, metric)
        self.run_directory.event("checkpoint", step=self.progress.step)

    def final_evaluation(self, state: TrainState) -> dict[str, float]:
        """The whole validation split, and the test split where there is one, once: {"validation_loss": ...}."""
        summary: dict[str, float] = {}
        # What an attempt measured that was killed before it could say "done".
        known = {row["split"]: row for row in self.run_directory.rows() if row.get("final")}
        for split in ("validation", "test"):
            if split in self.dataset.splits:
                result = known.get(split)
                if result is None:
                    result = self._measure(state, split)
                    self._write(split, {**result, "final": True})
                for name in ("loss", "accuracy", "exact_match", "bits_per_byte"):
                    if name in result:
                        summary[f"{split}_{name}"] = result[name]
        return summary

    def _measure(self, state: TrainState, split: str, max_tokens: int | None = None) -> dict[str, Any]:
        """An evaluation as a row: no lists."""
        result = evaluate(self.program, state, self.dataset, split, max_tokens)
        return {name: value for name, value in result.items() if not isinstance(value, list)}


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
