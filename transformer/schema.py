"""Every config field, its default and its meaning: frozen dataclasses, nothing else.

A field made by `choice` takes the name of an entry in a registry; which names exist, and which further parameters
they bring, is asked of that registry. Adding a variant therefore never touches this file.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from transformer.registry import Registry, until_registered


def field(default: Any, help: str) -> Any:
    """A plain config field with its one-line explanation."""
    return dataclasses.field(default=default, metadata={"help": help})


def choice(default: Any, registry: str, help: str) -> Any:
    """A config field whose values are the entries of `registry` (`"package.module:NAME"`)."""
    return dataclasses.field(default=default, metadata={"help": help, "registry": registry})


def section(cls: type, only_with: str = "") -> Any:
    """A nested config section.

    Args:
      only_with: `path=kind|kind`, the kinds without which nothing in the section has an effect.
    """
    return dataclasses.field(default_factory=cls, metadata={"only_with": only_with})


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of all sections. Parameters that belong to one registry entry are read like ordinary fields:
    `config.model.position.rope_base`; `options` holds those that were set, and what one stack of a model has of its
    own (`encoder.num_layers`)."""

    options: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), kw_only=True, repr=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for key, value in object.__getattribute__(self, "options"):
            if key == name:
                return value
        declared = entry_parameters(type(self))
        if name in declared:
            return declared[name][0].default
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")


@dataclasses.dataclass(frozen=True)
class Attention(Section):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017)."""

    num_heads: int = field(4, "number of query heads")
    num_kv_heads: int = field(0, "key-value heads, each shared by num_heads / num_kv_heads queries; 0: num_heads")
    head_dim: int = field(0, "width of one query or key; 0: d_model / num_heads")
    value_dim: int = field(0, "width of one value; 0: head_dim")
    scale: str = choice("inv_sqrt", "transformer.model.attention_parts:SCALES", "factor on query-key products")
    qk_norm: str = choice("none", "transformer.model.attention_parts:QK_NORMS", "norm on queries and keys, per head")
    soft_cap: float = field(0.0, "bound on scores, soft_cap * tanh(score / soft_cap); 0: none")
    weights: str = choice("softmax", "transformer.model.attention_weights:WEIGHTS", "how scores become weights")
    sinks: str = choice("none", "transformer.model.attention_weights:SINKS", "where weight goes beside the keys")
    memory: str = choice("none", "transformer.model.attention_memory:MEMORIES", "rows beside those of the tokens")
    mask: str = choice("auto", "transformer.model.masks:MASKS", "which keys a query may see")
    window: int = field(0, "a query sees keys fewer than this many positions away; 0: all")
    tie: str = choice("none", "transformer.model.attention_parts:TIES", "which projections share one matrix")
    value_projection: str = choice("full", "transformer.model.attention_parts:VALUE_PROJECTIONS", "map to the values")
    gate: str = choice("none", "transformer.model.attention_parts:GATES", "factor on what the heads read")
    output_projection: str = choice(
        "full", "transformer.model.attention_parts:OUTPUT_PROJECTIONS", "map from the heads to the stream"
    )
    backend: str = choice("reference", "transformer.model.attention_backends:BACKENDS", "how attention is computed")
    bias: bool = field(False, "biases on the projections")


@dataclasses.dataclass(frozen=True)
class Position(Section):
    """How the model knows where a token stands."""

    kind: str = choice("rope", "transformer.model.positions:POSITIONS", "position scheme")


@dataclasses.dataclass(frozen=True)
class Norm(Section):
    """Normalisation: statistic (`kind`), affine part and placement are separate fields."""

    kind: str = choice("layernorm", "transformer.model.normalization:NORMS", "statistic; none removes all norms")
    placement: str = choice(
        "pre", "transformer.model.normalization:PLACEMENTS", "where norms stand in a residual sublayer"
    )
    affine: bool = field(True, "learned gain after the statistic")
    bias: bool = field(False, "learned bias after the gain")
    final: str = choice(
        "auto",
        "transformer.model.normalization:FINAL",
        "norm before the logits; auto: unless a post norm is last",
    )
    embedding: bool = field(False, "norm right after the embedding")
    epsilon: float = field(1e-5, "added to the variance")


@dataclasses.dataclass(frozen=True)
class Gains(Section):
    """y = skip_gain * x + branch_gain * f(x), for one kind of sublayer."""

    skip_gain: float | str = choice(
        1.0,
        "transformer.model.residual:SKIP_GAINS",
        "factor on the skip path: a number or a name; 0 removes the residual connection",
    )
    branch_gain: float | str = choice(
        1.0, "transformer.model.residual:BRANCH_GAINS", "factor on the branch: a number or a name"
    )


@dataclasses.dataclass(frozen=True)
class Residual(Section):
    """How sublayers are joined to the stream."""

    arrangement: str = choice(
        "sequential", "transformer.model.block:ARRANGEMENTS", "whether the sublayers of a block follow each other"
    )
    attention: Gains = section(Gains)
    cross_attention: Gains = section(Gains, only_with="model.cross_attention=full|pooled")
    ffn: Gains = section(Gains)


@dataclasses.dataclass(frozen=True)
class FeedForward(Section):
    """Position-wise feed-forward network."""

    kind: str = choice("gelu", "transformer.model.feedforward:FEEDFORWARDS", "activation or gating; none removes it")
    ratio: float = field(4.0, "hidden width / d_model")
    match: str = choice(
        "width", "transformer.model.feedforward:MATCHES", "what a gated network has in common with an ungated one"
    )
    shared: bool = field(False, "one network, stored once, used by all layers")
    bias: bool = field(False, "biases on its projections")


@dataclasses.dataclass(frozen=True)
class Embedding(Section):
    """Token embedding and the map back to logits."""

    tie: bool = field(True, "logits use the embedding matrix")
    scale: float = field(1.0, "factor on the embedding output; 0: sqrt(d_model)")
    logit_scale: float = field(1.0, "factor on the logits over tokens; 0: 1 / sqrt(d_model)")
    token_types: int = field(0, "rows of a table of token types, such as first and second sentence; 0: none")


@dataclasses.dataclass(frozen=True)
class Head(Section):
    """From the last states to predictions."""

    kind: str = choice("lm", "transformer.model.heads:HEADS", "what is predicted from the states")


@dataclasses.dataclass(frozen=True)
class Init(Section):
    """Initial weights, drawn per parameter from a key folded with the parameter's path."""

    scheme: str = choice("gpt2", "transformer.model.initialization:SCHEMES", "distribution of initial weights")
    std: float = field(0.02, "standard deviation of matrices and embeddings")


