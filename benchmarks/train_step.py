"""Speed of a whole training step on the CPU: ours beside a plain PyTorch GPT of the same shape, in one run.

    python -m benchmarks.train_step [--sizes=small,medium,large] [--rounds=15] [--compile] [--json=FILE]

Both sides train the same model on the same batches from the same initial weights: float32, AdamW,
gradient norm clipped to 1, learned positions, LayerNorm, exact GELU, tied embeddings, no biases, no
dropout, a vocabulary of 256. Before anything is timed, their numbers of parameters must be equal, and so
must their first losses, which must fall. Ours goes through `Program.train_steps`, several steps per call,
as the training loop does; PyTorch runs eagerly with its fused attention and optimizer, and with --compile
once more compiled. Each has the C library's memory settings that its users have: ours keeps freed memory (see
`platform.keep_memory`), which made eager PyTorch some 2% faster in its medium size, where it was tried.

Each side is a process of its own that keeps its state and waits. A round asks every side, in random
order, for one turn: one warm step, then a fixed number of timed ones. What is reported:

tokens/s   batch * sequence_length * timed steps / wall seconds, host work included; median over rounds.
GFLOP/s    floating-point operations of the model at that speed, by `accounting.train_flops_per_token`: 6 per
           token and weight of a matrix product, plus 12 * layers * sequence_length * d_model for attention
           over the full square. Every side is credited with this number, whatever it computes.
compile s  wall seconds of the first step less a warm one: tracing and compiling, with empty caches. Imports
           and initialisation are not in it.
between    share of the wall time that passes between steps: 1 - inside / wall. Ours: inside is the wall time
           of the same number of steps in one call, measured in every turn before or after those in the
           training loop's calls; the dispatch of that one call counts as inside. PyTorch, whose host runs
           the kernels itself: inside is the time in the step function, so that cutting batches and reading
           losses remain. Median over rounds [quartiles].
speed-up   tokens/s over those of eager PyTorch: ratio of the medians, then the median over rounds of the
           ratio within a round [quartiles]. Above 1 is faster than PyTorch.
others     share of the machine that other processes took during a turn; median over rounds. They slow one
           side more than the other: measure on an idle machine, or leave disturbed rounds out (--max_others).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import os
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import reporting
from benchmarks.reporting import BenchmarkError, Table
from benchmarks.sides import OURS, TORCH, TORCH_COMPILE, Ours, Side, Size, Torch, Turn, processes

QUESTION = "How fast is a training step beside PyTorch's?"
CHECK_STEPS = 9  # steps of the check that all sides do the same, and learn
LOSS_TOLERANCE = 1e-3  # nats; the sides differ only in the order in which float32 numbers are added

SIZES = {
    "tiny": Size(2, 32, 2, 16, 4, timed_steps=4),  # checks the wiring; its speed means nothing
    "quick": Size(4, 64, 4, 128, 16, timed_steps=16),  # the quick profile's
    "small": Size(4, 128, 4, 64, 12, timed_steps=16),
    "medium": Size(4, 128, 4, 128, 32, timed_steps=4),
    "large": Size(6, 384, 6, 256, 8, timed_steps=2),
}


# --- Measurement -----------------------------------------------------------------------------------------


def check_and_warm(sides: dict[str, Side]) -> dict[str, dict[str, Any]]:
    """Gives all sides the same weights, takes their first steps and compares.

    Returns:
      By side: parameters, first_losses, compile_seconds.

    Raises:
      BenchmarkError: they differ in size or in losses, or the losses do not fall.
    """
    _, (params, _) = sides[OURS].ask("facts")
    found: dict[str, dict[str, Any]] = {}
    for name, side in sides.items():
        count = sum(p.size for p in params.values()) if name == OURS else side.ask("load", params)[1]
        seconds, losses = zip(*(side.ask("train", 1) for _ in range(CHECK_STEPS)), strict=True)
        found[name] = {
            "parameters": count,
            "first_losses": [loss for step in losses for loss in step],
            "compile_seconds": max(0.0, seconds[0] - statistics.median(seconds[1:])),
        }
        compare(name, found[name], found[OURS])
    return found


def compare(name: str, side: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raises BenchmarkError unless a side learns, and is the same model on the same data as ours."""
    losses = side["first_losses"]
    if side["parameters"] != ours["parameters"]:
        raise BenchmarkError(f"{name} has {side['parameters']} parameters, ours {ours['parameters']}")
    third = max(1, len(losses) // 3)
    if not statistics.mean(losses[-third:]) < statistics.mean(losses[:third]):
        raise BenchmarkError(f"{name} does not learn: its losses are {losses}")
    apart = max(abs(a - b) for a, b in zip(losses, ours["first_losses"], strict=True))
    if not apart < LOSS_TOLERANCE:
        raise BenchmarkError(f"{name} does not do the work of ours: losses differ by {apart:.2g} nats")


def measure(size: Size, names: list[str], rounds: int, max_others: float, seed: int) -> dict[str, Any]:
    """One size, every side; what the numbers mean is said at the top of this file."""
    order = random.Random(seed)
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    others: dict[str, list[float]] = {name: [] for name in names}
    makers = {
        OURS: functools.partial(Ours, size),
        TORCH: functools.partial(Torch, size, compiled=False),
        TORCH_COMPILE: functools.partial(Torch, size, compiled=True),
    }
    with processes({name: makers[name] for name in names}) as sides:
        found = check_and_warm(sides)
        _, (_, flops_per_token) = sides[OURS].ask("facts")
        for _ in range(rounds):
            for name in order.sample(names, len(names)):
                before = busy_seconds()
                elapsed, turn = sides[name].ask("turn", size.timed_steps)
                turns[name].append(turn)
                others[name].append((busy_seconds() - before - turn.cpu) / (elapsed * (os.cpu_count() or 1)))
    kept = [i for i in range(rounds) if not any(others[name][i] > max_others for name in names)]
    if not kept:
        raise BenchmarkError(f"other processes took more than {max_others:.0%} of the machine in every round")
    tokens = size.timed_steps * size.batch_size * size.sequence_length
    kept_turns = {name: [turns[name][i] for i in kept] for name in names}
    speeds = {name: [tokens / turn.wall for turn in kept_turns[name]] for name in names}
    result = {}
    for name in names:
        median = statistics.median(speeds[name])
        by_round = [mine / peer for mine, peer in zip(speeds[name], speeds[TORCH], strict=True)]
        result[name] = {
            **found[name],
            "tokens_per_second": median,
            "model_flops_per_second": median * flops_per_token,
            "between_share": quartiles([1 - turn.inside / turn.wall for turn in kept_turns[name]]),
            "speed_up_of_medians": median / statistics.median(speeds[TORCH]),
            "speed_up_by_round": quartiles(by_round),
            "others_share": statistics.median(others[name][i] for i in kept),
            "turns": [{**dataclasses.asdict(t), "others": o} for t, o in zip(turns[name], others[name], strict=True)],
        }
    return {
        "shape": dataclasses.asdict(size),
        "flops_per_token": flops_per_token,
        "rounds_kept": len(kept),
        "sides": result,
    }


def quartiles(values: list[float]) -> dict[str, float]:
    """The median and the quartiles around it."""
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper}


