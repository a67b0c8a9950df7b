"""How much faster members are trained together than one by one.

    python -m benchmarks.population [--sizes=1,4,16] [--steps=N] [--rounds=5] [--json=FILE] [FIELD=VALUE ...]

The default model (4 layers x 128, about 0.8M parameters, 256 tokens, batch 32 on an accelerator; 64 tokens, batch 8 on
a CPU, where the point is only that the path is sound) is trained as `Program`, one member, and as `Population` of K, in
one process. A round times one call of the same number of steps for every K, in turn. `member-tokens/s` counts the
tokens of all members; `speed-up` is over one member alone, and `of limit` the share of the speed of one large matrix
product in the same number format at the same precision, measured in the same process. Medians over rounds.

Fields of a config change the model. How much K gains depends on how much of the accelerator one member leaves idle:

    python -m benchmarks.population --sizes=1,4,16,64,128 data.sequence_length=64 train.batch_size=12 \\
        numerics.compute_dtype=bfloat16 numerics.matmul_precision=default
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import reporting
from benchmarks.limit import matrix_flops_per_second
from benchmarks.reporting import Table
from transformer.errors import UserError

QUESTION = "How much faster are members trained together?"
CPU_SHAPE = {"data.sequence_length": 64, "train.batch_size": 8}


def config(on_cpu: bool, steps: int, changes: Sequence[str] = ()) -> Any:
    """The default model, changed as `FIELD=VALUE` says, with as many steps in one call as are timed."""
    from transformer.command_line import assignments
    from transformer.config import apply_overrides, default_config, resolve

    shape = CPU_SHAPE if on_cpu else {}
    overrides = {"train.steps": 10**6, "train.steps_per_call": steps, **shape, **assignments(changes)}
    return resolve(apply_overrides(default_config(), overrides))


class Together:
    """K members, ready to be timed; K = 0 is the program for one member."""

    def __init__(self, program: Any, dataset: Any, size: int):
        import jax

        from transformer.config import replace
        from transformer.training.population import Population

        config = program.config
        members = [replace(config, {"seed": seed}) for seed in range(max(1, size))]
        if size:
            self.program = Population(program, size)
            self.state, self.hyper = self.program.init(range(size)), self.program.hyperparameters(members)
            self.feed = self.program.feed(members, dataset)
        else:
            self.program = program
            self.state, self.hyper = program.init(0), program.hyperparameters(config)
            self.feed = dataset.feed(config.data, config.train.batch_size, 0)
        self.resident, self.step = jax.tree.map(self.program.replicated, self.feed.resident), 0
        self.seconds()  # compiles

    def seconds(self) -> float:
        """Wall seconds of one call."""
        import jax
        import numpy as np

        count = self.program.max_steps_per_call
        chunk = self.feed.chunk(self.step, count)
        started = time.perf_counter()
        arguments = (self.resident, chunk, np.int32(self.step), np.int32(count), self.hyper)
        self.state, metrics = self.program.train_steps(self.state, *arguments)
        jax.block_until_ready(metrics)
        self.step += count
        return time.perf_counter() - started


def measure(sizes: list[int], rounds: int, steps: int, changes: Sequence[str] = ()) -> dict[str, Any]:
    """All numbers: for each K the seconds of every round."""
    import jax

    from transformer.analysis.accounting import train_flops_per_token
    from transformer.platform import prepare
    from transformer.training.run import load_dataset, make_program

    prepare()

    on_cpu = jax.default_backend() == "cpu"
    steps = steps or (4 if on_cpu else 32)
    made = config(on_cpu, steps, changes)
    dataset = load_dataset(made)
    program = make_program(made, dataset)
    flops = train_flops_per_token(made)
    numerics = made.numerics
    peak = matrix_flops_per_second(numerics.compute_dtype, numerics.matmul_precision, 1024 if on_cpu else 8192)
    sides: dict[int, Together] = {}
    for size in [0, *sizes]:
        started = time.perf_counter()
        sides[size] = Together(program, dataset, size)
        name = f"K = {size}" if size else "one member"
        print(f"{name}: ready after {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    seconds: dict[int, list[float]] = {size: [] for size in sides}
    for _ in range(rounds):
        for size, side in sides.items():
            seconds[size].append(side.seconds())
    batch, length = made.train.batch_size, dataset.layout.positions
    return {
        "shape": f"{made.model.num_layers} layers x {made.model.d_model}, {length} tokens, batch {batch}, "
        f"{numerics.compute_dtype}",
        "seconds": seconds,
        "tokens_per_member": program.max_steps_per_call * batch * length,
        "flops_per_token": flops,
        "matrix_flops": peak,
    }


def tables(found: dict[str, Any]) -> list[Table]:
    """What is shown."""
    speeds = {
        size: statistics.median(max(1, size) * found["tokens_per_member"] / wall for wall in walls)
        for size, walls in found["seconds"].items()
    }
    rows = [
        (
            f"together, K = {size}" if size else "one member",
            f"{speed:,.0f}",
            f"{speed / speeds[0]:.2f}",
            f"{speed * found['flops_per_token'] / found['matrix_flops']:.1%}",
        )
        for size, speed in speeds.items()
    ]
    return [
        Table(f"Members of one arm: {found['shape']}", ("", "member-tokens/s", "speed-up", "of limit"), tuple(rows))
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and stores; returns the exit code."""
    parser = reporting.parser(__doc__ or "")
    parser.add_argument("--sizes", default="1,4,16", help="comma list of K")
    parser.add_argument("--steps", type=int, default=0, help="steps in one call; by default 32, or 4 on a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "changes", nargs="*", metavar="FIELD=VALUE", help="fields of the config, such as model.d_model=64"
    )
    options = parser.parse_args(arguments)
    sizes = [int(size) for size in options.sizes.split(",") if size.isdecimal() and int(size)]
    if not sizes or options.rounds < 1 or options.steps < 0:
        parser.error("--sizes takes positive numbers such as 1,4,16, --rounds at least 1, --steps at least 0")
    try:
        found = measure(sizes, options.rounds, options.steps, options.changes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    reporting.finish("population", QUESTION, tables(found), found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
