"""What every test shares: a home of its own, no network views, the CPU, a compile cache, and a compiler in a hurry.

Set before jax is imported anywhere, and only where the caller has not decided otherwise.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent

# Workers of pytest-xdist are started by a process that has been here already, and inherit what it set.
_HOME = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Nothing is read from the user's home, and nothing is left there.
    _HOME = tempfile.mkdtemp(prefix="whatif-tests-")
    os.environ["HOME"] = _HOME
    os.environ["XDG_CACHE_HOME"] = str(Path(_HOME) / ".cache")
    os.environ["WANDB_MODE"] = "disabled"
    os.environ["WANDB_SILENT"] = "true"
    # Golden numbers and bit-equality hold on the CPU; ask for another platform to see how far they carry.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-soak", action="store_true", help="keep the results of soak tests in tests/soak.json")


def pytest_configure(config: pytest.Config) -> None:
    if "not soak" in config.getoption("markexpr"):
        compile_in_a_hurry()
    if config.getoption("--record-soak"):
        from tests.soak import Recorder

        config.pluginmanager.register(Recorder())


def compile_in_a_hurry() -> None:
    """Tests, and the commands they start, compile many small programs and run each a few times: optimizing them costs
    more than it saves. Without optimization, the older of XLA's two code generators takes half the time of the newer;
    newer versions no longer have it, and end the process when they are asked for it.
    """
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    if Version(importlib.metadata.version("jaxlib")) < Version("0.11"):
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")


def pytest_unconfigure(config: pytest.Config) -> None:
    if _HOME is not None:
        shutil.rmtree(_HOME, ignore_errors=True)
