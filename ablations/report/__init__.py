"""The report: from the lab's data to one offline page, a Markdown twin, the data itself, and the figures as files.

    paths = write_report(data, folder)             # report.html, report.md, report.json, figures/*.svg
    path = write_index(reports, claims, folder)    # index.html over every claim

The drawing libraries belong to the extra `[report]` and are imported when something is written, not before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations.claims import Claim
from ablations.verdict import Overall
from transformer.errors import UserError

EXTRA = frozenset({"altair", "jinja2", "markupsafe", "vl_convert"})


def write_report(data: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes one report; the same data gives the same bytes.

    Args:
      data: one ablation under one profile; whatever is absent or null is shown as not known yet.
      folder: created if needed; earlier files of the same names are replaced, earlier figures removed.

    Returns:
      The files, `report.html` first.

    Raises:
      UserError: the extra `[report]` is not installed, or the data is not JSON-able.
    """
    with _extra_installed():
        from ablations.report.write import write_report as write
    return write(data, folder)


def write_index(
    reports: Sequence[Mapping[str, Any]],
    claims: Mapping[str, Claim],
    folder: Path,
    settled: Mapping[str, Overall] | None = None,
) -> Path:
    """Writes `index.html`: every claim with its verdict, or with "not measured yet" and the verdict expected.

    Links lead to `<report_folder(report)>/report.html` beside the index. Where several reports judge a claim, the
    larger profile's verdict stands (full, quick, demo); profiles without verdicts are left out.

    Args:
      settled: claim id -> what tests and formulas say, for claims that no report answers.

    Raises:
      UserError: the extra `[report]` is not installed, or a report is not JSON-able.
    """
    with _extra_installed():
        from ablations.report.index import write_index as write
    return write(reports, claims, folder, settled)


def report_folder(data: Mapping[str, Any]) -> str:
    """The name of the folder a report belongs into, beside the index: `prenorm-demo`."""
    name = f"{data.get('name') or 'unnamed'}-{data.get('profile') or 'default'}"
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)


@contextlib.contextmanager
def _extra_installed() -> Iterator[None]:
    """Turns the import of a package that is not there into a sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRA:
            raise
        raise UserError(
            f"Reports need the package \"{error.name}\", which is not installed; run: pip install -e '.[report]'"
        ) from error
