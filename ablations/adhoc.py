"""`try a.b=value`: a question typed on the command line, answered like a registered one."""

from __future__ import annotations

import ast
import hashlib
from typing import Any

from ablations import catalog
from ablations.profiles import standard
from ablations.schema import Ablation, Arm, Contrast
from transformer.errors import ConfigError

CLAIM = "ad_hoc"


def parse(assignments: list[str]) -> dict[str, Any]:
    """`["model.norm.kind=rmsnorm", "model.d_model=96"]` -> overrides.

    Raises:
      ConfigError: an assignment without `=`.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"{assignment!r} is not FIELD=VALUE, for example model.norm.kind=rmsnorm")
        try:
            overrides[path] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            overrides[path] = text
    return overrides


def register(assignments: list[str], profile: str) -> str:
    """Makes the ad-hoc ablation known to this process and returns its name.

    The contrast is an equivalence, since no direction was claimed: supported means no practical difference.
    """
    overrides = parse(assignments)
    question = f"What if {', '.join(assignments)}?"
    ablation = Ablation(
        question=question,
        arms={"baseline": Arm(note="the reference model"), "tried": Arm(overrides, note=", ".join(assignments))},
        contrasts=(
            Contrast(CLAIM, "equivalence", test="tried", base="baseline", margin=0.01, note="within 0.01 nats"),
        ),
        profiles=standard(),
        matched=("tokens",),
        positive_control="unigram" if profile in ("smoke", "demo") else "bigram",
    )
    name = "try-" + hashlib.sha256(question.encode()).hexdigest()[:6]
    catalog.add(name, ablation)
    return name
