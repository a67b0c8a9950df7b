"""The training loop: dispatch a call, read the numbers of the call before, write what is due."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.batching import Dataset, Feed
from transformer.training.evaluation import Sums, add_up, whole_batches
from transformer.training.interrupts import Interrupts
from transformer.training.member import Member
from transformer.training.optimizer import Hyperparameters
from transformer.training.profiling import Profiler
from transformer.training.step import METRICS, SECONDS_PER_CALL, Program, TrainState

if TYPE_CHECKING:
    from transformer.training.population import Population


class Diverged(Exception):
    """The loss of every member stopped being finite: a result, not a crash."""


class Store(Protocol):
    """Where the state of a run, or of a population, is kept."""

    def steps(self) -> list[int]:
        """The steps that are stored."""

    def save(self, step: int, state: TrainState) -> None:
        """Stores the state after `step` steps, perhaps in the background."""

    def finish(self, state: TrainState) -> None:
        """Returns once everything is on disk; `state` is the last one, of which nothing more will be stored."""


@dataclasses.dataclass
class _Call:
    """One dispatched call whose numbers have not been read yet."""

    first_step: int
    num_steps: int
    metrics: dict[str, Any]
    dispatched: float

    @property
    def done(self) -> bool:
        """Whether the device has computed everything."""
        return all(metric.is_ready() for metric in self.metrics.values())


class Loop:
    """Trains one member, or a population of them side by side, from its step to `train.steps`.

    Args:
      program: that of the arm, for one member, or its `Population`.
      feed: the windows of each step.
      hyper: what the compiled step takes beside them.
      members: in the order of the program's leading axis; those that have ended already write nothing.
      store: where checkpoints go.

    Raises:
      Diverged: from `run`, once no member's loss is finite; all finite steps before it are recorded.
    """

    def __init__(
        self,
        program: Program | Population,
        dataset: Dataset,
        feed: Feed,
        hyper: Hyperparameters,
        members: Sequence[Member],
        store: Store,
        interrupts: Interrupts,
    ):
        self.program, self.config = program, program.config
        self.dataset, self.feed, self.hyper = dataset, feed, hyper
        self.members, self.store, self.interrupts = members, store, interrupts
        self.resident = jax.tree.map(program.replicated, feed.resident)
        self.step = next((m.progress.step for m in members if not m.ended), program.config.train.steps)
        train = self.config.train
        self.profiler = Profiler(train.profile_step, train.profile_steps, members[0].run.path / "profile")
        self.pending: _Call | None = None
        self.last_finished = 0.0
        self.seconds_per_step: float | None = None
        self.begun: Sums | None = None  # the final evaluation, as far as the last subset has measured it

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self, state: TrainState) -> TrainState:
        """Runs to the end, or to the step boundary after an interrupt; always leaves a checkpoint behind."""
        train, step = self.config.train, self.step
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
        if self.interrupts.exit_code is not None and self.step not in self.store.steps():
            self._checkpoint(state)
        return state

    @property
    def alive(self) -> list[Member]:
        """The members that are still trained."""
        return [member for member in self.members if not member.ended]

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
        """Starts a call, then reads the numbers of the one before while this one computes. Or reads them first, if they
        are there: on a GPU, starting a call takes as long as the call, which would count as time of the one before.
        """
        one_batch = self.config.train.overfit_one_batch
        chunk = self._padded(self.feed.chunk(0, 1) if one_batch else self.feed.chunk(step, num_steps))
        started = time.perf_counter()  # before rows are written, while the device waits
        if self.pending is not None and self.pending.done:
            self._finish()
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
        # [members, steps of a call], whether or not the program has an axis for members.
        metrics = {n: np.asarray(call.metrics[n], np.float64).reshape(len(self.members), -1) for n in METRICS}
        now = time.perf_counter()
        seconds = now - max(call.dispatched, self.last_finished)
        self.last_finished = now
        self.seconds_per_step = seconds / call.num_steps
        self.step = call.first_step + call.num_steps
        share = seconds / max(1, len(self.alive))
        for index, member in enumerate(self.members):
            if member.ended:
                continue
            member.progress.training_seconds += share
            for i in range(call.num_steps):
                row = {name: float(metrics[name][index, i]) for name in METRICS}
                member.record(call.first_step + i + 1, row, self.seconds_per_step)
                if member.ended:
                    break
        self._raise_if_none_is_alive()

    def _raise_if_none_is_alive(self) -> None:
        if not self.alive:
            self.profiler.close()
            raise Diverged

    # --- what is written -----------------------------------------------------------------------------------------

    def _evaluate(self, state: TrainState) -> None:
        """The fixed validation subset."""
        tokens, in_the_end = self.config.eval.tokens, self.config.eval.final_tokens
        sums = add_up(self.program, state, self.dataset, "validation", tokens)
        last, begins = self.step == self.config.train.steps, not in_the_end or tokens <= in_the_end
        self.begun = sums if last and begins and whole_batches(self.config, self.dataset, tokens) else None
        results = _rows(sums)
        for member, result in zip(self.members, results, strict=True):
            if not member.ended:
                member.validated(result)
        self._raise_if_none_is_alive()

    def _checkpoint(self, state: TrainState) -> None:
        self.store.save(self.step, state)
        for member in self.alive:
            member.run.event("checkpoint", step=self.step)

    def final_evaluation(self, state: TrainState) -> list[dict[str, float]]:
        """The validation split, and the test split where there is one, once, as much of them as the config says:
        {"validation_loss": ...} of every member; of one that has ended, nothing."""
        summaries: list[dict[str, float]] = [{} for _ in self.members]
        for split in ("validation", "test"):
            if split not in self.dataset.splits:
                continue
            rows = [{} if member.ended else member.final_row(split) for member in self.members]
            if None in rows:
                begun = self.begun if split == "validation" else None
                tokens = self.config.eval.final_tokens or None
                results = _rows(add_up(self.program, state, self.dataset, split, tokens, begun=begun))
                for index, (member, result) in enumerate(zip(self.members, results, strict=True)):
                    if rows[index] is None:
                        member.write(split, {**result, "final": True})
                        rows[index] = result
            for summary, row in zip(summaries, rows, strict=True):
                for name in ("loss", "accuracy", "exact_match", "bits_per_byte"):
                    if row and name in row:
                        summary[f"{split}_{name}"] = row[name]
        return summaries


def _rows(sums: Sums) -> list[dict[str, Any]]:
    """An evaluation of every member as rows: no lists."""
    return [{name: value for name, value in row.items() if not isinstance(value, list)} for row in sums.means()]


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
