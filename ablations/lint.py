"""Confounds that recur in ablations, looked for before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from ablations import probes
from ablations.cells import LEARNING_RATE, ArmCell, cells
from ablations.schema import BY_CHECK, Ablation
from transformer.config import difference
from transformer.errors import ConfigError

SENSITIVITY_SEEDS = 7  # fewer pairs cannot reach 0.05 in the sign-flip test of `analyses/stability.py`
STABILITY_FIELDS = ("optimizer.warmup_steps", "optimizer.clip", "optimizer.schedule")
RECIPE_FIELDS = (
    "train.steps",
    "train.batch_size",
    "data.sequence_length",
    "data.source",
    "data.path",
    "data.tfds_name",
    "data.vocabulary",
)


@dataclasses.dataclass(frozen=True)
class Warning:
    """One possible confound.

    Attributes:
      level: `error` stops a run; `note` is printed with the plan and in the report.
    """

    level: Literal["error", "note"]
    arm: str
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.arm}: {self.message}"


def lint(name: str, ablation: Ablation, profile: str, parameters: dict[str, int] | None = None) -> list[Warning]:
    """All warnings for an ablation at a profile.

    Args:
      parameters: label of an arm -> its number of parameters, where known.
    """
    arms = cells(name, ablation, profile)
    found = [warning for arm in arms for warning in _arm(arm, arms, ablation, parameters or {})]
    return [*_metrics(name, ablation), *_stability(name, ablation, profile), *_duplicates(arms), *found]


def require_clean(warnings: list[Warning]) -> None:
    """Raises ConfigError for the first error among the warnings."""
    for warning in warnings:
        if warning.level == "error":
            raise ConfigError(f"{warning.arm}: {warning.message}")


def _metrics(name: str, ablation: Ablation) -> Iterator[Warning]:
    """A metric nothing measures would count as missing for ever."""
    measured = probes.metrics(ablation.probes)
    wanted = {ablation.metric_under(condition): "the primary metric" for condition in ablation.conditions}
    wanted |= {c.metric: f"the contrast {c.claim}" for c in ablation.contrasts if c.type not in BY_CHECK}
    for metric, who in wanted.items():
        if metric not in measured:
            listed = ", ".join(measured)
            yield Warning("error", name, f"{who} reads {metric!r}, which no probe here measures; there are: {listed}")


def _stability(name: str, ablation: Ablation, profile: str) -> Iterator[Warning]:
    """What a comparison of stability can rest on is decided by the number of tuning seeds."""
    seeds = ablation.profile(profile).tuning_seeds
    claims = [c.claim for c in ablation.contrasts if c.type == "stability"]
    if claims and ablation.profile(profile).verdicts and seeds < SENSITIVITY_SEEDS:
        yield Warning(
            "note",
            name,
            f"{', '.join(claims)}: only divergences can decide stability here, since the profile tunes on {seeds} "
            f"{'seed' if seeds == 1 else 'seeds'}; learning-rate sensitivities need tuning_seeds={SENSITIVITY_SEEDS}",
        )


def _duplicates(arms: list[ArmCell]) -> Iterator[Warning]:
    """Two arms that are one and the same run would be found equivalent to the last bit."""
    seen: dict[tuple[str, str, tuple[float, ...]], ArmCell] = {}
    for arm in arms:
        first = seen.setdefault((arm.condition, arm.hash, arm.settings.learning_rates), arm)
        if first is not arm:
            which = "the baseline" if first.is_baseline else first.label
            yield Warning("error", arm.label, f"differs from {which} in no field: its overrides have no effect here")


def _arm(arm: ArmCell, arms: list[ArmCell], ablation: Ablation, parameters: dict[str, int]) -> Iterator[Warning]:
    base = next(a for a in arms if a.is_baseline and a.condition == arm.condition)
    settings, label = arm.settings, arm.label
    changed = difference(base.config, arm.config)
    if arm.is_baseline:
        if settings.verdicts and len(settings.learning_rates) < 2:
            yield Warning("note", label, "one learning rate for all arms: a difference may only be a mistuned one")
        if arm.config.data.source == "stdlib" and arm.tokens > 7_000_000:
            yield Warning("note", label, "more than one epoch of stdlib: overfitting can flip the sign of an effect")
        return
    own = set(ablation.arms[arm.arm].overrides)
    if "seed" in own:
        yield Warning("error", label, "overrides seed, which belongs to the members: set test_seeds of the profile")
    riding = [path for path in changed if path not in own]
    inert = [path for path in own if path not in changed]
    if riding:
        yield Warning("note", label, f"fields that come along with its overrides: {', '.join(riding)}")
    if inert and changed:
        yield Warning("note", label, f"overrides equal to the baseline's value: {', '.join(inert)}")
    if LEARNING_RATE in own:
        yield Warning("note", label, "its learning rate is fixed, not tuned: a difference may only be a mistuned one")
    for path in (path for path in changed if path in STABILITY_FIELDS):
        yield Warning("note", label, f"{path} differs: it can hide or cause instability on its own")
    for path in (path for path in changed if path in RECIPE_FIELDS):
        yield Warning("note", label, f"{path} differs: the arms do not see the same training")
    if "model.attention.num_heads" in changed and "model.attention.head_dim" not in changed:
        yield Warning("note", label, "the head dimension changes with the number of heads")
        if arm.config.model.position.kind == "rope":
            yield Warning("note", label, "narrow heads leave RoPE fewer frequencies")
    if "model.norm.kind" in changed and arm.config.model.norm.bias != base.config.model.norm.bias:
        yield Warning("note", label, "the norm's bias changes together with its statistic")
    count, reference = parameters.get(label), parameters.get(base.label)
    if count and reference and abs(count / reference - 1) > 0.01:
        matched = "parameters" in ablation.matched
        yield Warning(
            "error" if matched else "note",
            label,
            f"{count:,} parameters against {reference:,}" + (", although declared as matched" if matched else ""),
        )