def busy_seconds() -> float:
    """Processor seconds spent by everyone since the machine started; nan where nobody counts them."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return float("nan")
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(int, fields)
    ticks = user + nice + system + interrupts + soft_interrupts + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


# --- Report ----------------------------------------------------------------------------------------------


def table(name: str, result: dict[str, Any]) -> Table:
    """The numbers of one size."""
    shape, parameters = result["shape"], result["sides"][OURS]["parameters"]
    rows = [
        (
            side,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['model_flops_per_second'] / 1e9:.1f}",
            f"{row['compile_seconds']:.1f}",
            _with_quartiles(row["between_share"], ".1%"),
            f"{row['speed_up_of_medians']:.2f}, {_with_quartiles(row['speed_up_by_round'], '.2f')}",
            f"{row['others_share']:.0%}",
        )
        for side, row in result["sides"].items()
    ]
    return Table(
        f"{name}: {shape['num_layers']} layers x {shape['d_model']}, sequence {shape['sequence_length']}, "
        f"batch {shape['batch_size']}; {parameters:,} parameters; {result['rounds_kept']} rounds",
        ("", "tokens/s", "GFLOP/s", "compile s", "between", "speed-up", "others"),
        tuple(rows),
    )


def _with_quartiles(value: dict[str, float], style: str) -> str:
    numbers = [format(value[key], style) for key in ("median", "lower_quartile", "upper_quartile")]
    return "{} [{}, {}]".format(*numbers)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Which shapes are measured, and how often."""
    parser.add_argument("--sizes", default="small,medium,large", help=f"comma list of {', '.join(SIZES)}")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side per size")


def checked_sizes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """The shapes asked for; ends with a usage error where there is nothing to measure, or no PyTorch."""
    sizes = options.sizes.split(",")
    if unknown := [name for name in sizes if name not in SIZES]:
        parser.error(f"--sizes={unknown[0]} is not one of: {', '.join(SIZES)}")
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds} must be at least 1")
    if importlib.util.find_spec("torch") is None:
        parser.error('torch is not installed: pip install -e ".[bench]"')
    return sizes


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and stores; returns the exit code."""
    parser = reporting.parser(__doc__)
    add_sizes(parser)
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    parser.add_argument("--max_others", type=float, default=np.inf, help="leave out rounds above this share")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order within rounds")
    options = parser.parse_args(arguments)
    sizes = checked_sizes(parser, options)
    names = [OURS, TORCH, *([TORCH_COMPILE] if options.compile else [])]
    report: dict[str, Any] = {"rounds": options.rounds, "sizes": {}}
    tables = []
    try:
        for name in sizes:
            report["sizes"][name] = measure(SIZES[name], names, options.rounds, options.max_others, options.seed)
            tables.append(table(name, report["sizes"][name]))
            print(tables[-1].text(), flush=True)
            if options.json:  # after every size, so that an interrupted run keeps what it has
                reporting.store(options.json, "train_step", QUESTION, tables, report)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
