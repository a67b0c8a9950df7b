"""What a run would cost and could show, before anything starts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from ablations import catalog, store
from ablations.cells import ArmCell, cells
from ablations.lint import Warning, lint
from ablations.power import equivalence_margin_needed, minimum_detectable_effect, sign_seeds_needed
from ablations.profiles import check_limits
from ablations.progress import Show
from ablations.schema import BY_CHECK, Ablation
from ablations.verdict import family
from transformer.analysis import accounting, estimate
from transformer.numerics import trains_together

ASSUMED_SIGMA = 0.02  # nats; paired differences of structurally different arms at quick scale
STEP_OVERHEAD = 2e-3  # seconds; what a step costs on a CPU beside its arithmetic
START_UP = 8.0  # seconds; imports, initial weights and compilation of one arm


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm of a plan.

    Attributes:
      members: runs in all, those of the test seeds and of twins included.
      missing: runs still to do.
      seconds: predicted for what is missing, on one worker.
    """

    label: str
    note: str
    parameters: int
    flops_per_token: float
    tokens: int
    members: int
    missing: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan and what it can show.

    Attributes:
      sigma: spread of paired differences, nats; `measured` says whether twins gave it or it is assumed.
      detectable: smallest difference its test seeds detect with 80% power.
      equivalence: smallest margin within which they can show equivalence with 80% power.
      comparisons: how many are judged together.
      sign_seeds: test seeds that a comparison among them needs where runs diverge, so that signs decide.
    """

    name: str
    profile: str
    question: str
    rows: list[Row]
    warnings: list[Warning]
    sigma: float
    measured: bool
    test_seeds: int
    detectable: float
    equivalence: float
    comparisons: int
    sign_seeds: int
    seconds: float


def make(name: str, profile: str, runs: Path, workers: int, show: Show = lambda *_: None) -> Plan:
    """Plans an ablation at a profile.

    Args:
      show: is told how many arms are counted, how many there are, and the last: tracing one takes up to a second.

    Raises:
      ConfigError: an unknown profile, or more than the profile can afford.
    """
    ablation = catalog.load(name)
    arms = cells(name, ablation, profile)
    check_limits(name, ablation, profile)
    rate = functools.cache(estimate.achievable_flops_per_second)
    rows: list[Row] = []
    for arm in arms:
        rows.append(_row(arm, ablation.arms[arm.arm].note, runs, rate))
        show(len(rows), len(arms), [arm.label])
    sigma = _measured_sigma(name, profile, runs)
    used = sigma or ASSUMED_SIGMA
    seeds, comparisons = ablation.profile(profile).test_seeds, _comparisons(ablation, arms)
    return Plan(
        name,
        profile,
        ablation.question,
        rows,
        lint(name, ablation, profile, {row.label: row.parameters for row in rows}),
        used,
        sigma is not None,
        seeds,
        minimum_detectable_effect(seeds) * used,
        equivalence_margin_needed(seeds) * used,
        comparisons,
        sign_seeds_needed(comparisons),
        _wall_seconds(rows, workers, trains_together(arms[0].config)),
    )


def _comparisons(ablation: Ablation, arms: list[ArmCell]) -> int:
    """How many p values Holm adjusts together."""
    conditions = list(dict.fromkeys(arm.condition for arm in arms))
    return sum(contrast.type not in BY_CHECK for contrast, _ in family(ablation.contrasts, conditions))


def _wall_seconds(rows: list[Row], workers: int, is_population: bool) -> float:
    """Of all arms: each worker trains one after the other, and those without an arm of their own start up in another;
    a population is left to one worker."""
    to_do = [row for row in rows if row.missing]
    used = max(1, min(workers, len(to_do) if is_population else sum(row.missing for row in to_do)))
    return (sum(row.seconds for row in to_do) + START_UP * max(0, used - len(to_do))) / used


def _row(arm: ArmCell, note: str, runs: Path, rate: Callable[[str, str], float]) -> Row:
    config, numerics = arm.config, arm.config.numerics
    records, _ = store.read_arm(arm.directory(runs))
    scores = store.scores(records, arm.metric)
    needed = arm.members(scores)
    members = arm.planned(scores)
    missing = members - sum(member in records for member in needed)
    tokens = arm.tokens
    flops = accounting.train_flops_per_token(config)
    known = [record.seconds for record in records.values() if record.seconds]
    if known:
        seconds = sum(known) / len(known)
    else:
        computing = flops * tokens / rate(numerics.compute_dtype, numerics.matmul_precision)
        seconds = computing + config.train.steps * STEP_OVERHEAD
    return Row(
        arm.label,
        note,
        sum(accounting.declared_components(config).values()),
        flops,
        tokens,
        members,
        missing,
        (START_UP + missing * (seconds + 1.0)) if missing else 0.0,
    )


def parameter_counts(arms: list[ArmCell]) -> dict[str, int]:
    """Label of an arm -> its number of parameters, before anything is drawn."""
    return {arm.label: sum(accounting.declared_components(arm.config).values()) for arm in arms}


def _measured_sigma(name: str, profile: str, runs: Path) -> float | None:
    from ablations import summary

    return summary.collect_noise(name, profile, runs)
