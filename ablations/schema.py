"""An ablation as data: the question, its arms, what is compared, and what each profile can afford.

This module imports neither jax nor the model: a config file that declares an ablation stays cheap to read, and
everything a verdict will be judged by is fixed, and hashable, before any run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from transformer.errors import ConfigError, did_you_mean

Overrides = Mapping[str, Any]
Better = Literal["lower", "higher"]
ContrastType = Literal[
    "superiority", "equivalence", "level", "catastrophe", "stability", "slope", "ordering", "exact", "formula"
]

PERCENT = ("accuracy", "exact_match")  # metrics in points, 0 to 100, of which more is better
UNITS = {
    **dict.fromkeys(
        ("loss", "prefix_loss", "teacher_forced_loss", "exposure_gap", "judged_after_text", "judged_after_own"),
        "nats per token",
    ),
    **dict.fromkeys(("rise_2x", "rise_4x", "rise_8x"), "nats per token"),
    **dict.fromkeys((*PERCENT, "long_accuracy"), "points"),
    **dict.fromkeys(("largest_write", "largest_late_write"), "of the stream"),
}
ABOUT = {  # what no reader knows by its name
    "teacher_forced_loss": "the loss with the whole text given, at the places where the prefix loss is measured",
    "prefix_loss": "the loss on the next token when each prefix is given alone",
    "judged_after_text": "how unlikely a counted model of the language finds what is written after a true text",
    "judged_after_own": "the same of what is written after the model's own words",
    "exposure_gap": "how much less likely a counted model of the language finds what is written after the model's own "
    "words than what is written after a true text",
    **{
        f"rise_{n}x": f"how much higher the loss of the same tokens is at the end of windows {times} as long as in "
        "training"
        for n, times in ((2, "twice"), (4, "four times"), (8, "eight times"))
    },
    "long_accuracy": "the accuracy on questions longer than those of training, up to twice as long",
    "largest_write": "the most that a sublayer adds to the stream, relative to the stream before it",
    "largest_late_write": "the same in the second half of the stack",
}
CONTROLS = ("", "unigram", "bigram", "floor", "chance", "solved")
MAX_SEED = 1000  # test seeds lie below, tuning seeds from here on, twins' from twice as far
MORE_PAIRS = range(MAX_SEED // 2, MAX_SEED)  # seeds of pairs of twins beyond the test seeds, whose runs test nothing
BY_CHECK = ("exact", "formula")  # types of contrast that are decided without a run: no arms, no metric


def spoken(metric: str) -> str:
    """The name of a metric in a sentence."""
    return metric.replace("_", " ")


def better(metric: str) -> Better:
    """Whether lower or higher values of a primary metric are better."""
    return "higher" if metric in PERCENT else "lower"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting of the switches under study.

    Attributes:
      overrides: dotted config field -> value; what the arm changes against the base, and nothing else.
      note: one sentence for the report.
    """

    overrides: Overrides = dataclasses.field(default_factory=dict)
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Condition:
    """A setting every arm is repeated under (a depth, a warm-up, a corpus, a task).

    Attributes:
      arms: those of interest here, empty for all; the baseline is always among them.
      primary_metric, positive_control: the ablation's, unless stated: a task is judged by something else than a text.
    """

    overrides: Overrides = dataclasses.field(default_factory=dict)
    note: str = ""
    arms: tuple[str, ...] = ()
    primary_metric: str | None = None
    positive_control: str | None = None


