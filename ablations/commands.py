"""What the lab's commands do."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from ablations import catalog, claims, summary
from ablations.cells import cells
from ablations.runner import Job, Pool, default_workers


def list_command(arguments: argparse.Namespace) -> int:
    """Ablations with their questions, or the claims of one kind."""
    if arguments.kind:
        for claim in claims.load().values():
            if claim.kind == arguments.kind:
                print(f"{claim.id:40} {claim.statement}")
        return 0
    for name in catalog.names():
        ablation = catalog.load(name)
        print(f"{name:20} {ablation.question}\n{'':20} profiles: {', '.join(ablation.profiles) or 'none yet'}")
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    """Trains what is missing, then reports."""
    jobs = _jobs(arguments.names, arguments.profile, arguments.runs)
    progress = Progress()
    pool = Pool(arguments.workers or default_workers(), progress.show, arguments.retry_failed)
    code = pool.run(jobs)
    progress.close()
    if code == 130:
        print("stopped and saved; the same command goes on from here", file=sys.stderr)
        return code
    report_command(arguments)
    return code


def report_command(arguments: argparse.Namespace) -> int:
    """Judges and writes pages; prints verdicts and where the pages lie."""
    from ablations.report import write_report

    for name in arguments.names or catalog.names():
        if arguments.profile not in catalog.load(name).profiles:
            continue
        data = summary.summarize(summary.collect(name, arguments.profile, arguments.runs))
        written = write_report(data, arguments.out / name / arguments.profile)
        print_verdicts(data)
        page = next(path for path in written if path.suffix == ".html")
        print(f"page: {page}")
    return 0


def status_command(arguments: argparse.Namespace) -> int:
    """Members done, diverged, failed and missing."""
    for name in arguments.names or catalog.names():
        if arguments.profile not in catalog.load(name).profiles:
            continue
        progress = summary.summarize(summary.collect(name, arguments.profile, arguments.runs))["progress"]
        tampered = progress.pop("tampered")
        print(f"{name:20} " + "  ".join(f"{key} {value}" for key, value in progress.items()))
        for record in tampered:
            print(f"{'':20} changed by hand, not used: {record}")
    return 0


def print_verdicts(data: dict[str, Any]) -> None:
    """The question, and one line for each claim and comparison."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(Text(data["question"], style="bold"))
    for claim in data["claims"]:
        console.print(Text(f"  {claim['verdict']}: {claim['statement']}"))
        for index in claim["decisions"]:
            console.print(Text(f"    {data['decisions'][index]['sentence']}"))


def _jobs(names: list[str], profile: str, runs: Path) -> list[Job]:
    """One job per different arm; an arm shared by several ablations is trained once."""
    jobs: dict[str, Job] = {}
    for name in names:
        ablation = catalog.load(name)
        for cell in cells(name, ablation, profile):
            known = jobs.get(cell.hash)
            contrasts = (*(known.contrasts if known else ()), *summary.registered(name, ablation))
            probes = tuple(dict.fromkeys((*(known.probes if known else ()), *ablation.probes)))
            owner = known.cell if known and (known.cell.is_baseline or not cell.is_baseline) else cell
            jobs[cell.hash] = Job(owner, cell.directory(runs), tuple(dict.fromkeys(contrasts)), probes)
    return list(jobs.values())


class Progress:
    """Progress over the whole plan: a bar with ETA on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.started, self.first, self.last_line, self.bar = time.monotonic(), -1, 0.0, None
        self.task: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.fields[eta]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=1, eta="")

    def show(self, ended: int, known: int, running: list[str]) -> None:
        """Shows how far the plan is."""
        if self.first < 0:
            self.first = ended
        elapsed, fresh = time.monotonic() - self.started, ended - self.first
        eta = f"ETA {_clock(elapsed / fresh * (known - ended))}" if fresh else "ETA --"
        if self.bar is not None:
            self.bar.update(self.task, completed=ended, total=known, description=", ".join(running), eta=eta)
        elif time.monotonic() - self.last_line > 5 or ended == known:
            if ended == known and self.last_line == float("inf"):
                return
            self.last_line = float("inf") if ended == known else time.monotonic()
            print(f"members {ended}/{known}  {eta}  {', '.join(running)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.stop()


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
