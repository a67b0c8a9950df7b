"""What two arms differ in beside what they were meant to: config, parameter tree, weight decay, initial weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from transformer.config import difference
from transformer.model import declare, init_seed, split
from transformer.model.initialization import initialize, path_name, roles
from transformer.schema import Config
from transformer.training.optimizer import decay_mask


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One leaf: its shape, whether it decays, and its initial numbers."""

    shape: tuple[int, ...]
    decays: bool
    initial: np.ndarray


@functools.lru_cache(maxsize=2)  # the baseline is compared with one arm after another
def parameters(config: Config) -> dict[str, Parameter]:
    """Every parameter of a config by name, with the initial numbers of its seed."""
    _, declared, _ = split(declare(config))
    initial = _by_name(initialize(declared, config, init_seed(config)))
    decays = _by_name(decay_mask(roles(declared)))
    return {name: Parameter(value.shape, decays[name], np.asarray(value)) for name, value in initial.items()}


def compare(base: Config, arm: Config) -> dict[str, Any]:
    """The confound diff of the report: what an arm changes against its baseline."""
    left, right = parameters(base), parameters(arm)
    common = [name for name in left if name in right]
    same_shape = [name for name in common if left[name].shape == right[name].shape]
    return {
        "config": [[path, a, b] for path, (a, b) in difference(base, arm).items()],
        "parameters_only_base": [f"{n} {list(p.shape)}" for n, p in left.items() if n not in right],
        "parameters_only_arm": [f"{n} {list(p.shape)}" for n, p in right.items() if n not in left],
        "shape_changed": [
            f"{n} {list(left[n].shape)} -> {list(right[n].shape)}" for n in common if n not in set(same_shape)
        ],
        "decay_changed": [n for n in common if left[n].decays != right[n].decays],
        "init_changed": [n for n in same_shape if not np.array_equal(left[n].initial, right[n].initial)],
    }


def _by_name(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
