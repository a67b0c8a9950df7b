"""ConfigDict in, validated `Config` out; and a `Config` as data: flat, nested, hashed, compared.

Neither this module nor the schema imports jax or flax; only asking a registry for its kinds does.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformer.errors import ConfigError, did_you_mean
from transformer.registry import Entry, until_registered
from transformer.schema import Config, Model, Section, entry_parameters, registry_of

SCHEMA_VERSION = 1

# Fields that decide where and how often things are written, never what the numbers are.
VIEW_FIELDS = frozenset(
    f"train.{name}"
    for name in (
        [
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
            "steps_per_call",
            "profile_step",
            "profile_steps",
        ]
    )
) | {"tensorboard", "eval.batch_size", "data.feed"}
VIEW_SECTIONS = ("wandb", "decode")


# --- The leaves of the schema ------------------------------------------------------------------------------------


def _own_fields(cls: type) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(cls) if f.name != "options"]


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """One leaf of the schema, as `--help` lists it."""

    path: str
    type: Any
    default: Any
    help: str
    kinds: tuple[str, ...] = ()
    used_by: str = ""


def schema(cls: type = Config, prefix: str = "") -> Iterator[FieldInfo]:
    """All leaves of the schema in order, those of registry entries included."""
    for f in _own_fields(cls):
        path, hint = prefix + f.name, _hints(cls)[f.name]
        if isinstance(hint, type) and issubclass(hint, Section):
            for info in schema(hint, path + "."):
                yield dataclasses.replace(info, used_by=info.used_by or f.metadata["only_with"])
            continue
        registry = registry_of(cls, f.name)
        yield FieldInfo(path, hint, f.default, f.metadata["help"], tuple(registry or ()))
    for name, (parameter, readers) in entry_parameters(cls).items():
        used_by = " or ".join(f"{prefix}{field}={'|'.join(sorted(kinds))}" for field, kinds in readers.items())
        hint = _hints(_declaring(cls, name))[name]
        kinds = tuple(registry_of(cls, name) or ())
        yield FieldInfo(prefix + name, hint, parameter.default, parameter.metadata["help"], kinds, used_by)


def _declaring(cls: type, name: str) -> type:
    """The parameter dataclass that declares `name` in section `cls`."""
    for choice_field in [*(f.name for f in _own_fields(cls)), *entry_parameters(cls)]:
        for entry in (registry_of(cls, choice_field) or {}).values():
            if entry.parameters and name in {p.name for p in dataclasses.fields(entry.parameters)}:
                return entry.parameters
    raise KeyError(name)


# --- The two stacks of an encoder-decoder ------------------------------------------------------------------------

STACKS = ("encoder", "decoder")
# Fields of `model` that both stacks have in common, or that belong to the model as a whole.
COMMON = ("model.family", "model.d_model", "model.vocab_size", "model.cross_attention", "model.share_embedding")
COMMON_SECTIONS = ("model.init.", "model.head.", "model.embedding.tie", "model.embedding.logit_scale")


@until_registered
def stack_fields() -> dict[str, FieldInfo]:
    """`model.encoder.*` and `model.decoder.*`: each field of `model` once more for one stack, unset by default."""
    found, fields = {}, list(schema())
    for stack in STACKS:
        for info in fields:
            if info.path.startswith("model.") and not info.path.startswith((*COMMON, *COMMON_SECTIONS)):
                path = f"model.{stack}.{info.path.removeprefix('model.')}"
                found[path] = dataclasses.replace(info, path=path, default=None)
    return {
        path: info for path, info in found.items() if not path.startswith("model.encoder.residual.cross_attention.")
    }


@until_registered
def known_fields() -> Mapping[str, FieldInfo]:
    """Every field that can be set, by its path."""
    return types.MappingProxyType({**{info.path: info for info in schema()}, **stack_fields()})


def unknown_field(path: str) -> ConfigError:
    """The error for a field that does not exist."""
    known = known_fields()
    for stack in STACKS:
        common = path.replace(f"model.{stack}.", "model.", 1)
        if common != path and common in known:
            return ConfigError(f'There is no config field "{path}": {common} cannot differ between the two stacks.')
    return ConfigError(f'There is no config field "{path}".{did_you_mean(path, known) or " See train.py --help."}')


def stack_config(config: Config, stack: str) -> Config:
    """The config of one stack of an encoder-decoder: `model.<stack>.*` laid over `model`.

    The encoder's is that of the encoder family, and its texts are as long as sources are. What nothing in this stack
    reads is dropped from `model`.

    Raises:
      ConfigError: an impossible combination within the stack.
    """
    flat, own = to_flat(config), f"model.{stack}."
    values = {path: value for path, value in flat.items() if path not in stack_fields()}
    overrides = {
        "model." + p.removeprefix(own): v for p, v in flat.items() if p in stack_fields() and p.startswith(own)
    }
    if stack == "encoder":
        values["model.family"] = "encoder"
        values["data.sequence_length"] = values.pop("data.source_length") or flat["data.sequence_length"]
        values = {path: v for path, v in values.items() if not path.startswith("model.residual.cross_attention.")}
    try:
        inherited, laid = values.keys() - overrides.keys(), {**values, **overrides}
        built = _build(Config, "", laid, inherited)
        if unread := _unread(built).keys() & inherited:
            built = _build(Config, "", {path: value for path, value in laid.items() if path not in unread}, inherited)
        _check(built, "model.")
    except ConfigError as error:
        raise ConfigError(f"In the {stack} (model.{stack}.* over model.*): {error}") from None
    return built


def stack_models(config: Config) -> dict[str, Any]:
    """The `model` section behind each parameter, by the first part of its path; "" is any other part."""
    if config.model.family != "encoder_decoder":
        return {"": config.model}
    return {"": stack_config(config, "decoder").model, "encoder": stack_config(config, "encoder").model}


# --- ConfigDict in, Config out -----------------------------------------------------------------------------------


def default_config() -> Any:
    """The defaults as a locked `ml_collections.ConfigDict`, ready to be overridden by name."""
    from ml_collections import config_dict

    config = config_dict.ConfigDict()
    for info in known_fields().values():
        node = config
        *parents, leaf = info.path.split(".")
        for parent in parents:
            if parent not in node:
                node[parent] = config_dict.ConfigDict()
            node = node[parent]
        is_union = typing.get_origin(info.type) in (typing.Union, types.UnionType)
        wanted = object if is_union else info.type
        typed = is_union or info.default is None
        node[leaf] = config_dict.FieldReference(info.default, field_type=wanted) if typed else info.default
    return config.lock()


def apply_overrides(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Sets dotted fields on a ConfigDict in place and returns it.

    Raises:
      ConfigError: an unknown field or a value of the wrong type.
    """
    known = known_fields()
    for path, value in overrides.items():
        if path not in known:
            raise unknown_field(path)
        *parents, leaf = path.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[leaf] = _coerce(value, known[path])
    return config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mapping (ConfigDict, dict) -> {dotted path: value}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) or hasattr(value, "to_dict"):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _coerce(value: Any, info: FieldInfo) -> Any:
    """Checks a value against the field's type; ints pass as floats, lists as tuples, and `a,b` as two texts of one."""
    allowed = typing.get_args(info.type) if typing.get_origin(info.type) in (typing.Union, types.UnionType) else ()
    allowed = tuple(typing.get_origin(t) or t for t in (allowed or (info.type,)))
    if tuple in allowed and isinstance(value, list | tuple):
        parts = (item.split(",") if isinstance(item, str) else [item] for item in value)
        return tuple(part for split in parts for part in split if part != "")
    if isinstance(value, bool) and bool not in allowed:
        pass
    elif isinstance(value, allowed):
        return value
    elif float in allowed and isinstance(value, int):
        return float(value)
    elif int in allowed and isinstance(value, float) and value.is_integer():
        return int(value)
    wanted = " or ".join(t.__name__ for t in allowed)
    raise ConfigError(f"{info.path}={value!r} has the wrong type: it takes {wanted} (default {info.default!r}).")


