"""Models small enough to test every variant in seconds, and the few things most tests do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from transformer.config import resolve, schema
from transformer.model import build, declare
from transformer.model.initialization import path_name
from transformer.schema import Config

VOCAB, LENGTH, BATCH = 11, 8, 4
OVERRIDES: dict[str, Any] = {
    "model.d_model": 16,
    "model.num_layers": 2,
    "model.attention.num_heads": 2,
    "model.vocab_size": VOCAB,
    # Larger than the default, so that a narrow model's weights still shape its outputs.
    "model.init.std": 0.3,
    "data.sequence_length": LENGTH,
    "train.steps": 8,
    "train.batch_size": BATCH,
    "optimizer.warmup_steps": 2,
    "optimizer.learning_rate": 0.01,
}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """{dotted path: value} -> nested dicts, as a config file would write them."""
    out: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return out


def tiny(overrides: dict[str, Any] | None = None) -> Config:
    """The tiny config with dotted fields changed."""
    return resolve(nested({**OVERRIDES, **(overrides or {})}))


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """Random token ids [batch, length]."""
    return np.random.default_rng(seed).integers(0, VOCAB, (batch, length), dtype=np.int32)


def logits(config: Config, **arguments: Any) -> np.ndarray:
    """Logits [2, T, V] of the config's initial weights for fixed tokens."""
    return np.asarray(build(config)(tokens(), **arguments))


def named(tree: Any) -> dict[str, Any]:
    """Leaves by dotted name."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def params_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters of a model as arrays, by dotted name."""
    return {
        name: np.asarray(leaf) for name, leaf in named(nnx.to_pure_dict(nnx.state(model, nnx.Param))).items()
    }


def declared(config: Config) -> dict[str, tuple[tuple[int, ...], str, str]]:
    """(shape, dtype, role) of every parameter of a config, by dotted name; nothing is drawn."""
    state = nnx.state(declare(config), nnx.Param)
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return {
        path_name(path): (
            variable.get_value().shape,
            config.numerics.param_dtype,
            variable.get_metadata()["role"],
        )
        for path, variable in leaves
    }


def variants(*prefixes: str, skip: Callable[[str, str], bool] = lambda path, kind: False) -> list[Any]:
    """Every (path, kind) of the choice fields under `prefixes`: new entries join the tests by being registered."""
    return [
        (info.path, kind)
        for info in schema()
        if info.path.startswith(prefixes)
        for kind in info.kinds
        if not skip(info.path, kind)
    ]
