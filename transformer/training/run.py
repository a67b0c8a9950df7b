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
from transformer.config import config_hash, replace, to_dict
from transformer.data import dataset as datasets
from transformer.data.batching import Dataset
from transformer.data.vocabularies import Vocabulary
from transformer.errors import CheckpointError, ConfigError, DataError, UserError
from transformer.model import data_seed, init_seed
from transformer.numerics import trains_together
from transformer.schema import Config
from transformer.training.checkpoint import Checkpoints, Restored
from transformer.training.console_sink import ConsoleSink
from transformer.training.interrupts import PREEMPTED, STOPPED_BY_USER, Interrupts
from transformer.training.jsonfiles import read_json, write_json
from transformer.training.loop import Diverged, Loop
from transformer.training.member import Member, Outcome, Progress
from transformer.training.objectives import layout_of
from transformer.training.run_directory import RunDirectory, read_config
from transformer.training.sharding import ONE_DEVICE
from transformer.training.sinks import RunInfo, Sink, Sinks
from transformer.training.step import Program, TrainState, flat_state, unflat_state


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
    if trains_together(config):
        from transformer.training.population import train_population

        (outcome,) = train_population(
            [config],
            [workdir],
            workdir / "population",
            name=name,
            arm=arm,
            quiet=quiet,
            say=say,
            program=program,
            dataset=dataset,
        )
        return outcome
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(contextlib.closing(RunDirectory.open(workdir, config, device_facts(config))))
        finished = run.status()
        if finished.get("state") in ("done", "diverged"):
            say(f"already {finished['state']}: {workdir}")
            return Outcome(finished["state"], finished, workdir)
        interrupts = stack.enter_context(Interrupts())
        try:
            dataset = dataset or load_dataset(config)
            program = program or make_program(config, dataset)
            padding = f"; {dataset.pad_share:.0%} of the positions are padding" if dataset.pad_share else ""
            say(f"data: {dataset.description}; fingerprint {dataset.fingerprint}{padding}")
            say(_bounds(dataset, program))
            checkpoints = Checkpoints(run.path / "checkpoints", config.train.keep_checkpoints, warn=say)
            stack.enter_context(contextlib.closing(checkpoints))
            state, progress = _start_or_resume(config, program, dataset, checkpoints)
        except UserError:
            run.unclaim()
            raise
        if program.transfer is not None and not progress.step:
            say(str(program.transfer))
        feed = dataset.feed(config.data, config.train.batch_size, data_seed(config))
        member = make_member(config, run, progress, dataset, name, arm, quiet, say)
        if progress.step:
            say(f"resuming at step {progress.step} of {config.train.steps}")
        elif not quiet:  # the estimate times a product: not for members nobody watches
            say(_costs(program, config, state))
        try:
            store, hyper = _RunStore(checkpoints, member), program.hyperparameters(config)
            run_to_the_end(Loop(program, dataset, feed, hyper, [member], store, interrupts), state)
        except BaseException as error:
            if not member.ended:
                member.fail(error)
            if isinstance(error, CheckpointError) and (kept := checkpoints.steps()):
                raise CheckpointError(f"{error} The checkpoint of step {kept[-1]} is kept.") from error
            raise
        if member.ended in ("preempted", "interrupted"):
            say(f"{member.ended} at step {progress.step}, saved; run the same command again to resume: {workdir}")
        return member.outcome


class _RunStore:
    """The checkpoints in a run's own directory."""

    def __init__(self, checkpoints: Checkpoints, member: Member):
        self.checkpoints, self.member = checkpoints, member
        self.steps = checkpoints.steps

    def save(self, step: int, state: TrainState) -> None:
        metadata = {**dataclasses.asdict(self.member.progress), "fingerprint": self.member.dataset.fingerprint}
        self.checkpoints.save(step, flat_state(state), metadata, self.member.metric)

    def finish(self, state: TrainState) -> None:
        self.checkpoints.wait()


