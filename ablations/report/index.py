"""The index: one page over every claim, answered or not."""

from __future__ import annotations

import base64
import collections
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ablations.claims import Claim
from ablations.report import page, report_folder
from ablations.report.contract import complete
from ablations.report.members import Row
from ablations.report.words import VERDICTS

PROFILES = ("full", "quick", "demo")  # the first that judged a claim is the one that stands
UNMEASURED = "not measured yet"


def write_index(reports: Sequence[Mapping[str, Any]], claims: Mapping[str, Claim], folder: Path) -> Path:
    """See `ablations.report.write_index`."""
    judged = [report for report in map(complete, reports) if report["verdicts"]]
    script = (page.TEMPLATES / "index.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = (
        page.environment()
        .get_template("index.html.j2")
        .render(
            context(judged, claims),
            style=page.style(),
            script=Markup(script),
            policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'",
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def context(reports: Sequence[Row], claims: Mapping[str, Claim]) -> dict[str, Any]:
    """What the template shows: claims by section, the choices of each filter, and the reports."""
    answers = _answers(reports)
    rows = [_row(claim, answers.get(claim.id, [])) for claim in claims.values()]
    sections: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        sections.setdefault(row["claim"].section, []).append(row)
    counts = collections.Counter(row["verdict"] for row in rows)
    return {
        "sections": list(sections.items()),
        "total": len(rows),
        "measured": len(rows) - counts[UNMEASURED],
        "tally": [(verdict, counts[verdict]) for verdict in VERDICTS if counts[verdict]],
        "unmeasured": UNMEASURED,
        "filters": [
            ("verdict", "Verdict", [name for name in (*VERDICTS, UNMEASURED) if counts[name]]),
            ("kind", "Kind", list(dict.fromkeys(row["claim"].kind for row in rows))),
            ("section", "Section", list(sections)),
            ("ablation", "Ablation", sorted({row["claim"].ablation for row in rows})),
        ],
        "reports": [
            {
                "name": report["name"],
                "profile": report["profile"],
                "headline": report["headline"],
                "link": f"{report_folder(report)}/report.html",
            }
            for report in sorted(reports, key=lambda report: (report["name"], _rank(report["profile"])))
        ],
    }


def _answers(reports: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Claim id -> its answers, the one that stands first."""
    answers: dict[str, list[dict[str, Any]]] = {}
    for report in sorted(reports, key=lambda report: (_rank(report["profile"]), report["name"])):
        for claim in report["claims"]:
            if not _measured(report, claim):
                continue
            answers.setdefault(claim["claim"], []).append(
                {
                    "verdict": claim["verdict"],
                    "sentence": claim["sentence"],
                    "where": f"{report['name']}, {report['profile']}",
                    "link": f"{report_folder(report)}/report.html",
                }
            )
    return answers


def _measured(report: Row, claim: Row) -> bool:
    """Whether anything ran for the claim: a comparison with a p value, a check, or a verdict that was reached."""
    judged = [report["decisions"][i] for i in claim["decisions"] if i in range(len(report["decisions"]))]
    inferred = any(decision["p"] is not None or decision["verdict"] != "inconclusive" for decision in judged)
    return inferred or any(check["claim"] == claim["claim"] for check in report["checks"])


def _rank(profile: str) -> int:
    return PROFILES.index(profile) if profile in PROFILES else len(PROFILES)


def _row(claim: Claim, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "claim": claim,
        "verdict": answers[0]["verdict"] if answers else UNMEASURED,
        "answers": answers,
        "literature": [(entry, page.STATUS[entry.status]) for entry in claim.literature],
    }
