"""An ablation refuses what it could not judge, and merges overrides in one order."""

from __future__ import annotations

import dataclasses

import pytest

from ablations.schema import Ablation, Arm, Condition, Contrast, Profile, arm_config
from transformer.config import resolve
from transformer.errors import ConfigError

ARMS = {"pre": Arm(), "post": Arm({"model.norm.placement": "post"}), "none": Arm({"model.norm.kind": "none"})}


def ablation(**changes) -> Ablation:
    return Ablation(
        **{
            "question": "Where should the norm stand?",
            "arms": ARMS,
            "conditions": {"shallow": Condition({"model.num_layers": 2}), "deep": Condition({"model.num_layers": 8})},
            "profiles": {"smoke": Profile({"train.steps": 4, "model.num_layers": 1}, verdicts=False)},
            "base": {"train.steps": 100, "seed": 5},
            **changes,
        }
    )


def test_the_first_arm_is_the_baseline():
    assert ablation().baseline == "pre"


def test_overrides_are_merged_from_the_general_to_the_particular():
    made = ablation(arms={"a": Arm({"model.num_layers": 3, "seed": 1})})
    assert made.overrides() == {"train.steps": 100, "seed": 5}
    assert made.overrides(profile="smoke") == {"train.steps": 4, "model.num_layers": 1, "seed": 5}
    assert made.overrides(condition="deep", profile="smoke")["model.num_layers"] == 8
    assert made.overrides("a", "deep", "smoke") == {"train.steps": 4, "model.num_layers": 3, "seed": 1}


def test_merging_changes_no_input():
    made = ablation()
    made.overrides("post", "deep", "smoke")["seed"] = 77
    assert made.base == {"train.steps": 100, "seed": 5} and made.arms["post"].overrides == ARMS["post"].overrides


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"arm": "psot"}, "Unknown arm 'psot'; it is one of: pre, post, none. Did you mean \"post\"?"),
        ({"condition": "dep"}, "Unknown condition 'dep'; it is one of: shallow, deep. Did you mean \"deep\"?"),
        ({"profile": "full"}, "Unknown profile 'full'; it is one of: smoke."),
    ],
)
def test_unknown_names_are_refused(names, message):
    with pytest.raises(ConfigError) as caught:
        ablation().overrides(**names)
    assert str(caught.value) == message


def test_a_profile_that_does_not_exist_anywhere():
    with pytest.raises(ConfigError, match=r"Unknown profile 'demo'; it is one of: \(none\)\."):
        ablation(profiles={}).overrides(profile="demo")


def test_an_ablation_needs_arms():
    with pytest.raises(ConfigError, match="needs at least one arm"):
        ablation(arms={})


# --- Contrasts ---------------------------------------------------------------------------------------------------


def check_refused(contrast: Contrast, *parts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ablation(contrasts=(contrast,))
    assert all(part in str(caught.value) for part in (contrast.claim, *parts)), str(caught.value)


def test_contrasts_name_arms_and_conditions_that_exist():
    check_refused(Contrast("c", "superiority", test="psot", base="pre"), "'psot'", 'Did you mean "post"?')
    check_refused(Contrast("c", "superiority", test="post"), "''")
    check_refused(Contrast("c", "ordering", arms=("pre", "pots")), "'pots'", 'Did you mean "post"?')
    check_refused(
        Contrast("c", "superiority", test="post", base="pre", conditions=("dep",)), "'dep'", 'Did you mean "deep"?'
    )
    check_refused(Contrast("c", "exact"), "'exact'", "`check`")
    check_refused(Contrast("c", "formula"), "'formula'", "`check`")
    sizes = ("pre", "post", "none")
    check_refused(Contrast("c", "slope", arms=sizes, against="tokens"), "'slope'", "`exponent`")
    check_refused(Contrast("c", "slope", arms=sizes, exponent=2.0), "'slope'", "`against`")
    check_refused(Contrast("c", "slope", arms=sizes[:2], exponent=2.0, against="tokens"), "at least three `arms`")
    check_refused(Contrast("c", "level", test="psot"), "'psot'")


def test_the_check_notices_what_is_accepted():
    good = (
        Contrast("c", "superiority", test="post", base="pre", conditions=("deep",)),
        Contrast("c", "ordering", arms=("pre", "post", "none")),
        Contrast("c", "exact", check="tests/x.py::test_y"),
        Contrast("c", "slope", arms=("pre", "post", "none"), exponent=2.0, against="tokens"),
        Contrast("c", "level", test="post", margin=0.1),
    )
    assert ablation(contrasts=good).contrasts == good
    for contrast in good:
        with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
            check_refused(contrast)


OTHER = {
    "claim": "d",
    "type": "equivalence",
    "test": "none",
    "base": "post",
    "arms": ("pre",),
    "expect": "worse",
    "metric": "bits_per_byte",
    "better": "higher",
    "margin": 0.02,
    "conditions": ("deep",),
    "min_seeds": 12,
    "prior": "refuted",
    "check": "x",
    "note": "changed",
    "exponent": 2.0,
    "against": "tokens",
}


def test_every_field_of_a_contrast_is_in_its_hash():
    """Whatever is edited after a run shows."""
    contrast = Contrast("c", "superiority", test="post", base="pre")
    assert {f.name for f in dataclasses.fields(Contrast)} == set(OTHER)
    hashes = {contrast.hash, *(dataclasses.replace(contrast, **{k: v}).hash for k, v in OTHER.items())}
    assert len(hashes) == len(OTHER) + 1 and all(len(h) == 12 for h in hashes)
    assert Contrast("c", "superiority", test="post", base="pre").hash == contrast.hash


def test_a_field_added_later_leaves_hashes_as_they_are():
    """Registered before `exponent` existed, and committed in records since."""
    assert Contrast("c", "superiority", test="post", base="pre", expect="worse").hash == "7bf1fd40187a"


def test_contrasts_and_arms_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Contrast("c", "superiority").margin = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        ablation().question = "?"


def test_defaults_are_not_shared():
    assert Arm().overrides is not Arm().overrides and Condition().overrides == {}


# --- As a config -------------------------------------------------------------------------------------------------


def test_arm_config():
    assert resolve(arm_config(ablation())).model.norm.placement == "pre"
    post = resolve(arm_config(ablation(), "post"))
    assert (post.model.norm.placement, post.train.steps, post.seed) == ("post", 100, 5)


def test_arm_config_refuses_unknown_fields_and_wrong_types():
    for overrides, message in (
        ({"model.norm.plcement": "post"}, 'Did you mean "model.norm.placement"'),
        ({"train.steps": "many"}, "train.steps='many' has the wrong type"),
    ):
        with pytest.raises(ConfigError, match=message):
            arm_config(ablation(arms={"a": Arm(overrides)}))


def test_arm_config_is_locked():
    with pytest.raises(AttributeError, match="locked"):
        arm_config(ablation()).model.norm.plcement = "post"