@dataclasses.dataclass(frozen=True)
class Model(Section):
    """The transformer."""

    family: str = choice("decoder", "transformer.model:FAMILIES", "architecture family")
    d_model: int = field(128, "width of the residual stream")
    num_layers: int = field(4, "number of blocks")
    layers: str = choice(
        "both",
        "transformer.model.layer_pattern:LAYERS",
        "sublayers of each block, repeated to num_layers: a list such as attention*2,both*4,ffn*2",
    )
    vocab_size: int = field(0, "rows of the embedding; 0: the size of the data's vocabulary")
    dropout: float = field(0.0, "dropout rate on embeddings, attention weights and branches")
    attention: Attention = section(Attention)
    position: Position = section(Position)
    norm: Norm = section(Norm)
    residual: Residual = section(Residual)
    ffn: FeedForward = section(FeedForward)
    embedding: Embedding = section(Embedding)
    head: Head = section(Head)
    init: Init = section(Init)


@dataclasses.dataclass(frozen=True)
class Objective(Section):
    """What is predicted."""

    kind: str = choice("auto", "transformer.training.objectives:OBJECTIVES", "training objective; auto: by family")
    label_smoothing: float = field(0.0, "probability mass moved to the uniform distribution (training loss only)")
    logits_chunk: int = field(0, "tokens whose logits exist at a time; 0: all, the whole [B, T, V] array")


