"""From evidence to numbers: one analysis per claim type, ending in a p for the claim and a p against it."""

from __future__ import annotations

from collections.abc import Callable

from ablations.analyses.catastrophe import analyse_catastrophe
from ablations.analyses.common import Analysis
from ablations.analyses.difference import analyse_difference, analyse_level
from ablations.analyses.stability import analyse_stability
from ablations.analyses.trend import analyse_ordering, analyse_slope
from ablations.evidence import Evidence
from ablations.schema import Contrast

ANALYSES: dict[str, Callable[[Contrast, Evidence], Analysis]] = {
    "superiority": analyse_difference,
    "equivalence": analyse_difference,
    "level": analyse_level,
    "catastrophe": analyse_catastrophe,
    "stability": analyse_stability,
    "slope": analyse_slope,
    "ordering": analyse_ordering,
}


def analyse(contrast: Contrast, evidence: Evidence) -> Analysis:
    """The numbers of one contrast; `exact` and `formula` infer nothing and are decided from their check.

    Raises:
      ConfigError: a direction is needed and not stated.
    """
    return ANALYSES[contrast.type](contrast, evidence)
