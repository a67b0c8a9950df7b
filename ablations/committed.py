"""The answers that are committed: records, verdicts and figures under `results/`, and the tables made of them.

    results/NAME/PROFILE/records/      the sealed records of each arm, a file each, and what checks gave
    results/NAME/PROFILE/report.md     the page as text, with its figures beside it
    results/README.md                  every claim answered so far, controls, repetitions; what was measured and decided
                                       stands in the README as well

Everything but the records is written by `python -m ablations report`, and comes out the same each time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations import catalog, checks, store, summary, twins
from ablations.cells import Member, cells
from ablations.profiles import rank
from ablations.report import report_folder
from ablations.report.members import is_measured
from ablations.schema import ABOUT, repetition, spoken
from ablations.store import Record
from transformer.errors import UserError
from transformer.numerics import EXECUTIONS
from transformer.training.jsonfiles import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
MARKS = "<!-- answers: written by `python -m ablations report` -->", "<!-- answers end -->"
PICTURE = "answers.svg"
BREAK = "<br>"  # a new line in a cell of a table
OTHERWISE = ", asked otherwise than planned: see its page"
COLUMNS = ("What is said", "What we measured", "Verdict", "Scale", "Page")
Answer = dict[str, Any]


def keep(name: str, profile: str, runs: Path, results: Path | None = None) -> Path:
    """Copies the records of an ablation, and what its checks gave, to where they are committed; records of other
    members that are there already stay.

    Raises:
      UserError: no run has ended yet.
    """
    folder = (results or RESULTS) / name / profile / "records"
    arms = cells(name, catalog.load(name), profile)
    found = [(arm, records) for arm in arms if (records := store.read_arm(arm.directory(runs))[0])]
    if not found:
        raise UserError(f"{name} has no finished run at the {profile} profile in {runs}; nothing to keep.")
    folder.mkdir(parents=True, exist_ok=True)
    for arm, records in found:
        path = arm.directory(folder)
        store.pack(_fuller(store.read_arm(path)[0], records), path)
    wanted = {contrast.check for contrast in catalog.load(name).contrasts if contrast.check}
    checked = {check: row for check, row in checks.stored(runs).items() if check in wanted}
    if checked:
        write_json(folder / checks.STORED, dict(sorted({**checks.stored(folder), **checked}.items())))
    return folder


def _fuller(old: Mapping[Member, Record], new: Mapping[Member, Record]) -> dict[Member, Record]:
    """Both together; the new record of a member counts, unless it ended as well and less was measured on it."""
    bare = {
        m for m, r in new.items() if m in old and r.state == "done" and not old[m].metrics.keys() <= r.metrics.keys()
    }
    return {**old, **{member: record for member, record in new.items() if member not in bare}}


def kept(results: Path | None = None) -> list[tuple[str, str]]:
    """(ablation, profile) of everything that is committed, by name, the larger profile first."""
    found = [(path.parents[1].name, path.parent.name) for path in (results or RESULTS).glob("*/*/records")]
    return sorted(found, key=lambda pair: (pair[0], rank(pair[1])))


def data(name: str, profile: str, results: Path | None = None) -> dict[str, Any]:
    """The report data of a committed answer. How its members were trained, together or one after the other, is part
    of what an arm is; it is read off the records, since this machine might do otherwise.

    Raises:
      UserError: there are records, but of none of the arms that its config has now.
    """
    folder = (results or RESULTS) / name / profile / "records"
    found = []
    for execution in EXECUTIONS:
        with catalog.executed(execution):
            found.append(summary.collect(name, profile, folder))
        if any(records for _, records in found[-1].arms):
            return summary.summarize(found[-1])
    if any(folder.glob(f"*{store.PACKED}")):
        raise UserError(
            f"The records in {folder} belong to no arm that {name} has at the {profile} profile; undo the change of "
            "its config, or remove them."
        )
    return summary.summarize(found[0])


def publish(reports: Sequence[Mapping[str, Any]], pages: Path) -> None:
    """Writes verdicts, and text and figures as they stand among the `pages`, of each report; then the tables over all
    of them."""
    from ablations.report.overview import overview

    for report in reports:
        folder, page = RESULTS / report["name"] / report["profile"], pages / report_folder(report)
        shutil.copy(page / "report.md", folder)
        shutil.rmtree(folder / "figures", ignore_errors=True)
        shutil.copytree(page / "figures", folder / "figures")
        verdicts = [
            {key: claim[key] for key in ("claim", "statement", "verdict", "sentence")}
            | {"decided_by": [report["decisions"][i]["sentence"] for i in claim["decisions"]]}
            for claim in report["claims"]
        ]
        write_json(folder / "verdicts.json", {"headline": report["headline"], "claims": verdicts})
    answered = list(answers(reports))
    (RESULTS / "README.md").write_text(
        _document(answered) + _controls(reports) + _repetitions(reports), encoding="utf-8"
    )
    picture = overview([report for report in reports if not repetition(report["profile"])[1]])
    if picture is not None:
        (RESULTS / PICTURE).write_text(picture.file(), encoding="utf-8")
    headline(answered, ROOT / "README.md")


def headline(answered: Sequence[Answer], readme: Path) -> None:
    """Puts the table of what was measured between the marks of a README; one without marks stays as it is."""
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    start, end = MARKS
    if start in text and end in text:
        before, rest = text.split(start, 1)
        measured = [row for row in answered if not row["proved"] and row["verdict"] != "inconclusive"]
        table = _picture(measured, "ablations/results/") + _table(measured, "ablations/results/")
        readme.write_text(f"{before}{start}\n{table}{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def answers(reports: Sequence[Mapping[str, Any]]) -> Iterator[Answer]:
    """One row per claim: that of the largest profile that measured it, or else of the largest that asks it."""
    seen: set[str] = set()
    asked = [(report, claim) for report in reports for claim in report["claims"]]
    for report, claim in sorted(asked, key=lambda one: (not is_measured(*one), rank(one[0]["profile"]))):
        if claim["claim"] not in seen:
            seen.add(claim["claim"])
            decisions = [report["decisions"][i] for i in claim["decisions"]]
            yield {
                **claim,
                "measured": _measured(decisions, claim),
                "metrics": [decision["metric"] for decision in decisions],
                "scale": BREAK.join(dict.fromkeys(_scale(report, decision) for decision in decisions)) or "–",
                "name": report["name"],
                "profile": report["profile"],
            }


def _measured(decisions: Sequence[Mapping[str, Any]], claim: Mapping[str, Any]) -> str:
    """The estimates in a few words, one comparison after the other."""
    said = []
    for decision in decisions:
        if decision["check"]:
            several = decision["type"] == "formula"  # a number after the other
            said.append(decision["reason"].replace("; ", BREAK) if several else decision["reason"])
        else:
            label = "" if decision["p"] is None else f", {decision['label']}"
            lost = f"; diverged: {decision['diverged']}" if decision["diverged"] else ""
            said.append(f"{_said_of(decision)}: {_estimate(decision)}{label}{lost}")
    return BREAK.join(said) or claim["sentence"]


def _said_of(decision: Mapping[str, Any]) -> str:
    """What is compared, in which metric and under which condition."""
    between = " − " if decision["estimate_name"] == "difference" else " against "
    what = (", " if decision["arms"] else between).join(_names(decision))
    if decision["metric"] != "loss":
        what += f", {spoken(decision['metric'])}"
    return what if decision["condition"] == "default" else f"{what} ({decision['condition']})"


def _estimate(decision: Mapping[str, Any]) -> str:
    """With its interval and unit, or why there is none, such as runs that diverged."""
    if decision["estimate"] is None:
        return decision["reason"]
    signed = "+" if decision["estimate_name"] == "difference" else ""
    text = f"{decision['estimate']:{signed}.3g}"
    if decision["interval95"]:
        low, high = decision["interval95"]
        text += f" [{low:{signed}.3g}, {high:{signed}.3g}]"
    if decision["estimate_name"] not in ("difference", "mean"):
        return f"{text} {decision['estimate_title']}"
    middle = "median " if decision["median"] else ""
    return f"{middle}{text} {decision['unit']}"


def _scale(report: Mapping[str, Any], decision: Mapping[str, Any]) -> str:
    if decision["check"]:
        return "no training"
    scales = {row["condition"]: row["scale"] for row in report["conditions"]}
    scale = str(scales.get(decision["condition"], report["scale"])).removesuffix(" a run")
    return f"{scale}, {decision['n']} seeds" if decision["n"] else scale


def _document(answered: Sequence[Answer]) -> str:
    asked = [row for row in answered if row["decisions"]]
    settled = sum(row["verdict"] != "inconclusive" for row in asked)
    return (
        "# Answers\n\nWritten by `python -m ablations report` from the records beside it. "
        f"{len(asked)} claims were asked, {settled} are settled. Each page says what was held fixed, how each arm "
        "got its learning rate, and how large chance alone is.\n\n" + _picture(answered, "") + _table(answered, "")
    )


def _controls(reports: Sequence[Mapping[str, Any]]) -> str:
    """What each baseline had to manage and how it compares with its twins; empty without any. Questions that share one
    share a row."""
    rows: dict[tuple[str, str], list[str]] = {}
    known = twins.pooled(row for report in reports for row in report["noise"])
    for report in reports:
        pairs = {row["condition"]: known[twins.model_of(row)] for row in report["noise"]}
        for row in report["conditions"]:
            where = f"{report['name']}, {report['profile']}"
            where += "" if row["condition"] == "default" else f": {row['condition']}"
            verdict = f": {'**passed**' if row['passed'] else '**failed**'}" if row["control"] else ""
            managed = f"{row['control'] or '–'}{verdict}"
            rows.setdefault((managed, twins.in_words(pairs.get(row["condition"]))), []).append(where)
    rows.pop(("–", "–"), None)
    if not rows:
        return ""
    return (
        "\n## Controls\n\nBefore others are judged by it, a baseline has to have learned something: where it did not, "
        "nothing is decided. Runs of it that differ in their initial weights alone should not differ in what is "
        "compared, beyond what chance does: of twenty 95% intervals one misses zero. Where they are called equivalent, "
        "the 90% interval lies within the smallest difference of interest, "
        + " or ".join(f"{least:g} {unit}" for unit, least in twins.OF_INTEREST.items())
        + "; `python -m ablations twins NAME` trains as many pairs as show it with a probability of 80%, and with "
        "`--pairs` repeats a control that failed. Pairs of one model at one learning rate are pooled, whichever "
        "question or repetition trained them; pages count their own. All this is shown and changes no verdict.\n\n"
        + _lines(
            ("Baseline", "What it had to manage", "Its twins, minus itself"),
            [(BREAK.join(where), *texts) for texts, where in rows.items()],
        )
    )


def _repetitions(reports: Sequence[Mapping[str, Any]]) -> str:
    """Each comparison that was also made on other seeds, the two estimates side by side; empty without any."""
    found = {(report["name"], report["profile"]): report for report in reports}
    rows = []
    for (name, profile), again in found.items():
        first = found.get((name, repetition(profile)[0]))
        if first is None or first is again:
            continue
        links = [f"[{p}]({name}/{p}/report.md)" for p in (first["profile"], profile)]
        for one, other in zip(first["decisions"], again["decisions"], strict=True):
            if one["contrast_hash"] == other["contrast_hash"] and None not in (one["p"], other["p"]):
                estimates = [
                    BREAK.join([_estimate(d), f"{d['label']}, {d['n']} seeds", _rates(report, d)])
                    for report, d in ((first, one), (again, other))
                ]
                distance = "yes" if _apart(one, other) else ""
                rows.append((f"{name}: {_said_of(one)}", *estimates, distance, " and ".join(links)))
    if not rows:
        return ""
    moved = sum(bool(row[3]) for row in rows)
    return (
        "\n## Repeated on other seeds\n\nTrained again from scratch, learning rates chosen again, with other initial "
        "weights and another order of the data, for tuning as for testing. "
        f"In {moved} of {len(rows)} comparisons the two 95% intervals do not overlap.\n\n"
        + _lines(("Comparison", "First seeds", "Other seeds", "Intervals apart", "Pages"), rows)
    )


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the 95% intervals of two estimates do not overlap."""
    if not (one["interval95"] and other["interval95"]):
        return False
    return max(one["interval95"][0], other["interval95"][0]) > min(one["interval95"][1], other["interval95"][1])


