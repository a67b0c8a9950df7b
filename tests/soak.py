"""Results of the tests marked soak: with `--record-soak` (`make soak`) each leaves its last result in `soak.json`."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import pytest

from transformer.training.jsonfiles import read_json, write_json

RESULTS = Path(__file__).with_name("soak.json")
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def result(report: pytest.TestReport) -> dict[str, Any]:
    """What one test leaves: when, how it ended, how long it took, what it counted, with which versions."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "outcome": report.outcome,
        "seconds": round(report.duration, 1),
        "counts": dict(report.user_properties),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
    }


def record(report: pytest.TestReport, path: Path = RESULTS) -> None:
    """Replaces the result of one test and keeps those of the others."""
    known = read_json(path) if path.is_file() else {}
    write_json(path, dict(sorted({**known, report.nodeid: result(report)}.items())))


class Recorder:
    """Records the tests marked soak; a test that did not get as far as running leaves nothing."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and "soak" in report.keywords and not report.skipped:
            record(report)
