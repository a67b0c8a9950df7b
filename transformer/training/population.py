"""Members of one arm trained side by side: the step of one member, mapped over a leading axis.

A member of a population is the run it would be alone, to about 1e-6 in the loss: the same numbers are added in another
order. Nothing passes between members, so that one which diverges leaves the others as they are, bit for bit. Members
differ in learning rate, weight decay and seeds alone; those of one data seed see the same windows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from transformer.analysis import memory
from transformer.data.batch import Batch
from transformer.data.batching import Dataset, Feed
from transformer.errors import DataError, UserError
from transformer.model import data_seed, init_seed
from transformer.platform import compiled
from transformer.schema import Config
from transformer.training.checkpoint import Checkpoints
from transformer.training.interrupts import Interrupts
from transformer.training.jsonfiles import read_json, write_json
from transformer.training.loop import Loop
from transformer.training.member import Member, Outcome, Progress
from transformer.training.run import device_facts, load_dataset, make_member, make_program, run_to_the_end
from transformer.training.run_directory import FINISHED, RunDirectory
from transformer.training.sinks import Sinks
from transformer.training.step import EvalSums, Hyperparameters, Program, TrainState, flat_state, unflat_state

MEMBERS = "members.json"
USABLE_MEMORY = 0.9  # of what is free: the rest is the compiler's


class Population:
    """The program of an arm for K members: the same methods as `Program`, every array with a leading axis (sums of an
    evaluation: behind that of the batches).

    Args:
      program: that of the arm.
      size: K.
      devices: members are spread evenly over them; where K is no multiple of their number, copies of the last member
        fill up. By default all devices of this process.
    """

    def __init__(self, program: Program, size: int, devices: Sequence[Any] | None = None):
        self.program, self.config, self.size = program, program.config, size
        self.max_steps_per_call = program.max_steps_per_call
        devices = (devices or jax.local_devices())[:size]
        self.padded = -(-size // len(devices)) * len(devices)
        mesh = jax.sharding.Mesh(np.asarray(devices), ("members",))
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.spread = NamedSharding(mesh, PartitionSpec("members"))
        by_step = NamedSharding(mesh, PartitionSpec(None, "members"))
        precision = self.config.numerics.matmul_precision
        self.train_steps = compiled(
            self._train_steps,
            precision,
            donate_argnums=0,
            in_shardings=(self.spread, self.everywhere, by_step, None, None, self.spread),
            out_shardings=(self.spread, None),
        )
        self.evaluate = compiled(self._evaluate, precision)

    def _train_steps(
        self, state: TrainState, resident: Any, chunk: Any, first_step: Any, num_steps: Any, hyper: Hyperparameters
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """`Program._train_steps` with chunks [steps, K, ...]; metrics are [K, steps]."""
        mapped = jax.vmap(self.program._train_steps, in_axes=(0, None, 1, None, None, 0))
        state, metrics = mapped(state, resident, chunk, first_step, num_steps, hyper)
        return state, jax.tree.map(self.real, metrics)

    def _evaluate(self, state: TrainState, batches: Batch, first_rows: jax.Array, count: jax.Array) -> EvalSums:
        """`Program._evaluate` of every member on the same batches, [batches, K, ...]."""
        mapped = jax.vmap(self.program._evaluate, in_axes=(0, None, None, None), out_axes=1)
        return jax.tree.map(lambda sums: sums[:, : self.size], mapped(state, batches, first_rows, count))

    def real(self, array: Any) -> Any:
        """Without the copies that fill up the devices."""
        return array[: self.size]

    def _filled(self, arrays: Sequence[Any]) -> Any:
        """Stacks one array a member, with copies of the last one."""
        return np.stack([*arrays, *[arrays[-1]] * (self.padded - self.size)])

    def init(self, seeds: Sequence[int]) -> TrainState:
        """The states before step 0, one seed a member."""
        return self.stack([self.program.init(seed) for seed in seeds])

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """One state of all members' states."""
        return jax.device_put(jax.tree.map(lambda *leaves: self._filled(leaves), *states), self.spread)

    def member(self, state: TrainState, index: int) -> TrainState:
        """The state of one member."""
        return jax.tree.map(lambda x: x[index], state)

    def hyperparameters(self, configs: Sequence[Config]) -> Hyperparameters:
        """What the members feed the step with."""
        found = [self.program.hyperparameters(config) for config in configs]
        return jax.device_put(jax.tree.map(lambda *leaves: self._filled(leaves), *found), self.spread)

    def replicated(self, array: np.ndarray) -> jax.Array:
        """An array that every member reads, once on each device."""
        return jax.device_put(np.asarray(array), self.everywhere)

    def feed(self, configs: Sequence[Config], dataset: Dataset) -> Feed:
        """What the members' steps see."""
        seeds = [data_seed(config) for config in configs]
        return _Feeds(self.config, dataset, self._filled(seeds).tolist())

    @property
    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the K members' state."""
        one = self.program.abstract_state
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.size, *x.shape), x.dtype), one)


