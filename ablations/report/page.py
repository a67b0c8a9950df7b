"""What the templates are given: rows of finished text, and pictures. Nothing is computed inside a template."""

from __future__ import annotations

import functools
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ablations.analyses.stability import LESS_STABLE
from ablations.report import forest, numbers, words
from ablations.report.figures import styles_of
from ablations.report.members import Row, baseline_of, conditions, judged_runs, titled
from ablations.report.pairs import sides
from ablations.report.palette import style_sheet
from ablations.report.reached import reached
from ablations.report.svg import Figure
from ablations.schema import BY_CHECK

TEMPLATES = Path(__file__).parent / "templates"
STATUS = {"read": "read in the source", "memory": "from memory, not looked up", "unverified": "unverified"}
QUESTIONS = {
    "superiority": "is there a difference?",
    "equivalence": "are they the same?",
    "catastrophe": "how much of what the baseline learned is left?",
    "stability": "which tolerates the wider range of learning rates?",
    "level": "does it reach the stated value?",
    "slope": "does it follow the claimed power law?",
    "ordering": "is the order as claimed?",
    "exact": "proof by test",
    "formula": "check of a number",
}
CONFOUNDS = (
    ("parameters_only_base", "Parameters only the baseline has"),
    ("parameters_only_arm", "Parameters only this arm has"),
    ("shape_changed", "Parameters of another shape"),
    ("decay_changed", "Parameters whose weight decay differs"),
    ("init_changed", "Shared parameters that start from other values"),
)
# The columns of the cost table, and how each is written.
AMOUNTS: dict[str, Callable[[float | None], str]] = {
    "parameters": numbers.exact,
    "flops": numbers.count,
    "tokens": numbers.count,
    "seconds": numbers.duration,
    "speed": numbers.count,
}


SIDES = {"lower": "left", "higher": "right"}  # of the zero line, where an arm is better


class _Raw(str):
    """Text that is Markdown already."""


@functools.cache  # it keeps the templates that it has compiled
def environment(markdown: bool = False) -> jinja2.Environment:
    """Templates in which every value is escaped unless it says that it is markup."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=not markdown,
        finalize=markdown_text if markdown else None,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def markdown_text(value: Any) -> str:
    """The value as Markdown that reads as plain text: one line, no markup, no table bars, no HTML."""
    if isinstance(value, _Raw):
        return value
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text)


def markdown_code(value: Any) -> _Raw:
    """The value as a code block's line: no fence can be closed from inside it."""
    return _Raw(" ".join(str(value).split()).replace("```", "'''"))


def style() -> Markup:
    """The whole style sheet of a page."""
    return Markup(style_sheet() + (TEMPLATES / "style.css").read_text(encoding="utf-8"))


def context(report: Row, figures: Sequence[Figure]) -> dict[str, Any]:
    """Everything a report's templates show."""
    return {
        "report": report,
        "title": report["headline"] or report["question"] or report["name"],
        "tally": words.tally(report),
        "banner": words.banner(report),
        "asked": words.asked(report),
        "held_fixed": words.held_fixed(report),
        "certainty": words.certainty(report),
        "claims": _claims(report),
        "figures": {figure.name: figure for figure in figures},
        "reached": reached(report),
        "unlucky": words.unlucky_runs(report),
        "cost": _cost(report),
        "confounds": _confounds(report),
        "controls": words.control_sentences(report),
        "noise": words.noise_sentences(report),
        "literature": _literature(report),
        "provenance": _provenance(report),
        "better_side": _better_side(report),
        "explained": words.explained(report),
    }


def _better_side(report: Row) -> str:
    """Which side of the zero line is better for the arm named first."""
    metrics = {way: sorted({d["metric"] for d in report["decisions"] if _is_difference(d, way)}) for way in SIDES}
    if not all(metrics.values()):
        return f"{SIDES['higher' if metrics['higher'] else 'lower']} of the line"
    return " or ".join(f"{SIDES[way]} of the line (for {numbers.listed(names)})" for way, names in metrics.items())


