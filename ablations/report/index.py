"""The index: one page over every claim, answered or not."""

from __future__ import annotations

import base64
import collections
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ablations.claims import Claim
from ablations.profiles import rank
from ablations.report import numbers, page, report_folder
from ablations.report.contract import complete
from ablations.report.members import Row, is_measured
from ablations.report.words import VERDICTS
from ablations.statistics import benjamini_hochberg
from ablations.verdict import Overall

UNMEASURED = "not measured yet"
FALSE_DISCOVERIES = 0.05


def write_index(
    reports: Sequence[Mapping[str, Any]],
    claims: Mapping[str, Claim],
    folder: Path,
    settled: Mapping[str, Overall] | None = None,
) -> Path:
    """See `ablations.report.write_index`."""
    judged = [report for report in map(complete, reports) if report["verdicts"]]
    script = (page.TEMPLATES / "index.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = (
        page.environment()
        .get_template("index.html.j2")
        .render(
            context(judged, claims, settled or {}),
            style=page.style(),
            script=Markup(script),
            policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'",
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def context(
    reports: Sequence[Row], claims: Mapping[str, Claim], settled: Mapping[str, Overall] | None = None
) -> dict[str, Any]:
    """What the template shows: claims by section, the choices of each filter, and the reports."""
    standing = suite(reports)
    answers = _answers(reports, standing)
    for claim, decided in (settled or {}).items():
        if claim not in answers:
            answers[claim] = [
                {"verdict": decided.verdict, "sentence": decided.reason, "where": "", "link": "", "q": ""}
            ]
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
        "discoveries": _discoveries(standing),
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
            for report in sorted(reports, key=lambda report: (report["name"], rank(report["profile"])))
        ],
    }


def suite(reports: Sequence[Row]) -> dict[tuple[str, str, int], float]:
    """(report, profile, decision) -> q of the test its verdict rests on: Benjamini-Hochberg over the whole suite.

    Holm holds the chance of any false verdict within one question; over all questions the share of false ones among
    those given is what can be held. Each comparison enters with its test for the claim and its test against it.
    """
    compared = {
        (report["name"], report["profile"], i): decision
        for report in reports
        for i, decision in enumerate(report["decisions"])
        if decision["p"] is not None
    }
    if not compared:
        return {}
    sides = [(d["p"], 1.0 if d["counter_p"] is None else d["counter_p"]) for d in compared.values()]
    q = benjamini_hochberg(np.asarray(sides).reshape(-1)).reshape(-1, 2)
    return {key: float(q[row, int(d["against"])]) for row, (key, d) in enumerate(compared.items())}


def _discoveries(standing: Mapping[tuple[str, str, int], float]) -> str:
    """How many comparisons of the whole suite stand out at a false-discovery rate of 5%."""
    if not standing:
        return ""
    found = sum(q <= FALSE_DISCOVERIES for q in standing.values())
    return (
        f"Over the whole suite, {found} of {len(standing)} comparisons stand out at a false discovery rate of "
        f"{FALSE_DISCOVERIES:.0%} (Benjamini-Hochberg); q beside an answer is the rate at which it would just do."
    )


def _answers(reports: Sequence[Row], standing: Mapping[tuple[str, str, int], float]) -> dict[str, list[dict[str, Any]]]:
    """Claim id -> its answers, the one that stands first."""
    answers: dict[str, list[dict[str, Any]]] = {}
    for report in sorted(reports, key=lambda report: (rank(report["profile"]), report["name"])):
        for claim in report["claims"]:
            if not is_measured(report, claim):
                continue
            answers.setdefault(claim["claim"], []).append(
                {
                    "verdict": claim["verdict"],
                    "sentence": claim["sentence"],
                    "where": f"{report['name']}, {report['profile']}",
                    "link": f"{report_folder(report)}/report.html",
                    "q": _largest_q(report, claim, standing),
                }
            )
    return answers


def _largest_q(report: Row, claim: Row, standing: Mapping[tuple[str, str, int], float]) -> str:
    """q of the least certain comparison that was decided; empty where nothing was inferred."""
    known = [
        standing[key]
        for i in claim["decisions"]
        if (key := (report["name"], report["profile"], i)) in standing
        and report["decisions"][i]["verdict"] != "inconclusive"
    ]
    written = numbers.p_value(max(known)) if known else ""
    return written and f"q {'' if written.startswith('<') else '= '}{written}"


def _row(claim: Claim, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "claim": claim,
        "verdict": answers[0]["verdict"] if answers else UNMEASURED,
        "answers": answers,
        "literature": [(entry, page.STATUS[entry.status]) for entry in claim.literature],
    }
