"""One run from config to result: the story `train.py`, the lab, the benchmarks and the notebook all call."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from transformer.analysis import accounting, estimate, memory
from transformer.config import config_hash, to_dict
from transformer.data import dataset as datasets
from transformer.data.batching import Dataset
from transformer.data.vocabularies import Vocabulary
from transformer.errors import CheckpointError, ConfigError, DataError, UserError
from transformer.model import data_seed, init_seed
from transformer.schema import Config
from transformer.training.checkpoint import Checkpoints, Restored
from transformer.training.console_sink import ConsoleSink
from transformer.training.interrupts import PREEMPTED, STOPPED_BY_USER, Interrupts
from transformer.training.jsonfiles import read_json, write_json
from transformer.training.loop import Diverged, Loop, Progress
from transformer.training.objectives import layout_of
from transformer.training.run_directory import RunDirectory, read_config
from transformer.training.sinks import RunInfo, Sink, Sinks
from transformer.training.step import Program, TrainState, flat_state, unflat_state

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


def train(
    config: Config,
    workdir: Path,
    *,
    name: str = "run",
    arm: str = "",
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
    program: Program | None = None,
    dataset: Dataset | None = None,
) -> Outcome:
    """Trains one member in `workdir`, resuming what is there, and evaluates it.

    Args:
      config: a resolved config.
      workdir: the run directory, made if missing.
      name, arm: for views: the config's name and the arm within it.
      quiet: no console output.
      say: where one-line notes go; standard error by default.
      program, dataset: those of an earlier member of the same arm, to compile and load once.

    Raises:
      UserError: the directory belongs to another config or cannot be used, the corpus is missing or changed, no
        checkpoint can be read or written.
    """
    say = (lambda line: None) if quiet else say or (lambda line: print(line, file=sys.stderr, flush=True))
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(contextlib.closing(RunDirectory.open(workdir, config, _environment(config))))
        finished = run.status()
        if finished.get("state") in ("done", "diverged"):
            say(f"already {finished['state']}: {workdir}")
            return Outcome(finished["state"], finished, workdir)
        interrupts = stack.enter_context(Interrupts())
        try:
            dataset = dataset or load_dataset(config)
            program = program or make_program(config, dataset)
        except UserError:
            if finished.get("state") == "planned":  # a slip in the config claims no directory
                (run.path / "config.json").unlink()
            raise
        say(f"data: {dataset.description}; fingerprint {dataset.fingerprint}")
        say(_bounds(dataset))
        write_json(run.path / "vocabulary.json", dataset.vocabulary.to_dict())

        checkpoints = Checkpoints(run.path / "checkpoints", config.train.keep_checkpoints, warn=say)
        stack.enter_context(contextlib.closing(checkpoints))
        state, progress = _start_or_resume(config, program, dataset, checkpoints)
        run.truncate_after(progress.step)
        feed = dataset.feed(config.data, config.train.batch_size, data_seed(config))
        sinks = Sinks(_sinks(config, quiet, say))
        sinks.start(
            RunInfo(
                name=workdir.name,
                group=config.wandb.group or name,
                job_type=config.wandb.job_type or arm or "run",
                config=to_dict(config),
                hash=config_hash(config),
                workdir=run.path,
                total_steps=config.train.steps,
                resumed_from=progress.step,
                attempt=run.attempt,
            )
        )
        run.set_status("running", step=progress.step)
        run.event("resume" if progress.step else "start", step=progress.step)
        if progress.step:
            say(f"resuming at step {progress.step} of {config.train.steps}")
        elif not quiet:  # the estimate times a product: not for members nobody watches
            say(_costs(program, config, state))

        summary: dict[str, Any] = {}
        ended = "failed"
        try:
            with jax.default_matmul_precision(config.numerics.matmul_precision):
                loop = Loop(config, program, dataset, feed, run, sinks, checkpoints, interrupts, progress)
                ended, summary = _run(loop, state, interrupts)
            checkpoints.wait()
        except BaseException as error:
            run.event("failed", step=progress.step, error=type(error).__name__)
            run.set_status("failed", step=progress.step)
            sinks.event("failed", {"step": progress.step})
            sinks.close("failed", {})
            if isinstance(error, CheckpointError) and (kept := checkpoints.steps()):
                raise CheckpointError(f"{error} The checkpoint of step {kept[-1]} is kept.") from error
            raise
        run.event(ended, step=progress.step)
        run.set_status(ended, **summary)
        if ended == "diverged":
            sinks.event(ended, {"step": progress.step})
        sinks.close(ended, summary)
        if ended in ("preempted", "interrupted"):
            say(f"{ended} at step {progress.step}, saved; run the same command again to resume: {workdir}")
        return Outcome(ended, summary, workdir)


def _run(loop: Loop, state: TrainState, interrupts: Interrupts) -> tuple[str, dict[str, Any]]:
    """The loop and the final evaluation: (how it ended, summary)."""
    progress, config = loop.progress, loop.config
    summary: dict[str, Any] = {"total_steps": config.train.steps, "fingerprint": loop.dataset.fingerprint}
    ended = "done"
    try:
        state = loop.run(state)
        if interrupts.exit_code == PREEMPTED:
            ended = "preempted"
        elif interrupts.exit_code == STOPPED_BY_USER:
            ended = "interrupted"
        elif config.eval.final:
            summary.update(loop.final_evaluation(state))
    except Diverged as divergence:
        ended = "diverged"
        summary["diverged_at"] = divergence.step
    return ended, {
        **summary,
        "step": progress.step,
        "initial_loss": progress.initial_loss,
        "best_validation_loss": progress.best_loss,
        "training_seconds": round(progress.training_seconds, 3),
    }


def load_dataset(config: Config) -> Dataset:
    """The data of a config, in rows as its objective wants them.

    Raises:
      UserError: the data cannot be had, or does not fit the rows.
    """
    return datasets.load(config.data, layout=layout_of(config))


def make_program(config: Config, dataset: Dataset) -> Program:
    """The compiled programs of an arm over its corpus.

    Raises:
      ConfigError: the model's vocabulary is smaller than the data's.
    """
    size = dataset.vocabulary.size
    if 0 < config.model.vocab_size < size:
        raise ConfigError(
            f"model.vocab_size={config.model.vocab_size} is smaller than the vocabulary of the data, {size}; "
            "leave it at 0 or raise it."
        )
    read = dataset.read(config.train.batch_size)
    return Program(config, size, dataset.vocabulary.bytes_per_token, dataset.vocabulary, read)


def _start_or_resume(
    config: Config, program: Program, dataset: Dataset, checkpoints: Checkpoints
) -> tuple[TrainState, Progress]:
    """The state to go on from: the newest intact checkpoint, or the initial weights."""
    restored = _restore(program, checkpoints.restore)
    if restored is None:
        return program.init(init_seed(config)), Progress()
    metadata = dict(restored.metadata)
    fingerprint = metadata.pop("fingerprint")
    if fingerprint != dataset.fingerprint:
        raise DataError(
            f"The corpus changed since this run was checkpointed: its fingerprint was {fingerprint} and is now "
            f"{dataset.fingerprint}. Bring the old data back or choose another --workdir."
        )
    return unflat_state(program.abstract_state, restored.state), Progress(**metadata)


def _restore(program: Program, restore: Callable[[Any], Restored | None]) -> Restored | None:
    return restore(flat_state(program.abstract_state))


def _sinks(config: Config, quiet: bool, say: Callable[[str], None]) -> list[Sink]:
    """The views on this run."""
    sinks: list[Sink] = [] if quiet else [ConsoleSink()]
    if config.wandb.mode != "disabled":
        from transformer.training.wandb_sink import WandbSink

        sinks.append(WandbSink(config.wandb, say))
    if config.tensorboard:
        from transformer.training.tensorboard_sink import TensorboardSink

        sinks.append(TensorboardSink())
    return sinks


def _environment(config: Config) -> dict[str, Any]:
    """What `env.json` records about the device."""
    device = jax.devices()[0]
    return {"platform": device.platform, "device": device.device_kind, "devices": jax.device_count()}


# --- What a user is told before the first step -------------------------------------------------------------------


def _bounds(dataset: Dataset) -> str:
    bounds = dataset.bounds("validation")
    return "validation text: " + ", ".join(f"{name} entropy {nats:.3f} nats per token" for name, nats in bounds.items())


def _costs(program: Program, config: Config, state: TrainState) -> str:
    counts = accounting.parameters_by_component(state.params)
    tokens = config.train.steps * config.train.batch_size * config.data.sequence_length
    flops = accounting.train_operations(program).products * tokens
    seconds = flops / estimate.achievable_flops_per_second()
    needed = memory.state_bytes(state) + memory.activation_bytes(config, program.vocab_size)
    parts = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    return (
        f"model: {sum(counts.values()):,} parameters ({parts})\n"
        f"plan: {config.train.steps:,} steps, {tokens / 1e6:.2f}M tokens, {flops:.2g} FLOPs; "
        f"about {estimate.duration(seconds)} and {needed / 2**20:,.0f} MiB on this machine, plus start-up"
    )


# --- A finished or interrupted run, opened again -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run opened from its directory.

    Attributes:
      model: the trained model; `model(tokens)` gives logits [B, T, V].
      config: its resolved config.
      vocabulary: encodes and decodes text.
      program: the compiled evaluation, for `evaluate`.
      state: parameters, mutable state and optimizer state.
      step: completed steps.
    """

    model: Any
    config: Config
    vocabulary: Vocabulary
    program: Program
    state: TrainState
    step: int


def load(workdir: str | Path, which: str = "last", program: Program | None = None) -> LoadedRun:
    """Opens the newest (`last`) or lowest-validation-loss (`best`) checkpoint of a run directory.

    `program` is that of an earlier member of the same arm, to compile once.

    Raises:
      UserError: the directory is no run, or holds no checkpoint.
    """
    path = Path(workdir)
    config = read_config(path)
    if not (path / "vocabulary.json").is_file():
        raise UserError(f"{path} has not been trained yet: run train.py with the same --workdir first.")
    vocabulary = Vocabulary.from_dict(read_json(path / "vocabulary.json"))
    program = program or Program(config, vocabulary.size, vocabulary.bytes_per_token, vocabulary)
    with contextlib.closing(
        Checkpoints(path / "checkpoints", config.train.keep_checkpoints, warn=lambda m: print(m, file=sys.stderr))
    ) as checkpoints:
        restored = _restore(program, checkpoints.restore if which == "last" else checkpoints.restore_best)
    if restored is None:
        raise CheckpointError(f"{path} holds no checkpoint yet: let train.py reach its first one.")
    state = unflat_state(program.abstract_state, restored.state)
    return LoadedRun(program.model(state), config, vocabulary, program, state, restored.step)
