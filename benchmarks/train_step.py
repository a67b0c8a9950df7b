"""Speed of a whole training step on the CPU, ours beside a plain PyTorch GPT of the same shape, in one run.

    python -m benchmarks.train_step [--sizes=small,medium,large] [--rounds=15] [--compile] [--json=FILE]

Both sides train the same model on the same batches from the same initial weights: float32, AdamW, gradient norm clipped
to 1, learned positions, LayerNorm, exact GELU, tied embeddings, no biases, no dropout, 256 tokens in the vocabulary.
Before anything is timed, their numbers of parameters must be equal, and so must their first losses, which must fall.
Ours goes through `Program.train_steps`, several steps per call, as the training loop does; PyTorch runs eagerly with
its fused attention and optimizer, and with `--compile` a second time under `torch.compile`.

Each side is a process of its own that keeps its state and waits. A round asks every side, in random order, for one
turn: one warm step, then a fixed number of timed ones. What is reported:

tokens/s    median over the rounds of batch * sequence_length * timed steps / wall seconds, host work included.
GFLOP/s     the model's floating-point operations at that speed by `accounting.train_flops_per_token`: 6 per weight of
            a matrix product and token, plus 12 * layers * sequence_length * d_model for attention over the full
            square. Both sides are credited with this number, whatever they compute.
compile s   wall seconds of the first step less those of a warm step: tracing and compiling, with empty caches;
            imports and initialisation are not in it.
between     share of the wall time that passes between steps. Ours: 1 - (seconds of the timed steps inside one call) /
            (seconds of as many steps in the calls of the training loop), both measured in every turn in random order;
            the one call's own dispatch counts as its inside. PyTorch: 1 - (seconds inside the step function) / (wall
            seconds), which leaves what is outside: cutting the batch. Median over the rounds, quartiles in brackets.
speed-up    tokens/s divided by those of eager PyTorch: ratio of the two medians, then the median over rounds of the
            ratio within a round, quartiles in brackets. Above 1 is faster than PyTorch.

Other work on the machine falls harder on one side than on the other: measure on an idle one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

VOCAB_SIZE = 256
CHECK_STEPS = 6  # steps of the check that both sides do the same, and learn
LOSS_TOLERANCE = 1e-3  # nats; the sides differ in the order of float32 sums only
ADAMW = {"learning_rate": 1e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8}
CLIP = 1.0
OURS, TORCH, TORCH_COMPILE = "ours", "torch", "torch.compile"


@dataclasses.dataclass(frozen=True)
class Size:
    """One shape, and how many steps a turn is timed over."""

    num_layers: int
    d_model: int
    num_heads: int
    sequence_length: int
    batch_size: int
    timed_steps: int

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length


SIZES = {
    "tiny": Size(2, 32, 2, 16, 4, timed_steps=4),  # checks the wiring; its speed means nothing
    "small": Size(4, 128, 4, 64, 12, timed_steps=16),
    "medium": Size(4, 128, 4, 128, 32, timed_steps=4),
    "large": Size(6, 384, 6, 256, 8, timed_steps=2),
}


class BenchmarkError(Exception):
    """The sides do not do the same work, or one of them stopped."""


def learnable_tokens(length: int = 1 << 16, seed: int = 0) -> np.ndarray:
    """A random walk with entropy log(4) nats per token: each token fixes the next up to one of four. uint8."""
    draws = np.random.default_rng(seed).integers(4, size=length)
    tokens, token = np.empty(length, np.uint8), 0
    for i, draw in enumerate(draws):
        token = (5 * token + 7 + int(draw)) % VOCAB_SIZE
        tokens[i] = token
    return tokens


# --- The sides: each is made and run in a process of its own ------------------------------------------------------


class Ours:
    """The library's step, fed and read as `transformer.training.loop` does."""

    def __init__(self, size: Size):
        import jax
        import jax.numpy as jnp

        from transformer.analysis.accounting import train_flops_per_token
        from transformer.config import apply_overrides, default_config, resolve
        from transformer.data.batching import make_feed, make_plan
        from transformer.training.step import Program

        config = resolve(
            apply_overrides(
                default_config(),
                {
                    "model.vocab_size": VOCAB_SIZE,
                    "model.num_layers": size.num_layers,
                    "model.d_model": size.d_model,
                    "model.attention.num_heads": size.num_heads,
                    "model.position.kind": "learned",
                    "data.sequence_length": size.sequence_length,
                    "train.batch_size": size.batch_size,
                    "optimizer.schedule": "constant",
                    "optimizer.warmup_steps": 0,
                    "optimizer.clip": CLIP,
                    **{f"optimizer.{name}": value for name, value in ADAMW.items()},
                },
            )
        )
        jax.config.update("jax_default_matmul_precision", config.numerics.matmul_precision)
        tokens = learnable_tokens()
        plan = make_plan(config.data, len(tokens), size.batch_size, seed=0)
        self.feed, self.corpus = make_feed("device", plan, tokens), jnp.asarray(tokens)
        self.program = Program(config, VOCAB_SIZE, np.ones(VOCAB_SIZE, np.int32))
        self.hyper, self.state = self.program.hyperparameters(config), self.program.init(seed=0)
        self.flops_per_token = train_flops_per_token(config, self.state.params)
        self.step, self.order = 0, random.Random(0)

    def parameters(self) -> dict[str, np.ndarray]:
        """The current weights by path."""
        import jax

        from transformer.model.initialization import path_name

        leaves = jax.tree_util.tree_leaves_with_path(self.state.params)
        return {path_name(path): np.asarray(leaf) for path, leaf in leaves}

    def run(self, num_steps: int, steps_per_call: int) -> list[float]:
        """Steps in calls of `steps_per_call`, each dispatched before the numbers of the last are read; their losses."""
        losses: list[float] = []
        unread, end = None, self.step + num_steps
        while self.step < end:
            count = min(steps_per_call, end - self.step)
            starts = self.feed.chunk(self.step, count)
            chunk = np.zeros((self.program.max_steps_per_call, *starts.shape[1:]), starts.dtype)
            chunk[:count] = starts
            self.state, metrics = self.program.train_steps(
                self.state, self.corpus, chunk, np.int32(self.step), np.int32(count), self.hyper
            )
            losses += _read(unread)
            unread, self.step = (metrics, count), self.step + count
        return losses + _read(unread)

    def losses(self, num_steps: int) -> list[float]:
        """Trains; the loss of each step."""
        return self.run(num_steps, num_steps)

    def turn(self, timed_steps: int) -> tuple[float, float]:
        """One warm step, then timed ones: (wall seconds in the loop's calls, seconds inside one call)."""
        from transformer.training.loop import SECONDS_PER_CALL

        warm_step, _ = _timed(lambda: self.run(1, 1))
        steps_per_call = max(1, min(self.program.max_steps_per_call, int(SECONDS_PER_CALL / warm_step)))
        runs = [("wall", min(steps_per_call, timed_steps)), ("inside", timed_steps)]
        self.order.shuffle(runs)
        seconds = {name: _timed(lambda n=n: self.run(timed_steps, n))[0] for name, n in runs}
        return seconds["wall"], seconds["inside"]


