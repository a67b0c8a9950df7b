"""What has to be trained: an arm under a condition at a profile, and its members (learning rate, seed).

An arm is one architecture at one scale: everything but the learning rate and the seed is fixed, so one process
compiles it once and trains all its members. Which members are still needed is a pure function of what is finished.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ablations.evidence import Outcome
from ablations.schema import MAX_SEED, MORE_PAIRS, Ablation, Better, Profile, better
from transformer.config import apply_overrides, config_hash, default_config, replace, resolve
from transformer.errors import ConfigError
from transformer.schema import Config

LEARNING_RATE = "optimizer.learning_rate"
TUNING_SEED, TWIN_SEED = MAX_SEED, 2 * MAX_SEED
MAX_EXTENSIONS = 2  # steps an arm may extend its learning-rate grid on either side


@dataclasses.dataclass(frozen=True, order=True)
class Member:
    """One training run of an arm.

    Attributes:
      learning_rate: peak.
      seed: test seeds count from 0 or the profile's first seed, tuning seeds from 1000 more.
      twin: data of `seed` with another initialisation: the noise floor's partner.
    """

    learning_rate: float
    seed: int
    twin: bool = False

    @property
    def name(self) -> str:
        """Folder name."""
        return f"lr{self.learning_rate:.4g}-s{self.seed}{'-twin' if self.twin else ''}"

    @property
    def is_tuning(self) -> bool:
        """Whether it only serves to choose the learning rate."""
        return self.seed >= TUNING_SEED

    def config(self, arm: Config) -> Config:
        """The arm's config with this member's learning rate and seed."""
        overrides: dict[str, Any] = {LEARNING_RATE: self.learning_rate, "seed": self.seed}
        if self.twin:
            overrides |= {"init_seed": TWIN_SEED + self.seed, "data_seed": self.seed}
        return replace(arm, overrides)


@dataclasses.dataclass(frozen=True)
class ArmCell:
    """One arm under one condition at one profile of an ablation.

    Attributes:
      settings: the profile; an arm whose overrides name a learning rate has that one alone and is not tuned.
      metric: what the learning rate is chosen by, on validation.
      more_pairs: how many pairs of a baseline's run and its twin there are to be beyond the test seeds.
    """

    ablation: str
    arm: str
    condition: str
    profile: str
    config: Config
    settings: Profile
    metric: str = "loss"
    is_baseline: bool = False
    more_pairs: int = 0

    @property
    def better(self) -> Better:
        """Whether lower or higher values of the metric are better."""
        return better(self.metric)

    @property
    def has_twins(self) -> bool:
        """Whether each test seed is trained a second time from other initial weights (the noise floor)."""
        return self.is_baseline and self.settings.verdicts

    @property
    def test_seeds(self) -> range:
        """Seeds that only judge."""
        return range(self.settings.first_seed, self.settings.first_seed + self.settings.test_seeds)

    @property
    def twin_seeds(self) -> tuple[int, ...]:
        """Seeds of runs that are paired with a twin: the test seeds and, where more pairs are asked for, seeds that no
        test uses; none unless it `has_twins`."""
        return (*self.test_seeds, *MORE_PAIRS[: self.more_pairs]) if self.has_twins else ()

    @property
    def tuning_seeds(self) -> range:
        """Seeds that only choose the learning rate."""
        first = TUNING_SEED + self.settings.first_seed
        return range(first, first + self.settings.tuning_seeds)

    @functools.cached_property
    def hash(self) -> str:
        """Identity of everything but learning rate and seed: equal arms of different ablations share their runs."""
        return config_hash(replace(self.config, {LEARNING_RATE: 1e-3, "seed": 0}))

    @functools.cached_property
    def tokens(self) -> int:
        """Tokens of one run; the rows of a task are as long as the task makes them."""
        from transformer.training.objectives import layout_of

        return self.config.train.steps * self.config.train.batch_size * layout_of(self.config).length

    @property
    def label(self) -> str:
        """`ablation/arm` or `ablation/arm@condition`."""
        suffix = "" if self.condition == "default" else f"@{self.condition}"
        return f"{self.ablation}/{self.arm}{suffix}"

    def directory(self, runs: Path) -> Path:
        """Where its members lie; found by hash, so that a shared arm keeps the name it got first. Packed records lie
        beside it, in a file of that name."""
        found = sorted(runs.glob(f"*-{self.hash[:10]}")) or sorted(runs.glob(f"*-{self.hash[:10]}.*"))
        name = found[0].name.partition(".")[0] if found else f"{self.ablation}-{self.arm}-{self.hash[:10]}"
        return runs / name

    def grid(self, scores: Mapping[Member, Outcome]) -> list[float]:
        """Learning rates to tune on: the profile's, extended by its own factor while the best lies at an edge.

        What lies beyond an edge is either better still or makes the edge an inner point, so the grid grows on one side
        only.
        """
        grid = sorted(self.settings.learning_rates)
        if len(grid) < 2:
            return grid
        factor = grid[1] / grid[0]
        for _ in range(MAX_EXTENSIONS):
            best = self._best(grid, scores)
            if best == grid[0]:
                grid.insert(0, _rounded(grid[0] / factor))
            elif best == grid[-1]:
                grid.append(_rounded(grid[-1] * factor))
            else:
                break
        return grid

    def tuning_members(self, scores: Mapping[Member, Outcome]) -> list[Member]:
        """Members that choose the learning rate."""
        return [Member(rate, seed) for seed in self.tuning_seeds for rate in self.grid(scores)]

    def best_learning_rate(self, scores: Mapping[Member, Outcome]) -> float | None:
        """The rate with the best mean tuning score, or None while tuning is unfinished. Of several that are as good, as
        where a task is solved, the one in the middle; where all diverged, the lowest. A run that ended broken counts as
        what it ended with: where some runs of an arm fail and the others do best, that is what shall be seen."""
        if len(self.settings.learning_rates) == 1:
            return self.settings.learning_rates[0]
        return self._best(self.grid(scores), scores)

    def at_edge(self, scores: Mapping[Member, Outcome]) -> bool:
        """Whether the best rate still lies at an end of the extended grid."""
        grid, best = self.grid(scores), self.best_learning_rate(scores)
        return len(grid) > 1 and best in (grid[0], grid[-1])

    def _best(self, grid: Iterable[float], scores: Mapping[Member, Outcome]) -> float | None:
        means: dict[float, float] = {}
        sign = 1.0 if self.better == "lower" else -1.0
        for rate in grid:
            found = [scores.get(Member(rate, seed)) for seed in self.tuning_seeds]
            if any(score is None for score in found):
                return None
            values = [math.inf if s.value is None else sign * s.value for s in found if s is not None]
            means[rate] = sum(values) / len(values)
        least = min(means.values())
        tied = sorted(rate for rate, mean in means.items() if mean == least)
        return tied[(len(tied) - 1) // 2 if math.isfinite(least) else 0]

    def members(self, scores: Mapping[Member, Outcome]) -> list[Member]:
        """Every member known to be needed, given what is finished: tuning first, then the test seeds."""
        needed = self.tuning_members(scores) if len(self.settings.learning_rates) > 1 else []
        best = self.best_learning_rate(scores)
        if best is not None:
            needed += [Member(best, seed) for seed in self.twin_seeds or self.test_seeds]
            needed += [Member(best, seed, twin=True) for seed in self.twin_seeds]
        return needed

    def planned(self, scores: Mapping[Member, Outcome]) -> int:
        """How many members there will be, as far as is known: a grid may still be extended."""
        tests = 2 * len(self.twin_seeds) or self.settings.test_seeds
        return len(self.members(scores)) + (tests if self.best_learning_rate(scores) is None else 0)


def _rounded(rate: float) -> float:
    return float(f"{rate:.4g}")


def cells(name: str, ablation: Ablation, profile: str) -> list[ArmCell]:
    """All arms of an ablation at a profile, baseline first within each condition.

    Raises:
      ConfigError: an unknown profile, one that leaves out the baseline, or an arm whose overrides do not resolve.
    """
    settings = ablation.profile(profile)
    chosen = settings.arms or tuple(ablation.arms)
    if ablation.baseline not in chosen:
        raise ConfigError(f"The profile {profile} of {name} leaves out the baseline {ablation.baseline!r}; add it.")
    return [
        _cell(name, ablation, profile, condition, arm)
        for condition in settings.conditions or tuple(ablation.conditions)
        for arm in ablation.arms_under(condition)
        if arm in chosen
    ]


def _cell(name: str, ablation: Ablation, profile: str, condition: str, arm: str) -> ArmCell:
    overrides = ablation.overrides(arm, condition, profile)
    config = replace(resolve(apply_overrides(default_config(), overrides)), {"wandb.mode": "disabled"})
    settings = ablation.profile(profile)
    if LEARNING_RATE in {**ablation.conditions[condition].overrides, **ablation.arms[arm].overrides}:
        settings = dataclasses.replace(settings, learning_rates=(config.optimizer.learning_rate,))
    return ArmCell(
        name,
        arm,
        condition,
        profile,
        config,
        settings,
        metric=ablation.metric_under(condition),
        is_baseline=arm == ablation.baseline,
    )
