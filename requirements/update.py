"""Rewrites lock.txt: the exact versions that the tests run with, one file for every supported Python.

    python requirements/update.py python3.11 python3.12 python3.13

For each interpreter, the newest versions that pyproject.toml allows are really installed into a fresh
environment, which is thrown away afterwards. Where two Pythons end up with different versions, both are kept,
each with an environment marker.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
HEADER = """\
# The tested versions, used as constraints: pip install -c requirements/lock.txt -e ".[dev]"
# Written by requirements/update.py from real installs on Python {pythons}; do not edit by hand.
"""


def installed_versions(interpreter: str) -> tuple[int, dict[str, str]]:
    """Installs the project with `[dev]` afresh; returns Python's minor version and `{package: version}`."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        python = f"{folder}/bin/python"
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--editable", f"{REPOSITORY}[dev]"], check=True)
        show_minor = "import sys; print(sys.version_info.minor)"
        minor = subprocess.check_output([python, "-c", show_minor], text=True)
        frozen = subprocess.check_output([*pip, "freeze", "--exclude-editable"], text=True)
    pins = dict(line.split("==") for line in frozen.splitlines())
    return int(minor), {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}


def lock_lines(versions: dict[int, dict[str, str]]) -> list[str]:
    """Merges `{minor: {package: version}}` into requirement lines; markers only where versions differ."""
    lines = []
    minors = sorted(versions)
    for package in sorted(set().union(*versions.values())):
        present = [minor for minor in minors if package in versions[minor]]
        for version, group in groupby(present, key=lambda minor: versions[minor][package]):
            covered = list(group)
            bounds = []
            if covered[0] != present[0]:
                bounds.append(f'python_version >= "3.{covered[0]}"')
            if covered[-1] != present[-1]:
                bounds.append(f'python_version < "3.{covered[-1] + 1}"')
            marker = f" ; {' and '.join(bounds)}" if bounds else ""
            lines.append(f"{package}=={version}{marker}")
    return lines


def main(interpreters: list[str]) -> None:
    if not interpreters:
        sys.exit(__doc__)
    versions = dict(map(installed_versions, interpreters))
    pythons = ", ".join(f"3.{minor}" for minor in sorted(versions))
    lines = [HEADER.format(pythons=pythons), *(f"{line}\n" for line in lock_lines(versions))]
    (REPOSITORY / "requirements" / "lock.txt").write_text("".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
