"""What holds for every switch: it does something, leaves nothing behind, trains every leaf, and is counted right."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import (
    BATCH,
    LENGTH,
    NEEDED,
    VOCAB,
    called,
    declared,
    initial,
    label,
    logits,
    named,
    nudged,
    one_switch,
    other_value,
    tiny,
    tokens,
    traits,
)
from transformer.config import resolve, schema
from transformer.data.batch import Batch
from transformer.errors import ConfigError
from transformer.model import build, declare
from transformer.model.feedforward import FEEDFORWARDS
from transformer.schema import Config, Model
from transformer.training.schedules import unit_schedule
from transformer.training.step import Program

# What a config field may change, from the cheapest to the dearest to find out.
PARTS: dict[str, Callable[[Config], Any]] = {
    "parameters": declared,
    "initial weights": lambda c: {name: (str(x.dtype), x.tobytes()) for name, x in initial(c).items()},
    "learning rates": lambda c: np.asarray(unit_schedule(c)(jnp.arange(c.train.steps))).tobytes(),
    "logits": lambda c: logits(c).tobytes(),
}


@functools.cache
def part(name: str, config: Config) -> Any:
    return PARTS[name](config)


def same(a: Config, b: Config) -> bool:
    """Whether two configs make the same model and train it at the same rates."""
    return all(part(name, a) == part(name, b) for name in PARTS)


def check_does_something(a: Config, b: Config) -> None:
    assert not same(a, b), "this switch changes neither parameters nor outputs"


# --- Every entry changes something -------------------------------------------------------------------------------

# Entries that mean another one, and which.
ALIASES = {
    ("model.attention.mask", "causal"): "the decoder is causal anyway",
    ("model.cross_attention", "none"): "an encoder-decoder that does not read its source is a decoder",
    ("model.norm.final", "always"): "pre norm has a final norm anyway",
    ("model.ffn.match", "params"): "an ungated network has its own size anyway",
    ("model.ffn.match", "flops"): "an ungated network has its own size anyway",
}
# Choices that change no model: the objective is compared below, precision and dtypes in test_step.py, and back-ends,
# which are ways to the same numbers, in test_attention_backends.py.
SAME_MODEL = {"numerics.matmul_precision", "model.attention.backend"}
CHOICES = [o for o in one_switch("model.", "optimizer.", "numerics.") if not SAME_MODEL & o.keys()]


@pytest.mark.parametrize("overrides", CHOICES, ids=label)
def test_every_entry_changes_something(overrides):
    if next(iter(overrides.items())) in ALIASES:
        assert same(tiny(), tiny(overrides))
    else:
        check_does_something(tiny(), tiny(overrides))


def test_the_check_notices_a_switch_that_does_nothing():
    with pytest.raises(AssertionError):
        check_does_something(tiny(), tiny({"train.log_every": 3}))


@pytest.mark.parametrize(
    ("field", "alias", "target", "context"),
    [
        ("model.attention.mask", "auto", "causal", {}),
        ("model.norm.final", "auto", "always", {"model.norm.placement": "pre"}),
        ("model.norm.final", "auto", "never", {"model.norm.placement": "post"}),
        ("model.norm.final", "auto", "never", {"model.norm.placement": "pre_post"}),
        ("model.norm.final", "auto", "always", {"model.norm.placement": "branch"}),
    ],
)
def test_an_alias_is_what_it_stands_for(field, alias, target, context):
    assert same(tiny({**context, field: alias}), tiny({**context, field: target}))


# --- Every plain field changes something -------------------------------------------------------------------------

PLAIN = [info for info in schema() if info.path.startswith("model.") and not info.kinds]
IN_TRAINING_ONLY = {
    "model.dropout",
    "model.norm.detach",
    "model.norm.shift_noise",
    "model.norm.batchnorm_momentum",
    "model.norm.batchnorm_positions",
}


def training_program(config: Config) -> str:
    program = Program(config, 11, np.ones(11, np.int32))
    window = Batch(jnp.zeros((BATCH, LENGTH + 1), jnp.int32))
    hyper = program.hyperparameters(config)
    return str(jax.make_jaxpr(program.train_step)(program.init(0), window, jnp.int32(0), hyper))


def check_changes_the_step(a: Config, b: Config) -> None:
    assert training_program(a) != training_program(b), "this field changes nothing in training"


@pytest.mark.parametrize("info", [i for i in PLAIN if i.path in IN_TRAINING_ONLY], ids=lambda i: i.path)
def test_every_field_of_training_changes_the_step(info):
    context, overrides = other_value(info)
    assert same(tiny(context), tiny(overrides))
    check_changes_the_step(tiny(context), tiny(overrides))
    assert training_program(tiny(context)) == training_program(tiny(context))


def test_the_check_notices_a_field_that_changes_no_step():
    with pytest.raises(AssertionError, match="changes nothing"):
        check_changes_the_step(tiny(), tiny({"train.log_every": 3}))


@pytest.mark.parametrize("info", [i for i in PLAIN if i.path not in IN_TRAINING_ONLY], ids=lambda i: i.path)
def test_every_plain_field_changes_something(info):
    without, overrides = other_value(info)
    check_does_something(tiny(without), tiny(overrides))


# --- Nothing is left behind --------------------------------------------------------------------------------------


def words(config: Config) -> set[str]:
    return {part for name in declared(config) for part in name.split(".")}


@pytest.mark.parametrize(
    ("overrides", "absent"),
    [
        ({"model.position.kind": "none"}, {"position"}),
        *(({"model.position.kind": kind}, {"position"}) for kind in ("rope", "sinusoidal", "alibi")),
        (
            {"model.norm.kind": "none", "model.norm.bias": True, "model.norm.embedding": True},
            {"in_norm", "final_norm"},
        ),
        ({"model.ffn.kind": "none"}, {"ffn", "up", "down"}),
        ({"model.embedding.tie": True}, {"unembedding"}),
        ({"model.norm.affine": False}, {"gain", "bias"}),
    ],
)
def test_an_absent_part_owns_no_parameters(overrides, absent):
    assert not words(tiny(overrides)) & absent
    everything = tiny(
        {
            "model.position.kind": "learned",
            "model.embedding.tie": False,
            "model.norm.placement": "sandwich",
            "model.norm.bias": True,
        }
    )
    assert words(everything) >= absent  # the words are those of real parameters


def test_learned_positions_own_one_table():
    with_table, without = declared(tiny({"model.position.kind": "learned"})), declared(tiny())
    assert {name: with_table[name] for name in with_table.keys() - without.keys()} == {
        "position.table": ((8, 16), "position")
    }


# --- Gradient reaches every leaf ---------------------------------------------------------------------------------


def check_every_leaf_learns(config: Config, except_for: tuple[str, ...] = (), moved: bool = False) -> None:
    """At the initial weights; `moved`: with none of them zero."""
    structure, params, state = nnx.split(nudged(build(config)) if moved else build(config), nnx.Param, ...)
    window = tokens(2, 9)

    def loss(params):
        logits = called(nnx.merge(structure, params, state), config)(window[:, :-1])
        targets = window[:, 1:] if logits.ndim == 3 else window[:, 0]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None] % logits.shape[-1], axis=-1).mean()

    grads = named(nnx.to_pure_dict(jax.grad(loss)(params)))
    dead = [name for name, g in grads.items() if not np.any(g) and not name.endswith(except_for)]
    assert not dead, f"no gradient reaches {dead}"
    assert all(np.isfinite(g).all() for g in grads.values())


EVERYTHING = {
    "model.position.kind": "learned",
    "model.embedding.tie": False,
    "model.norm.placement": "sandwich",
    "model.norm.bias": True,
    "model.norm.embedding": True,
    "model.attention.bias": True,
    "model.ffn.bias": True,
}


@pytest.mark.parametrize("overrides", [{}, EVERYTHING, *one_switch("model.")], ids=label)
def test_gradient_reaches_every_leaf(overrides):
    # A bias on the keys moves all scores of a query alike, which softmax ignores: its gradient is rounding error.
    except_for = ("key.bias",)
    if overrides.get("model.attention.weights") == "shaped":  # the keys wait for queries that start at zero
        with pytest.raises(AssertionError, match=r"key\.kernel"):
            check_every_leaf_learns(tiny(overrides))
        except_for = ("key.kernel",)
    if "silent_branches" in traits(overrides):  # the gain or the last kernel moves first, the rest behind it after
        with pytest.raises(AssertionError, match="no gradient reaches"):
            check_every_leaf_learns(tiny(overrides))
        check_every_leaf_learns(tiny(overrides), moved=True)
    else:
        check_every_leaf_learns(tiny(overrides), except_for=except_for)


def test_the_check_notices_a_dead_leaf():
    with pytest.raises(AssertionError, match="no gradient reaches"):
        check_every_leaf_learns(tiny({"model.residual.ffn.branch_gain": 0.0}))


# --- Parameters are counted right --------------------------------------------------------------------------------


def attention_parameters(m: Model) -> int:
    """The formula of one attention layer."""
    a, d = m.attention, m.d_model
    query_width = a.head_dim or d // a.num_heads
    value_width = a.value_dim or query_width
    kv_heads = a.num_kv_heads or a.num_heads
    kernels = {
        "query": (d, a.num_heads * query_width),
        "key": (d, kv_heads * query_width),
        "value": (d, kv_heads * value_width),
        "gate": (d, a.num_heads * value_width),
        "output": (a.num_heads * value_width, d),
    }
    absent = {
        *({"query", "key"} if a.weights in ("uniform", "fixed_offset") else ()),
        *{"none": (), "qk": ("key",), "kv": ("value",), "qkv": ("key", "value")}[a.tie],
        *({"value"} if a.value_projection == "identity" else ()),
        *({"gate"} if a.gate == "none" else ()),
        *({"output"} if a.output_projection == "none" else ()),
    }
    present = {name: shape for name, shape in kernels.items() if name not in absent}
    total = sum(math.prod(shape) for shape in present.values())
    total += a.bias * sum(width for _, width in present.values())
    if a.output_projection == "block_diagonal":  # one of num_heads diagonal blocks is left of each row
        total -= math.prod(present["output"]) * (a.num_heads - 1) // a.num_heads
    total += kv_heads * (query_width + value_width) * a.persistent_rows * (a.memory == "persistent")
    total += {"none": 0, "rms": (a.num_heads + kv_heads) * query_width, "l2": a.num_heads}[a.qk_norm]
    return total + a.num_heads * ((a.scale == "learned") + (a.sinks == "learned") + 3 * (a.weights == "shaped"))


def parameter_formula(c: Config, vocab: int) -> int:
    """Counted by hand from the config alone."""
    m, d = c.model, c.model.d_model
    tables = {"lm": 1, "mlm": 1}.get(m.head.kind, 0) * (not m.embedding.tie)
    reads = m.family == "encoder_decoder" and m.cross_attention
    total = (1 + tables) * vocab * d + stack_formula(c, reads if reads != "none" else "")
    if reads and reads != "none":
        total += stack_formula(c, "") + vocab * d * (not m.share_embedding)
    if m.head.kind == "mlm":
        total += d * d + d + vocab + norm_formula(m)
    return total + (d + 1) * m.head.num_labels * (m.head.kind in ("tag", "classify"))


def norm_formula(m: Model) -> int:
    """The formula of one norm."""
    d = m.d_model
    norm = 0 if m.norm.kind == "none" else (1 if m.norm.kind == "scalenorm" else d) * m.norm.affine + d * m.norm.bias
    return norm + (m.norm.kind == "dyt")


def stack_formula(c: Config, cross: str) -> int:
    """One stack without its token embedding; `cross` is how it reads another one, or nothing."""
    m = c.model
    d = m.d_model
    hidden, gated = round(m.ffn.ratio * d), m.ffn.kind in ("glu", "bilinear", "reglu", "geglu", "swiglu")
    hidden = round(hidden * 2 / 3) if gated and m.ffn.match == "flops" else hidden
    if gated and m.ffn.match == "params":
        hidden = round(hidden * (2 * d + m.ffn.bias) / (3 * d + 2 * m.ffn.bias))
    attention = attention_parameters(m)
    ffn = 0 if m.ffn.kind == "none" else (2 + gated) * d * hidden + ((1 + gated) * hidden + d) * m.ffn.bias
    norm = norm_formula(m)
    in_sublayer = {"pre": 1, "post": 1, "branch": 1, "sandwich": 2, "pre_post": 2}[m.norm.placement]
    final = {"always": True, "never": False, "auto": m.norm.placement not in ("post", "pre_post")}[m.norm.final]
    shared = ffn if m.ffn.shared else 0
    sublayers = [(attention, m.residual.attention)] if m.layers != "ffn" else []
    if cross and m.layers != "ffn":
        reader = unscored_attention(m) if cross == "pooled" else attention
        unscored = cross == "pooled" or m.attention.weights in ("uniform", "fixed_offset")
        if unscored and m.attention.gate == "none" and m.norm.placement in ("pre", "sandwich", "pre_post"):
            reader -= norm  # nothing of the stream is read, so nothing is normed before
        sublayers += [(reader, m.residual.cross_attention)]
    sublayers += [(ffn - shared, m.residual.ffn)] if ffn and m.layers != "attention" else []
    gain = {"learned_zero": 1, "layerscale": d}
    block = sum(size + in_sublayer * norm + gain.get(gains.branch_gain, 0) for size, gains in sublayers)
    if m.residual.arrangement == "parallel" and m.norm.placement in ("post", "pre_post"):
        block -= norm * (2 if cross else 1)  # one output norm for all sublayers
    table = (m.position.max_length or c.data.sequence_length) * d if m.position.kind == "learned" else 0
    table = m.position.t5_buckets * m.attention.num_heads if m.position.kind == "t5" else table
    return table + d * m.embedding.token_types + shared + m.num_layers * block + norm * (final + m.norm.embedding)


def unscored_attention(m: Model) -> int:
    """The formula of attention that weighs all keys alike."""
    plain = {"weights": "uniform", "scale": "inv_sqrt", "qk_norm": "none", "tie": "none", "sinks": "none"}
    return attention_parameters(dataclasses.replace(m, attention=dataclasses.replace(m.attention, **plain)))


def check_parameter_count(config: Config) -> None:
    assert sum(math.prod(shape) for shape, _ in declared(config).values()) == parameter_formula(config, VOCAB)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        EVERYTHING,
        {"model.attention.head_dim": 6},
        {"model.attention.num_heads": 4, "model.attention.num_kv_heads": 2, "model.attention.bias": True},
        {"model.attention.value_dim": 6, "model.attention.gate": "sigmoid", "model.attention.bias": True},
        {"model.attention.num_heads": 4, "model.attention.num_kv_heads": 1, "model.attention.qk_norm": "rms"},
        {"model.attention.output_projection": "block_diagonal", "model.attention.bias": True},
        {"model.ffn.ratio": 2.5},
        {"model.residual.attention.branch_gain": "learned_zero"},
        {"model.norm.affine": False},
        {"model.norm.kind": "scalenorm", "model.norm.affine": False, "model.norm.bias": True},
        {"model.ffn.kind": "swiglu", "model.ffn.match": "params", "model.ffn.bias": True},
        {"model.ffn.kind": "geglu", "model.ffn.match": "flops"},
        {"model.ffn.kind": "geglu", "model.ffn.shared": True},
        {"model.residual.arrangement": "parallel", "model.norm.placement": "post"},
        {"model.position.kind": "learned", "model.position.max_length": 20},
        *one_switch("model."),
    ],
    ids=label,
)
def test_parameter_count_equals_the_formula(overrides):
    check_parameter_count(tiny(overrides))


def test_the_check_notices_a_matrix_too_many(monkeypatch):
    gated = dataclasses.replace(FEEDFORWARDS["relu"], build=FEEDFORWARDS["reglu"].build)
    monkeypatch.setitem(FEEDFORWARDS._entries, "relu", gated)
    with pytest.raises(AssertionError):
        check_parameter_count(tiny({"model.ffn.kind": "relu"}))


def test_the_reference_model_has_the_size_its_config_file_says():
    state = nnx.state(declare(resolve({})), nnx.Param)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.to_pure_dict(state)))
    assert count == parameter_formula(resolve({}), 260) == 820_864


# --- The objective is a choice too -------------------------------------------------------------------------------


def test_every_objective_changes_the_training_step_or_is_an_alias():
    def step_of(kind):
        program = Program(tiny({"objective.kind": kind, "model.num_layers": 1}), 11, np.ones(11, np.int32))
        window = Batch(jnp.zeros((4, 9), jnp.int32))
        step = jax.make_jaxpr(program.train_step)
        return str(step(program.init(0), window, jnp.int32(0), program.hyperparameters(program.config)))

    kinds = next(info.kinds for info in schema() if info.path == "objective.kind")
    plain = [kind for kind in kinds if ("objective.kind", kind) not in NEEDED]
    steps = {kind: step_of(kind) for kind in plain}
    assert steps["auto"] == steps["clm"]
    for kind in set(kinds) - set(plain):  # the others need another family or head, and never stand for this one
        with pytest.raises(ConfigError):
            tiny({"objective.kind": kind})
