"""Models small enough to test every variant in seconds, and the few things most tests do with them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from transformer.config import FieldInfo, resolve, schema
from transformer.data.tasks import TASKS
from transformer.model import build, declare
from transformer.model.cross_attention import CROSS_ATTENTIONS
from transformer.model.heads import POOLINGS
from transformer.model.initialization import path_name
from transformer.model.positions import OUT_OF_RANGE
from transformer.model.residual import BRANCH_GAINS
from transformer.registry import Registry
from transformer.schema import Config, registry_of

VOCAB, LENGTH, BATCH = 11, 8, 4
CROSS_GAINS = "model.residual.cross_attention."
OVERRIDES: dict[str, Any] = {
    "model.d_model": 16,
    "model.num_layers": 2,
    "model.attention.num_heads": 2,
    "model.vocab_size": VOCAB,
    # Larger than the default, so that a narrow model's weights shape its outputs.
    "model.init.std": 0.3,
    "data.sequence_length": LENGTH,
    "train.steps": 8,
    "train.batch_size": BATCH,
    "optimizer.warmup_steps": 2,
    "optimizer.learning_rate": 0.01,
}

FAMILY_OF_OBJECTIVE = {
    "mlm": "encoder",
    "prefix": "prefix_decoder",
    "seq2seq": "encoder_decoder",
    "span": "encoder_decoder",
    "denoise": "encoder_decoder",
}

# What an entry cannot be without.
NEEDED: dict[tuple[str, Any], dict[str, Any]] = {
    **{("data.source", kind): {"data.path": "somewhere.txt"} for kind in ("text", "pairs", "labelled")},
    ("data.source", "tfds"): {"data.tfds_name": "some_corpus"},
    **{("objective.kind", kind): {"model.family": family} for kind, family in FAMILY_OF_OBJECTIVE.items()},
    **{("objective.kind", kind): {"model.head.kind": kind} for kind in ("classify", "tag")},
    ("objective.kind", "next_sentence"): {"model.family": "encoder", "model.head.kind": "classify"},
    ("objective.mask_rate_kind", "uniform"): {"model.family": "encoder", "objective.kind": "mlm"},
    ("objective.mask_replacement", "mask"): {"model.family": "encoder", "objective.kind": "mlm"},
    **{("data.task", kind): {"data.source": "task"} for kind in TASKS},
    ("data.task_layout", "pair"): {"data.source": "task"},
    ("data.task_layout", "label"): {"data.source": "task", "data.task": "majority"},
    ("data.task_layout", "tag"): {"data.source": "task", "data.task": "homonym"},
    **{("model.position.out_of_range", kind): {"model.position.kind": "learned"} for kind in OUT_OF_RANGE},
    **{("model.head.pooling", kind): {"model.head.kind": "classify"} for kind in POOLINGS},
    **{("model.cross_attention", kind): {"model.family": "encoder_decoder"} for kind in CROSS_ATTENTIONS},
    **{(CROSS_GAINS + "branch_gain", kind): {"model.family": "encoder_decoder"} for kind in BRANCH_GAINS},
    **{("data.too_long", kind): {"data.source": "pairs", "data.path": "somewhere.txt"} for kind in ("drop", "cut")},
}
del NEEDED["model.position.out_of_range", "error"]  # the default

# What reads a field that nothing reads beside the defaults.
READ_BY: dict[str, dict[str, Any]] = {
    "data.source_length": {"model.family": "encoder_decoder"},
    "data.too_long": NEEDED["data.too_long", "drop"],
}

# Kinds that are refused whatever they are set together with, and the sentence that says so.
REFUSED = {(CROSS_GAINS + "skip_gain", "deepnorm"): "alpha is that of a single stack"}

# Schemes that draw by the shape of a parameter and refuse a standard deviation of their own.
SHAPE_BASED = ("lecun", "lecun_depth", "xavier", "fixup", "deepnorm")

# Without what an entry does not show in a model this small, or does not go with OVERRIDES.
SHOWN: dict[tuple[str, Any], dict[str, Any]] = {
    ("model.position.kind", "t5"): {"model.position.t5_buckets": 8},
    ("model.head.pooling", "cls"): {"model.family": "encoder"},  # the first token of a decoder sees nothing else
    ("model.position.rope_scaling", "dynamic_ntk"): {"model.position.rope_original_length": LENGTH // 2},
    **{("model.init.scheme", kind): {"model.init.std": 0.02} for kind in SHAPE_BASED},
}


def company(path: str, kind: Any) -> dict[str, Any]:
    """What an entry is set together with."""
    return {**NEEDED.get((path, kind), {}), **SHOWN.get((path, kind), {})}


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


def one_switch(*prefixes: str) -> list[dict[str, Any]]:
    """Overrides that set one choice field under `prefixes` to an entry that is not its default, for every such entry:
    a new entry joins the tests by being registered."""
    return [
        {info.path: kind, **company(info.path, kind)}
        for info in schema()
        if info.path.startswith(prefixes)
        for kind in info.kinds
        if kind != info.default and (info.path, kind) not in REFUSED
    ]


def registry(path: str) -> Registry | None:
    """The registry of a field, if it is a choice."""
    *parents, leaf = path.split(".")
    return registry_of(type(functools.reduce(getattr, parents, Config())), leaf)


def traits(overrides: dict[str, Any]) -> frozenset[str]:
    """The traits of all entries that overrides choose."""
    chosen = [(registry(path), kind) for path, kind in overrides.items()]
    return frozenset().union(*(entries[kind].traits for entries, kind in chosen if entries))


def nudged(model: nnx.Module) -> nnx.Module:
    """The model with numbers where its parameters are zero, so that no part is silent."""
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    flat = jax.tree.map(
        lambda x: x if np.any(x) else 0.3 + 0.2 * np.sin(1 + np.arange(x.size)).reshape(x.shape), params
    )
    return nnx.merge(structure, flat, rest)


def label(overrides: dict[str, Any]) -> str:
    """A test id."""
    return ",".join(f"{path.removeprefix('model.')}={value}" for path, value in overrides.items()) or "default"


# Second valid values of fields whose type alone does not tell one; the first that differs is taken.
OTHER: dict[str, tuple[Any, ...]] = {
    "init_seed": (7,),
    "data_seed": (7,),
    "data.task_prime": (11,),
    "data.task_position": (0.5,),
    "model.d_model": (24,),
    "model.attention.num_heads": (4, 2),
    "model.attention.head_dim": (6,),
    "model.position.max_length": (300,),
    "model.position.t5_buckets": (16,),
    "model.position.t5_max_distance": (6,),
    "model.dropout": (0.5,),
    "model.residual.attention.branch_gain": ("learned_zero",),
    "model.residual.cross_attention.skip_gain": (0.5,),
    "model.vocab_size": (13,),
    "train.accumulate": (2,),
    "optimizer.warmup_steps": (3,),
}


def readers(info: FieldInfo) -> tuple[str, list[str]]:
    """The choice field, and the kinds of it, that read a parameter."""
    path, kinds = info.used_by.split(" or ")[0].split("=")
    return path, kinds.split("|")


def other_value(info: FieldInfo, base: dict[str, Any] = OVERRIDES) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two sets of overrides on top of `base` that differ in one field: without and with another value of it. Both
    choose the kind that reads the field."""
    context = READ_BY.get(info.path, {})
    if info.used_by:
        path, kinds = readers(info)
        context = {path: kinds[0], **company(path, kinds[0])}
    current = {**base, **context}.get(info.path, info.default)
    if info.path in OTHER:
        value = next(value for value in OTHER[info.path] if value != current)
    elif info.kinds:
        value = next(kind for kind in (*info.kinds[1:], info.kinds[0]) if kind != current)
    elif isinstance(current, bool):
        value = not current
    elif isinstance(current, int):
        value = current + 1
    elif isinstance(current, float):
        value = current / 2 if current else 0.25
    elif isinstance(current, tuple):
        value = ("tag",)
    else:
        value = "another"
    return context, {**context, info.path: value, **company(info.path, value)}


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """Random token ids [batch, length]."""
    return np.random.default_rng(seed).integers(0, VOCAB, (batch, length), dtype=np.int32)


