"""Temporary memory of one attention layer's gradient against the length of the text, by back-end.

    python -m benchmarks.attention_memory [--backends=reference,fused,flash] [--lengths=512,...,8192] [--json=FILE]

Nothing is run: each program is compiled, and the compiler says how much memory it needs beside inputs and outputs
(`memory_analysis`). The growth is the slope of log(bytes) over log(length), fitted by least squares: 1 is linear,
2 is quadratic. One sequence, one head 64 wide, float32, causal, forward and backward. What is quadratic may show a
smaller growth here: from some size on the compiler prefers an order of operations that holds fewer arrays at once.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from benchmarks import reporting
from benchmarks.reporting import Table

QUESTION = "How does the temporary memory of attention grow with the length of the text?"
LENGTHS = (512, 1024, 2048, 4096, 8192)
WIDTH = 64


def temporary_bytes(backend: str, length: int) -> int:
    """Bytes the compiled gradient needs beside its inputs and outputs."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from transformer.config import apply_overrides, default_config, resolve
    from transformer.model.attention import Attention
    from transformer.model.context import Context
    from transformer.model.masks import Mask
    from transformer.model.positions import NoPosition

    shape = {"model.d_model": WIDTH, "model.attention.num_heads": 1, "model.attention.backend": backend}
    config = resolve(apply_overrides(default_config(), shape))
    structure, params = nnx.split(nnx.eval_shape(lambda: Attention(config.model)))

    def loss(params: Any, x_BTD: jax.Array) -> jax.Array:
        positions_BT = jnp.arange(length, dtype=jnp.int32)[None]
        context = Context(positions_BT=positions_BT, mask=Mask(in_order=True), position=NoPosition(config))
        return jnp.square(nnx.merge(structure, params)(x_BTD, context)).sum()

    x_BTD = jax.ShapeDtypeStruct((1, length, WIDTH), jnp.float32)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x_BTD).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def growth(lengths: list[int], sizes: list[int]) -> float:
    """The exponent e of bytes ~ length^e."""
    return float(np.polyfit(np.log(lengths), np.log(sizes), 1)[0])


def table(result: dict[str, Any]) -> Table:
    """MiB by length and back-end, and the growth."""
    rows = [
        (name, *(f"{size / 2**20:.1f}" for size in row["bytes"]), f"{row['growth']:.2f}")
        for name, row in result["backends"].items()
    ]
    columns = ("back-end", *(f"{length:,} tokens" for length in result["lengths"]), "growth")
    return Table(
        "MiB of temporary memory of one layer's gradient", columns, tuple(rows), "As the CPU's compiler plans it."
    )


def main(arguments: list[str] | None = None) -> int:
    """Compiles, prints and stores; returns the exit code."""
    from transformer.model.attention_backends import BACKENDS

    parser = reporting.parser(__doc__ or "")
    parser.add_argument("--backends", default=",".join(BACKENDS), help="comma list")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="comma list, two at least")
    options = parser.parse_args(arguments)
    names, lengths = options.backends.split(","), [int(n) for n in options.lengths.split(",")]
    if unknown := [name for name in names if name not in BACKENDS]:
        parser.error(f"--backends={unknown[0]} is not one of: {', '.join(BACKENDS)}")
    if len(set(lengths)) < 2 or min(lengths) < 1:
        parser.error(f"--lengths={options.lengths} must hold two different positive numbers at least")

    result: dict[str, Any] = {"lengths": lengths, "backends": {}}
    for name in names:
        sizes = [temporary_bytes(name, n) for n in lengths]
        result["backends"][name] = {"bytes": sizes, "growth": growth(lengths, sizes)}
    reporting.finish("attention_memory", QUESTION, [table(result)], result, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