@dataclasses.dataclass(frozen=True)
class Data(Section):
    """Corpus, vocabulary and the order of windows."""

    source: str = choice("stdlib", "transformer.data.corpora:SOURCES", "where the text comes from")
    vocabulary: str = choice("bytes", "transformer.data.vocabularies:VOCABULARIES", "how text becomes tokens")
    sequence_length: int = field(256, "tokens per row: of a window, an example, or its target")
    source_length: int = field(0, "tokens per source, where an encoder reads it; 0: sequence_length")
    packing: str = choice("none", "transformer.data.batching:PACKINGS", "whether documents or examples share a row")
    too_long: str = choice("error", "transformer.data.examples:TOO_LONG", "what becomes of examples that do not fit")
    sampling: str = choice("epochs", "transformer.data.batching:SAMPLINGS", "order of windows")
    feed: str = choice("auto", "transformer.data.batching:FEEDS", "who cuts the windows; auto: device if it fits")


@dataclasses.dataclass(frozen=True)
class Optimizer(Section):
    """AdamW (Loshchilov & Hutter 2019) and its schedule."""

    learning_rate: float = field(1e-3, "peak learning rate")
    schedule: str = choice("cosine", "transformer.training.schedules:SCHEDULES", "shape after warm-up")
    warmup_steps: int = field(-1, "steps of linear warm-up; -1: 4% of train.steps")
    final_fraction: float = field(0.1, "learning rate / peak that the schedule falls towards")
    weight_decay: float = field(0.1, "decoupled decay, on matrices and embeddings only")
    beta1: float = field(0.9, "decay of the first moment")
    beta2: float = field(0.95, "decay of the second moment")
    epsilon: float = field(1e-8, "added to the root of the second moment")
    clip: float = field(1.0, "largest global gradient norm; 0: no clipping")


@dataclasses.dataclass(frozen=True)
class Train(Section):
    """Length and cadence of a run. Cadence fields never change the numbers."""

    steps: int = field(2000, "optimizer steps")
    init_from: str = field("", "run directory whose parameters this run starts from; empty: initial weights")
    batch_size: int = field(32, "windows per step")
    accumulate: int = field(1, "microbatches per step; divides batch_size")
    remat: str = choice("none", "transformer.model.remat:REMATS", "what the backward pass recomputes to save memory")
    log_every: int = field(10, "steps between train rows")
    eval_every: int = field(200, "steps between validation rows; 0: only at the end")
    checkpoint_every: int = field(200, "steps between checkpoints; 0: only at the end")
    keep_checkpoints: int = field(2, "newest checkpoints kept, beside the best one")
    steps_per_call: int = field(0, "most steps per dispatch; 0: as many as take about half a second")
    overfit_one_batch: bool = field(False, "train on the first batch only, as a wiring check")
    profile_step: int = field(0, "first step of a profiler trace in WORKDIR/profile; 0: none")
    profile_steps: int = field(3, "steps in the profiler trace")


@dataclasses.dataclass(frozen=True)
class Eval(Section):
    """Evaluation during and after a run."""

    tokens: int = field(32768, "tokens of the fixed subset evaluated during a run")
    batch_size: int = field(0, "windows per evaluation batch; 0: train.batch_size")
    final: bool = field(True, "evaluate the validation (and test) split once at the end")
    final_tokens: int = field(0, "how many tokens of them, from their beginning on; 0: all")


@dataclasses.dataclass(frozen=True)
class Decode(Section):
    """Generating text."""

    prompt: str = field(
        "", "text to continue, translate or fill, special tokens as <mask>; empty: from the evaluated split"
    )
    max_new_tokens: int = field(200, "tokens to generate; 0: none")
    sampler: str = choice(
        "sample", "transformer.inference.sampling:SAMPLERS", "how tokens are chosen; greedy is always shown too"
    )
    cache: str = choice("full", "transformer.model.cache:CACHES", "which earlier tokens are kept while decoding")
    fill: str = choice("mask_predict", "transformer.inference.masked:FILLERS", "how an encoder fills masked places")


