"""The lab: `python -m ablations list | plan | run | status | report | keep | twins | explain | try | diff | push`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ablations.catalog import CONFIGS, RUNS
from ablations.profiles import DEFAULT_PROFILE
from transformer.errors import UserError
from transformer.numerics import EXECUTIONS
from transformer.training.interrupts import STOPPED_BY_USER

EXECUTION_HELP = "how members of an arm are trained; auto: one by one on a CPU, together on an accelerator; never mixed"


def main(argv: list[str] | None = None) -> int:
    """Parses and runs one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ablations", description="Ask a question, get a verdict.")
    commands = parser.add_subparsers(dest="command", required=True)

    configs = argparse.ArgumentParser(add_help=False)
    configs.add_argument("--configs", type=Path, default=CONFIGS, help="folder of ablation_NAME.py files")
    listing = commands.add_parser("list", help="ablations, or claims of one kind", parents=[configs])
    listing.add_argument("--kind", choices=["exact", "training", "inference", "accounting", "performance"])
    listing.add_argument("--run", action="store_true", help="run the tests and formulas of the claims listed, first")
    listing.add_argument("--runs", type=Path, default=RUNS, help="where results are stored")
    for name, text in (
        ("plan", "what a run would train: arms, parameters, FLOPs, time, detectable effect"),
        ("run", "train every arm, judge, and write the page"),
        ("status", "how far runs are"),
        ("report", "judge what is there and write the page; without --runs, of the committed records"),
        ("keep", "copy records to ablations/results, where they are committed"),
        ("twins", "train as many twins of each baseline as show whether chance alone makes no difference"),
        ("push", "rebuild W&B runs, the verdict table and the page from the store"),
        ("try", "an ad-hoc arm against the baseline: try model.norm.kind=rmsnorm"),
    ):
        sub = commands.add_parser(name, help=text, parents=[configs])
        if name == "try":
            sub.add_argument("overrides", nargs="+", metavar="FIELD=VALUE")
        else:
            sub.add_argument("names", nargs="*" if name in ("status", "report") else "+", metavar="NAME")
        sub.add_argument(
            "--profile",
            default={"try": "demo", "report": None}.get(name, DEFAULT_PROFILE),
            help="smoke, demo, quick or full; quick@100 repeats quick on the seeds from 100 on; default: "
            + {"try": "demo", "report": f"{DEFAULT_PROFILE} of --runs, all of the committed"}.get(
                name, DEFAULT_PROFILE
            ),
        )
        runs = None if name == "report" else RUNS
        sub.add_argument("--runs", type=Path, default=runs, help="where arms are stored")
        sub.add_argument("--execution", choices=["auto", *EXECUTIONS], default="auto", help=EXECUTION_HELP)
        if name in ("run", "twins", "try"):
            sub.add_argument("--workers", type=int, default=0, help="processes at a time; 0: one per core")
            sub.add_argument("--retry-failed", action="store_true", help="train failed members again")
        if name == "twins":
            sub.add_argument("--pairs", type=int, default=0, help="at least so many on seeds that no test uses")
        if name in ("run", "report", "try"):
            sub.add_argument("--out", type=Path, default=Path("runs") / "reports", help="where pages are written")
    explain = commands.add_parser(
        "explain", help="one claim: what is said, what was done, the verdict", parents=[configs]
    )
    explain.add_argument("claim")
    explain.add_argument("--runs", type=Path, default=RUNS)
    explain.add_argument("--execution", choices=["auto", *EXECUTIONS], default="auto", help=EXECUTION_HELP)
    differ = commands.add_parser("diff", help="what two runs differ in")
    differ.add_argument("first", type=Path)
    differ.add_argument("second", type=Path)
    arguments = parser.parse_args(argv)

    from ablations import catalog, runner
    from ablations import commands as actions

    try:
        catalog.look_in(getattr(arguments, "configs", CONFIGS))
        chosen = getattr(arguments, "execution", "auto")
        catalog.execute(runner.default_execution() if chosen == "auto" else chosen)
        return getattr(actions, arguments.command + "_command")(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return STOPPED_BY_USER


if __name__ == "__main__":
    sys.exit(main())
