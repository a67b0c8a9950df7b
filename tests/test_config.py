"""Configs as data: they survive every round trip, and hash to what they mean."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablations.schema import Ablation
from tests.tiny import OVERRIDES, label, nested, one_switch, other_value, tiny
from transformer import config as config_module
from transformer.config import (
    apply_overrides,
    config_hash,
    default_config,
    difference,
    identity,
    is_view,
    replace,
    resolve,
    schema,
    to_dict,
    to_flat,
)
from transformer.errors import ConfigError
from transformer.schema import Config

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = list(schema())
PATHS = [info.path for info in SCHEMA]


# --- Round trips -------------------------------------------------------------------------------------------------


def check_round_trip(config: Config, through: Callable[[Config], Any] = to_dict) -> None:
    """As plain data and through JSON, a config comes back equal, with the same hash."""
    data = through(config)
    back = resolve(data)
    assert back == config
    assert resolve(json.loads(json.dumps(data, allow_nan=False))) == config
    assert to_dict(back) == to_dict(config)
    assert config_hash(back) == config_hash(config)


def test_defaults():
    check_round_trip(resolve({}))
    assert resolve(default_config()) == resolve({})
    assert to_flat(resolve({})).keys() <= set(PATHS)


@pytest.mark.parametrize("overrides", one_switch(""), ids=label)
def test_every_registered_kind(overrides):
    config = resolve(nested(overrides))
    check_round_trip(config)
    assert {path: to_flat(config)[path] for path in overrides} == overrides


CHANGEABLE = [info for info in SCHEMA if len(info.kinds) != 1]  # some choices have one entry so far


@pytest.mark.parametrize("info", CHANGEABLE, ids=lambda info: info.path)
def test_every_field(info):
    _, overrides = other_value(info)
    config = tiny(overrides)
    check_round_trip(config)
    assert to_flat(config)[info.path] == overrides[info.path]


def test_the_check_notices_a_lost_field():
    def lossy(config):
        data = to_dict(config)
        del data["model"]["norm"]["placement"]
        return data

    check_round_trip(tiny(), lossy)  # a default comes back by itself
    with pytest.raises(AssertionError):
        check_round_trip(tiny({"model.norm.placement": "post"}), lossy)


@pytest.mark.parametrize("overrides", one_switch("model."), ids=label)
def test_there_and_back(overrides):
    """Choosing a kind and then the default again leaves nothing behind."""
    default = {info.path: info.default for info in SCHEMA}
    there = replace(tiny(), overrides)
    assert replace(there, {path: OVERRIDES.get(path, default[path]) for path in overrides}) == tiny()


def test_a_bare_config_is_the_default_one():
    """What the README's first lines make."""
    assert Config() == resolve({}) and difference(Config(), resolve({})) == {}


def test_replace_keeps_everything_else():
    changed = replace(tiny({"model.position.rope_base": 500.0}), {"seed": 4})
    assert difference(tiny({"model.position.rope_base": 500.0}), changed) == {"seed": (0, 4)}


def test_numbers_keep_their_type():
    config = resolve({"optimizer": {"learning_rate": 1}, "train": {"steps": 100.0}, "wandb": {"tags": ["a"]}})
    assert config.optimizer.learning_rate == 1.0 and type(config.optimizer.learning_rate) is float
    assert config.train.steps == 100 and type(config.train.steps) is int
    assert config.wandb.tags == ("a",)


@pytest.mark.parametrize("given", [["a,b"], ("a", "b"), ["a,", "b"]])
def test_a_list_may_be_typed_with_commas(given):
    """As the flag gives it: `--config.wandb.tags=a,b` arrives as one text in a tuple."""
    assert resolve({"wandb": {"tags": given}}).wandb.tags == ("a", "b")
    assert resolve(nested({"model.residual.ffn.skip_gain": 0})).model.residual.ffn.skip_gain == 0.0


def test_parameters_of_a_kind_are_read_like_fields():
    assert tiny().model.position.rope_base == 10_000.0
    assert tiny({"model.position.rope_base": 500}).model.position.rope_base == 500.0
    assert "model.position.max_length" not in to_flat(tiny())
    with pytest.raises(AttributeError, match="Position has no field 'rope_bse'"):
        _ = tiny().model.position.rope_bse


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().seed = 1


# --- Config files ------------------------------------------------------------------------------------------------


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file(path):
    module = load(path)
    ablation = getattr(module, "ABLATION", None)
    assert isinstance(ablation, Ablation) == path.stem.startswith("ablation_")
    if ablation is None:
        arguments = [(), ("somewhere.txt",)] if "def get_config(path" in path.read_text() else [()]
        for argument in arguments:
            check_round_trip(resolve(module.get_config(*argument)))
        return
    assert resolve(module.get_config()) == resolve(module.get_config(ablation.baseline))
    for arm in ablation.arms:
        check_round_trip(resolve(module.get_config(arm)))
    names = itertools.product(ablation.conditions, ["", *ablation.profiles])
    for arm, condition, profile in [(a, c, p) for c, p in names for a in ablation.arms_under(c)]:
        overrides = ablation.overrides(arm, condition, profile)
        check_round_trip(resolve(apply_overrides(default_config(), overrides)))
    with pytest.raises(ConfigError, match="Unknown arm 'nowhere'; it is one of: "):
        module.get_config("nowhere")


