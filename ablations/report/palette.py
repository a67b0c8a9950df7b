"""Colours that mean the same thing in every figure, in light and in dark.

A chart is drawn in the light colours. Afterwards every element gets a class for its colour role, and the style
sheet below gives the role its value in either scheme; a viewer without style sheets still sees the light one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

# role -> (light, dark). Light values are distinct: they are what a drawn element is recognised by.
CHROME = {
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#59636e", "#a3adb8"),
    "grid": ("#e2e6ea", "#2a313a"),
    "axis": ("#8b949e", "#6e7681"),
    "base": ("#4b5159", "#c4ccd4"),  # the baseline: black to grey, always dashed where it is a line
    "base-seed": ("#8a939d", "#78828d"),
    "reference": ("#6f6a86", "#aaa4c9"),
    "margin": ("#d5dbe2", "#333c47"),
}
# Seven hues, at least 3:1 against the page and apart from each other and from grey for the three common kinds of
# colour blindness (Machado et al. 2009); a test measures both.
ARMS = (
    ("#005bac", "#558ebe"),
    ("#d65d00", "#fe8026"),
    ("#1f9a6e", "#50c478"),
    ("#c05bb1", "#ed88ef"),
    ("#6b5401", "#e7c32a"),
    ("#2497fa", "#a5d9f7"),
    ("#7b2050", "#c14977"),
)
PAGE = ("#ffffff", "#11161d")
DASHES: tuple[list[int], ...] = ([1, 0], [2, 3], [8, 3, 2, 3])  # for the eighth arm and on
BASE_DASH = [6, 4]
SHAPES = ("circle", "square", "diamond", "cross")  # triangles mean: beyond the frame

ROLES: dict[str, tuple[str, str]] = {**CHROME, **{f"arm{i}": pair for i, pair in enumerate(ARMS)}}
ROLE_OF = {light: role for role, (light, _) in ROLES.items()}


@dataclasses.dataclass(frozen=True)
class ArmStyle:
    """How one arm is drawn everywhere.

    Attributes:
      role: name of its colour in `ROLES`.
      dash: of its mean line.
      shape: of its points.
    """

    role: str
    dash: Sequence[int]
    shape: str

    @property
    def color(self) -> str:
        """The light value, which stands for the role until the drawing is done."""
        return ROLES[self.role][0]


def ink(role: str) -> str:
    """The colour a chart draws `role` with."""
    return ROLES[role][0]


def arm_styles(arms: Iterable[tuple[str, bool]]) -> dict[str, ArmStyle]:
    """One style per arm name, in order of first appearance; `arms` are (name, is the baseline)."""
    styles: dict[str, ArmStyle] = {}
    others = 0
    for name, baseline in arms:
        if name in styles:
            continue
        if baseline:
            styles[name] = ArmStyle("base", BASE_DASH, "circle")
        else:
            turn, hue = divmod(others, len(ARMS))
            styles[name] = ArmStyle(f"arm{hue}", DASHES[turn % len(DASHES)], SHAPES[others % len(SHAPES)])
            others += 1
    return styles


def style_sheet() -> str:
    """CSS that gives each role its colour in both schemes, for the page and for every figure file."""
    light, dark = (_variables(scheme) for scheme in (0, 1))
    classes = "".join(f".f-{role}{{fill:var(--{role})}}.s-{role}{{stroke:var(--{role})}}" for role in sorted(ROLES))
    return (
        f":root{{{light}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"@media print{{:root{{{light}}}}}"
        f"{classes}"
    )


def _variables(scheme: int) -> str:
    return ";".join(f"--{role}:{pair[scheme]}" for role, pair in sorted(ROLES.items()))
