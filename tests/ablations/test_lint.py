"""Every rule triggers on the confound it is about, and none on a clean ablation."""

from __future__ import annotations

import dataclasses

import pytest

from ablations.cells import cells
from ablations.lint import Warning, lint, require_clean
from ablations.plan import parameter_counts
from ablations.schema import Ablation, Arm, Condition, Contrast
from tests.ablations.lab import WORSE, ablation
from transformer.errors import ConfigError

CLEAN = {"base": Arm(), "other": Arm({"model.norm.placement": "post"})}


def warnings(**changes) -> list[Warning]:
    made = ablation("no.txt", **{"arms": CLEAN, **changes})
    return lint("tiny", made, "tiny", parameter_counts(cells("tiny", made, "tiny")))


def arms(**overrides) -> dict:
    """Overrides of one arm beside the baseline: `arms(**{"model.d_model": 8})`."""
    return {"arms": {"base": Arm(), "other": Arm(overrides)}}


def test_a_clean_ablation_has_no_warning():
    assert warnings() == []
    assert warnings(conditions={"a": Condition(), "b": Condition({"model.num_layers": 2})}) == []


STABLE = Contrast("layernorm_removal", "stability", test="other", base="base", expect="worse")


def test_stability_on_one_tuning_seed_is_noted():
    (note,) = warnings(contrasts=(STABLE,), profile={"tuning_seeds": 1})
    assert note.level == "note" and "layernorm_removal: only divergences can decide" in note.message
    assert "tunes on 1 seed;" in note.message and "tuning_seeds=7" in note.message
    assert warnings(contrasts=(STABLE,), profile={"tuning_seeds": 7}) == []


PLANTED = {
    "same as the baseline": (arms(), "error", "differs from the baseline in no field"),
    "equal override": (arms(**{"model.d_model": 16}), "error", "differs from the baseline in no field"),
    "differs in a view": (arms(**{"train.log_every": 1}), "error", "differs from the baseline in no field"),
    "seed": (arms(seed=3), "error", "overrides seed, which belongs to the members"),
    "twice the same": (
        {"arms": {**CLEAN, "again": Arm({"model.norm.placement": "post"})}},
        "error",
        "differs from tiny/other in no field",
    ),
    "unmeasured metric": (
        {"contrasts": (dataclasses.replace(WORSE, metric="prefix_los"),)},
        "error",
        "layernorm_removal reads 'prefix_los', which no probe here measures; there are: loss, validation_loss, ",
    ),
    "unmeasured primary metric": ({"primary_metric": "accurcy"}, "error", "the primary metric reads 'accurcy'"),
    "inert override": (
        arms(**{"model.norm.placement": "post", "model.d_model": 16}),
        "note",
        "overrides equal to the baseline's value: model.d_model",
    ),
    "rides along": (
        arms(**{"model.position.kind": "none"}),
        "note",
        "fields that come along with its overrides: model.position.rope_base",
    ),
    "warm-up": (
        arms(**{"model.norm.placement": "post", "optimizer.warmup_steps": 9}),
        "note",
        "optimizer.warmup_steps differs: it can hide or cause instability",
    ),
    "clip": (arms(**{"optimizer.clip": 0.0}), "note", "optimizer.clip differs"),
    "schedule": (arms(**{"optimizer.schedule": "constant"}), "note", "optimizer.schedule differs"),
    "steps": (arms(**{"train.steps": 12}), "note", "train.steps differs: the arms do not see the same training"),
    "batch": (arms(**{"train.batch_size": 4}), "note", "train.batch_size differs"),
    "window": (arms(**{"data.sequence_length": 8}), "note", "data.sequence_length differs"),
    "text": (arms(**{"data.path": "b.txt"}), "note", "data.path differs: the arms do not see the same training"),
    "heads": (arms(**{"model.attention.num_heads": 4}), "note", "the head dimension changes with the number of heads"),
    "rope": (arms(**{"model.attention.num_heads": 4}), "note", "narrow heads leave RoPE fewer frequencies"),
    "norm bias": (
        {"base": {"model.norm.bias": True}, **arms(**{"model.norm.kind": "rmsnorm", "model.norm.bias": False})},
        "note",
        "the norm's bias changes together with its statistic",
    ),
    "fixed rate": (arms(**{"optimizer.learning_rate": 1e-3}), "note", "its learning rate is fixed, not tuned"),
    "untuned": ({"rates": (1e-2,)}, "note", "one learning rate for all arms"),
    "more than an epoch": (
        {"size": {"data.source": "stdlib", "data.path": "", "train.steps": 60_000}},
        "note",
        "more than one epoch of stdlib",
    ),
    "parameters": (arms(**{"model.d_model": 8}), "note", "parameters against"),
    "parameters said to be matched": (
        {"matched": ("tokens", "parameters"), **arms(**{"model.d_model": 8})},
        "error",
        "although declared as matched",
    ),
}


@pytest.mark.parametrize(("changes", "level", "message"), PLANTED.values(), ids=PLANTED)
def test_a_planted_confound_is_found(changes, level, message):
    found = warnings(**changes)
    assert [w.level for w in found if message in w.message] == [level], [str(w) for w in found]
    assert not [w for w in warnings() if message in w.message]
    if level == "error":
        with pytest.raises(ConfigError, match="tiny"):
            require_clean(found)
    else:
        require_clean([w for w in found if w.level == "note"])


def test_a_single_rate_matters_only_where_something_is_judged():
    made = ablation("no.txt", arms=CLEAN, rates=(1e-2,), profile={"verdicts": False})
    assert lint("tiny", made, "tiny") == []


def test_only_the_first_error_is_told_and_notes_stop_nothing():
    notes = [Warning("note", "tiny/a", "one"), Warning("note", "tiny/b", "two")]
    require_clean(notes)
    with pytest.raises(ConfigError, match=r"^tiny/c: three$"):
        require_clean([*notes, Warning("error", "tiny/c", "three"), Warning("error", "tiny/d", "four")])
    assert str(notes[0]) == "note: tiny/a: one"


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_what_replaces_the_feed_forward_network_costs_as_much(profile):
    from ablations import catalog

    ablation: Ablation = catalog.load("no_ffn")
    text = [cell for cell in cells("no_ffn", ablation, profile) if cell.condition == "text"]
    counts = parameter_counts(text)
    sizes = {cell.arm: counts[cell.label] for cell in text}
    for arm in ("deeper", "wider", "persistent", "linear"):
        assert sizes[arm] == pytest.approx(sizes["gelu"], rel=0.02), sizes


def test_the_configs_of_this_repository_are_clean():
    from ablations import catalog

    for name in catalog.names():
        made: Ablation = catalog.load(name)
        for profile in made.profiles:
            counts = parameter_counts(cells(name, made, profile))
            assert [w for w in lint(name, made, profile, counts) if w.level == "error"] == []