def called(model: nnx.Module, config: Config, batch: int = 2) -> Callable[..., Any]:
    """The model as a function of target tokens: what its family takes beside them is bound to fixed values."""
    beside = {
        "prefix_decoder": {"prefix_length_B": np.full(batch, 3, np.int32)},
        "encoder_decoder": {"source_BS": tokens(batch, LENGTH - 3, seed=9)},
    }
    return functools.partial(model, **beside.get(config.model.family, {}))


def logits(config: Config, **arguments: Any) -> np.ndarray:
    """Logits [2, T, V] of the config's initial weights for fixed tokens."""
    return np.asarray(called(build(config), config)(tokens(), **arguments))


def named(tree: Any) -> dict[str, Any]:
    """Leaves by dotted name."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def initial(config: Config, seed: int | None = None) -> dict[str, np.ndarray]:
    """The initial weights of a config as arrays, by dotted name."""
    model = build(config, seed=seed)
    return {name: np.asarray(leaf) for name, leaf in named(nnx.to_pure_dict(nnx.state(model, nnx.Param))).items()}


def declared(config: Config) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, role) of every parameter of a config, by dotted name; nothing is drawn."""
    state = nnx.state(declare(config), nnx.Param)
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return {path_name(path): (variable.get_value().shape, variable.role) for path, variable in leaves}
