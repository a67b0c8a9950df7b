"""What an arm of an ablation costs beside its steps: start-up, and what members add between them.

    python -m benchmarks.arm [--members=32] [--steps=240] [--repeats=3] [--json=FILE]

The shape is that of the quick profile: 64 wide, 4 layers, 128 tokens, batch 16, evaluations and checkpoints included.
Three things are measured, each in processes of their own:

start-up    imports, config and corpus, initial weights, tracing and lowering, compiling: wall seconds until the first
            step could start, and the share of each part. `cold` compiles with an empty cache, `warm` finds what a run
            before has left. Median of `repeats` processes each.
one worker  a quarter of the members (4 learning rates x as many seeds, two at least) trained one after another by
            `run.train`, as a worker with all cores does it, compiled once. `ratio` is the wall time of a member over
            steps x step time: 1 would be nothing but steps. `without evaluation` leaves out the time spent in
            evaluations, of which the protocol asks for seven, the last over the whole validation split.
the lab     all members, and the best rate on one seed more, through the pool of workers that `python -m ablations run`
            uses on a CPU, one per core, with an empty cache. `ratio` is (wall time - cold start-up) / (members x steps
            x step time). It may be below 1, since workers with a core each step side by side: `of side by side` is the
            same against what as many such processes reach with nothing but steps.

The step time is that of one process with all cores to itself, many steps in one call: before and after, and for the
lab also every 30 seconds, while the workers are stopped, which does not count. The median over calls, and in brackets
the quartiles, with the ratios they would give. The aim for `ratio` is 1.1.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import reporting
from benchmarks.reporting import Table

QUESTION = "What does an arm cost beside its steps?"
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
SECONDS_BETWEEN = 30  # two measurements of the step time, while the lab works
PARTS = ("import", "corpus", "init", "trace", "compile")


def arm_config(steps: int, rate: float = 1e-3, seed: int = 0) -> Any:
    """A member of the quick profile's shape."""
    from ablations.profiles import QUICK
    from transformer.config import apply_overrides, default_config, resolve

    change = {"train.steps": steps, "optimizer.learning_rate": rate, "seed": seed, "wandb.mode": "disabled"}
    return resolve(apply_overrides(default_config(), {**QUICK, **change}))


def start_up() -> dict[str, float]:
    """Seconds of each part of a start in this process, which must be fresh."""
    seconds, last = {}, time.perf_counter()

    def lap(part: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[part], last = now - last, now

    from transformer.platform import prepare

    prepare()
    from transformer.training import run

    lap("import")
    config = arm_config(240)
    dataset = run.load_dataset(config)
    lap("corpus")
    program = run.make_program(config, dataset)
    steps = Steps(program, dataset)
    lap("init")
    lowered = program.train_steps.lower(*steps.arguments(0, 0))
    lap("trace")
    lowered.compile()
    lap("compile")
    return seconds


class Steps:
    """Runs steps of a program in one call, to time them."""

    def __init__(self, program: Any, dataset: Any):
        import jax

        config = program.config
        self.program, self.feed = program, dataset.feed(config.data, config.train.batch_size, 0)
        self.resident = jax.tree.map(program.replicated, self.feed.resident)
        self.state, self.hyper = program.init(0), program.hyperparameters(config)

    def arguments(self, first: int, count: int) -> tuple[Any, ...]:
        """What `train_steps` takes."""
        import numpy as np

        chunk = self.feed.chunk(first, self.program.max_steps_per_call)
        return self.state, self.resident, chunk, np.int32(first), np.int32(count), self.hyper

    def seconds_per_step(self) -> float:
        """Of one call of as many steps as fit, waited for."""
        import jax

        count = self.program.max_steps_per_call
        arguments = self.arguments(0, count)
        started = time.perf_counter()
        self.state, metrics = self.program.train_steps(*arguments)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - started) / count

    def repeated(self) -> list[float]:
        """Of three calls, after one that may compile."""
        return [self.seconds_per_step() for _ in range(4)][1:]


def serve_steps(steps: int) -> None:
    """Times a call of steps for every line read, and prints its seconds per step."""
    from transformer.platform import prepare
    from transformer.training import run

    prepare()
    config = arm_config(steps)
    dataset = run.load_dataset(config)
    timer = Steps(run.make_program(config, dataset), dataset)
    timer.seconds_per_step()
    for _ in sys.stdin:
        print(json.dumps(timer.seconds_per_step()), flush=True)