def _is_difference(decision: Row, better: str) -> bool:
    return decision["estimate_name"] in forest.DIFFERENCES and decision["better"] == better


def _claims(report: Row) -> list[dict[str, Any]]:
    """One entry per claim with its comparisons: what was trained first, then what tests and formulas prove, and last
    the comparisons that no claim names."""
    scales, named = forest.scales(report["decisions"]), set()
    groups = []
    for claim in sorted(report["claims"], key=lambda claim: claim["kind"] in ("exact", "accounting")):
        indices = [i for i in claim["decisions"] if i in range(len(report["decisions"]))]
        named.update(indices)
        rows = [_comparison(report, report["decisions"][i], scales) for i in indices]
        groups.append({**claim, "expectation": words.expectation(claim), "rows": rows})
    rest = [d for i, d in enumerate(report["decisions"]) if i not in named]
    if rest:
        rows = [_comparison(report, decision, scales) for decision in rest]
        other = {
            "claim": "",
            "statement": "Other comparisons",
            "departure": "",
            "verdict": "",
            "reduced": False,
            "surprise": False,
            "kind": "",
        }
        groups.append({**other, "expectation": "", "sentence": "", "rows": rows})
    return groups


def _comparison(report: Row, decision: Row, scales: dict[tuple[str, str], forest.Scale]) -> dict[str, Any]:
    signed = decision["estimate_name"] in forest.DIFFERENCES
    middle, interval = numbers.estimate(decision["estimate"], decision["interval95"], signed)
    scale = scales.get((decision["estimate_name"], decision["metric"]))
    styles, test = styles_of(report), sides(decision)[1]
    role = styles[test].role if test in styles else "ink"
    picture = forest.cell(decision, scale, role) if scale and decision["estimate"] is not None else ""
    p = "counter_p" if decision["against"] else "p"  # of the test that the verdict rests on
    by_check = decision["type"] in BY_CHECK
    with_unit = decision["estimate"] is not None and (signed or decision["estimate_name"] == "mean")
    notes = [cause["reason"] for cause in decision["downgrades"] if cause["reason"] not in decision["reason"]]
    if decision["diverged"]:
        notes.append(f"runs that diverged: {decision['diverged']}")
    if decision["registered"].endswith("after its data"):
        notes.append("registered or edited after its data")
    elif decision["registered"] == "unknown":
        notes.append("shares runs that were trained for other questions")
    return {
        "subject": _subject(decision),
        "condition": "" if by_check or len(conditions(report)) < 2 else decision["condition"],
        "question": QUESTIONS.get(decision["type"], decision["type"]),
        "metric": "" if by_check else decision["metric"],
        "estimate_title": decision["estimate_title"],
        "estimate": middle,
        "interval": interval,
        "unit": decision["unit"] if with_unit else "",
        "margin": _margin(decision),
        "picture": Markup(picture),
        "inferred": decision["p"] is not None,
        "n": "–" if by_check else decision["n"],
        "p": numbers.p_value(decision[p]),
        "p_adjusted": numbers.p_value(decision[f"{p}_adjusted"]),
        "method": decision["method"],
        "verdict": decision["verdict"],
        "label": decision["label"] or decision["verdict"],
        "reason": decision["reason"],
        "remedy": decision["remedy"] if decision["verdict"] == "inconclusive" else "",
        "notes": notes,
    }


def _margin(decision: Row) -> str:
    """What the estimate is held against, in words that need no unit."""
    if decision["margin"] is None:
        return ""
    if decision["type"] in ("superiority", "equivalence"):
        return f"{decision['margin']:g} matters"
    if decision["type"] == "level":
        return f"{decision['margin']:g} is stated"
    if decision["type"] == "catastrophe":
        lost, kept = forest.PARTLY_LOST
        return f"{lost:g} is lost, {kept:g} kept"
    if decision["type"] == "stability":
        low, high = forest.SAME_SENSITIVITY
        return f"beyond {LESS_STABLE:g} is less stable, within {low:g} to {high:g} alike"
    return ""


