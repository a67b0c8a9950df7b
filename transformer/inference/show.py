"""Evaluation results as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text


def show(title: str, result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints numbers as a table and texts as panels. Text is shown as it is, never as markup."""
    console = console or Console()
    table = Table("measure", "value", title=title, title_justify="left")
    for name, value in result.items():
        if isinstance(value, str):
            console.print(Panel(Text(value), title=name, title_align="left"))
        else:
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else _number(value))
    if table.row_count:
        console.print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