class Timers:
    """Processes that time steps when asked: one on all cores, and one on each worker's share of them."""

    def __init__(self, steps: int, cache: str, shares: Sequence[str]):
        self.processes = [_fresh_process("serve_steps", cache, steps, cpus=cpus) for cpus in ("", *shares)]
        self.alone: list[float] = []
        self.side_by_side: list[float] = []
        self._ask(self.processes)  # once they answer, they have compiled

    def measure(self) -> None:
        """One call on all cores, then one on each share at the same time."""
        self.alone += self._ask(self.processes[:1])
        self.side_by_side += self._ask(self.processes[1:])

    def close(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.communicate()

    @staticmethod
    def _ask(processes: Sequence[subprocess.Popen[str]]) -> list[float]:
        try:
            for process in processes:
                assert process.stdin
                process.stdin.write("\n")
                process.stdin.flush()
        except BrokenPipeError:
            raise reporting.BenchmarkError("a process that times steps ended") from None
        answers = [process.stdout.readline() for process in processes if process.stdout]
        if not all(answers):
            raise reporting.BenchmarkError("a process that times steps ended")
        return [json.loads(answer) for answer in answers]


def train_in_the_lab(members: int, steps: int, timers_cache: str) -> dict[str, Any]:
    """Trains an arm with the lab's pool of workers; wall seconds, how many members there were, step times.

    Every learning rate is tried on the same seeds, and the best one on one more; where it lies at an end of the grid,
    so are those beyond.
    """
    from ablations import runner, store
    from ablations.cells import ArmCell
    from ablations.jobs import Job
    from ablations.schema import Profile

    workers = runner.default_workers()
    settings = Profile(learning_rates=RATES, tuning_seeds=members // len(RATES), test_seeds=1, verdicts=False)
    cell = ArmCell("arm", "baseline", "default", "quick", arm_config(steps), settings)
    paused, measured = 0.0, time.perf_counter()

    def pause(*_: Any) -> None:
        nonlocal paused, measured
        began = time.perf_counter()
        if began < measured + SECONDS_BETWEEN or not pool.running:
            return
        try:
            for worker in pool.running:
                worker.process.send_signal(signal.SIGSTOP)
            timers.measure()
        finally:
            for worker in pool.running:
                worker.process.send_signal(signal.SIGCONT)
        measured = time.perf_counter()
        paused += measured - began

    with tempfile.TemporaryDirectory() as folder:
        job = Job(cell.directory(Path(folder)), (cell,))
        pool = runner.Pool(workers, pause)
        with contextlib.closing(Timers(steps, timers_cache, pool.shares)) as timers:
            timers.measure()
            started = time.perf_counter()
            code = pool.run([job])
            wall = time.perf_counter() - started - paused
            if code:
                raise reporting.BenchmarkError("a member of the arm could not be trained")
            timers.measure()
        trained = len(store.read_arm(job.directory)[0])
    times = {"step_seconds": timers.alone, "side_by_side": timers.side_by_side}
    return {"wall": wall, "members": trained, "workers": workers, **times}


def train_arm(members: int, steps: int) -> dict[str, Any]:
    """Trains members in this process; wall seconds of each, and the step time around them."""
    from transformer.platform import prepare
    from transformer.training import loop, run

    prepare()
    config = arm_config(steps)
    dataset = run.load_dataset(config)
    program = run.make_program(config, dataset)
    timer = Steps(program, dataset)
    step_seconds = timer.repeated()
    walls, evaluating, add_up = [], [], loop.add_up

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = add_up(*arguments, **named)
        evaluating[-1] += time.perf_counter() - began
        return result

    loop.add_up = timed
    with tempfile.TemporaryDirectory() as folder:
        for i in range(members):
            member = arm_config(steps, RATES[i % len(RATES)], seed=i // len(RATES))
            started = time.perf_counter()
            evaluating.append(0.0)
            outcome = run.train(member, Path(folder) / str(i), quiet=True, program=program, dataset=dataset)
            walls.append(time.perf_counter() - started)
            if outcome.state != "done":
                raise reporting.BenchmarkError(f"a member ended as {outcome.state}")
    loop.add_up = add_up
    step_seconds += timer.repeated()
    return {"walls": walls, "evaluating": evaluating, "step_seconds": step_seconds, "wall": sum(walls)}


def _less(walls: list[float], parts: list[float]) -> list[float]:
    return [wall - part for wall, part in zip(walls, parts, strict=True)]


def _fresh_process(what: str, cache: str, *arguments: Any, cpus: str = "") -> subprocess.Popen[str]:
    """Starts a process that prints what a function of this file returns, on these cores (none named: on all), with
    this compile cache."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    code = f"import json; from benchmarks.arm import {what}; print(json.dumps({what}(*{arguments!r})))"
    code = f"import os; os.sched_setaffinity(0, {{{cpus}}}); {code}" if cpus else code
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def in_a_process(what: str, cache: str, *arguments: Any) -> Any:
    """What a function of this file returns in a process of its own."""
    process = _fresh_process(what, cache, *arguments)
    written = process.communicate()[0]
    if process.returncode:
        raise reporting.BenchmarkError(f"{what} failed in its process")
    return json.loads(written.splitlines()[-1])


def measure(members: int, steps: int, repeats: int) -> dict[str, Any]:
    """All numbers."""
    with tempfile.TemporaryDirectory() as warm_cache:
        in_a_process("start_up", warm_cache)
        cold, warm = [], []
        for i in range(repeats):
            cold.append(in_a_process("start_up", os.path.join(warm_cache, f"cold{i}")))
            warm.append(in_a_process("start_up", warm_cache))
        alone = in_a_process("train_arm", warm_cache, max(2, members // 4), steps)
        lab = in_a_process("train_in_the_lab", os.path.join(warm_cache, "lab"), members, steps, warm_cache)
    return {"cold": cold, "warm": warm, "alone": alone, "lab": lab, "steps": steps}


def tables(found: dict[str, Any]) -> list[Table]:
    """What is shown."""
    rows = []
    for kind in ("cold", "warm"):
        parts = {part: statistics.median(run[part] for run in found[kind]) for part in PARTS}
        total = statistics.median(sum(run.values()) for run in found[kind])
        rows.append((kind, *(f"{seconds:.2f}" for seconds in parts.values()), f"{total:.2f}"))
    start = statistics.median(sum(run.values()) for run in found["cold"])
    columns = ("", "members", "wall s", "step ms", "evaluations s", "ratio", "without evaluation", "of side by side")
    return [
        Table("Start-up of an arm, seconds", ("cache", *PARTS, "all"), tuple(rows)),
        Table(
            f"Members of {found['steps']} steps",
            (*columns, "aim"),
            (_alone(found["alone"], found["steps"]), _lab(found["lab"], found["steps"], start)),
        ),
    ]


def _alone(arm: dict[str, Any], steps: int) -> tuple[str, ...]:
    """The row of one worker; what the first member compiles is not in the ratios."""
    wall = statistics.median(arm["walls"][1:])
    left = statistics.median(_less(arm["walls"], arm["evaluating"])[1:])
    return (
        "one worker",
        str(len(arm["walls"])),
        f"{arm['wall']:.1f}",
        _range([1e3 * step for step in arm["step_seconds"]], 1),
        f"{sum(arm['evaluating']):.1f}",
        _range([wall / (steps * step) for step in arm["step_seconds"]], 2),
        _range([left / (steps * step) for step in arm["step_seconds"]], 2),
        "",
        "1.10",
    )


def _lab(lab: dict[str, Any], steps: int, start: float) -> tuple[str, ...]:
    """The row of the lab."""
    wall, run = lab["wall"] - start, lab["members"] * steps
    limit = run * statistics.median(lab["side_by_side"]) / lab["workers"]
    return (
        f"the lab, {lab['workers']} workers",
        str(lab["members"]),
        f"{lab['wall']:.1f}",
        _range([1e3 * step for step in lab["step_seconds"]], 1),
        "",
        _range([wall / (run * step) for step in lab["step_seconds"]], 2),
        "",
        f"{wall / limit:.2f}",
        "1.10",
    )


def _range(values: list[float], digits: int) -> str:
    """The median, and in brackets the quartiles."""
    low, middle, high = (f"{value:.{digits}f}" for value in statistics.quantiles(values, n=4, method="inclusive"))
    return f"{middle} [{low}, {high}]"


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and stores; returns the exit code."""
    parser = reporting.parser(__doc__ or "")
    parser.add_argument("--members", type=int, default=32, help="a multiple of 4, the number of learning rates")
    parser.add_argument("--steps", type=int, default=240, help="steps of each member")
    parser.add_argument("--repeats", type=int, default=3, help="processes per start-up measurement")
    options = parser.parse_args(arguments)
    if options.members < len(RATES) or options.members % len(RATES) or options.steps < 1 or options.repeats < 1:
        parser.error(f"--members must be a multiple of {len(RATES)}, --steps and --repeats at least 1")
    try:
        found = measure(options.members, options.steps, options.repeats)
    except reporting.BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    reporting.finish("arm", QUESTION, tables(found), found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
