"""Fixtures of the lab's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablations import catalog


@pytest.fixture
def configs(tmp_path, monkeypatch) -> Path:
    """An empty folder in which this test's ablations are looked for."""
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.setattr(catalog, "_folder", folder)
    return folder
