"""A config says plainly what is wrong with it: one line with the field, the value and the remedy, within seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import NEEDED, label, nested, other_value, readers, registry
from transformer import config as config_module
from transformer.config import apply_overrides, default_config, resolve, schema, stack_config, to_flat
from transformer.errors import ConfigError, UserError
from transformer.training.objectives import layout_of

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = list(schema())


def check_refused(overrides: dict[str, Any], *parts: str) -> None:
    """One line that names the field, the value and the remedy."""
    with pytest.raises(ConfigError) as caught:
        resolve(nested(overrides))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300 and message[-1] in ".?"
    missing = [part for part in parts if part not in message]
    assert not missing, f"{message!r} does not say {missing}"


UNKNOWN = [
    ({"model.norm.plcement": "post"}, 'no config field "model.norm.plcement"', 'mean "model.norm.placement"?'),
    ({"model.norms.placement": "post"}, '"model.norms.placement"', 'Did you mean "model.norm.placement"?'),
    ({"optimizer.lr": 1e-3}, 'There is no config field "optimizer.lr"'),
    ({"placement": "post"}, '"placement"', 'Did you mean "model.norm.placement"?'),
    ({"train": 5}, '"train"'),
]
WRONG_KIND = [
    (
        {info.path: "nonsense"},
        f"{info.path if not info.path.startswith('numerics') else 'numerics'}",
        "'nonsense' is not one of: " + ", ".join(info.kinds),
    )
    for info in SCHEMA
    if info.kinds
]
WRONG_TYPE = [
    ({"train.steps": True}, "train.steps=True", "takes int (default 2000)"),
    ({"train.steps": "many"}, "train.steps='many'", "takes int"),
    ({"train.steps": 1.5}, "train.steps=1.5", "takes int"),
    ({"optimizer.learning_rate": "1e-3"}, "optimizer.learning_rate='1e-3'", "takes float (default 0.001)"),
    ({"optimizer.learning_rate": False}, "optimizer.learning_rate=False", "takes float"),
    ({"model.norm.affine": 1}, "model.norm.affine=1", "takes bool (default True)"),
    ({"model.norm.kind": None}, "model.norm.kind=None", "takes str"),
    ({"wandb.tags": "a"}, "wandb.tags='a'", "takes tuple"),
    ({"model.residual.ffn.branch_gain": True}, "model.residual.ffn.branch_gain=True", "takes float or str"),
]
IMPOSSIBLE = [
    *(
        (
            {**kind, "data.packing": "segments"},
            "data.packing=segments does not go with it",
            "whole rows" if rest else "",
        )
        for kind, rest in (
            ({"model.family": "prefix_decoder"}, False),
            ({"model.family": "encoder_decoder"}, True),
            ({"model.family": "encoder", "objective.kind": "next_sentence", "model.head.kind": "classify"}, True),
        )
    ),
    ({"model.residual.ffn.branch_gain": "learnd_zero"}, "model.residual.ffn.branch_gain='learnd_zero'", "learned_zero"),
    ({"model.residual.attention.skip_gain": "learned_zero"}, "model.residual.attention.skip_gain='learned_zero'"),
    ({"model.d_model": 30, "model.attention.num_heads": 4}, "model.d_model=30", "num_heads=4", "change one"),
    ({"train.batch_size": 10, "train.accumulate": 3}, "train.batch_size=10", "train.accumulate=3"),
    ({"optimizer.warmup_steps": 11, "train.steps": 10}, "optimizer.warmup_steps=11", "train.steps=10", "Shorten"),
    (
        {"model.d_model": 12, "model.attention.num_heads": 4},
        "model.position.kind=rope",
        "head dimension 3 is odd",
        "choose another",
    ),
    ({"model.position.rope_fraction": 1.5}, "model.position.kind=rope", "rope_fraction=1.5", "at most 1"),
    ({"model.position.rope_fraction": 0.01}, "rope_fraction=0.01", "at least one of the 16 pairs"),
    ({"model.position.rope_base": 0.0}, "rope_base=0.0", "positive"),
    *(
        (
            {"model.position.rope_scaling": kind, "model.position.rope_factor": 0.5},
            f"model.position.rope_scaling={kind}",
            "rope_factor=0.5",
            "at least 1",
        )
        for kind in ("linear", "ntk", "yarn")
    ),
    (
        {"model.position.rope_scaling": "ntk", "model.attention.head_dim": 2},
        "model.position.rope_scaling=ntk",
        "head dimension 2",
        "choose 4 or more",
    ),
    (
        {"model.position.rope_scaling": "dynamic_ntk", "model.position.rope_original_length": -1},
        "rope_original_length=-1",
        "not be negative",
    ),
    (
        {"model.position.rope_scaling": "yarn", "model.position.rope_beta_fast": 1.0},
        "rope_beta_fast=1.0 must be larger than",
        "rope_beta_slow=1.0",
    ),
    (
        {"model.position.rope_scaling": "yarn", "model.position.rope_attention_factor": -1.0},
        "rope_attention_factor=-1.0",
        "not be negative",
    ),
    ({"model.position.kind": "t5", "model.position.t5_buckets": 6}, "t5_buckets=6", "multiple of 4"),
    ({"model.position.kind": "t5", "model.position.t5_max_distance": 16}, "t5_max_distance=16", "half of"),
    (
        {"model.position.kind": "sinusoidal", "model.d_model": 33, "model.attention.head_dim": 8},
        "model.d_model=33 is odd",
        "choose an even one",
    ),
    *(
        (
            {"model.position.kind": "rope", "data.packing": "segments", **stretched},
            "data.packing=segments breaks it",
            "use none",
        )
        for stretched in (
            {"model.position.rope_scaling": "dynamic_ntk"},
            {"model.position.kind": "learned", "model.position.out_of_range": "interpolate"},
        )
    ),
    (
        {
            "model.position.rope_on": "v_only",
            "model.position.rope_scaling": "yarn",
            "model.position.rope_attention_factor": 3.0,
        },
        "rope_attention_factor=3.0 acts on queries and keys",
        "leave it at 0",
    ),
    (
        {
            "model.position.rope_on": "qkv_with_inverse",
            "model.position.rope_scaling": "ntk",
            "model.attention.value_dim": 2,
        },
        "head dimension 2 has a single frequency",
        "choose 4 or more",
    ),
    *(
        (
            {"model.family": "encoder_decoder", "model.attention.weights": weights, "model.position.kind": "none"},
            f"model.attention.weights={weights}: looks for a token by its position",
            "use model.cross_attention=pooled or none",
        )
        for weights in ("fixed_offset", "shaped")
    ),
    (
        {"model.attention.weights": "shaped", "model.position.kind": "alibi"},
        "model.position.kind=alibi prevents",
        "use another kind",
    ),
    (
        {"model.family": "encoder_decoder", "model.init.scheme": "deepnorm"},
        "model.init.scheme=deepnorm: draws with the beta of a single stack",
        "use another scheme",
    ),
    *(
        (
            {"model.init.scheme": scheme, "model.attention.output_projection": "none"},
            f"model.init.scheme={scheme}: silences a branch by its last kernel",
            "use another scheme or projection",
        )
        for scheme in ("zero", "fixup")
    ),
    (
        {
            "model.family": "encoder_decoder",
            "decode.cache": "sink_window",
            "decode.cache_window": 4,
            "model.decoder.attention.window": 3,
        },
        "model.attention.window=3 hides",
        "use decode.cache=sliding",
    ),
    ({"model.dropout": 1.0}, "model.dropout=1.0", "at least 0 and below 1"),
    ({"objective.label_smoothing": -0.1}, "objective.label_smoothing=-0.1", "at least 0 and below 1"),
    *(({path: 0}, f"{path}=0", "at least 1") for path in ("model.d_model", "train.steps", "data.sequence_length")),
    *(
        ({path: -1.0}, f"{path}=-1.0", "not be negative")
        for path in ("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip", "model.ffn.ratio")
    ),
    ({"data.source": "text"}, "data.source=text", "data.path"),
    *(
        ({"data.source": "task", "data.task": task, f"data.{name}": least - 1}, f"data.{name}={least - 1}", f"{least}.")
        for task, name, least in (
            ("copy", "task_symbols", 1),
            ("icl_map", "task_labels", 1),
            ("icl_map", "task_shots", 2),
        )
    ),
    ({"data.source": "tfds"}, "data.source=tfds", "data.tfds_name"),
]
INERT = [
    (
        {"model.position.kind": "none", "model.position.rope_base": 5.0},
        "model.position.rope_base=5.0 has no effect",
        "only model.position.kind=rope reads it",
        "it is 'none'",
        "Remove one",
    ),
    ({"model.position.max_length": 64}, "model.position.max_length=64", "model.position.kind=learned", "'rope'"),
    ({"data.path": "x.txt"}, "data.path='x.txt'", "data.source=labelled or pairs or text", "'stdlib'"),
    (
        {"model.position.rope_factor": 2.0},
        "model.position.rope_factor=2.0 has no effect",
        "only model.position.rope_scaling=linear or ntk or yarn reads it",
        "it is 'none'",
    ),
    (
        {"model.position.kind": "alibi", "model.position.rope_factor": 2.0},
        "model.position.rope_factor=2.0 has no effect",
        "that one has no effect here",
    ),
    (
        {"model.position.kind": "alibi", "model.position.rope_scaling": "yarn"},
        "model.position.rope_scaling='yarn' has no effect",
        "only model.position.kind=rope reads it",
    ),
    ({"optimizer.decay_fraction": 0.5}, "optimizer.decay_fraction=0.5", "optimizer.schedule=wsd", "'cosine'"),
]


OUT_OF_RANGE = [
    ({"model.residual.ffn.branch_gain": "learnd_zero"}, "model.residual.ffn.branch_gain='learnd_zero'", "learned_zero"),
    ({"model.residual.attention.skip_gain": "learned_zero"}, "model.residual.attention.skip_gain='learned_zero'"),
    ({"model.num_layers": -1}, "model.num_layers=-1", "must not be negative"),
    ({"model.ffn.ratio": 0.0}, "model.ffn.ratio=0.0", "model.ffn.kind=none"),
    ({"model.norm.epsilon": -1e-5}, "model.norm.epsilon=-1e-05", "must not be negative"),
    ({"optimizer.final_fraction": -0.1}, "optimizer.final_fraction=-0.1", "must not be negative"),
    ({"optimizer.beta1": 1.0}, "optimizer.beta1=1.0", "at least 0 and below 1"),
    ({"optimizer.beta2": -0.5}, "optimizer.beta2=-0.5", "at least 0 and below 1"),
    ({"eval.batch_size": -1}, "eval.batch_size=-1", "must not be negative"),
    ({"eval.final_tokens": -1}, "eval.final_tokens=-1", "must not be negative"),
    ({"optimizer.warmup_steps": -5}, "optimizer.warmup_steps=-5"),
    ({"optimizer.schedule": "wsd", "optimizer.decay_fraction": 1.5}, "optimizer.decay_fraction=1.5"),
    ({"optimizer.learning_rate": float("nan")}, "optimizer.learning_rate=nan", "finite"),
    ({"optimizer.learning_rate": float("inf")}, "optimizer.learning_rate=inf", "finite"),
    ({"quux": 1}, 'There is no config field "quux"', "--help"),
]


@pytest.mark.parametrize("case", OUT_OF_RANGE, ids=lambda case: label(case[0]))
def test_a_value_out_of_range_is_refused(case):
    check_refused(*case)


@pytest.mark.parametrize(
    "case", [*UNKNOWN, *WRONG_KIND, *WRONG_TYPE, *IMPOSSIBLE, *INERT], ids=lambda case: label(case[0])
)
def test_bad_input_is_named_with_its_remedy(case):
    check_refused(*case)


def test_the_check_notices_accepted_input_and_empty_messages():
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_refused({"model.norm.placement": "post"})
    with pytest.raises(AssertionError, match="does not say"):
        check_refused({"train.steps": True}, "train.step=True")


@pytest.mark.parametrize("info", [i for i in SCHEMA if i.used_by], ids=lambda info: info.path)
def test_every_parameter_of_a_kind_is_refused_without_it(info):
    path, kinds = readers(info)
    _, overrides = other_value(info)
    value = overrides[info.path]
    other = next(kind for kind in next(i.kinds for i in SCHEMA if i.path == path) if kind not in kinds)
    needed = NEEDED.get((path, other), {})
    check_refused(
        {path: other, info.path: value, **needed},
        f"{info.path}={value!r} has no effect",
        info.used_by.replace("|", " or "),
    )


UNREAD = [
    (info.path, kind, field) for info in SCHEMA for kind in info.kinds for field in registry(info.path)[kind].unread
]


def in_stack(stack: str, path: str) -> str:
    """The field of one stack alone."""
    return path.replace("model.", f"model.{stack}.", 1)


def unread_value(field: str) -> Any:
    """Another value than the default of a field."""
    return other_value(next(info for info in SCHEMA if info.path == field))[1][field]


@pytest.mark.parametrize("case", UNREAD, ids=lambda case: f"{case[0]}={case[1]}, {case[2]}")
def test_every_field_that_an_entry_leaves_unread_is_refused_beside_it(case):
    path, kind, field = case
    value = unread_value(field)
    check_refused(
        {field: value, **NEEDED.get((path, kind), {}), path: kind},
        f"{field}={value!r} has no effect: nothing reads it beside {path}={kind}. Remove one",
    )


UNREAD_BY_ONE_STACK = [case for case in UNREAD if in_stack("encoder", case[0]) in config_module.stack_fields()]


@pytest.mark.parametrize("case", UNREAD_BY_ONE_STACK, ids=lambda case: f"{case[0]}={case[1]}, {case[2]}")
def test_a_field_that_one_of_two_stacks_reads_is_accepted_unless_it_is_set_for_the_other(case):
    path, kind, field = case
    value, needed = unread_value(field), {k: v for k, v in NEEDED.get((path, kind), {}).items() if k != "model.family"}
    both = {"model.family": "encoder_decoder", in_stack("encoder", path): kind, **needed}
    config = resolve(nested({**both, field: value}))
    assert to_flat(config)[field] == to_flat(stack_config(config, "decoder"))[field] == value
    assert stack_config(config, "encoder") == stack_config(resolve(nested(both)), "encoder")
    told = f"{field}={value!r} has no effect: nothing reads it beside {path}={kind}."
    check_refused({**both, in_stack("encoder", field): value}, "In the encoder", told)
    neither = {**both, in_stack("decoder", path): kind, "model.cross_attention": "pooled"}
    check_refused({**neither, field: value}, told)


@pytest.mark.parametrize(
    "case", [case for case in UNREAD if case[1] != "task"], ids=lambda case: f"{case[0]}={case[1]}, {case[2]}"
)
def test_no_field_that_is_declared_unread_reaches_the_layout_of_the_data(case, monkeypatch):
    """What a row looks like decides which examples there are: a field that it depends on is read. A task draws its rows
    whatever the layout says."""
    path, kind, field = case
    monkeypatch.setattr(config_module, "_check", lambda *_, **__: None)
    chosen = {**NEEDED.get((path, kind), {}), path: kind}
    without, beside = (resolve(nested({**chosen, **more})) for more in ({}, {field: unread_value(field)}))
    assert without != beside and layout_of(without) == layout_of(beside)


def test_a_default_spelled_out_is_never_refused():
    """`config.json` of an old run may hold more than the chosen kinds read."""
    everything = nested({info.path: info.default for info in SCHEMA})
    assert resolve(everything) == resolve({})


def test_overrides_by_name_are_checked_the_same_way():
    for overrides in ({"model.norm.plcement": "post"}, {"train.steps": True}, {"train.steps": "x"}):
        with pytest.raises(ConfigError) as by_name:
            apply_overrides(default_config(), overrides)
        with pytest.raises(ConfigError) as resolved:
            resolve(nested(overrides))
        assert str(by_name.value) == str(resolved.value)


def test_errors_are_user_errors():
    assert issubclass(ConfigError, UserError) and ConfigError.exit_code == 2


def test_what_an_entry_needs_is_really_needed():
    defaults = {info.path: info.default for info in schema()}
    for path, kind in (needed for needed in NEEDED if needed[1] != defaults[needed[0]]):
        with pytest.raises(ConfigError):
            resolve(nested({path: kind}))


# --- The command line --------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, list[str], list[str], float]:
    """Exit code, lines on standard output and error, seconds as they would pass on a machine that is not busy."""
    started, busy = time.perf_counter(), os.getloadavg()[0] / (os.cpu_count() or 1)
    out = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    busy = max(1.0, busy, os.getloadavg()[0] / (os.cpu_count() or 1))
    seconds = (time.perf_counter() - started) / busy
    return out.returncode, out.stdout.splitlines(), out.stderr.splitlines(), seconds


COMMANDS = [
    (
        ("--config=configs/base.py", "--config.model.norm.plcement=post"),
        'error: There is no config field "model.norm.plcement". Did you mean "model.norm.placement"?',
    ),
    (
        ("--config=configs/ablation_prenorm.py:psot",),
        "error: Unknown arm 'psot'; it is one of: pre, post, none, deepnorm, pre_no_warmup, "
        'post_no_warmup, pre_no_final. Did you mean "post"?',
    ),
    (
        ("--config=configs/base.py", "--config.model.attention.num_heads=7"),
        "error: model.d_model=128 is not divisible by model.attention.num_heads=7; change one, or set "
        "model.attention.head_dim.",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), COMMANDS, ids=lambda x: x[-1] if isinstance(x, tuple) else "")
def test_a_mistake_costs_seconds_and_one_line(arguments, message):
    code, out, err, seconds = run(*arguments)
    if seconds >= 6:  # just installed, perhaps: once more, warm
        code, out, err, seconds = run(*arguments)
    assert (code, out, err) == (2, [], [message])
    assert seconds < 6, f"{seconds:.1f} s; the target is 3 on a machine at rest"


def test_a_printed_config_shows_every_override():
    code, out, err, _ = run(
        "--config=configs/ablation_prenorm.py:post",
        "--config.model.residual.ffn.branch_gain=learned_zero",
        "--config.model.residual.ffn.skip_gain=0.5",
        "--config.optimizer.learning_rate=3e-4",
        "--config.tensorboard",
        "--print_config",
    )
    assert (code, err) == (0, [])
    printed = dict(line.split(" = ", 1) for line in out)
    changed = {
        "model.norm.placement": "post",
        "model.residual.ffn.branch_gain": "learned_zero",
        "model.residual.ffn.skip_gain": 0.5,
        "optimizer.learning_rate": 3e-4,
        "tensorboard": True,
    }
    assert printed == {path: repr(value) for path, value in to_flat(resolve(nested(changed))).items()}
