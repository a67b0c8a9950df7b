"""`try a.b=value`: a question typed on the command line, answered like a registered one."""

from __future__ import annotations

import hashlib
import shlex

from ablations import catalog
from ablations.profiles import standard
from ablations.schema import Ablation, Arm, Contrast
from transformer import command_line

CLAIM = "ad_hoc"


def register(assignments: list[str]) -> str:
    """Makes the ad-hoc ablation known to this process and returns its name.

    The contrast is an equivalence, since no direction was claimed: supported means no practical difference.
    """
    overrides = command_line.assignments(assignments)
    question = f"What if {', '.join(assignments)}?"
    ablation = Ablation(
        question=question,
        arms={
            "baseline": Arm(note="the default config, at the size of the profile"),
            "tried": Arm(overrides, note=", ".join(assignments)),
        },
        contrasts=(
            Contrast(
                CLAIM,
                "equivalence",
                test="tried",
                base="baseline",
                margin=0.01,
                note="Claimed: the two do not differ in practice.",
            ),
        ),
        profiles=standard(),
        matched=("tokens",),
    )
    name = "try-" + hashlib.sha256(question.encode()).hexdigest()[:6]
    catalog.add(name, ablation, f"try {shlex.join(assignments)}")
    return name
