"""What a verdict is computed from: plain records filled from run directories, and the scale of the runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

Quantity = Literal["parameters", "flops", "tokens"]
QUANTITIES: tuple[Quantity, ...] = ("parameters", "flops", "tokens")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of one run.

    Attributes:
      value: the final metric; None when a loss was not finite.
      initial: the metric before training; needed where a diverged run must count as something.
      broken: it ended with a value that shows that training failed.
      parameters, flops, tokens: trained parameters, training FLOPs in total, training tokens; None when
        unknown.
    """

    value: float | None
    initial: float | None = None
    parameters: int | None = None
    flops: float | None = None
    tokens: int | None = None
    broken: bool = False

    @property
    def finished(self) -> bool:
        """It came to its end with a finite value, good or bad."""
        return self.value is not None and math.isfinite(self.value)

    @property
    def diverged(self) -> bool:
        """No finite value, or one that shows that training failed: a result that stays in every comparison."""
        return self.broken or not self.finished


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """One arm under one condition.

    Attributes:
      name: the arm's name, for sentences.
      outcomes: test seed -> outcome at the arm's own best learning rate.
      learning_rate: that learning rate.
      curve: learning rate -> seed -> outcome, over the whole grid.
      edge: the best learning rate still lies at an end of the (extended) grid.
    """

    name: str
    outcomes: Mapping[int, Outcome]
    learning_rate: float | None = None
    curve: Mapping[float, Mapping[int, Outcome]] = dataclasses.field(default_factory=dict)
    edge: bool = False

    def mean(self, quantity: Quantity) -> float | None:
        """Mean parameters, FLOPs or tokens of the runs that state them; None when none does.

        Runs that did not finish count for the parameters only.
        """
        runs = [run for run in self.outcomes.values() if quantity == "parameters" or run.finished]
        known = [float(getattr(run, quantity)) for run in runs if getattr(run, quantity) is not None]
        return float(np.mean(known)) if known else None


@dataclasses.dataclass(frozen=True)
class Control:
    """A positive control: something the baseline must manage before it may judge others."""

    name: str
    passed: bool
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class ExactCheck:
    """The result of a property test.

    Attributes:
      passed: every property held.
      sabotage_caught: the deliberately broken variant failed; None when there was none to run.
      counterexample: printed when a property did not hold.
    """

    passed: bool
    sabotage_caught: bool | None
    counterexample: str = ""


@dataclasses.dataclass(frozen=True)
class Number:
    """A number someone stated, and ours. `tolerance` is the stated rounding, in the unit of the number; `interval` the
    95% interval of ours where it was measured."""

    what: str
    claimed: float
    measured: float
    tolerance: float
    unit: str = ""
    interval: tuple[float, ...] = ()

    @property
    def agrees(self) -> bool:
        """Ours is the stated one within its rounding."""
        return abs(self.measured - self.claimed) <= self.tolerance


@dataclasses.dataclass(frozen=True)
class FormulaCheck:
    """Every number a claim states, recomputed."""

    numbers: tuple[Number, ...]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Everything one contrast needs under one condition; each claim type reads its own part.

    Attributes:
      test, base: the two arms (superiority, equivalence, catastrophe, stability).
      arms: all arms in the claimed order (ordering).
      trivial: the trivial predictor's score on the same evaluation set; without it nothing can be called
        essential.
      controls: the baseline's positive controls.
      points: size -> seed -> measurement (slope); one seed per size for what needs no seed, such as bytes.
      claimed: the exponent a slope claim states.
      exact, formula: the result of the check the contrast names.
    """

    test: ArmResult | None = None
    base: ArmResult | None = None
    arms: tuple[ArmResult, ...] = ()
    trivial: float | None = None
    controls: tuple[Control, ...] = ()
    points: Mapping[float, Mapping[int, float | None]] = dataclasses.field(default_factory=dict)
    claimed: float | None = None
    exact: ExactCheck | None = None
    formula: FormulaCheck | None = None

    @property
    def compared(self) -> tuple[ArmResult, ...]:
        """Every arm present, the reference last."""
        return self.arms or tuple(arm for arm in (self.test, self.base) if arm is not None)


@dataclasses.dataclass(frozen=True)
class Setting:
    """The scale of the runs and what was declared about them.

    Attributes:
      profile: smoke, demo, quick or full.
      scale: words for the sentence, such as "64-wide, 0.5M tokens of stdlib".
      scales: the same by condition, where conditions change it.
      verdicts: False for a profile that only checks wiring.
      test_seeds: what the profile declares; a verdict waits for all of them. None: the contrast's own minimum alone.
      tuning_seeds: the same for stability, which is judged on the runs that tune.
      may_differ: quantities the config declares to differ between the arms; others must agree within 1%.
    """

    profile: str
    scale: str
    scales: Mapping[str, str] = dataclasses.field(default_factory=dict)
    verdicts: bool = True
    test_seeds: int | None = None
    tuning_seeds: int | None = None
    may_differ: frozenset[Quantity] = frozenset()