@dataclasses.dataclass(frozen=True)
class Contrast:
    """One registered comparison: it decides one claim, and is fixed before any run.

    Attributes:
      claim: an id in `ablations/claims/`.
      type: how the verdict is computed; `exact` and `formula` name a `check` instead of arms.
      test, base: names of the two arms compared (`level` has no base).
      arms: `ordering`: the arms in the claimed order, best first; `slope`: the sizes, three or more.
      expect: the direction the claim states for `test` against `base`; None for equivalence and the like.
      metric: a field of the final evaluation, such as `loss`.
      better: whether lower or higher values of the metric are better.
      margin: smallest effect of interest, in units of the metric: nats per token, or points of accuracy; for `level`
        the value that the metric of `test` must reach.
      conditions: names of the conditions it is judged under; empty for all.
      min_seeds: test seeds below which there is no verdict; a profile that declares fewer than eight has its own.
      prior: the verdict expected before any run.
      check: for `exact` and `formula`: the test (`FILE::CLASS`) or the formula (a name in `ablations/formulas.py`)
        that decides.
      exponent, against: for `slope`: the claimed b in metric ~ size^b, and what the size is: `parameters`, `flops`,
        `tokens` or a config field such as `data.sequence_length`.
    """

    claim: str
    type: ContrastType
    test: str = ""
    base: str = ""
    arms: tuple[str, ...] = ()
    expect: Literal["better", "worse"] | None = None
    metric: str = "loss"
    better: Better = "lower"
    margin: float = 0.01
    conditions: tuple[str, ...] = ()
    min_seeds: int = 8
    prior: Literal["supported", "refuted", "mixed", "inconclusive"] = "supported"
    check: str = ""
    note: str = ""
    exponent: float | None = None
    against: str = ""

    @property
    def hash(self) -> str:
        """Twelve hex digits over what differs from the defaults: stored with each record, so a later edit shows.

        A field added later leaves the hashes of what was registered before as they are.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        stated = {f.name: fields[f.name] for f in dataclasses.fields(self) if fields[f.name] != f.default}
        text = json.dumps(stated, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Profile:
    """What one budget runs: sizes, learning rates, seeds.

    Attributes:
      overrides: fields that set the scale (width, steps, corpus), applied before condition and arm.
      learning_rates: the grid every arm is tuned on.
      tuning_seeds: seeds 1000, 1001, ... used only to choose each arm's learning rate.
      test_seeds: seeds 0, 1, ... used only to judge.
      first_seed: counts both from further on, for a repetition.
      arms, conditions: subsets to run; empty for all.
      verdicts: False for `smoke`, which only checks wiring.
      insists: fields applied after the condition and before the arm: a smoke run stays short whatever the condition.
      corpus: fields that name the text; a condition with a `data.source` of its own does without them.
      eased: positive control -> the weaker one that this budget holds a baseline to instead.
    """

    overrides: Overrides = dataclasses.field(default_factory=dict)
    learning_rates: tuple[float, ...] = (1e-3,)
    tuning_seeds: int = 1
    test_seeds: int = 8
    first_seed: int = 0
    arms: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    verdicts: bool = True
    insists: Overrides = dataclasses.field(default_factory=dict)
    corpus: Overrides = dataclasses.field(default_factory=dict)
    eased: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.learning_rates or self.test_seeds < 1:
            raise ConfigError("A profile needs at least one learning rate and one test seed.")
        if len(self.learning_rates) > 1 and self.tuning_seeds < 1:
            raise ConfigError("A profile with several learning rates needs at least one tuning seed.")


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A question and everything needed to answer it.

    Attributes:
      question: in one sentence, ending with a question mark.
      arms: name -> Arm; the first is the baseline and the default of `--config=FILE`.
      base: fields set for every cell, before profile, condition and arm.
      matched: what the arms have in common by construction ("parameters", "flops", "tokens", ...).
      probes: what is measured on each trained member beside its loss (`ablations/probes.py`).
      positive_control: what the baseline must manage before it may judge others: beat `unigram` or `bigram` (entropies
        of the validation text) with its loss, come within 0.05 nats of the `floor` (the least loss a task allows), beat
        `chance` (of a task) with its primary metric, have the task `solved` (95 points), or empty for nothing.
      primary_metric: the field of the final evaluation that tuning minimises, or maximises if it is in points: `loss`
        (nats per token), `accuracy` or `exact_match` (points, 0 to 100), or what a probe measures.
      unanswered: claim -> why this config does not decide it.
    """

    question: str
    arms: Mapping[str, Arm]
    conditions: Mapping[str, Condition] = dataclasses.field(default_factory=lambda: {"default": Condition()})
    contrasts: tuple[Contrast, ...] = ()
    profiles: Mapping[str, Profile] = dataclasses.field(default_factory=dict)
    base: Overrides = dataclasses.field(default_factory=dict)
    matched: tuple[str, ...] = ("tokens",)
    probes: tuple[str, ...] = ()
    positive_control: str = "bigram"
    primary_metric: str = "loss"
    unanswered: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.arms:
            raise ConfigError("An ablation needs at least one arm.")
        for name, condition in self.conditions.items():
            for arm in condition.arms:
                if arm not in self.arms:
                    raise ConfigError(
                        f"Condition {name!r} names the arm {arm!r}, which does not exist.{did_you_mean(arm, self.arms)}"
                    )
        for contrast in self.contrasts:
            self._check(contrast)
        for name in self.conditions:
            self._check_control(name, self._control(name))
        for profile in self.profiles.values():
            for control in (*profile.eased, *profile.eased.values()):
                self._check_name(control)

    def _check_control(self, condition: str, control: str) -> None:
        self._check_name(control)
        metric = self.metric_under(condition)
        if control in ("chance", "solved") and metric not in PERCENT:
            raise ConfigError(
                f"The positive control {control!r} of condition {condition!r} is about points, but its primary metric "
                f"is {metric!r}; make it one of: {', '.join(PERCENT)}."
            )

    @staticmethod
    def _check_name(control: str) -> None:
        if control not in CONTROLS:
            raise _unknown("positive control", control, filter(None, CONTROLS))

    def _check(self, contrast: Contrast) -> None:
        needs_check = contrast.type in BY_CHECK
        if needs_check and not contrast.check:
            raise ConfigError(f"Contrast {contrast.claim!r} of type {contrast.type!r} must name its `check`.")
        if contrast.type == "slope" and (contrast.exponent is None or not contrast.against or len(contrast.arms) < 3):
            raise ConfigError(
                f"Contrast {contrast.claim!r} of type 'slope' needs the claimed `exponent`, what it is `against`, and "
                "at least three `arms` of different size."
            )
        several = contrast.type in ("ordering", "slope")
        named = contrast.arms if several else (contrast.test, contrast.base)[: 1 if contrast.type == "level" else 2]
        for arm in () if needs_check else named:
            if arm not in self.arms:
                raise ConfigError(
                    f"Contrast {contrast.claim!r} names the arm {arm!r}, which does not exist."
                    f"{did_you_mean(arm, self.arms)}"
                )
        for condition in contrast.conditions:
            if condition not in self.conditions:
                raise ConfigError(
                    f"Contrast {contrast.claim!r} names the condition {condition!r}, which does not exist."
                    f"{did_you_mean(condition, self.conditions)}"
                )
        for condition in () if needs_check else contrast.conditions or tuple(self.conditions):
            for arm in named:
                if arm not in self.arms_under(condition):
                    raise ConfigError(
                        f"Contrast {contrast.claim!r} reads the arm {arm!r} under the condition {condition!r}, which "
                        "leaves it out: name the contrast's `conditions`, or add the arm to the condition's `arms`."
                    )

    @property
    def baseline(self) -> str:
        """The name of the first arm."""
        return next(iter(self.arms))

    def arms_under(self, condition: str) -> tuple[str, ...]:
        """The arms trained under a condition, in the order of `arms`."""
        chosen = self.conditions[condition].arms
        return tuple(arm for arm in self.arms if not chosen or arm in chosen or arm == self.baseline)

    def metric_under(self, condition: str) -> str:
        """What learning rates are chosen by under a condition."""
        own = self.conditions[condition].primary_metric
        return self.primary_metric if own is None else own

    def control_under(self, condition: str, profile: str) -> str:
        """What the baseline must manage under a condition at a profile; empty for nothing."""
        control = self._control(condition)
        return self.profile(profile).eased.get(control, control)

    def _control(self, condition: str) -> str:
        own = self.conditions[condition].positive_control
        return self.positive_control if own is None else own

    def profile(self, name: str) -> Profile:
        """A profile by its name, or its repetition on other seeds, such as `quick@100`.

        Raises:
          ConfigError: an unknown profile, or a repetition on seeds that others use.
        """
        profile, first_seed = repetition(name)
        if profile not in self.profiles:
            raise _unknown("profile", name, self.profiles)
        settings = self.profiles[profile]
        first_free, last = max(settings.test_seeds, settings.tuning_seeds), MORE_PAIRS.start - settings.test_seeds
        if first_seed and not first_free <= first_seed <= last:
            raise ConfigError(
                f"The profile {name!r} would not repeat {profile!r} on seeds of its own; choose a first seed from "
                f"{first_free} to {last}."
            )
        return dataclasses.replace(settings, first_seed=first_seed)

    def overrides(self, arm: str = "", condition: str = "", profile: str = "") -> dict[str, Any]:
        """The fields one cell changes against the base config; the arm's own come last and win.

        Raises:
          ConfigError: an unknown arm, condition or profile.
        """
        merged: dict[str, Any] = dict(self.base)
        profile, _ = repetition(profile)
        if profile in self.profiles and "data.source" not in self.conditions.get(condition, Condition()).overrides:
            merged.update(self.profiles[profile].corpus)
        for kind, table, name in (
            ("profile", self.profiles, profile),
            ("condition", self.conditions, condition),
            ("arm", self.arms, arm),
        ):
            if name and name not in table:
                raise _unknown(kind, name, table)
            if name:
                merged.update(table[name].overrides)
            if kind == "condition" and profile:
                merged.update(self.profiles[profile].insists)
        return merged


def repetition(profile: str) -> tuple[str, int]:
    """A profile's name and its first test seed: `quick@100` is `quick` on the seeds 100, 101, ... for testing and
    1100, 1101, ... for tuning."""
    name, _, first = profile.partition("@")
    return (name, int(first)) if first.isdecimal() and int(first) < MORE_PAIRS.start else (profile, 0)


def _unknown(kind: str, name: str, table: Iterable[str]) -> ConfigError:
    allowed = ", ".join(table) or "(none)"
    return ConfigError(f"Unknown {kind} {name!r}; it is one of: {allowed}.{did_you_mean(name, table)}")


def arm_config(ablation: Ablation, arm: str = "") -> Any:
    """The locked ConfigDict of one arm (by default the baseline's), for a config file's `get_config`.

    Raises:
      ConfigError: an unknown arm or field.
    """
    from transformer.config import apply_overrides, default_config

    return apply_overrides(default_config(), ablation.overrides(arm or ablation.baseline))
