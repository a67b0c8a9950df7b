"""With what a run is made: code, versions, flags. Other environment variables stay out: they hold secrets."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_SECRET = re.compile(r"api_?key|password|passwd|secret|credential|auth_?token|access_?token", re.IGNORECASE)


def environment() -> dict[str, Any]:
    """`argv`, `git` (sha and whether files differ from it), `python`, `system`, `variables`, `packages`."""
    variables = {k: v for k, v in os.environ.items() if k == "XLA_FLAGS" or k.startswith("JAX_")}
    return {
        "argv": [_redacted(argument) for argument in sys.argv],
        "git": _git(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "system": platform.platform(),
        "variables": {k: _redacted(v) for k, v in variables.items() if not _SECRET.search(k)},
        "packages": _packages(),
    }


@functools.cache
def _packages() -> dict[str, str]:
    """Installed versions; read once, because a worker describes its environment for every member."""
    described = (distribution.metadata for distribution in importlib.metadata.distributions())  # parsed at each access
    return {metadata["Name"]: metadata["Version"] for metadata in described}


def _redacted(text: str) -> str:
    """Without the passwords in addresses and the values of `--...api_key=...`."""
    text = re.sub(r"(://)[^/@\s]+@", r"\1***@", text)
    name, separator, _ = text.partition("=")
    return f"{name}=***" if separator and _SECRET.search(name) else text


def _git(root: Path) -> dict[str, Any] | None:
    """None where the code does not run from its own repository, or git is missing."""

    def git(*arguments: str) -> str:
        # Without optional locks, runs that start side by side do not fight over the index.
        variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=variables, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return {"sha": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