def make_member(
    config: Config,
    run: RunDirectory,
    progress: Progress,
    dataset: Dataset,
    name: str,
    arm: str,
    quiet: bool,
    say: Callable[[str], None],
) -> Member:
    """Starts the views on a run and says in its directory that it runs.

    Args:
      run: its directory, open; rows of steps after `progress.step` are dropped from it.
      name, arm, quiet, say: as for `train`.
    """
    write_json(run.path / "vocabulary.json", dataset.vocabulary.to_dict())
    run.truncate_after(progress.step)
    sinks = Sinks(_sinks(config, quiet, say))
    sinks.start(
        RunInfo(
            name=run.path.name,
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
    return Member(config, run, sinks, progress, dataset)


def run_to_the_end(loop: Loop, state: TrainState) -> None:
    """The loop and the final evaluation; says of every member how it ended."""
    try:
        state = loop.run(state)
    except Diverged:
        loop.store.finish(state)
        return
    stopped = {PREEMPTED: "preempted", STOPPED_BY_USER: "interrupted"}.get(loop.interrupts.exit_code or 0)
    summaries: list[dict[str, float]] = [{} for _ in loop.members]
    if stopped is None and loop.config.eval.final:
        summaries = loop.final_evaluation(state)
    loop.store.finish(state)
    for member, summary in zip(loop.members, summaries, strict=True):
        if not member.ended:
            member.end(stopped or "done", **summary)


def load_dataset(config: Config) -> Dataset:
    """The data of a config, in rows as its objective wants them.

    Raises:
      UserError: the data cannot be had, or does not fit the rows.
    """
    return datasets.load(config.data, layout=layout_of(config))


def make_program(config: Config, dataset: Dataset) -> Program:
    """The compiled programs of an arm over its corpus.

    Raises:
      ConfigError: the model's vocabulary is smaller than the data's, or it has fewer classes than there are labels.
    """
    size = dataset.vocabulary.size
    if 0 < config.model.vocab_size < size:
        raise ConfigError(
            f"model.vocab_size={config.model.vocab_size} is smaller than the vocabulary of the data, {size}; "
            "leave it at 0 or raise it."
        )
    head = config.model.head
    if head.kind in ("classify", "tag") and head.num_labels < dataset.num_labels:
        raise ConfigError(
            f"model.head.num_labels={head.num_labels}, but {dataset.name} has {dataset.num_labels} labels; set it to "
            f"{dataset.num_labels}."
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


def device_facts(config: Config) -> dict[str, Any]:
    """What `env.json` records about the device."""
    device = jax.devices()[0]
    return {"platform": device.platform, "device": device.device_kind, "devices": jax.device_count()}


# --- What a user is told before the first step -------------------------------------------------------------------


def _bounds(dataset: Dataset, program: Program) -> str:
    bounds = program.objective.bounds(dataset, "validation")
    chance = dataset.chance("validation")
    told = [f"{name} entropy {nats:.3f} nats per target" for name, nats in bounds.items()]
    told += [] if chance is None else [f"accuracy by chance {chance:.3f}"]
    return "validation data: " + (", ".join(told) or "no simple mark for these targets")


def _costs(program: Program, config: Config, state: TrainState) -> str:
    counts = accounting.parameters_by_component(state.params)
    rows, layout = config.train.steps * config.train.batch_size, program.layout
    tokens = rows * layout.positions
    flops = accounting.train_operations(program).products * rows * layout.length
    numerics = config.numerics
    seconds = flops / estimate.achievable_flops_per_second(numerics.compute_dtype, numerics.matmul_precision)
    needed = memory.state_bytes(state) + memory.activation_bytes(config, program.vocab_size, layout.positions)
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
      fingerprint: of the corpus it was trained on.
    """

    model: Any
    config: Config
    vocabulary: Vocabulary
    program: Program
    state: TrainState
    step: int
    fingerprint: str = ""


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
    here = replace(config, ONE_DEVICE)  # wherever it was trained
    program = program or Program(here, vocabulary.size, vocabulary.bytes_per_token, vocabulary)
    with contextlib.closing(
        Checkpoints(path / "checkpoints", config.train.keep_checkpoints, warn=lambda m: print(m, file=sys.stderr))
    ) as checkpoints:
        restored = _restore(program, checkpoints.restore if which == "last" else checkpoints.restore_best)
        unrated = restored is None and checkpoints.steps()
    if unrated:
        raise CheckpointError(f"No checkpoint of {path} has a validation loss yet: open the last one instead.")
    if restored is None:
        until = "the end" if trains_together(config) else "its first one"  # a population shares those before
        raise CheckpointError(f"{path} holds no checkpoint yet: let train.py reach {until}.")
    state = unflat_state(program.abstract_state, restored.state)
    fingerprint = restored.metadata.get("fingerprint", "")
    return LoadedRun(program.model(state), config, vocabulary, program, state, restored.step, fingerprint)
