"""Trains one run: `python train.py --config=FILE[:arm] [--workdir=DIR] [--config.a.b=value ...]`."""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from transformer import command_line

USAGE = """usage: python train.py --config=FILE[:arm] [--workdir=DIR] [--config.a.b=value ...]
                       [--print_config] [--quiet]

Trains one run and evaluates it. The same command again resumes it, or says that it is done.
Exit codes: 0 done, 2 bad usage or config, 3 diverged (a result), 75 preempted, 130 stopped; the last two resume."""

command_line.define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; by default runs/<config>/<arm>-s<seed>-<hash>.")
PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the resolved config and exit.")
QUIET = flags.DEFINE_bool("quiet", False, "No output but errors.")


def main() -> int:
    """Flags -> config -> training; returns the exit code."""
    chosen = command_line.config_from_flag()
    if PRINT_CONFIG.value:
        print(command_line.format_config(chosen.config))
        return 0
    from transformer.platform import prepare

    prepare()
    from transformer.training.run import train
    from transformer.training.run_directory import default_path

    workdir = Path(WORKDIR.value) if WORKDIR.value else default_path(chosen.config, chosen.name, chosen.arm)
    outcome = train(chosen.config, workdir, name=chosen.name, arm=chosen.arm, quiet=QUIET.value)
    if not QUIET.value:
        numbers = {k: v for k, v in outcome.summary.items() if k.endswith(("loss", "bits_per_byte")) and v is not None}
        said = "  ".join(f"{k}={v:.4f}" for k, v in numbers.items())
        print(f"{outcome.state}: {said}" if said else outcome.state)
        print(f"run directory: {os.path.relpath(outcome.path)}")
    return outcome.exit_code


if __name__ == "__main__":
    command_line.run(main, USAGE)
