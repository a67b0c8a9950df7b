"""Is RMSNorm cheaper than LayerNorm: alone, and in a training step?

    python -m benchmarks.norm [--widths=128,512,2048] [--rounds=60] [--json=FILE]

Every norm is timed in turn, in random order, 60 rounds after five that do not count: forward and backward over 4,096
rows as one compiled program, then whole training steps of the quick profile's model and of the default one. `saved` is
one minus the ratio of the median times, with a 95% bootstrap interval over rounds; LayerNorm against itself, timed as
another side of the same rounds, says how far from zero chance alone brings it. RMSNorm and LayerNorm without a bias are
compared: a bias would be a third difference.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import reporting
from benchmarks.reporting import Table

QUESTION = "Is RMSNorm cheaper than LayerNorm?"
ROWS, WARM_UP, BOOTSTRAP, PER_STEP = 4096, 5, 2000, 4
KINDS = {"layernorm": "layernorm", "again": "layernorm", "rmsnorm": "rmsnorm"}
STEPS = {
    "training step, 4 x 64": {
        "model.d_model": 64,
        "data.sequence_length": 128,
        "train.batch_size": 16,
    },
    "training step, 4 x 128": {"data.sequence_length": 128, "train.batch_size": 8},
}
SHOWN = ("rmsnorm", "again")
Timed = Callable[[], float]


def norm_alone(kind: str, width: int) -> Timed:
    """Seconds of forward and backward of one norm over `ROWS` rows."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from transformer.config import apply_overrides, default_config, resolve
    from transformer.model.normalization import NORMS

    config = resolve(apply_overrides(default_config(), {"model.norm.kind": kind, "model.d_model": width}))
    structure, declared = nnx.split(NORMS.build(kind, config.model.norm, width))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), declared)
    x_ND, g_ND = (jax.random.normal(jax.random.key(i), (ROWS, width)) for i in (0, 1))

    @jax.jit
    def both(params: Any, x_ND: Any, g_ND: Any) -> Any:
        y_ND, backward = jax.vjp(lambda p, x: nnx.merge(structure, p)(x), params, x_ND)
        return y_ND, backward(g_ND)

    def timed() -> float:
        started = time.perf_counter()
        jax.block_until_ready(both(params, x_ND, g_ND))
        return time.perf_counter() - started

    return timed


def training(kind: str, shape: dict[str, Any]) -> Timed:
    """Seconds of a training step, `PER_STEP` of them in one call."""
    from benchmarks.population import Together
    from transformer.config import apply_overrides, default_config, resolve
    from transformer.training.run import load_dataset, make_program

    overrides = {**shape, "model.norm.kind": kind, "train.steps": 10**6, "train.steps_per_call": PER_STEP}
    config = resolve(apply_overrides(default_config(), overrides))
    dataset = load_dataset(config)
    steps = Together(make_program(config, dataset), dataset, 0)
    return lambda: steps.seconds() / PER_STEP


def interleaved(sides: dict[str, Timed], rounds: int, dice: random.Random) -> dict[str, list[float]]:
    """Seconds of every side in every round; the order within a round is random."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(WARM_UP + rounds):
        for name in dice.sample(list(sides), len(sides)):
            found = sides[name]()
            if number >= WARM_UP:
                seconds[name].append(found)
    return seconds


def saved(base: list[float], other: list[float], dice: np.random.Generator) -> dict[str, float]:
    """Percent of the time of `base` that `other` saves, by medians, with a 95% bootstrap interval over rounds."""
    picks = dice.integers(len(base), size=(BOOTSTRAP, len(base)))
    ratios = np.median(np.array(other)[picks], axis=1) / np.median(np.array(base)[picks], axis=1)
    low, high = np.quantile(100 * (1 - ratios), (0.025, 0.975))
    return {"saved": float(100 * (1 - np.median(other) / np.median(base))), "low": float(low), "high": float(high)}


def measure(widths: list[int], rounds: int) -> dict[str, Any]:
    """Every place where it is asked: times, and what RMSNorm and the second LayerNorm save."""
    dice, numpy_dice, found = random.Random(0), np.random.default_rng(0), {}
    places: dict[str, Callable[[str], Timed]] = {
        **{f"norm alone, {width} wide": lambda kind, width=width: norm_alone(kind, width) for width in widths},
        **{name: lambda kind, shape=shape: training(kind, shape) for name, shape in STEPS.items()},
    }
    for place, make in places.items():
        seconds = interleaved({name: make(kind) for name, kind in KINDS.items()}, rounds, dice)
        found[place] = {
            "seconds": seconds,
            **{name: saved(seconds["layernorm"], seconds[name], numpy_dice) for name in SHOWN},
        }
    return found


def table(found: dict[str, Any]) -> Table:
    """A row per place."""
    rows = [
        (
            place,
            f"{1e3 * np.median(row['seconds']['layernorm']):.2f}",
            f"{1e3 * np.median(row['seconds']['rmsnorm']):.2f}",
            *(f"{row[name]['saved']:+.1f}% [{row[name]['low']:+.1f}, {row[name]['high']:+.1f}]" for name in SHOWN),
        )
        for place, row in found.items()
    ]
    columns = ("", "LayerNorm, ms", "RMSNorm, ms", "saved", "LayerNorm again")
    return Table("Time of LayerNorm that RMSNorm saves", columns, tuple(rows), "The last column should hold zero.")


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and stores; returns the exit code."""
    parser = reporting.parser(__doc__ or "")
    parser.add_argument("--widths", default="128,512,2048", help="comma list")
    parser.add_argument("--rounds", type=int, default=60, help="of each side")
    options = parser.parse_args(arguments)
    widths = [int(width) for width in options.widths.split(",") if width.isdecimal() and int(width)]
    if not widths or options.rounds < 2:
        parser.error("--widths takes positive numbers such as 128,512, and --rounds must be at least 2")
    found = measure(widths, options.rounds)
    reporting.finish("norm", QUESTION, [table(found)], found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