def _read(call: tuple[dict[str, Any], int] | None) -> list[float]:
    """Waits for a call and reads its metrics, as the training loop does."""
    if call is None:
        return []
    metrics, count = call
    return {name: np.asarray(values, np.float64) for name, values in metrics.items()}["loss"][:count].tolist()


class Torch:
    """The plain PyTorch GPT in a plain loop."""

    def __init__(self, size: Size, compiled: bool):
        import torch

        from benchmarks.torch_gpt import GPT, Shape, make_optimizer
        from transformer.data.batching import make_plan
        from transformer.schema import Data

        torch.set_num_threads(cores())
        self.tokens = learnable_tokens()
        section = Data(sequence_length=size.sequence_length)
        self.plan = make_plan(section, len(self.tokens), size.batch_size, seed=0)
        self.window = np.arange(size.sequence_length + 1)
        shape = Shape(VOCAB_SIZE, size.num_layers, size.d_model, size.num_heads, size.sequence_length)
        self.weights = GPT(shape)
        self.model = torch.compile(self.weights) if compiled else self.weights
        self.optimizer = make_optimizer(self.weights, **ADAMW)
        self.step, self.inside_seconds = 0, 0.0

    def load(self, params: dict[str, np.ndarray]) -> int:
        """Takes over the weights of our side; the number of parameters."""
        from benchmarks.torch_gpt import load_weights

        load_weights(self.weights, params)
        return sum(p.numel() for p in self.weights.parameters())

    def losses(self, num_steps: int) -> list[float]:
        """Trains; the loss of each step."""
        import torch

        from benchmarks.torch_gpt import train_step

        losses = []
        for step in range(self.step, self.step + num_steps):
            rows = self.tokens[self.plan.starts(step)[:, None] + self.window]
            batch = torch.from_numpy(rows.astype(np.int64))
            seconds, loss = _timed(lambda batch=batch: train_step(self.model, self.optimizer, batch, CLIP))
            self.inside_seconds += seconds
            losses.append(loss)
        self.step += num_steps
        return [float(loss) for loss in losses]

    def turn(self, timed_steps: int) -> tuple[float, float]:
        """One warm step, then timed ones: (wall seconds, those inside the step function)."""
        self.losses(1)
        self.inside_seconds = 0.0
        wall, _ = _timed(lambda: self.losses(timed_steps))
        return wall, self.inside_seconds


