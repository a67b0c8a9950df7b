"""What the lab's commands do."""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablations import catalog, checks, claims, committed, jobs, plan, summary, twins
from ablations.catalog import RUNS
from ablations.cells import cells
from ablations.evidence import FormulaCheck
from ablations.jobs import Job
from ablations.lint import lint, require_clean
from ablations.profiles import DEFAULT_PROFILE, check_limits
from ablations.progress import Progress
from ablations.runner import Pool, default_workers
from ablations.schema import Ablation, repetition
from transformer.errors import UserError
from transformer.training.interrupts import STOPPED_BY_USER


def list_command(arguments: argparse.Namespace) -> int:
    """Ablations with their questions, or the claims of one kind: with what decides them where no training does.

    Raises:
      UserError: claims of that kind have no tests to run.
    """
    if arguments.kind in ("exact", "accounting"):
        return _list_checks([claim for claim in claims.load().values() if claim.kind == arguments.kind], arguments)
    if arguments.run:
        raise UserError("--run needs --kind=exact or --kind=accounting, whose claims a test or a formula decides.")
    if arguments.kind:
        for claim in claims.load().values():
            if claim.kind == arguments.kind:
                print(f"{claim.id:40} {claim.statement}")
        return 0
    for name in catalog.names():
        ablation = catalog.load(name)
        print(f"{name:20} {ablation.question}\n{'':20} profiles: {', '.join(ablation.profiles) or 'none yet'}")
    return 0


def _list_checks(listed: list[claims.Claim], arguments: argparse.Namespace) -> int:
    """Claim, verdict, sabotage and test; a claim may have several tests, and one without any says so."""
    found = checks.discover()
    if arguments.run:
        _check([check for claim in listed for check in found.get(claim.id, [])], arguments.runs)
    results = checks.results(arguments.runs)
    tally: collections.Counter[str] = collections.Counter()
    section = ""
    for claim in listed:
        if claim.section != section:
            section = claim.section
            print(f"\n{section}")
        row = f"  {claim.id:34}"
        verdicts = []
        for check in found.get(claim.id, []):
            decision = checks.decide(claim.id, check, results.get(check))
            result, sabotage = decision.verdict if check in results else "not run", checks.sabotage(results.get(check))
            print(f"{row} {result:13} sabotage {sabotage:11} {check}")
            row = " " * 36
            verdicts.append(result)
        if not verdicts:
            print(f"{row} no test yet")
        tally[", ".join(sorted(set(verdicts))) or "no test yet"] += 1
    print(f"\n{len(listed)} claims: " + ", ".join(f"{count} {what}" for what, count in tally.most_common()))
    return 0