def resolve(config: Any, inherited: Collection[str] = ()) -> Config:
    """Validates a ConfigDict or nested dict once and returns the frozen `Config`.

    Args:
      inherited: fields that give way in silence where nothing reads them.

    Raises:
      ConfigError: an unknown field, kind or type, a parameter no chosen kind reads, an impossible combination.
    """
    known = known_fields()
    values: dict[str, Any] = {}
    for path, value in flatten(config).items():
        if path not in known:
            raise unknown_field(path)
        if value is not None or path not in stack_fields():  # an unset field of a stack
            values[path] = _coerce(value, known[path])
    resolved = _build(Config, "", values, inherited)
    _check(resolved)
    if resolved.model.family == "encoder_decoder":
        here, there = (_unread(stack_config(resolved, stack)) for stack in STACKS)
        _refuse(to_flat(resolved), {field: chosen for field, chosen in here.items() if field in there})
    return resolved


def _build(cls: type, prefix: str, values: Mapping[str, Any], inherited: Collection[str] = ()) -> Any:
    """One section with everything below it; `inherited` values give way in silence where nothing reads them."""
    built: dict[str, Any] = {}
    for f in _own_fields(cls):
        hint = _hints(cls)[f.name]
        if isinstance(hint, type) and issubclass(hint, Section):
            built[f.name] = _build(hint, f"{prefix}{f.name}.", values, inherited)
        else:
            built[f.name] = values.get(prefix + f.name, f.default)
            registry = registry_of(cls, f.name)
            if registry is not None:
                registry.find(built[f.name], prefix + f.name)  # raises for an unknown kind
    options, chosen = [], dict(built)
    for name, (parameter, readers) in entry_parameters(cls).items():
        value = values.get(prefix + name, parameter.default)
        registry = registry_of(cls, name)
        if registry is not None:
            registry[value]  # raises for an unknown kind
        read = any(chosen.get(choice_field) in kinds for choice_field, kinds in readers.items())
        if read:
            chosen[name] = value
            if value != parameter.default:
                options.append((name, value))
        elif value != parameter.default and prefix + name not in inherited:
            choice_field, kinds = next(iter(readers.items()))
            found = f"it is {chosen[choice_field]!r}" if choice_field in chosen else "that one has no effect here"
            raise ConfigError(
                f"{prefix}{name}={value!r} has no effect: only {prefix}{choice_field}="
                f"{' or '.join(sorted(kinds))} reads it, and {found}. Remove one of the two."
            )
    if cls is Model:
        options += [(p.removeprefix(prefix), values[p]) for p in stack_fields() if p in values]
    return cls(**built, options=tuple(options))


