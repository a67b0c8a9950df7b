"""How near the limit of one GPU training comes, and how it compares with PyTorch there.

    python -m benchmarks.gpu [--shapes=350m,124m] [--backend=fused] [--chunk=0] [--peer=SHAPES]
                             [--rounds=5] [--json=FILE]

Refused on a machine without an accelerator. The matrix ceiling, the speed of large bfloat16 products of random numbers,
is measured first. Then GPT-2 shapes with 1024 tokens are trained in bfloat16 with float32 parameters and moments and
fused attention, through `Program.train_steps`. `MFU of ceiling` is model FLOP/s over the measured ceiling: products of
matrices that the written-out model makes, forward and backward, scores over the full square, whatever a kernel skips
or does twice. With PyTorch and a GPU for it, `torch` is the plain GPT of `torch_gpt.py` with bfloat16 autocast,
compiled, with its fused attention and optimizer: same shape and batch, in the same run, in turns; `--peer` names the
shapes that it trains, by default all. Medians over rounds.

`shakespeare_char` on the GPU and large populations have commands of their own:

    python train.py --config=configs/shakespeare_char.py
    python -m benchmarks.population --sizes=1,4,16,64,128
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import reporting
from benchmarks.limit import matrix_flops_per_second
from benchmarks.reporting import BenchmarkError, Table
from transformer.errors import UserError

QUESTION = "How near its limit does training on one GPU come?"
LENGTH, VOCAB_SIZE, STEPS = 1024, 50304, 32
SHAPES = {
    "tiny": (2, 64, 2, 2),  # checks the wiring on any machine; its speed means nothing
    "124m": (12, 768, 12, 32),
    "350m": (24, 1024, 16, 16),
}  # layers, width, heads, batch


def config(shape: str, length: int = LENGTH, backend: str = "fused", chunk: int = 0) -> Any:
    """A GPT-2 shape in mixed precision; `chunk` tokens have logits at a time, or all of them if it is 0."""
    from transformer.config import apply_overrides, default_config, resolve

    layers, width, heads, batch = SHAPES[shape]
    overrides = {
        "model.vocab_size": VOCAB_SIZE,
        "model.num_layers": layers,
        "model.d_model": width,
        "model.attention.num_heads": heads,
        "model.attention.backend": backend,
        "model.position.kind": "learned",
        "model.position.max_length": length,
        "data.sequence_length": length,
        "train.batch_size": batch,
        "train.steps_per_call": STEPS,
        "objective.logits_chunk": chunk,
        "numerics.compute_dtype": "bfloat16",
        "numerics.matmul_precision": "default",
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
    }
    return resolve(apply_overrides(default_config(), overrides))


def ours(made: Any) -> Callable[[], float]:
    """A function that runs `STEPS` steps and returns their seconds; compiled when this returns."""
    import jax
    import numpy as np

    from transformer.training.step import Program

    program = Program(made, VOCAB_SIZE, np.ones(VOCAB_SIZE, np.int32))
    held = [program.init(0)]
    shape = (STEPS, *program.abstract_batch.tokens_BL.shape)
    rows = np.random.default_rng(0).integers(0, VOCAB_SIZE, shape)
    chunk, hyper = jax.device_put(rows.astype(np.int32)), program.hyperparameters(made)

    def run() -> float:
        started = time.perf_counter()
        state, metrics = program.train_steps(held[0], None, chunk, np.int32(0), np.int32(STEPS), hyper)
        losses = np.asarray(metrics["loss"])
        if not np.isfinite(losses).all():
            raise BenchmarkError("the loss is not finite")
        held[0] = state
        return time.perf_counter() - started

    run()
    return run


def torch_side(shape: str) -> Callable[[], float] | None:
    """The same for compiled PyTorch; None where it has no GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    from benchmarks.sides import ADAMW
    from benchmarks.torch_gpt import GPT, Shape, make_optimizer, train_step

    layers, width, heads, batch = SHAPES[shape]
    weights = GPT(Shape(VOCAB_SIZE, layers, width, heads, LENGTH)).cuda()
    optimizer, model = make_optimizer(weights, **ADAMW), torch.compile(weights)
    tokens = torch.randint(VOCAB_SIZE, (batch, LENGTH + 1), device="cuda")

    def run() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(STEPS):
            with torch.autocast("cuda", torch.bfloat16):
                train_step(model, optimizer, tokens, 1.0)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    run()
    return run


def measure(shapes: list[str], peer: list[str], rounds: int, backend: str, chunk: int) -> dict[str, Any]:
    """Ceiling, then seconds of every round for every shape and side; `peer` are the shapes PyTorch trains too."""
    from transformer.analysis.accounting import train_flops_per_token

    found: dict[str, Any] = {"ceiling": matrix_flops_per_second("bfloat16", "default", 8192, products=10), "shapes": {}}
    for shape in shapes:
        made = config(shape, backend=backend, chunk=chunk)
        sides = {"ours": ours(made), "torch": torch_side(shape) if shape in peer else None}
        seconds: dict[str, list[float]] = {name: [] for name, run in sides.items() if run is not None}
        for _ in range(rounds):
            for name in seconds:
                seconds[name].append(sides[name]())  # type: ignore[misc]
        found["shapes"][shape] = {
            "seconds": seconds,
            "tokens": STEPS * made.train.batch_size * made.data.sequence_length,
            "flops_per_token": train_flops_per_token(config(shape, backend="reference"), VOCAB_SIZE),
        }
    return found


def tables(found: dict[str, Any]) -> list[Table]:
    """What is shown."""
    rows = []
    for shape, result in found["shapes"].items():
        speeds = {name: result["tokens"] / statistics.median(s) for name, s in result["seconds"].items()}
        for name, speed in speeds.items():
            peer = f"{speed / speeds['torch']:.2f}" if "torch" in speeds else "-"
            share = speed * result["flops_per_token"] / found["ceiling"]
            rows.append((f"{shape} {name}", f"{speed:,.0f}", f"{share:.1%}", peer))
    title = f"GPT-2 shapes, {LENGTH} tokens, bfloat16; ceiling {found['ceiling'] / 1e12:.0f} TFLOP/s"
    return [Table(title, ("", "tokens/s", "MFU of ceiling", "over torch.compile"), tuple(rows))]


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and stores; returns the exit code."""
    parser = reporting.parser(__doc__ or "")
    parser.add_argument("--shapes", default="350m,124m", help=f"comma list of {', '.join(SHAPES)}")
    parser.add_argument("--backend", default="fused", help="model.attention.backend of our side")
    parser.add_argument("--peer", help="comma list of shapes that PyTorch trains too; by default all")
    parser.add_argument("--chunk", type=int, default=0, help="objective.logits_chunk of our side")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    shapes = options.shapes.split(",")
    peer = shapes if options.peer is None else options.peer.split(",")
    for name, asked, known in (("shapes", shapes, list(SHAPES)), ("peer", peer, shapes)):
        if unknown := [shape for shape in asked if shape not in known]:
            parser.error(f"--{name}={unknown[0]} is not one of: {', '.join(known)}")
    import jax

    if jax.default_backend() == "cpu":
        print("error: this benchmark needs an accelerator, and JAX found only the CPU.", file=sys.stderr)
        return 2
    try:
        found = measure(shapes, peer, max(1, options.rounds), options.backend, options.chunk)
    except (BenchmarkError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    reporting.finish("gpu", QUESTION, tables(found), found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