class _Feeds(Feed):
    """One feed a data seed, stacked to [steps, members, ...]."""

    def __init__(self, config: Config, dataset: Dataset, seeds: list[int]):
        self._seeds = seeds
        self._feeds = {seed: dataset.feed(config.data, config.train.batch_size, seed) for seed in sorted(set(seeds))}
        self.resident = self._feeds[seeds[0]].resident  # the same for every seed

    def chunk(self, first_step: int, num_steps: int) -> np.ndarray:
        chunks = {seed: feed.chunk(first_step, num_steps) for seed, feed in self._feeds.items()}
        return np.stack([chunks[seed] for seed in self._seeds], axis=1)


# --- Memory ------------------------------------------------------------------------------------------------------


def bytes_per_member(program: Program) -> int:
    """Estimated bytes one more member takes: its state, gradients and new parameters, and its activations."""
    state = program.abstract_state
    in_flight = 2 * memory.state_bytes(state.params)
    return (
        memory.state_bytes(state)
        + in_flight
        + memory.activation_bytes(program.config, program.vocab_size, program.layout.positions)
    )


def available_bytes() -> list[int]:
    """Memory that is free for training: on each accelerator of this process, or the machine's, which all devices share
    on a CPU."""
    found = [device.memory_stats() for device in jax.local_devices()]
    if all(found):
        return [stats["bytes_limit"] - stats["bytes_in_use"] for stats in found if stats]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return [int(line.split()[1]) * 1024]
    except OSError:
        pass
    return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]


def members_that_fit(program: Program) -> int:
    """How many members the free memory holds, by estimate: whole ones, as many on each device."""
    free = available_bytes()
    return len(free) * int(USABLE_MEMORY * min(free) / bytes_per_member(program))


def check_memory(program: Program, size: int) -> None:
    """Raises UserError, with the numbers, if a population of `size` does not fit."""
    fits = members_that_fit(program)
    if size <= fits:
        return
    needed, found = size * bytes_per_member(program) / 2**30, available_bytes()
    free = f"{min(found) / 2**30:.2f} GiB are free" + (f" on each of {len(found)} devices" if len(found) > 1 else "")
    remedy = f"train groups of at most {fits}" if fits else "use a smaller model or batch, or train.accumulate"
    raise UserError(f"A population of {size} members needs about {needed:.2f} GiB, but {free}: {remedy}.")


# --- From configs to results -------------------------------------------------------------------------------------


def pending(directory: Path) -> list[str]:
    """Names of the run directories of a population that was begun in `directory` and has not ended, in order."""
    path = directory / MEMBERS
    return read_json(path)["members"] if path.is_file() else []


