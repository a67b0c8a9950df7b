"""What a report says in sentences: what was asked, what was held fixed, how sure we are. Plain text, no markup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ablations.report import numbers
from ablations.report.members import Row, baseline_of, conditions, judged_by, judged_runs, of_a_table, titled
from ablations.report.numbers import listed, plural
from ablations.schema import ABOUT, BY_CHECK

VERDICTS = ("supported", "refuted", "mixed", "inconclusive")
NAMED_ARMS = 8  # more arms than this are named without their notes
SIZE_MATTERS = 0.01  # relative difference in parameters or compute worth a sentence


def asked(report: Row) -> str:
    """The question, the arms and the conditions."""
    parts = [report["question"]]
    names = list(dict.fromkeys(arm["arm"] for arm in report["arms"]))
    first = {arm["arm"]: arm for arm in reversed(report["arms"])}
    if names:
        noted = [_introduced(first[name], len(names) <= NAMED_ARMS) for name in names]
        kinds = plural(len(names), "arm")
        parts.append(f"{kinds} {'was' if len(names) == 1 else 'were'} run: {'; '.join(noted)}.")
    rows = [judged_by(report, name) for name in conditions(report)]
    if len(rows) > 1:
        noted = [f"{row['condition']}: {row['note'].rstrip('.')}" if row["note"] else row["condition"] for row in rows]
        parts.append(f"There are {len(noted)} conditions: {'; '.join(noted)}.")
    parts += [f"{metric} is {ABOUT[metric]}." for metric in report["measured"]]
    claims = len(report["claims"])
    if claims:
        compared = plural(len(report["decisions"]), "comparison")
        parts.append(f"{plural(claims, 'claim')} {'is' if claims == 1 else 'are'} to be decided, by {compared}.")
    return " ".join(part for part in parts if part)


def _introduced(arm: Row, with_note: bool) -> str:
    name = f"{arm['arm']} (the baseline)" if arm["baseline"] else str(arm["arm"])
    return f"{name}: {arm['note'].rstrip('.')}" if with_note and arm["note"] else name


def held_fixed(report: Row) -> str:
    """What the arms have in common, what they may differ in, and how each got its learning rate."""
    parts = []
    if report["matched"]:
        parts.append(
            f"By construction all arms have the same {listed([_alike(report, q) for q in report['matched']])}."
        )
    if len(report["arms"]) > 1:
        parts.append(
            "Two runs with the same seed see the same batches in the same order and start from the same value of "
            "every parameter that both have, so arms are compared seed by seed."
        )
    fields = sorted({field for arm in report["arms"] if not arm["baseline"] for field in arm["overrides"]})
    if fields:
        parts.append(f"The arms differ from the baseline only in {listed(fields)}.")
    restarted = [titled(report, arm) for arm in report["arms"] if arm["confounds"]["init_changed"]]
    if restarted:
        parts.append(f"Some shared parameters start from other values in {listed(restarted)}; they are listed below.")
    parts += [*_sizes(report), *_rates(report)]
    return " ".join(parts)


SIZES = {"parameters": "parameters", "flops": "flops_per_token"}  # as `matched` and as an arm names them


def _excess(report: Row, key: str) -> Iterator[tuple[Row, float]]:
    """How much more each arm has than its baseline, as a share."""
    for arm in report["arms"]:
        base = baseline_of(report, arm)
        if base and base[key] and arm[key] is not None:
            yield arm, arm[key] / base[key] - 1


def _alike(report: Row, quantity: str) -> str:
    """What the arms have in common, with how far it is not quite the same."""
    most = max((abs(excess) for _, excess in _excess(report, SIZES[quantity])), default=0) if quantity in SIZES else 0
    return f"{quantity} (within {most:.1%})" if most > 5e-4 else quantity


def _sizes(report: Row) -> list[str]:
    said = []
    for key, what in (("parameters", "parameters"), ("flops_per_token", "compute per token")):
        unlike = []
        for arm, excess in _excess(report, key):
            if abs(excess) > SIZE_MATTERS:
                share = f"{abs(excess):.0%}" if abs(excess) < 10 else f"{excess + 1:.0f} times"
                unlike.append(f"{titled(report, arm)} {share} {'more' if excess > 0 else 'less'}")
        if unlike:
            said.append(f"Not the same: {what} ({', '.join(unlike)}).")
    return said


def _rates(report: Row) -> list[str]:
    tuning = [run for arm in report["arms"] for run in arm["tuning"] if run["learning_rate"]]
    rates = sorted({run["learning_rate"] for run in tuning})
    said = []
    if len(rates) > 1:
        seeds, tried = len({run["seed"] for run in tuning}), [n for arm in report["arms"] if (n := _rates_tried(arm))]
        stability = any(decision["type"] == "stability" for decision in report["decisions"])
        said.append(
            f"Each arm is judged at its own best learning rate, chosen among {_counts(tried)} rates "
            f"between {numbers.rate(rates[0])} and {numbers.rate(rates[-1])} on {plural(seeds, 'tuning seed')} that "
            f"{'no comparison but those of stability uses' if stability else 'the comparison does not use'}; another "
            "choice would move the results, which no interval here takes in."
        )
    else:
        used = sorted({arm["learning_rate"] for arm in report["arms"] if arm["learning_rate"]})
        if used:
            said.append(f"No learning rate was tuned: the arms ran at {listed([numbers.rate(r) for r in used])}.")
    edge = [titled(report, arm) for arm in report["arms"] if arm["edge"]]
    if edge:
        said.append(f"The best rate of {listed(edge)} lies at the edge of its grid; a better one may lie outside.")
    return said


def _rates_tried(arm: Row) -> int:
    return len({run["learning_rate"] for run in arm["tuning"] if run["learning_rate"]})


def certainty(report: Row) -> str:
    """Seeds, correction, margin, noise, what was lost, and how far the answer reaches."""
    if not report["verdicts"]:
        return f"Not at all: the {report['profile']} profile checks that everything runs and gives no verdict."
    inferred = [d for d in report["decisions"] if d["p"] is not None]
    parts = []
    if inferred:
        rests = "The comparison rests" if len(inferred) == 1 else "Each comparison rests"
        parts.append(f"{rests} on {_counts([d['n'] for d in inferred])} pairs of runs.")
        if len(inferred) > 1:
            parts.append(
                f"A p value counts after Holm's correction over {len(inferred)} comparisons: the chance of even one "
                "false alarm among them is about 5%."
            )
    checks = [d for d in report["decisions"] if d["type"] in BY_CHECK]
    if checks:
        verb = "is" if len(checks) == 1 else "are"
        parts.append(
            f"{plural(len(checks), 'comparison')} {verb} settled by a test or a formula, not by statistics; a test "
            "counts only if a deliberately broken variant fails it."
        )
    if not inferred and not checks:
        parts.append("No comparison could be made yet.")
    parts += [*_resolution(report, inferred), *_losses(report), *_registration(report)]
    undecided = sum(d["verdict"] == "inconclusive" for d in report["decisions"])
    if undecided:
        verb = "is" if undecided == 1 else "are"
        parts.append(
            f"{undecided} of {plural(len(report['decisions']), 'comparison')} {verb} inconclusive; the table says "
            "what would settle it (more seeds: `test_seeds` of a profile, in the config)."
        )
    scales = list(dict.fromkeys(row["scale"] for row in report["conditions"] if row["scale"])) or [report["scale"]]
    if len(scales) > 1:
        seen = "; ".join(f"{row['condition']}: {row['scale']}" for row in report["conditions"])
        parts.append(f"All of this was seen at these scales and shows nothing about others ({seen}).")
    elif scales[0]:
        parts.append(f"All of this was seen at one scale ({scales[0]}) and shows nothing about others.")
    return " ".join(parts)


def _resolution(report: Row, inferred: Sequence[Row]) -> list[str]:
    """The margin, the smallest visible effect, and the noise floor."""
    said = []
    differences = [d for d in inferred if d["estimate_name"] == "difference"]
    noise = [row for row in report["noise"] if row["sigma"] is not None]
    for unit in dict.fromkeys(d["unit"] for d in differences):
        same, named = [d for d in differences if d["unit"] == unit], f" {unit}" if unit else ""
        margins = sorted({d["margin"] for d in same if d["margin"]})
        if margins:
            amounts = listed([f"{margin:g}" for margin in margins], "or")
            said.append(f"Differences smaller than {amounts}{named} are treated as no difference.")
        if seen := [d["detectable"] for d in same if d["detectable"] is not None]:
            alone = f", before the correction over {len(inferred)}" if len(inferred) > 1 else ""
            said.append(f"A true difference of {_span(seen)}{named} would be noticed four times in five{alone}.")
        if by_signs := sum(d["median"] for d in same):
            rest = (
                f"{plural(by_signs, 'comparison')} with diverged runs {'rests' if by_signs == 1 else 'rest'} on signs"
            )
            said.append(f"{rest} alone, which have to be all but unanimous to show anything.")
        if apart := [row["sigma"] for row in noise if row["unit"] == unit]:
            said.append(
                f"Chance alone (a baseline from other initial weights) moves the result by {_span(apart)}{named}."
            )
    return said


def _counts(values: Sequence[int]) -> str:
    """From the smallest to the largest, or the one they share."""
    return " to ".join(dict.fromkeys(str(end) for end in (min(values), max(values))))


def _span(values: Sequence[float]) -> str:
    """From the smallest to the largest, or the one number they share."""
    low, high = (numbers.significant(end, 2) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


BROKEN = "above the unigram entropy, or above 1.5 times its own lowest"
ESTIMATES = {
    "recovered fraction": "A recovered fraction is 1 for the baseline, and 0 for what knows nothing but how often each "
    "token occurs (the unigram entropy) or, in a task, guesses.",
    "sensitivity ratio": "A sensitivity is how much worse than at its best learning rate an arm ends, on average over "
    "the grid; the ratio is above 1 where the first arm is the more sensitive one. Sensitivities or divergences may "
    "carry the claim, in either direction, so their p values are doubled twice: an interval that just clears the "
    "margin does not suffice.",
}


def explained(report: Row) -> str:
    """What the less usual estimates of a report mean."""
    shown = {decision["estimate_name"] for decision in report["decisions"] if decision["estimate"] is not None}
    return " ".join([text for name, text in ESTIMATES.items() if name in shown] + _yardsticks(report))


def _yardsticks(report: Row) -> list[str]:
    """What a bigram table would recover, under each condition where fractions of a loss are shown."""
    said = {
        decision["condition"]: f"{share:.2f} under {decision['condition']}"
        for decision in report["decisions"]
        if (share := of_a_table(report, decision)) is not None
    }
    if not said:
        return []
    found = listed(list(said.values()))
    return [
        f"A table of which token follows which, the bigram entropy, comes to {found}: as much can be had without "
        "looking further back than one token."
    ]


def control_sentences(report: Row) -> list[str]:
    """What the baseline had to manage before others were judged by it, for each condition."""
    said = []
    for row in report["conditions"]:
        if row["control"]:
            where = f"Under {row['condition']}: " if len(report["conditions"]) > 1 else ""
            verdict = "passed" if row["passed"] else "failed, so nothing is decided by it"
            said.append(f"{where}{row['control']}: {verdict}.")
    return said


def noise_sentences(report: Row) -> list[str]:
    """How far apart two runs are that differ in nothing but chance, for each condition where it was measured."""
    said = []
    for noise in report["noise"]:
        where = f"Under {noise['condition']}: " if len(report["noise"]) > 1 else ""
        if noise["sigma"] is None:
            said.append(f"{where}{noise['note']}")
            continue
        unit = f" {noise['unit']}" if noise["unit"] else ""
        text = f"{numbers.significant(noise['sigma'], 2)}{unit} (standard deviation over {plural(noise['n'], 'pair')}"
        if noise["interval"]:
            low, high = (numbers.significant(end, 2) for end in noise["interval"])
            text += f"; 95% interval {low} to {high}"
        if noise["lost"]:
            text += f"; {plural(len(noise['lost']), 'more pair')} lost to runs that diverged or failed"
        said.append(
            f"{where}Two baselines that differ only in their initial weights end {text}) apart: {noise['note']}."
        )
    return said


def _losses(report: Row) -> list[str]:
    progress, said = report["progress"], []
    broken = sum(run["broken"] for arm in report["arms"] for run in (*arm["tuning"], *arm["members"]))
    if lost := progress["diverged"] + broken:
        finite = f", {'all' if broken == lost else broken} with a finite loss that ended {BROKEN}" if broken else ""
        said.append(
            f"{plural(lost, 'run')} diverged{finite}. A diverged run is never dropped: a comparison of pairs counts it "
            "as worst and rests on signs alone, a sensitivity as the metric before training. Learning rates are chosen "
            "by the mean of what the tuning runs ended with; a rate with a loss that is not finite comes last."
        )
    gone = [
        f"{plural(progress[state], 'run')} {one if progress[state] == 1 else many}"
        for state, one, many in (("failed", "failed", "failed"), ("missing", "is still to come", "are still to come"))
        if progress[state]
    ]
    if gone:
        said.append(f"The answer may still change: {listed(gone)}.")
    if progress["tampered"]:
        records = plural(len(progress["tampered"]), "record")
        said.append(f"{records} did not match the checksum written with it and should not be trusted.")
    return said


def _registration(report: Row) -> list[str]:
    known = [d["registered"] for d in report["decisions"] if d["registered"]]
    late, unknown = sum(how.endswith("after its data") for how in known), known.count("unknown")
    of_all, said = f"of {plural(len(known), 'comparison')}", []
    if late:
        verb = "was" if late == 1 else "were"
        said.append(f"{late} {of_all} {verb} registered or edited after data existed: read with caution.")
    if unknown:
        said.append(
            f"{unknown} {of_all} {'shares' if unknown == 1 else 'share'} runs that were trained for other questions, "
            "whose records do not tell whether this one stood by then."
        )
    return said or (
        ["What would count as an answer was written down before the data it is judged by existed."] if known else []
    )


def banner(report: Row) -> str:
    """`37 of 40 members done` and what the others are; empty when all ended and none was altered."""
    progress = report["progress"]
    ended = progress["done"] + progress["diverged"]
    if ended >= progress["planned"] and not progress["failed"] and not progress["tampered"]:
        return ""
    others = [
        f"{progress[state]} {words}"
        for state, words in (("diverged", "diverged (a result)"), ("failed", "failed"), ("missing", "not run yet"))
        if progress[state]
    ]
    text = f"{progress['done']} of {progress['planned']} members done"
    text += f"; {', '.join(others)}." if others else "."
    if progress["tampered"]:
        text += f" Altered after they were written: {', '.join(map(str, progress['tampered']))}."
    return text


def tally(report: Row) -> list[tuple[str, int]]:
    """(verdict, number of claims) for the badges, in a fixed order, without zeros."""
    given = [claim["verdict"] for claim in report["claims"]]
    return [(verdict, given.count(verdict)) for verdict in VERDICTS if verdict in given]


def expectation(claim: Row) -> str:
    """The verdict expected beforehand."""
    if not claim["prior"]:
        return ""
    return f"expected beforehand: {claim['prior']}"


def unlucky_runs(report: Row) -> list[dict[str, str]]:
    """Every run that diverged, failed or is missing: who, what, and when or why."""
    rows = []
    for arm in report["arms"]:
        runs = [("test", run) for run in judged_runs(arm)]
        runs += [("twin", run) for run in arm["members"] if run["twin"]]
        runs += [("tuning", run) for run in arm["tuning"]]
        for role, run in runs:
            if run["state"] == "done":
                continue
            step = run.get("diverged_at")
            why = f"at step {step:,}" if step is not None else run.get("error", "")
            rows.append(
                {
                    "arm": titled(report, arm),
                    "seed": f"{run['seed']} ({role})",
                    "rate": numbers.rate(run["learning_rate"]),
                    "state": "not run yet" if run["state"] == "missing" else run["state"],
                    "why": why or numbers.NOTHING,
                }
            )
    return rows