def _timed(function: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- Processes ----------------------------------------------------------------------------------------------------


def _serve(connection: Connection, side: str, size: Size) -> None:
    """Runs in the child: makes the side, then answers (method, arguments) with (result, error) until told to stop."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    worker: Any = None
    for method, arguments in iter(connection.recv, None):
        try:
            if method == "make":
                worker = Ours(size) if side == OURS else Torch(size, compiled=side == TORCH_COMPILE)
                answer = None
            elif method == "get":
                answer = getattr(worker, *arguments)
            else:
                answer = _timed(lambda m=method, a=arguments: getattr(worker, m)(*a))
            connection.send((answer, None))
        except Exception as error:
            connection.send((None, f"{type(error).__name__}: {error}"))


class Side:
    """The driver's end of one side."""

    def __init__(self, name: str, size: Size):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, name, size), daemon=True)
        self.process.start()
        theirs.close()
        self.ask("make")

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the side answers: (seconds, result) of a method."""
        try:
            self.connection.send((method, arguments))
            answer, error = self.connection.recv()
        except (EOFError, BrokenPipeError):
            raise BenchmarkError(f"the process of {self.name} stopped") from None
        if error:
            raise BenchmarkError(f"{self.name}: {error}")
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.terminate()


@contextlib.contextmanager
def _sides(names: list[str], size: Size) -> Iterator[dict[str, Side]]:
    with contextlib.ExitStack() as stack:
        sides = {}
        for name in names:
            sides[name] = Side(name, size)
            stack.callback(sides[name].close)
        yield sides


# --- Measurement --------------------------------------------------------------------------------------------------


def check_and_warm(sides: dict[str, Side]) -> dict[str, dict[str, Any]]:
    """Gives all sides the same start and takes their first steps.

    Returns:
      By side: parameters, first_losses, compile_seconds.

    Raises:
      BenchmarkError: they differ in size or in losses, or the losses do not fall.
    """
    _, params = sides[OURS].ask("parameters")
    facts: dict[str, dict[str, Any]] = {}
    for name, side in sides.items():
        count = sum(p.size for p in params.values()) if name == OURS else side.ask("load", params)[1]
        first, losses = side.ask("losses", 1)
        warm = []
        for _ in range(CHECK_STEPS - 1):
            seconds, more = side.ask("losses", 1)
            warm.append(seconds)
            losses = losses + more
        facts[name] = {
            "parameters": count,
            "first_losses": losses,
            "compile_seconds": first - statistics.median(warm),
        }
        if count != facts[OURS]["parameters"]:
            raise BenchmarkError(f"{name} has {count} parameters, ours {facts[OURS]['parameters']}")
        if not losses[-1] < losses[0]:
            raise BenchmarkError(f"{name} does not learn: its losses are {losses}")
        apart = max(abs(a - b) for a, b in zip(losses, facts[OURS]["first_losses"], strict=True))
        if not apart < LOSS_TOLERANCE:
            raise BenchmarkError(
                f"{name} and ours do different work: their losses differ by {apart:.2g} nats"
            )
    return facts


def measure(size: Size, names: list[str], rounds: int, seed: int) -> dict[str, Any]:
    """One size, every side: {"shape", "flops_per_token", "sides": {name: numbers}}; see the module's docstring."""
    order = random.Random(seed)
    with _sides(names, size) as sides:
        facts = check_and_warm(sides)
        flops_per_token = sides[OURS].ask("get", "flops_per_token")
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in order.sample(names, len(names)):
                turns[name].append(sides[name].ask("turn", size.timed_steps)[1])
    tokens = size.timed_steps * size.tokens_per_step
    speeds = {name: [tokens / wall for wall, _ in turns[name]] for name in names}
    result: dict[str, Any] = {}
    for name in names:
        median = statistics.median(speeds[name])
        per_round = [mine / peer for mine, peer in zip(speeds[name], speeds[TORCH], strict=True)]
        result[name] = {
            **facts[name],
            "tokens_per_second": median,
            "tokens_per_second_by_round": speeds[name],
            "model_flops_per_second": median * flops_per_token,
            "between_share": _quartiles([1 - inside / wall for wall, inside in turns[name]]),
            "speed_up_of_medians": median / statistics.median(speeds[TORCH]),
            "speed_up_by_round": _quartiles(per_round),
        }
    return {"shape": dataclasses.asdict(size), "flops_per_token": flops_per_token, "sides": result}