def _subject(decision: Row) -> str:
    if decision["type"] in BY_CHECK or not (decision["test"] or decision["arms"]):
        return decision["check"] or decision["claim"]
    if decision["type"] == "level":
        return decision["test"]
    if decision["type"] == "slope" and decision["arms"]:
        return f"{decision['metric']} over {', '.join(decision['arms'])}"
    if decision["type"] == "ordering" and decision["arms"]:
        return ", then ".join(decision["arms"])
    return f"{decision['test']} against {decision['base']}"


def _cost(report: Row) -> list[dict[str, str]]:
    """One row per arm: sizes and time, and how many times the baseline's."""
    rows = []
    for arm in report["arms"]:
        base = baseline_of(report, arm)
        row = {"arm": titled(report, arm) + (" (baseline)" if arm["baseline"] else ""), "note": arm["note"]}
        amounts, of_base = _amounts(arm), _amounts(base) if base else {}
        for key, written in AMOUNTS.items():
            row[key] = written(amounts[key])
            row[f"{key}_ratio"] = numbers.ratio(amounts[key], of_base.get(key))
        rows.append(row)
    return rows


def _amounts(arm: Row) -> dict[str, float | None]:
    return {
        "parameters": arm["parameters"],
        "flops": arm["flops_per_token"],
        "tokens": arm["tokens"],
        "seconds": _median(arm, "seconds"),
        "speed": _median(arm, "tokens_per_second"),
    }


def _median(arm: Row, key: str) -> float | None:
    known = [run[key] for run in judged_runs(arm) if run["state"] == "done" and run[key] is not None]
    return statistics.median(known) if known else None


def _confounds(report: Row) -> list[dict[str, Any]]:
    """What each arm changes against its baseline."""
    rows = []
    for arm in report["arms"]:
        if arm["baseline"]:
            continue
        found = arm["confounds"]
        config = [[_value(cell) for cell in [*line, "", "", ""][:3]] for line in found["config"]]
        lists = [(title, [_value(item) for item in found[key]]) for key, title in CONFOUNDS]
        counts = [numbers.plural(len(config), "config field")]
        counts += [f"{title.lower()}: {len(items)}" for title, items in lists if items]
        rows.append({"arm": titled(report, arm), "summary": "; ".join(counts), "config": config, "lists": lists})
    return rows


def _value(value: Any) -> str:
    """A config value as it stands in a config file."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(_value(item) for item in value)
    return "none" if value is None else str(value)


def _literature(report: Row) -> list[dict[str, Any]]:
    return [
        {
            "statement": claim["statement"] or claim["claim"],
            "sources": [
                {**entry, "status": STATUS.get(entry["status"], entry["status"])} for entry in claim["literature"]
            ],
        }
        for claim in report["claims"]
        if claim["literature"]
    ]


def _provenance(report: Row) -> list[tuple[str, str]]:
    """(what, value), without what is unknown."""
    known = report["provenance"]
    packages = ", ".join(f"{name} {version}" for name, version in sorted(known["packages"].items()))
    spent = numbers.duration(known["member_seconds"]) if known["member_seconds"] is not None else ""
    hashes = ", ".join(sorted({d["contrast_hash"] for d in report["decisions"] if d["contrast_hash"]}))
    rows = [
        ("Ablation", report["name"]),
        ("Profile", report["profile"]),
        ("Scale", report["scale"]),
        ("Code", known["git"]),
        ("Python", known["python"]),
        ("Packages", packages),
        ("Device", known["device"]),
        ("Data", known["data"]),
        ("Data fingerprint", known["fingerprint"]),
        ("Training time, all runs", spent),
        ("Registered comparisons", hashes),
    ]
    return [(what, str(value)) for what, value in rows if value]