@pytest.mark.parametrize("path", [p for p in FILES if p.stem.startswith("ablation_")], ids=lambda path: path.stem)
def test_arms_differ_from_the_baseline_in_exactly_their_overrides(path):
    """Nothing rides along: not even through a kind's own parameters."""
    module = load(path)
    base = resolve(module.get_config())
    for name, arm in module.ABLATION.arms.items():
        changed = difference(base, resolve(module.get_config(name)))
        gone = {p for p, (_, value) in changed.items() if value is None} - arm.overrides.keys()
        assert changed.keys() - gone == {p for p in arm.overrides if to_flat(base).get(p) != arm.overrides[p]}
        assert all(info.used_by for info in SCHEMA if info.path in gone)


def test_every_config_file_says_how_to_run_it():
    for path in FILES:
        text = load(path).__doc__
        assert f"configs/{path.name}" in text, f"{path.name}: its docstring gives no command"


# --- Identity and hash -------------------------------------------------------------------------------------------

BASE = resolve({})


@pytest.mark.parametrize("info", CHANGEABLE, ids=lambda info: info.path)
def test_views_leave_the_hash_alone_and_everything_else_changes_it(info):
    before, after = (resolve(nested(overrides)) for overrides in other_value(info, base={}))
    assert (config_hash(before) == config_hash(after)) == is_view(info.path)
    assert (info.path in identity(after)) == (not is_view(info.path))


def test_what_counts_as_a_view():
    """A field listed here never changes a number; taking one off or adding one renames every run."""
    views = {path for path in PATHS if is_view(path)}
    assert {path for path in views if not path.startswith(("wandb.", "decode."))} == {
        "train.log_every",
        "train.eval_every",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.steps_per_call",
        "train.profile_step",
        "train.profile_steps",
        "eval.batch_size",
        "data.feed",
        "tensorboard",
    }


def test_golden_hashes():
    """These name run directories and committed results: they change only with SCHEMA_VERSION, and on purpose."""
    assert config_hash(BASE) == GOLDEN["default"]
    assert config_hash(resolve(nested({"model.norm.placement": "post", "seed": 3}))) == GOLDEN["post, seed 3"]
    assert config_hash(BASE, platform="gpu") == GOLDEN["default on gpu"]


GOLDEN = {
    "default": "d016ed5e69c68931",
    "post, seed 3": "507e32b92d48fc3c",
    "default on gpu": "c4b44c9f8ae34b62",
}


def check_a_new_field_changes_no_hash(monkeypatch, hash_of: Callable[[Config], str]) -> None:
    """The same configs hashed before and after a field joins the schema."""
    configs = [BASE, resolve({"seed": 1}), resolve(nested({"model.norm.kind": "none", "eval.tokens": 100}))]
    real = config_module._own_fields
    monkeypatch.setattr(config_module, "_own_fields", lambda cls: [f for f in real(cls) if f.name != "final"])
    assert "eval.final" not in {info.path for info in schema()}
    before = [hash_of(config) for config in configs]
    monkeypatch.setattr(config_module, "_own_fields", real)
    assert [hash_of(config) for config in configs] == before


def test_a_field_added_later_changes_no_hash(monkeypatch):
    check_a_new_field_changes_no_hash(monkeypatch, config_hash)


def test_the_check_notices_a_hash_over_all_fields(monkeypatch):
    def over_everything(config):
        return hashlib.sha256(json.dumps(to_flat(config), sort_keys=True).encode()).hexdigest()

    with pytest.raises(AssertionError):
        check_a_new_field_changes_no_hash(monkeypatch, over_everything)


def test_one_meaning_one_hash():
    """However a config was made: by file, by flag, with a default spelled out, with 1 for 1.0."""
    spellings = [
        resolve({"optimizer": {"learning_rate": 1}}),
        resolve({"optimizer": {"learning_rate": 1.0, "beta1": 0.9}}),
        replace(BASE, {"optimizer.learning_rate": 1}),
        resolve(apply_overrides(default_config(), {"optimizer.learning_rate": 1.0})),
    ]
    assert len({config_hash(c) for c in spellings}) == 1 and all(c == spellings[0] for c in spellings)


def test_execution_is_part_of_the_hash():
    hashes = {config_hash(BASE), config_hash(BASE, platform="cpu"), config_hash(BASE, platform="gpu")}
    assert len(hashes) == 3


# --- The schema itself -------------------------------------------------------------------------------------------


def test_every_field_explains_itself():
    for info in SCHEMA:
        assert info.help and len(info.help) < 100 and not info.help.endswith("."), info.path
        if info.kinds:
            assert info.default in info.kinds or isinstance(info.default, float), info.path


def test_fields_that_other_programs_rely_on():
    relied_on = {
        "seed",
        *(f"train.{x}" for x in ("steps", "batch_size", "eval_every", "checkpoint_every", "log_every")),
        "train.steps_per_call",
        *(f"data.{x}" for x in ("source", "path", "sequence_length")),
        *(f"optimizer.{x}" for x in ("learning_rate", "warmup_steps", "schedule", "weight_decay")),
    }
    assert relied_on <= set(PATHS)


def test_reading_a_config_file_imports_no_jax():
    script = (
        "import sys, transformer.config, transformer.schema, ablations.schema;"
        "print([name for name in ('jax', 'flax', 'optax', 'wandb', 'orbax', 'grain') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr
