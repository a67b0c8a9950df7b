"""Writing a report's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altair.utils.schemapi import debug_mode

from ablations.report import page
from ablations.report.contract import canonical_json, complete
from ablations.report.figures import gradient_norms, learning_curves, learning_rate_curves
from ablations.report.measured import also_measured
from ablations.report.members import Row
from ablations.report.pairs import noise_floor, paired_slopes
from ablations.report.svg import Figure

FIGURES = (learning_rate_curves, learning_curves, also_measured, paired_slopes, gradient_norms, noise_floor)


def write_report(data: Mapping[str, Any], folder: Path) -> list[Path]:
    """See `ablations.report.write_report`."""
    report = complete(data)
    figures = draw(report)
    shown = page.context(report, figures)
    files = {
        "report.html": page.environment().get_template("report.html.j2").render(shown, style=page.style()),
        "report.md": page.environment(markdown=True)
        .get_template("report.md.j2")
        .render(shown, code=page.markdown_code),
        "report.json": canonical_json(report),
        **{f"figures/{figure.name}.svg": figure.file() for figure in figures},
    }
    pictures = folder / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    for stale in pictures.glob("*.svg"):
        if f"figures/{stale.name}" not in files:
            stale.unlink()
    paths = []
    for name, text in files.items():
        path = folder / name
        path.write_text(text, encoding="utf-8", newline="\n")
        paths.append(path)
    return paths


def draw(report: Row) -> list[Figure]:
    """Every figure there is data for, in the order of the page."""
    with debug_mode(False):  # checking every part against Altair's schema takes longer than drawing; the tests do it
        drawn = [function(report) for function in FIGURES]
    return [figure for figure in drawn if figure is not None]