def train_population(
    configs: Sequence[Config],
    workdirs: Sequence[Path],
    directory: Path,
    *,
    name: str = "run",
    arm: str = "",
    quiet: bool = True,
    say: Callable[[str], None] | None = None,
    program: Program | None = None,
    dataset: Dataset | None = None,
) -> list[Outcome]:
    """Trains members of one arm together, resuming what is there; each run directory becomes that of a single run.

    Args:
      configs: resolved; they differ in learning rate, weight decay and seeds only.
      workdirs: one run directory each, made if missing; its `checkpoints/` holds the last state only.
      directory: where the shared checkpoint lies until all have ended. What is there belongs to these very members.
      name, arm, quiet, say, program, dataset: as for `run.train`.

    Raises:
      UserError: memory does not suffice; else as for `run.train`.
    """
    say = (lambda line: None) if quiet else say or (lambda line: print(line, file=sys.stderr, flush=True))
    facts = {**device_facts(configs[0]), "execution": "population", "population": len(configs)}
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(contextlib.closing(RunDirectory.open(workdir, config, facts)))
            for config, workdir in zip(configs, workdirs, strict=True)
        ]
        known = [run.status() for run in runs]
        if all(status["state"] in FINISHED for status in known):
            shutil.rmtree(directory, ignore_errors=True)
            return [Outcome(s["state"], s, path) for s, path in zip(known, workdirs, strict=True)]
        interrupts = stack.enter_context(Interrupts())
        try:
            dataset = dataset or load_dataset(configs[0])
            program = program or make_program(configs[0], dataset)
            check_memory(program, len(configs))
            population = Population(program, len(configs))
            directory.mkdir(parents=True, exist_ok=True)
            checkpoints = Checkpoints(directory / "checkpoints", configs[0].train.keep_checkpoints, warn=say)
            stack.enter_context(contextlib.closing(checkpoints))
            state, progress = _start_or_resume(configs, population, dataset, checkpoints)
        except UserError:
            for run in runs:
                run.unclaim()
            raise
        write_json(directory / MEMBERS, {"members": [workdir.name for workdir in workdirs]})
        members = [
            _ended(config, run, dataset)
            if run.status()["state"] in FINISHED
            else make_member(config, run, own, dataset, name, arm, quiet, say)
            for config, run, own in zip(configs, runs, progress, strict=True)
        ]
        feed, hyper = population.feed(configs, dataset), population.hyperparameters(configs)
        store = _SharedStore(population, checkpoints, members)
        try:
            run_to_the_end(Loop(population, dataset, feed, hyper, members, store, interrupts), state)
        except BaseException as error:
            for member in members:
                if not member.ended:
                    member.fail(error)
            raise
    outcomes = [member.outcome for member in members]
    if all(outcome.state in FINISHED for outcome in outcomes):
        shutil.rmtree(directory, ignore_errors=True)
    return outcomes


def _ended(config: Config, run: RunDirectory, dataset: Dataset) -> Member:
    """A member that ended in an earlier attempt: it is computed along, and writes nothing."""
    member = Member(config, run, Sinks([]), Progress(), dataset)
    member.summary = run.status()
    member.ended = member.summary["state"]
    return member


def _start_or_resume(
    configs: Sequence[Config], population: Population, dataset: Dataset, checkpoints: Checkpoints
) -> tuple[TrainState, list[Progress]]:
    """The state of all members, and the progress of each."""
    restored = checkpoints.restore(flat_state(population.abstract_state))
    if restored is None:
        return population.init([init_seed(config) for config in configs]), [Progress() for _ in configs]
    if restored.metadata["fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"The corpus changed since this population was checkpointed: its fingerprint was "
            f"{restored.metadata['fingerprint']} and is now {dataset.fingerprint}. Bring the old data back, or delete "
            f"{checkpoints.directory.parent}."
        )
    state = unflat_state(population.abstract_state, restored.state)
    states = [jax.tree.map(np.asarray, population.member(state, index)) for index in range(population.size)]
    return population.stack(states), [Progress(**own) for own in restored.metadata["members"]]


class _SharedStore:
    """One checkpoint for all members while they are trained; at the end, the last state of each in its own folder."""

    def __init__(self, population: Population, checkpoints: Checkpoints, members: Sequence[Member]):
        self.population, self.checkpoints, self.members = population, checkpoints, members
        self.steps = checkpoints.steps

    def save(self, step: int, state: TrainState) -> None:
        metadata = {
            "members": [dataclasses.asdict(member.progress) for member in self.members],
            "fingerprint": self.members[0].dataset.fingerprint,
        }
        self.checkpoints.save(step, flat_state(jax.tree.map(self.population.real, state)), metadata)

    def finish(self, state: TrainState) -> None:
        self.checkpoints.wait()
        for index, member in enumerate(self.members):
            if member.ended or member.progress.step < member.config.train.steps:
                continue
            with contextlib.closing(Checkpoints(member.run.path / "checkpoints", keep=1)) as own:
                if member.progress.step not in own.steps():
                    metadata = {**dataclasses.asdict(member.progress), "fingerprint": member.dataset.fingerprint}
                    last = flat_state(self.population.member(state, index))
                    own.save(member.progress.step, last, metadata, member.metric)