def plan_command(arguments: argparse.Namespace) -> int:
    """Prints what a run would train, cost and be able to show."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from transformer.analysis.estimate import duration

    console = Console()
    for name in arguments.names:
        with Progress("arms") as progress:
            made = plan.make(name, arguments.profile, arguments.runs, default_workers(), progress.show)
        columns = ("parameters", "FLOPs/token", "tokens a run", "runs", "to do", "time")
        table = Table(Column("arm", overflow="fold"), *columns, title=Text(made.question))
        for row in made.rows:
            sizes = (f"{row.parameters:,}", f"{row.flops_per_token:.2g}", f"{row.tokens:,}")
            left = duration(row.seconds) if row.missing else "-"
            table.add_row(Text(row.label.partition("/")[2]), *sizes, str(row.members), str(row.missing), left)
        console.print(table)
        source = "measured between baseline twins" if made.measured else "assumed, no twins trained yet"
        console.print(
            f"{made.test_seeds} test seeds detect differences from {made.detectable:.3g}, and can show equivalence "
            f"within {made.equivalence:.3g} (80% power for one comparison alone; spread of paired differences "
            f"{made.sigma:.3g}, {source})."
        )
        if made.test_seeds < made.sign_seeds:
            console.print(
                f"Where runs diverge, signs decide: for one of {made.comparisons} comparisons {made.test_seeds} test "
                f"seeds are too few, even all alike; {made.sign_seeds} are not."
            )
        for warning in made.warnings:
            console.print(Text(str(warning)))
        console.print(f"about {duration(made.seconds)} on {default_workers()} workers")
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    """Checks, trains what is missing, judges and writes the page."""
    progress, pool = _pool(arguments)
    for name in arguments.names:
        ablation = catalog.load(name)
        check_limits(name, ablation, arguments.profile)
        counts = plan.parameter_counts(cells(name, ablation, arguments.profile))
        require_clean(lint(name, ablation, arguments.profile, counts))
    _make(arguments.runs)
    for name in arguments.names:
        run_checks(name, catalog.load(name), arguments.runs)
    code = _train(jobs.collect(arguments.names, arguments.profile, arguments.runs), progress, pool)
    if code != STOPPED_BY_USER:
        report_command(arguments)
    return code


def twins_command(arguments: argparse.Namespace) -> int:
    """Trains as many twins of each baseline as show that they are equivalent, and says whether they do.

    Raises:
      UserError: a baseline is not trained yet, or needs more pairs than there are seeds (what can be trained is trained
        first); or the profile gives no verdicts, so that its baselines have no twins.
    """
    _make(arguments.runs)
    code, retry = 0, arguments.retry_failed
    while True:  # the more pairs, the better is known how many it takes
        progress, pool = _pool(arguments)
        found = [summary.collect(name, arguments.profile, arguments.runs) for name in arguments.names]
        needed = [one for results in found for one in twins.pairs_needed(results, arguments.pairs)]
        if not needed:
            raise UserError(f"--profile={arguments.profile} has no twins, since it gives no verdicts; choose another.")
        asked = {one.cell.label: one for one in needed if one.possible}
        given = jobs.of_cells((one.cell for one in asked.values()), arguments.runs)
        todo = [job for job in given if job.progress().todo or (retry and job.failed())]
        if code or not todo:
            break
        print(*(asked[job.cell.label].said for job in todo), sep="\n", file=sys.stderr)
        code = _train(todo, progress, pool)
        retry = False
    if code == STOPPED_BY_USER:
        return code
    for results in found:
        for row in twins.noise(results):
            print(f"{results.name}, {row['condition']}: {twins.in_words(row)}")
    if refused := [one.said for one in needed if not one.possible]:
        raise UserError("; ".join(refused) + ".")
    print(f"to commit them: python -m ablations keep {' '.join(arguments.names)} --profile={arguments.profile}")
    return code


def _pool(arguments: argparse.Namespace) -> tuple[Progress, Pool]:
    """Workers, and what shows how far they are.

    Raises:
      UserError: fewer than one worker.
    """
    progress = Progress()
    return progress, Pool(arguments.workers or default_workers(), progress.show, arguments.retry_failed)


def _train(asked: Sequence[Job], progress: Progress, pool: Pool) -> int:
    """Finishes jobs; returns an exit code."""
    with progress:
        code = pool.run(asked)
    if code == STOPPED_BY_USER:
        print("stopped and saved; the same command goes on from here", file=sys.stderr)
    return code


def _make(runs: Path) -> None:
    """The folder of all arms, before anything is computed for it.

    Raises:
      UserError: it cannot be made or written to.
    """
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--runs={runs} cannot be made: {error.strerror}; give another folder.") from error
    if not os.access(runs, os.W_OK):
        raise UserError(f"--runs={runs} cannot be written to; give another folder.")


def run_checks(name: str, ablation: Ablation, runs: Path) -> None:
    """The exact and accounting claims of an ablation, first: nothing is trained on a mechanism that does not do what it
    should.

    Raises:
      UserError: a sabotage went unnoticed, or a claim expected to hold does not.
    """
    contrasts = [c for c in ablation.contrasts if c.check]
    if not contrasts:
        return
    print(f"{name}: checking {len(contrasts)} claims that need no training", file=sys.stderr)
    found = _check([c.check for c in contrasts], runs)
    for contrast in contrasts:
        result = found.get(contrast.check)
        if isinstance(result, FormulaCheck):
            continue  # whatever comes out is an answer
        if result is None:
            print(f"{contrast.claim}: {contrast.check} was skipped and decides nothing here", file=sys.stderr)
            continue
        if result.sabotage_caught is False:
            raise UserError(
                f"{contrast.claim}: the check {contrast.check} did not notice its sabotage; mend the test first."
            )
        if not result.passed and contrast.prior == "supported":
            raise UserError(
                f"{contrast.claim}: {contrast.check} failed ({result.counterexample}); mend the model first."
            )


def _check(wanted: Sequence[str], runs: Path) -> dict[str, checks.Result]:
    """Runs checks, and shows how far they are."""
    with Progress("tests") as progress:
        return checks.run(wanted, runs, progress.show)


def report_command(arguments: argparse.Namespace) -> int:
    """Judges, writes pages, prints verdicts and where the pages lie. Without `--runs` it reads the committed records,
    and writes their text, figures and tables too."""
    from ablations.report import report_folder, write_index, write_report

    if arguments.runs is None:
        judged = [committed.data(name, profile) for name, profile in committed.kept()]
        for name in arguments.names:
            profiles = [data["profile"] for data in judged if data["name"] == name]
            if not profiles or arguments.profile not in (None, *profiles):
                there = f"; of it there are: {', '.join(profiles)}" if profiles else ""
                asked = f"{name!r} at the {arguments.profile} profile" if profiles else f"{name!r}"
                raise UserError(f"No answer of {asked} is committed{there}; --runs={RUNS} judges what was run here.")
    else:
        arguments.profile = arguments.profile or DEFAULT_PROFILE
        judged = [
            summary.summarize(summary.collect(name, arguments.profile, arguments.runs)) for name in _chosen(arguments)
        ]
    for data in judged:
        written = write_report(data, arguments.out / report_folder(data))
        asked_for = data["name"] in arguments.names and arguments.profile in (None, data["profile"])
        if asked_for or not arguments.names:
            print_verdicts(data)
            print(f"page: {written[0]}")
    if arguments.runs is None:
        committed.publish(judged, arguments.out)
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(arguments.out.glob("*/report.json"))]
    settled = checks.settled(arguments.runs or RUNS)
    print(f"all claims: {write_index(reports, claims.load(), arguments.out, settled)}")
    return 0


def keep_command(arguments: argparse.Namespace) -> int:
    """Copies records to where they are committed."""
    for name in arguments.names:
        print(committed.keep(name, arguments.profile, arguments.runs))
    print("now: python -m ablations report, and commit ablations/results")
    return 0


def status_command(arguments: argparse.Namespace) -> int:
    """Members done, diverged, failed and missing."""
    for name in _chosen(arguments):
        progress = summary.progress(summary.collect(name, arguments.profile, arguments.runs))
        tampered = progress.pop("tampered")
        print(f"{name:20} {arguments.profile:10} " + "  ".join(f"{key} {value}" for key, value in progress.items()))
        for record in tampered:
            print(f"{'':20} changed by hand, not used: {record}")
    return 0


def explain_command(arguments: argparse.Namespace) -> int:
    """What is said, what was done, the numbers, the verdict, and where the picture is."""
    from rich.console import Console
    from rich.text import Text

    from ablations import explain

    console = Console()
    for line, heading in explain.lines(arguments.claim, arguments.runs):
        console.print(Text(line, style="bold" if heading else ""))
    return 0


def try_command(arguments: argparse.Namespace) -> int:
    """An ad-hoc arm against the baseline: trained, judged, reported like any other question."""
    from ablations import adhoc

    name = adhoc.register(arguments.overrides)
    arguments.names = [name]
    return run_command(arguments)


def diff_command(arguments: argparse.Namespace) -> int:
    """What two run directories differ in: config fields, final losses, parameters."""
    from ablations import confounds
    from transformer.config import difference
    from transformer.training.run_directory import read_config, read_status

    first, second = read_config(arguments.first), read_config(arguments.second)
    lines = [f"{path}: {a!r} -> {b!r}" for path, (a, b) in difference(first, second).items()]
    changes = confounds.compare(first, second)
    for kind in ("parameters_only_base", "parameters_only_arm", "shape_changed", "decay_changed", "init_changed"):
        lines += [f"{kind.replace('_', ' ')}: {entry}" for entry in changes[kind]]
    before, after = read_status(arguments.first), read_status(arguments.second)
    for key in sorted({*before, *after}):
        if key.endswith(("_loss", "state", "_bits_per_byte")) and before.get(key) != after.get(key):
            lines.append(f"{key}: {before.get(key)} -> {after.get(key)}")
    print("\n".join(lines or ["no difference"]))
    return 0


def push_command(arguments: argparse.Namespace) -> int:
    """Rebuilds W&B runs, the verdict table and the page from the store."""
    from ablations import push

    for name in arguments.names:
        push.push(name, arguments.profile, arguments.runs)
    return 0


def print_verdicts(data: dict[str, Any]) -> None:
    """The question, and one line for each claim and comparison."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(Text(data["question"], style="bold"))
    for claim in data["claims"]:
        console.print(Text(f"  {summary.worded(claim)}: {claim['statement']}"))
        for index in claim["decisions"]:
            console.print(Text(f"    {data['decisions'][index]['sentence']}"))


def _chosen(arguments: argparse.Namespace) -> list[str]:
    """The ablations named, or all that have the profile.

    Raises:
      UserError: one that is named is unknown or lacks it, or none has it.
    """
    for name in arguments.names:
        catalog.load(name).profile(arguments.profile)
    if arguments.names:
        return arguments.names
    found = [name for name in catalog.names() if repetition(arguments.profile)[0] in catalog.load(name).profiles]
    if not found:
        raise UserError(f"No ablation has the profile {arguments.profile!r}; `list` shows the profiles of each.")
    return found
