"""The four budgets. A config may change what it needs; the limits of a profile stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ablations.schema import Ablation, Profile
from transformer.errors import ConfigError

SMOKE = {
    "model.d_model": 32,
    "model.num_layers": 2,
    "model.attention.num_heads": 2,
    "data.sequence_length": 32,
    "train.batch_size": 16,
    "train.steps": 10,
    "train.checkpoint_every": 0,
    "eval.tokens": 4096,
}
DEMO = {**SMOKE, "train.steps": 300, "train.eval_every": 100}
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
FULL = {
    "data.source": "tfds",
    "data.tfds_name": "lm1b",
    "train.steps": 2000,
    "train.eval_every": 100,
    "train.checkpoint_every": 500,
}
STANDARD = {
    "smoke": Profile(SMOKE, learning_rates=(3e-3,), test_seeds=2, verdicts=False),
    "demo": Profile(DEMO, learning_rates=(3e-3, 1e-2), tuning_seeds=1, test_seeds=6),
    "quick": Profile(QUICK, learning_rates=(1e-3, 3e-3, 1e-2), tuning_seeds=1, test_seeds=8),
    "full": Profile(FULL, learning_rates=(3e-4, 1e-3, 3e-3, 1e-2), tuning_seeds=2, test_seeds=8),
}


@dataclasses.dataclass(frozen=True)
class Limit:
    """The most a profile may ask for; None is unlimited.

    `runs` is arms x (learning rates x tuning seeds + test seeds): a comparison of stability, which needs several tuning
    seeds, may have them where it has fewer arms.
    """

    arms: int | None = None
    learning_rates: int | None = None
    tuning_seeds: int | None = None
    test_seeds: int | None = None
    runs: int | None = None
    tokens: int | None = None
    d_model: int | None = None
    verdicts: bool | None = None


LIMITS = {
    "smoke": Limit(tokens=100_000, verdicts=False),
    "demo": Limit(arms=3, learning_rates=3, tuning_seeds=1, test_seeds=6, tokens=200_000, d_model=64),
    "quick": Limit(arms=8, learning_rates=4, test_seeds=12, runs=8 * (4 * 1 + 12), tokens=524_288, d_model=64),
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


def check_limits(name: str, ablation: Ablation, profile: str) -> None:
    """Refuses what a profile cannot afford.

    Raises:
      ConfigError: an unknown profile; else names the quantity, what was asked for and what the profile allows.
    """
    from ablations.cells import cells

    arms = cells(name, ablation, profile)
    limit, settings = LIMITS.get(profile, Limit()), ablation.profiles[profile]
    asked: dict[str, int] = {
        "arms": len(arms),
        "learning_rates": len(settings.learning_rates),
        "tuning_seeds": settings.tuning_seeds,
        "test_seeds": settings.test_seeds,
        "runs": sum(len(c.settings.learning_rates) * settings.tuning_seeds + settings.test_seeds for c in arms),
        "tokens": max(c.config.train.steps * c.config.train.batch_size * c.config.data.sequence_length for c in arms),
        "d_model": max(c.config.model.d_model for c in arms),
    }
    for quantity, value in asked.items():
        most = getattr(limit, quantity)
        if most is not None and value > most:
            what = quantity if quantity == "d_model" else quantity.replace("_", " ")
            raise ConfigError(
                f"The profile {profile} of {name} asks for {value:,} {what}, but {profile} allows {most:,}; "
                "make it smaller, or run a larger profile."
            )
    if limit.verdicts is False and settings.verdicts:
        raise ConfigError(f"The profile {profile} of {name} cannot give verdicts: set verdicts=False.")
