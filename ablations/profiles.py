"""The four budgets. A config may change what it needs; the limits of a profile stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ablations.schema import Ablation, Profile, repetition
from transformer.errors import ConfigError

if TYPE_CHECKING:
    from ablations.cells import ArmCell

SMOKE = {
    "model.d_model": 32,
    "model.num_layers": 2,
    "model.attention.num_heads": 2,
    "data.sequence_length": 32,
    "train.batch_size": 16,
    "train.steps": 10,
    "train.checkpoint_every": 0,
    "eval.tokens": 4096,
    "eval.final_tokens": 4096,
}
DEMO = {**SMOKE, "train.steps": 300, "train.eval_every": 100, "eval.final_tokens": 65536}
QUICK = {
    "model.d_model": 64,
    "model.num_layers": 4,
    "model.attention.num_heads": 4,
    "data.sequence_length": 128,
    "train.batch_size": 16,
    "train.steps": 240,
    "train.eval_every": 40,
    "train.checkpoint_every": 120,
    "eval.tokens": 32768,
}
# One epoch of a corpus of more than 16M tokens; --config.data.source=text with a path serves as well.
LM1B = {"data.source": "tfds", "data.tfds_name": "lm1b"}
FULL = {
    "train.steps": 2000,
    "train.eval_every": 100,
    "train.checkpoint_every": 500,
}
EASED = {"bigram": "unigram", "solved": "chance", "floor": ""}  # what seconds of training can show of learning
STANDARD = {
    "smoke": Profile(
        SMOKE, learning_rates=(3e-3,), test_seeds=2, verdicts=False, insists={"train.steps": 10}, eased=EASED
    ),
    "demo": Profile(DEMO, learning_rates=(3e-3, 1e-2), tuning_seeds=1, test_seeds=6, eased=EASED),
    "quick": Profile(QUICK, learning_rates=(1e-3, 3e-3, 1e-2), tuning_seeds=1, test_seeds=8),
    "full": Profile(FULL, learning_rates=(3e-4, 1e-3, 3e-3, 1e-2), tuning_seeds=2, test_seeds=8, corpus=LM1B),
}


DEFAULT_PROFILE = "quick"
PRECEDENCE = ("full", "quick", "demo")  # the first that judged a claim is the one that stands


def rank(profile: str) -> int:
    """The place of a profile among those whose verdict stands first; unknown ones come last."""
    return PRECEDENCE.index(profile) if profile in PRECEDENCE else len(PRECEDENCE)


@dataclasses.dataclass(frozen=True)
class Limit:
    """The most a profile may ask for; None is unlimited.

    Attributes:
      tokens: of one run.
      work: million tokens times layers, over all runs of all arms and conditions. A comparison of stability, which
        needs several tuning seeds, may have them where it has fewer arms, and a task that a small model solves may be
        asked beside the language model.
    """

    arms: int | None = None
    learning_rates: int | None = None
    tuning_seeds: int | None = None
    test_seeds: int | None = None
    tokens: int | None = None
    d_model: int | None = None
    work: int | None = None
    verdicts: bool | None = None


QUICK_RUNS, QUICK_TOKENS = 8 * (4 * 1 + 12), 524_288  # eight arms, four rates, twelve seeds: what 40 minutes allow


LIMITS = {
    "smoke": Limit(tokens=100_000, verdicts=False),
    "demo": Limit(arms=3, learning_rates=3, tuning_seeds=1, test_seeds=6, tokens=200_000, d_model=64),
    "quick": Limit(
        arms=8,
        learning_rates=4,
        test_seeds=12,
        tokens=QUICK_TOKENS,
        d_model=64,
        work=QUICK_RUNS * QUICK_TOKENS * 4 // 1_000_000,
    ),
    "full": Limit(),
}


def standard(
    *names: str, overrides: Mapping[str, Any] | None = None, **changes: Mapping[str, Any]
) -> dict[str, Profile]:
    """The named standard profiles (all by default), with fields set for all, and attributes changed by profile.

    `standard("demo", "quick", overrides={"data.vocabulary": "bytes"}, quick={"test_seeds": 12})`
    """
    chosen = {}
    for name in names or tuple(STANDARD):
        base = STANDARD[name]
        profile = dataclasses.replace(base, overrides={**base.overrides, **(overrides or {})})
        chosen[name] = dataclasses.replace(profile, **changes.get(name, {}))
    return chosen


UNITS = {"d_model": "d_model", "work": "million tokens times layers over all runs"}


def _runs(cell: ArmCell) -> int:
    """Runs of an arm; those of its twins, and of a grid that is extended, come on top."""
    return len(cell.settings.learning_rates) * cell.settings.tuning_seeds + cell.settings.test_seeds


def check_limits(name: str, ablation: Ablation, profile: str) -> None:
    """Refuses what a profile cannot afford.

    Raises:
      ConfigError: an unknown profile; else names the quantity, what was asked for and what the profile allows.
    """
    from ablations.cells import cells

    arms = cells(name, ablation, profile)
    limit, settings = LIMITS.get(repetition(profile)[0], Limit()), ablation.profile(profile)
    asked: dict[str, int] = {
        "arms": len({c.arm for c in arms}),
        "learning_rates": len(settings.learning_rates),
        "tuning_seeds": settings.tuning_seeds,
        "test_seeds": settings.test_seeds,
        "tokens": max(c.tokens for c in arms),
        "d_model": max(c.config.model.d_model for c in arms),
        "work": round(sum(_runs(c) * c.tokens * c.config.model.num_layers for c in arms) / 1e6),
    }
    for quantity, value in asked.items():
        most = getattr(limit, quantity)
        if most is not None and value > most:
            what = UNITS.get(quantity, quantity.replace("_", " "))
            raise ConfigError(
                f"The profile {profile} of {name} asks for {value:,} {what}, but {profile} allows {most:,}; "
                "make it smaller, or run a larger profile."
            )
    if limit.verdicts is False and settings.verdicts:
        raise ConfigError(f"The profile {profile} of {name} cannot give verdicts: set verdicts=False.")
