"""The two sides of the benchmarks of a training step, each living in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.reporting import BenchmarkError, cores

OURS, TORCH, TORCH_COMPILE = "ours", "torch", "torch.compile"
VOCAB_SIZE = 256
ADAMW = {"learning_rate": 1e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8}
CLIP = 1.0


@dataclasses.dataclass(frozen=True)
class Size:
    """One shape, and how many steps a turn is timed over."""

    num_layers: int
    d_model: int
    num_heads: int
    sequence_length: int
    batch_size: int
    timed_steps: int


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of one side, in seconds.

    Attributes:
      wall: all timed steps with what lies between them.
      inside: the steps alone.
      cpu: processor time of the whole turn, summed over threads.
    """

    wall: float
    inside: float
    cpu: float


def learnable_tokens(length: int = 1 << 16) -> np.ndarray:
    """A random walk of log(4) nats per token: each token leaves four choices for the next. uint8 [length]."""
    tokens, token = np.empty(length, np.uint8), 0
    for i, draw in enumerate(np.random.default_rng(0).integers(4, size=length)):
        token = (5 * token + 7 + int(draw)) % VOCAB_SIZE
        tokens[i] = token
    return tokens


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """(wall seconds, result) of a call."""
    started = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - started, result


# --- Ours ------------------------------------------------------------------------------------------------


class Ours:
    """The library's step, fed and read as `transformer.training.loop` does."""

    def __init__(self, size: Size):
        import jax
        import jax.numpy as jnp

        from transformer.analysis.accounting import train_flops_per_token
        from transformer.config import apply_overrides, default_config, resolve
        from transformer.data.batching import make_feed, make_plan
        from transformer.training.step import Program

        overrides = {
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
        }
        config = resolve(apply_overrides(default_config(), overrides))
        jax.config.update("jax_default_matmul_precision", config.numerics.matmul_precision)
        tokens = learnable_tokens()
        plan = make_plan(config.data, len(tokens), size.batch_size, seed=0)
        self.feed, self.corpus = make_feed("device", plan, tokens), jnp.asarray(tokens)
        self.program = Program(config, VOCAB_SIZE, np.ones(VOCAB_SIZE, np.int32))
        self.hyper, self.state = self.program.hyperparameters(config), self.program.init(seed=0)
        self.flops_per_token = train_flops_per_token(config)
        self.step, self.order = 0, random.Random(0)

    def facts(self) -> tuple[dict[str, np.ndarray], float]:
        """(current weights by path, model FLOPs per token)."""
        import jax

        from transformer.model.initialization import path_name

        leaves = jax.tree_util.tree_leaves_with_path(self.state.params)
        return {path_name(path): np.asarray(leaf) for path, leaf in leaves}, self.flops_per_token

    def train(self, num_steps: int, steps_per_call: int = 1) -> list[float]:
        """Steps, each call dispatched before the numbers of the one before are read; the losses."""
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

    def turn(self, timed_steps: int) -> Turn:
        """One warm step, then the timed ones twice: in the training loop's calls, and inside one call."""
        from transformer.training.step import SECONDS_PER_CALL

        cpu = time.process_time()
        warm_step, _ = timed(self.train, 1)
        steps_per_call = max(1, min(timed_steps, int(SECONDS_PER_CALL / warm_step)))
        runs = [("wall", steps_per_call), ("inside", timed_steps)]
        self.order.shuffle(runs)
        seconds = {name: timed(self.train, timed_steps, per_call)[0] for name, per_call in runs}
        return Turn(**seconds, cpu=time.process_time() - cpu)


def _read(call: tuple[dict[str, Any], int] | None) -> list[float]:
    """Waits for a call and copies all its metrics, as the training loop does."""
    if call is None:
        return []
    metrics, count = call
    return {name: np.asarray(values, np.float64) for name, values in metrics.items()}["loss"][:count].tolist()


# --- PyTorch ---------------------------------------------------------------------------------------------


class Torch:
    """The plain PyTorch GPT in a plain loop, on the same windows."""

    def __init__(self, size: Size, compiled: bool):
        import torch

        from benchmarks.torch_gpt import GPT, Shape, make_optimizer
        from transformer.data.batching import make_plan
        from transformer.schema import Data

        torch.set_num_threads(cores())
        self.size = size
        self.tokens, self.window = learnable_tokens(), np.arange(size.sequence_length + 1)
        data = Data(sequence_length=size.sequence_length)
        self.plan = make_plan(data, len(self.tokens), size.batch_size, seed=0)
        self.weights = GPT(Shape(VOCAB_SIZE, size.num_layers, size.d_model, size.num_heads, size.sequence_length))
        self.model = torch.compile(self.weights) if compiled else self.weights
        self.optimizer = make_optimizer(self.weights, **ADAMW)
        self.step, self.inside = 0, 0.0

    def load(self, params: dict[str, np.ndarray]) -> int:
        """Takes over the weights of our side; returns the number of parameters."""
        from benchmarks.torch_gpt import load_weights

        load_weights(self.weights, params)
        return sum(p.numel() for p in self.weights.parameters())

    def train(self, num_steps: int) -> list[float]:
        """Steps, their losses read at the end; adds up the seconds inside the step function."""
        import torch

        from benchmarks.torch_gpt import train_step

        losses = []
        for step in range(self.step, self.step + num_steps):
            rows = self.tokens[self.plan.starts(step)[:, None] + self.window]
            batch = torch.from_numpy(rows.astype(np.int64))
            seconds, loss = timed(train_step, self.model, self.optimizer, batch, CLIP)
            self.inside += seconds
            losses.append(loss)
        self.step += num_steps
        return [float(loss) for loss in losses]

    def turn(self, timed_steps: int) -> Turn:
        """One warm step, then timed ones."""
        cpu = time.process_time()
        self.train(1)
        self.inside = 0.0
        wall, _ = timed(self.train, timed_steps)
        return Turn(wall, self.inside, time.process_time() - cpu)


# --- Processes -------------------------------------------------------------------------------------------


def _serve(connection: Connection, name: str, make: Callable[[], Any]) -> None:
    """Runs in the child: makes the side, then answers (method, arguments) with (answer, error) until None."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Compile times are those of a first run.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    try:
        if name == OURS:
            from transformer.platform import prepare

            prepare()
        side = make()
        for method, arguments in iter(connection.recv, None):
            connection.send((timed(getattr(side, method), *arguments), None))
    except Exception as error:
        connection.send((None, f"{type(error).__name__}: {error}"))


class Side:
    """The driver's end of one side."""

    def __init__(self, name: str, make: Callable[[], Any]):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, name, make), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> tuple[float, Any]:
        """(wall seconds, result) of a method.

        Raises:
          BenchmarkError: it failed.
        """
        try:
            self.connection.send((method, arguments))
            answer, error = self.connection.recv()
        except (EOFError, OSError):
            raise BenchmarkError(f"the process of {self.name} stopped") from None
        if error:
            raise BenchmarkError(f"{self.name}: {error}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.terminate()


@contextlib.contextmanager
def processes(makers: Mapping[str, Callable[[], Any]]) -> Iterator[dict[str, Side]]:
    """Makes each side in a process of its own, and ends them afterwards."""
    with contextlib.ExitStack() as stack:
        sides = {}
        for name, make in makers.items():
            sides[name] = Side(name, make)
            stack.callback(sides[name].close)
        yield sides