def _quartiles(values: list[float]) -> dict[str, float]:
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper}


# --- Report -------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    packages = ("jax", "flax", "torch")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": cores(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }


def table(name: str, result: dict[str, Any]) -> str:
    """The numbers of one size as text."""
    shape = result["shape"]
    parameters = result["sides"][OURS]["parameters"]
    lines = [
        f"{name}: {shape['num_layers']} layers x {shape['d_model']}, sequence {shape['sequence_length']}, "
        f"batch {shape['batch_size']}, {parameters:,} parameters",
        f"  {'':14}{'tokens/s':>9}{'GFLOP/s':>9}{'compile s':>10}  {'between':>22}  {'speed-up':>26}",
    ]
    for side, row in result["sides"].items():
        speed_up = f"{row['speed_up_of_medians']:.2f}  {_with_quartiles(row['speed_up_by_round'], '.2f')}"
        lines.append(
            f"  {side:14}{row['tokens_per_second']:9,.0f}{row['model_flops_per_second'] / 1e9:9.1f}"
            f"{row['compile_seconds']:10.1f}  {_with_quartiles(row['between_share'], '.1%'):>22}  {speed_up:>26}"
        )
    return "\n".join(lines)


def _with_quartiles(value: dict[str, float], style: str) -> str:
    numbers = (format(value[key], style) for key in ("median", "lower_quartile", "upper_quartile"))
    return "{} [{}, {}]".format(*numbers)


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and stores; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_sizes = [name for name in SIZES if name != "tiny"]
    parser.add_argument("--sizes", default=",".join(default_sizes), help=f"comma list of {', '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side per size")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order within rounds")
    parser.add_argument("--json", metavar="FILE", help="where to store all numbers")
    options = parser.parse_args(arguments)
    sizes = options.sizes.split(",")
    if unknown := [name for name in sizes if name not in SIZES]:
        parser.error(f"--sizes={unknown[0]} is not one of: {', '.join(SIZES)}")
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds} must be at least 1")
    try:
        metadata.version("torch")
    except metadata.PackageNotFoundError:
        parser.error('this benchmark needs PyTorch: pip install -e ".[bench]"')

    report: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "sizes": {}}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()), flush=True)
    names = [OURS, TORCH, TORCH_COMPILE] if options.compile else [OURS, TORCH]
    try:
        for name in sizes:
            report["sizes"][name] = measure(SIZES[name], names, options.rounds, options.seed)
            print(table(name, report["sizes"][name]), flush=True)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
