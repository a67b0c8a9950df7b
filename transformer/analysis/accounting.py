"""What a model costs: parameters by component, operations per token, bytes; for any variant, nothing allocated.

python -m transformer.analysis.accounting --config=FILE[:arm] [--config.FIELD=VALUE ...]
"""

from __future__ import annotations

import collections
import contextlib
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from transformer.analysis import flops, memory
from transformer.analysis.flops import Operations
from transformer.errors import UserError
from transformer.model import declare, split
from transformer.model.initialization import path_name
from transformer.schema import Config

if TYPE_CHECKING:
    from transformer.training.step import Program

# Parts of a path that say which stack or block a parameter belongs to, rather than what it is.
STACKS = ("encoder", "decoder")


def parameters_by_component(params: Any) -> dict[str, int]:
    """Number of parameters by component, blocks and stacks summed: {"embedding": ..., "attention": ..., ...}."""
    counts: collections.Counter[str] = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts = path_name(path).split(".")
        parts = parts[1:] if parts[0] in STACKS else parts
        component = parts[2] if parts[0] == "blocks" else parts[0]
        in_norm = any(part.endswith("norm") for part in parts)
        counts["norm" if in_norm else component] += math.prod(leaf.shape)
    return dict(counts)


def declared_components(config: Config, vocab_size: int = 0) -> dict[str, int]:
    """`parameters_by_component` of a config; nothing is drawn, so any size takes a moment.

    Args:
      vocab_size: see `vocabulary_size`.
    """
    _, params, _ = split(declare(config, vocabulary_size(config, vocab_size)))
    return parameters_by_component(nnx.to_pure_dict(params))


def forward_operations(program: Program) -> Operations:
    """Operations per token of the forward pass and its loss, traced (see `flops`)."""

    def forward(state: Any, batch: Any) -> Any:
        return program.objective.losses(program.model(state), batch, None, train=False)

    return flops.count(forward, program.abstract_state, program.abstract_prepared) / _tokens(program)


def train_operations(program: Program) -> Operations:
    """Operations per token of a training step, forward, backward and update, traced (see `flops`).

    Tracing takes about a quarter of a second for a small model. The update is elementwise work, once a batch.
    """
    return flops.count_program(program.traced_step()) / _tokens(program)


def _tokens(program: Program) -> int:
    return program.config.train.batch_size * program.layout.length


@functools.lru_cache(maxsize=256)
def train_flops_per_token(config: Config, vocab_size: int = 0) -> float:
    """Floating-point operations of one training token, forward and backward: those of matrix products, as is usual.

    Without recomputation or other additions that is 6 per weight of a product and, for scores and mixed values over
    the full square, 12 * layers * sequence_length * heads * head_dim (Kaplan et al. 2020, table 1).

    Args:
      vocab_size: see `vocabulary_size`.
    """
    return train_operations(make_program(config, vocab_size)).products


def make_program(config: Config, vocab_size: int = 0) -> Program:
    """The program of a config without its data.

    Args:
      vocab_size: see `vocabulary_size`.
    """
    import numpy as np

    from transformer.training.step import Program

    rows = vocabulary_size(config, vocab_size)
    return Program(config, rows, np.ones(rows, np.int32))


def vocabulary_size(config: Config, of_data: int = 0) -> int:
    """Rows of the embedding without reading the data: as many as the config says, or else its data.

    Args:
      of_data: size of their vocabulary where it is known; 0: that of a task's symbols, or of bytes.
    """
    from transformer.data.corpora import SOURCES
    from transformer.data.tasks import make_task
    from transformer.data.vocabularies import Bytes
    from transformer.training.objectives import layout_of

    if known := config.model.vocab_size or of_data:
        return known
    is_task = "drawn" in SOURCES[config.data.source].traits
    vocabulary = make_task(config.data).vocabulary if is_task else Bytes()
    return vocabulary.with_specials(layout_of(config).specials).size


# --- On the screen -----------------------------------------------------------------------------------------------

USAGE = """usage: python -m transformer.analysis.accounting --config=FILE[:arm] [--config.FIELD=VALUE ...]

Shows what a config costs: parameters by component, operations per token, bytes. Nothing is trained or allocated."""


# Title, column names, rows.
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def report(config: Config) -> list[Table]:
    """Every table that the command shows.

    A config that leaves the vocabulary to its text is counted with the bytes as vocabulary.
    """
    program = make_program(config)
    state, forward, train = program.abstract_state, forward_operations(program), train_operations(program)
    components = parameters_by_component(state.params)
    parameters = sum(components.values())
    tables: list[Table] = [
        (
            f"parameters (vocabulary of {program.vocab_size:,})",
            ("component", "parameters", "share"),
            [
                *((name, f"{n:,}", f"{n / parameters:.1%}") for name, n in sorted(components.items(), key=_by_size)),
                ("all", f"{parameters:,}", ""),
            ],
        )
    ]
    rows: list[tuple[str, ...]] = [
        (name, _number(getattr(forward, field)), _number(getattr(train, field)))
        for name, field in (
            ("matrix products", "products"),
            ("elementwise", "elementwise"),
            ("transcendental functions", "transcendental"),
            ("all", "total"),
        )
    ]
    for name in sorted(forward.opaque | train.opaque):
        rows.append((f"{name}: not counted", "?", "?"))
    tables.append(
        (
            f"floating-point operations per token, rows of {program.layout.length:,}",
            ("", "forward", "training step"),
            rows,
        )
    )
    return [*tables, _bytes(program)]


def _bytes(program: Program) -> Table:
    """The table of bytes."""
    config, state = program.config, program.abstract_state
    rows = {
        "weights": memory.state_bytes(state.params),
        "gradients": memory.state_bytes(state.params) * (2 if config.train.accumulate > 1 else 1),  # and their sum
        "optimizer": memory.state_bytes(state.optimizer),
        "kept for the backward pass": memory.saved_bytes(program),
    }
    rows["training step, together"] = sum(rows.values())
    with contextlib.suppress(UserError):  # not every model can decode with a cache
        rows["keys and values of one window"] = memory.cache_bytes(program)
    micro = config.train.batch_size // config.train.accumulate
    title = f"bytes ({config.numerics.param_dtype} weights, {config.numerics.compute_dtype} activations, batch {micro})"
    return title, ("", "bytes", ""), [(name, f"{size:,}", human_bytes(size)) for name, size in rows.items()]


def human_bytes(size: float) -> str:
    """`512 B`, `1.5 MiB`, `326 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.3g} TiB"


def _number(x: float) -> str:
    return f"{x:,.0f}" if x < 1e7 else f"{x:.4g}"


def _by_size(item: tuple[str, int]) -> int:
    return -item[1]


def main() -> int:
    from rich.console import Console
    from rich.table import Table as Grid

    from transformer import command_line

    console = Console()
    for title, columns, rows in report(command_line.config_from_flag().config):
        table = Grid(title=title, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    return 0


if __name__ == "__main__":
    from transformer import command_line

    command_line.define_config_flag()
    command_line.run(main, USAGE)