def _rates(report: Mapping[str, Any], decision: Mapping[str, Any]) -> str:
    """The learning rate that each arm of a comparison was judged at."""
    chosen = {arm["arm"]: arm["learning_rate"] for arm in report["arms"] if arm["condition"] == decision["condition"]}
    return "learning rates " + ", ".join(f"{name} {chosen[name]:g}" for name in _names(decision))


def _names(decision: Mapping[str, Any]) -> list[str]:
    """The arms of a comparison, the reference last."""
    return decision["arms"] or list(filter(None, (decision["test"], decision["base"])))


def _picture(answered: Sequence[Answer], prefix: str) -> str:
    """The overview and how to read it and the table, the names of what was measured among it."""
    measured = {metric for row in answered for metric in row["metrics"]}
    explained = [f"{spoken(metric).capitalize()}: {ABOUT[metric]}." for metric in ABOUT if metric in measured]
    return (
        f"![Every comparison so far, in units of what matters]({prefix}{PICTURE})\n\n"
        "*Above: differences in units of the smallest that matters, with 95% intervals; inside the grey band they are "
        "too small to matter, and a hollow dot is a median of pairs of which some diverged. Below: what is left of "
        "what the baseline learned; right of the band the part is dispensable, left of it essential. On text that is "
        "counted from the unigram entropy; a bigram table already recovers much of it: the upright ticks, left of "
        "which nothing beyond such a table is kept.*\n\n"
        "*In the table, in part: other comparisons of the claim are inconclusive. Reversed: clearly the other way. "
        "Different: clearly apart, where no difference was claimed. Partly lost: between a quarter and three quarters "
        "of what the baseline learned, the recovered fraction, is left. Each arm has its own best learning rate, "
        f"chosen on few seeds: no interval takes that choice in, and [repetitions on other seeds]({prefix}README.md"
        "#repeated-on-other-seeds) show how far it can move a number. The name under what is said tells the whole "
        "story: `python -m ablations explain no_mask_cheating`.*\n\n"
        + (f"*{' '.join(explained)}*\n\n" if explained else "")
    )


def _table(answered: Sequence[Answer], prefix: str) -> str:
    rows = []
    for row in sorted(answered, key=lambda row: (row["name"], row["kind"] != "training", row["claim"])):
        link = f"[{row['name']}, {row['profile']}]({prefix}{row['name']}/{row['profile']}/report.md)"
        rows.append(
            (
                f"{row['statement']}{BREAK}`{row['claim']}`{row['departure'] and OTHERWISE}",
                row["measured"],
                f"**{summary.worded(row)}**",
                row["scale"],
                link,
            )
        )
    return _lines(COLUMNS, rows)


def _lines(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
