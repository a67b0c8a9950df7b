"""W&B runs rebuilt from the store: one run a member, and one for the verdicts with their table and page."""

from __future__ import annotations

import sys
from pathlib import Path

from ablations import summary
from transformer.config import config_hash, to_dict
from transformer.schema import Wandb
from transformer.training.run_directory import read_config, read_rows, read_status
from transformer.training.sinks import RunInfo


def push(name: str, profile: str, runs: Path, section: Wandb | None = None) -> int:
    """Sends every finished member of an ablation to W&B (offline without credentials); returns how many."""
    from transformer.training.wandb_sink import WandbSink

    results = summary.collect(name, profile, runs)
    group, count = f"{name}-{profile}", 0
    for cell, records in results.arms:
        for member, record in sorted(records.items()):
            path = cell.directory(runs) / member.name
            if record.state == "failed" or not (path / "metrics.jsonl").is_file():
                continue
            config = read_config(path)
            sink = WandbSink(section or config.wandb.__class__(), lambda line: print(line, file=sys.stderr))
            sink.start(
                RunInfo(
                    name=f"{cell.arm}-{member.name}",
                    group=group,
                    job_type=cell.arm,
                    config={
                        **to_dict(config),
                        "arm": cell.arm,
                        "lr": member.learning_rate,
                        "condition": cell.condition,
                    },
                    hash=config_hash(config),
                    workdir=path,
                    total_steps=config.train.steps,
                )
            )
            for row in read_rows(path):
                sink.scalars(row)
            status = read_status(path)
            sink.close(str(status.get("state")), {k: v for k, v in status.items() if k.endswith("_loss")})
            count += 1
    print(f"{group}: {count} runs", file=sys.stderr)
    return count
