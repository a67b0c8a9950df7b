"""Small JSON files, written so that a reader never sees half of one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Writes strict JSON atomically: a temporary file beside it, flushed to disk, then renamed.

    Raises:
      ValueError: a number that is not finite; see `strict`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, ValueError):  # a full disk, a NaN: leave no half-written file behind
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def strict(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same data in what JSON can express; the names of numbers that it cannot go under "nonfinite"."""
    nonfinite: list[str] = []
    plain = _plain(row, "", nonfinite)
    return {**plain, "nonfinite": nonfinite} if nonfinite else plain


def _plain(value: Any, name: str, nonfinite: list[str]) -> Any:
    if hasattr(value, "tolist"):  # numpy and jax scalars and arrays
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        nonfinite.append(name)
        return None
    prefix = f"{name}." if name else ""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{prefix}{key}", nonfinite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{prefix}{index}", nonfinite) for index, item in enumerate(value)]
    return str(value) if isinstance(value, Path) else value