def _check(config: Config, under: str = "") -> None:
    """Combinations the types alone do not exclude.

    Args:
      under: checks of entries are made in this section only.
    """
    model, train, data, optimizer = config.model, config.train, config.data, config.optimizer
    attention = model.attention
    at_least_one: dict[str, float] = {
        "model.d_model": model.d_model,
        "model.attention.num_heads": attention.num_heads,
        "data.sequence_length": data.sequence_length,
        "train.steps": train.steps,
        "train.batch_size": train.batch_size,
        "train.accumulate": train.accumulate,
        "train.log_every": train.log_every,
        "train.keep_checkpoints": train.keep_checkpoints,
        "eval.tokens": config.eval.tokens,
        "train.profile_steps": train.profile_steps,
        "devices.data": config.devices.data,
        "devices.fsdp": config.devices.fsdp,
    }
    not_negative: dict[str, float] = {
        "model.num_layers": model.num_layers,
        "model.attention.head_dim": attention.head_dim,
        "model.attention.num_kv_heads": attention.num_kv_heads,
        "model.attention.value_dim": attention.value_dim,
        "model.attention.soft_cap": attention.soft_cap,
        "model.attention.window": attention.window,
        "model.norm.epsilon": model.norm.epsilon,
        "optimizer.final_fraction": optimizer.final_fraction,
        "optimizer.epsilon": optimizer.epsilon,
        "eval.batch_size": config.eval.batch_size,
        "eval.final_tokens": config.eval.final_tokens,
        "train.profile_step": train.profile_step,
        "model.vocab_size": model.vocab_size,
        "model.ffn.ratio": model.ffn.ratio,
        "objective.logits_chunk": config.objective.logits_chunk,
        "train.eval_every": train.eval_every,
        "train.checkpoint_every": train.checkpoint_every,
        "train.steps_per_call": train.steps_per_call,
        "optimizer.learning_rate": optimizer.learning_rate,
        "optimizer.weight_decay": optimizer.weight_decay,
        "optimizer.clip": optimizer.clip,
        "decode.max_new_tokens": config.decode.max_new_tokens,
    }
    fractions = {
        "model.dropout": model.dropout,
        "objective.label_smoothing": config.objective.label_smoothing,
        "optimizer.beta1": optimizer.beta1,
        "optimizer.beta2": optimizer.beta2,
    }
    flat = to_flat(config)
    for path, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}={value} must be a finite number.")
    for path, value in at_least_one.items():
        if value < 1:
            raise ConfigError(f"{path}={value} must be at least 1.")
    for path, value in not_negative.items():
        if not value >= 0:
            raise ConfigError(f"{path}={value} must not be negative.")
    for path, value in fractions.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{path}={value} must be at least 0 and below 1.")
    if model.ffn.kind != "none" and round(model.ffn.ratio * model.d_model) < 1:
        raise ConfigError(
            f"model.ffn.ratio={model.ffn.ratio} leaves no hidden unit; to remove it use model.ffn.kind=none."
        )
    if optimizer.warmup_steps < -1:
        raise ConfigError(f"optimizer.warmup_steps={optimizer.warmup_steps} must be -1 (4% of the run), 0 or more.")
    if not 0 <= optimizer.decay_fraction <= 1:
        raise ConfigError(f"optimizer.decay_fraction={optimizer.decay_fraction} must be from 0 to 1.")
    if not attention.head_dim and model.d_model % attention.num_heads:
        raise ConfigError(
            f"model.d_model={model.d_model} is not divisible by model.attention.num_heads={attention.num_heads}; "
            "change one, or set model.attention.head_dim."
        )
    if attention.num_heads % (attention.num_kv_heads or attention.num_heads):
        raise ConfigError(
            f"model.attention.num_heads={attention.num_heads} is not divisible by "
            f"model.attention.num_kv_heads={attention.num_kv_heads}: every key-value head serves equally many queries."
        )
    if train.batch_size % train.accumulate:
        raise ConfigError(
            f"train.batch_size={train.batch_size} is not divisible by train.accumulate={train.accumulate}."
        )
    devices = config.devices.data * config.devices.fsdp
    for path, rows in (
        ("train.batch_size / train.accumulate", train.batch_size // train.accumulate),
        ("eval.batch_size", config.eval.batch_size),
    ):
        if rows % devices:
            raise ConfigError(
                f"{path}={rows} is not divisible by devices.data x devices.fsdp = {devices}: every device takes "
                "equally many rows."
            )
    if optimizer.warmup_steps > train.steps:
        raise ConfigError(
            f"optimizer.warmup_steps={optimizer.warmup_steps} is longer than train.steps={train.steps}: "
            "the learning rate would never reach its peak. Shorten the warm-up or train longer."
        )
    stacks = [path for path in flat if path in stack_fields()]
    if stacks and model.family != "encoder_decoder":
        raise ConfigError(
            f"{stacks[0]} has no effect: only model.family=encoder_decoder has two stacks, and it is {model.family!r}. "
            "Remove one of the two."
        )
    for path, cls, node in _sections(config):
        if not path.startswith(under):
            continue
        changed = [f for f in _own_fields(cls) if getattr(node, f.name) != f.default]
        if changed and not _is_read(path, flat):
            field, kinds = only_with_of(path).split("=")
            raise ConfigError(
                f"{path}{changed[0].name}={getattr(node, changed[0].name)!r} has no effect: only {field}="
                f"{' or '.join(kinds.split('|'))} reads it. Remove one of the two."
            )
    for chosen, entry in _entries(config, under):
        _refuse(flat, dict.fromkeys(entry.unread, chosen))
        if problem := entry.check(config) if entry.check else None:
            raise ConfigError(f"{chosen}: {problem}")


def _refuse(flat: Mapping[str, Any], unread: Mapping[str, str]) -> None:
    """An error for a changed field that nothing reads beside what is chosen."""
    for field, chosen in unread.items():
        if flat[field] != known_fields()[field].default:
            raise ConfigError(
                f"{field}={flat[field]!r} has no effect: nothing reads it beside {chosen}. Remove one of the two."
            )


def _unread(config: Config) -> dict[str, str]:
    """Fields that nothing reads beside an entry chosen in `model`, and that entry."""
    return {field: chosen for chosen, entry in _entries(config, "model.") for field in entry.unread}


def _entries(config: Config, under: str = "") -> Iterator[tuple[str, Entry]]:
    """What is chosen in a section and those below it, as (`field=entry`, entry)."""
    for path, cls, node in _sections(config):
        for name in [*(f.name for f in _own_fields(cls)), *(name for name, _ in node.options if "." not in name)]:
            registry = registry_of(cls, name) if path.startswith(under) else None
            if registry is not None:
                yield f"{path}{name}={getattr(node, name)}", registry[getattr(node, name)]


@functools.cache
def only_with_of(path: str) -> str:
    """What a section, given as `model.residual.`, is no part of a config without: `path=kind|kind`, or nothing."""
    cls: type = Config
    condition = ""
    for name in path.split(".")[:-1]:
        f = next(f for f in _own_fields(cls) if f.name == name)
        cls, condition = _hints(cls)[name], condition or f.metadata["only_with"]
    return condition


def _is_read(path: str, flat: Mapping[str, Any]) -> bool:
    """Whether a section has an effect beside these values."""
    field, _, kinds = only_with_of(path).partition("=")
    return not field or str(flat.get(field)) in kinds.split("|")


def _sections(node: Section, prefix: str = "") -> Iterator[tuple[str, type, Section]]:
    yield prefix, type(node), node
    for f in _own_fields(type(node)):
        child = getattr(node, f.name)
        if isinstance(child, Section):
            yield from _sections(child, f"{prefix}{f.name}.")


# --- A Config as data --------------------------------------------------------------------------------------------


def to_flat(config: Config) -> dict[str, Any]:
    """Every field that has a meaning under the chosen kinds: {dotted path: value}. `resolve` reads it back."""
    flat: dict[str, Any] = {}
    for prefix, cls, node in _sections(config):
        if not _is_read(prefix, flat):
            continue
        for f in _own_fields(cls):
            value = getattr(node, f.name)
            if not isinstance(value, Section):
                flat[prefix + f.name] = value
        chosen = {f.name: getattr(node, f.name) for f in _own_fields(cls)}
        for name, (_, readers) in entry_parameters(cls).items():
            if any(chosen.get(choice_field) in kinds for choice_field, kinds in readers.items()):
                chosen[name] = flat[prefix + name] = getattr(node, name)
        flat.update({prefix + name: value for name, value in node.options if "." in name})
    return flat


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain data, as stored in `config.json`."""
    nested: dict[str, Any] = {}
    for path, value in to_flat(config).items():
        *parents, leaf = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = list(value) if isinstance(value, tuple) else value
    return nested


def replace(config: Config, overrides: Mapping[str, Any], yielding: str = "") -> Config:
    """A new Config with dotted fields changed, validated again.

    Args:
      yielding: a section whose present values give way in silence where nothing reads them after the change.
    """
    base, flat = default_config(), to_flat(config)
    apply_overrides(base, flat)
    inherited = {path for path in flat if yielding and path.startswith(f"{yielding}.")} - overrides.keys()
    return resolve(apply_overrides(base, overrides), inherited)


def is_view(path: str) -> bool:
    """Whether a field only decides what is written or shown, so that it is no part of a run's identity."""
    return path in VIEW_FIELDS or path.split(".")[0] in VIEW_SECTIONS


def identity(config: Config) -> dict[str, Any]:
    """What makes a run this run: its difference from the schema's defaults, views excluded."""
    known = known_fields()
    flat = to_flat(config)
    flat["train.init_from"] = run_identity(flat["train.init_from"])
    return {p: v for p, v in sorted(flat.items()) if v != known[p].default and not is_view(p)}


def run_identity(path: str) -> str:
    """What stands for a run directory in the identity of a run that starts from it: its config, data and length,
    wherever it lies. The path itself where no finished run is found, which training then refuses."""
    try:
        stored = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        status = json.loads((Path(path) / "status.json").read_text(encoding="utf-8"))
        parts = [identity(resolve(stored)), status.get("fingerprint"), status.get("step")]
    except (OSError, ValueError, AttributeError, ConfigError):
        return path
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def config_hash(config: Config, **execution: str) -> str:
    """Sixteen hex digits over the difference from the defaults, the schema version and the numeric execution.

    Because only differences enter, a field added to the schema later changes no existing hash.
    """
    payload = {"schema": SCHEMA_VERSION, "config": identity(config), "execution": execution}
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:16]


def difference(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configs differ: {path: (value in a, value in b)}; None where a field has no meaning."""
    left, right = to_flat(a), to_flat(b)
    paths = [*left, *(p for p in right if p not in left)]
    return {p: (left.get(p), right.get(p)) for p in paths if left.get(p) != right.get(p)}
