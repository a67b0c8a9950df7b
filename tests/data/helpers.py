"""A short way to write the data section of a config, and the place of test data outside the repository."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from transformer.schema import Data


def section(source: str = "stdlib", **values: Any) -> Data:
    """A data section; names that are no field of `Data` become parameters of the source."""
    fields = {f.name for f in dataclasses.fields(Data)}
    options = tuple((name, value) for name, value in values.items() if name not in fields)
    return Data(source=source, options=options, **{k: v for k, v in values.items() if k in fields})


def real_data() -> Path:
    """The folder WHATIF_TEST_DATA names; skips the calling test without it."""
    folder = os.environ.get("WHATIF_TEST_DATA")
    if not folder:
        pytest.skip("WHATIF_TEST_DATA is not set: it names a folder with the real tiny_shakespeare")
    return Path(folder)
