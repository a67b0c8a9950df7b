"""The tasks that a small attention model solves are solved by `configs/task.py`, each in two minutes of a CPU.

The results stand in tests/soak/tasks.json, written anew by every run of these tests.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.helpers import section
from transformer.data.tasks import make_task

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "soak" / "tasks.json"
SOLVED = ("copy", "reverse", "induction", "modadd", "markov")


@pytest.mark.soak
@pytest.mark.parametrize("name", SOLVED)
def test_a_small_model_solves_the_task(name, tmp_path):
    command = [sys.executable, "train.py", f"--config=configs/task.py:{name}", f"--workdir={tmp_path}/run", "--quiet"]
    start, used = time.time(), _cpu_seconds()
    subprocess.run(command, cwd=ROOT, check=True)
    seconds, cpu_seconds = time.time() - start, _cpu_seconds() - used
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    final = [row for row in rows if row["split"] == "test" and row.get("final")][-1]
    values = {k: v for k, v in config["data"].items() if k.startswith("task_")}
    task = make_task(section("task", task=name, **values))
    result = {
        "steps": final["step"],
        "test_loss": round(final["loss"], 4),
        "floor": round(task.entropy, 4),
        "test_accuracy": round(final["accuracy"], 4),
        "exact_match": round(final["exact_match"], 4),
        "ceiling": round(task.ceiling, 4),
        "chance": round(task.chance("test"), 4),
        "seconds": round(seconds),
        "cpu_seconds": round(cpu_seconds),
        "cores": os.cpu_count(),
    }
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(dict(sorted({**known, name: result}.items())), indent=1) + "\n")
    if task.ceiling == 1:
        assert final["accuracy"] > 0.99
    else:  # nothing beats the source, and the model comes close
        assert task.entropy - 0.03 < final["loss"] < task.entropy + 0.03
    assert cpu_seconds < 120  # of all cores: the clock on the wall says as much about what else runs


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