@dataclasses.dataclass(frozen=True)
class Numerics(Section):
    """Number formats. The defaults hold on every platform: faster ones are a choice, never an accident."""

    compute_dtype: str = choice("float32", "transformer.numerics:DTYPES", "activations and matrix products")
    param_dtype: str = choice("float32", "transformer.numerics:DTYPES", "parameters and optimizer state")
    matmul_precision: str = choice("highest", "transformer.numerics:PRECISIONS", "passes per float32 product")


@dataclasses.dataclass(frozen=True)
class Devices(Section):
    """The mesh of devices that one run is spread over. Its size is the product of the two."""

    data: int = field(1, "groups of devices that each take a share of the batch and keep all parameters")
    fsdp: int = field(1, "devices of a group, which share parameters, moments and batch between them")


@dataclasses.dataclass(frozen=True)
class Wandb(Section):
    """Weights & Biases, one of the views on a run."""

    mode: str = choice("auto", "transformer.training.wandb_sink:MODES", "auto: online if logged in, else offline")
    project: str = field("whatif-transformers", "project name")
    entity: str = field("", "team or user; empty: your default")
    group: str = field("", "group; empty: the config's name")
    job_type: str = field("", "job type; empty: the arm's name")
    tags: tuple[str, ...] = field((), "tags")


@dataclasses.dataclass(frozen=True)
class Config(Section):
    """One run, complete. The defaults are the reference model and recipe."""

    seed: int = field(0, "sets init_seed and data_seed unless these are given")
    init_seed: int = field(-1, "seed of initial weights and dropout; -1: seed")
    data_seed: int = field(-1, "seed of the order of windows; -1: seed")
    execution: str = choice("sequential", "transformer.numerics:EXECUTIONS", "how members of an arm are trained")
    model: Model = section(Model)
    objective: Objective = section(Objective)
    data: Data = section(Data)
    optimizer: Optimizer = section(Optimizer)
    train: Train = section(Train)
    eval: Eval = section(Eval)
    decode: Decode = section(Decode)
    numerics: Numerics = section(Numerics)
    devices: Devices = section(Devices)
    wandb: Wandb = section(Wandb)
    tensorboard: bool = field(False, "also write TensorBoard files (needs the extra [tensorboard])")


def load_registry(spec: str) -> Registry:
    """Imports the registry a choice field points at."""
    module, name = spec.split(":")
    return getattr(importlib.import_module(module), name)


def registry_of(cls: type, name: str) -> Registry | None:
    """The registry behind field `name` of section `cls`, own or brought by an entry; None for a plain field."""
    own = {f.name: f for f in dataclasses.fields(cls)}
    return _registry_behind(own[name] if name in own else entry_parameters(cls)[name][0])


def _registry_behind(f: dataclasses.Field) -> Registry | None:
    spec = f.metadata.get("registry")
    return load_registry(spec) if spec else None


@until_registered
def entry_parameters(cls: type) -> dict[str, tuple[dataclasses.Field, dict[str, frozenset[str]]]]:
    """Parameters that entries add to a section: name -> (field, {choice field: kinds that read it}).

    Two entries may share a parameter if they agree on its default. A parameter may itself be a choice, whose entries
    bring parameters in turn; it then stands before them.
    """
    found: dict[str, tuple[dataclasses.Field, dict[str, frozenset[str]]]] = {}
    choices = list(dataclasses.fields(cls))
    for choice_field in choices:  # grows while it is walked
        registry = _registry_behind(choice_field)
        for entry in registry.values() if registry else ():
            for parameter in dataclasses.fields(entry.parameters) if entry.parameters else ():
                known, readers = found.get(parameter.name, (parameter, {}))
                if known.default != parameter.default:
                    raise ValueError(f"{cls.__name__}.{parameter.name} has two defaults")
                if parameter.name not in found:
                    choices.append(parameter)
                kinds = readers.get(choice_field.name, frozenset()) | {entry.name}
                found[parameter.name] = (known, {**readers, choice_field.name: kinds})
    return found
