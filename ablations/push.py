"""W&B runs rebuilt from the store: one run a member, and one for the verdicts with their table and page."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations import store, summary
from ablations.cells import ArmCell, Member
from ablations.report import write_report
from transformer.config import config_hash, to_dict
from transformer.errors import UserError
from transformer.schema import Wandb
from transformer.training.run_directory import read_config, read_rows, read_status
from transformer.training.sinks import RunInfo, to_stderr
from transformer.training.wandb_sink import MODES, WandbSink

COLUMNS = (
    "claim", "condition", "test", "base", "metric", "verdict", "label", "estimate", "low", "high", "n", "p",
    "p_adjusted", "registered", "sentence",
)  # fmt: skip


def push(name: str, profile: str, runs: Path, section: Wandb | None = None) -> int:
    """Sends every finished member of an ablation, and its verdicts, to W&B (offline without credentials).

    Pushing again makes new records with the next `attempt`; the rows are those of the store each time.

    Returns:
      How many members were sent.

    Raises:
      UserError: W&B is disabled, not installed, or failed.
    """
    section = section or Wandb()
    results = summary.collect(name, profile, runs)
    if MODES.build(section.mode) == "disabled":
        raise UserError("WANDB_MODE=disabled, so there is nothing to push to; unset it, or set it to offline.")
    group, pushed = f"{name}-{profile}", 0
    for cell, records in results.arms:
        for member, record in sorted(records.items()):
            path = cell.directory(runs) / member.name
            if record.state != "failed" and (path / "metrics.jsonl").is_file():
                _push_member(cell, member, path, group, section)
                pushed += 1
    _push_verdicts(summary.summarize(results), runs / "verdicts" / group, group, section)
    to_stderr(f"{group}: {pushed} runs and their verdicts")
    return pushed


def _push_member(cell: ArmCell, member: Member, path: Path, group: str, section: Wandb) -> None:
    config, status = read_config(path), read_status(path)
    about = {"arm": cell.arm, "condition": cell.condition, "lr": member.learning_rate}
    info = RunInfo(
        name=f"{cell.arm}-{member.name}",
        group=group,
        job_type=cell.arm,
        config={**to_dict(config), **about},
        hash=config_hash(config),
        workdir=path,
        total_steps=config.train.steps,
        attempt=_attempt(path),
    )
    with _Report(section, info) as sink:
        for row in read_rows(path):
            sink.scalars(row)
        sink.close(str(status.get("state")), {k: v for k, v in status.items() if k.endswith("_loss")})


def _push_verdicts(data: Mapping[str, Any], path: Path, group: str, section: Wandb) -> None:
    info = RunInfo(
        name="verdicts",
        group=group,
        job_type="verdicts",
        config={key: data[key] for key in ("name", "question", "profile", "scale", "provenance")},
        hash=store.digest({"decisions": data["decisions"]})[:16],
        workdir=path,
        total_steps=0,
        attempt=_attempt(path),
    )
    with tempfile.TemporaryDirectory() as folder:
        page = next(file for file in write_report(data, Path(folder)) if file.suffix == ".html").read_text("utf-8")
    with _Report(section, info) as sink:
        sink.table("verdicts", COLUMNS, [_row(decision) for decision in data["decisions"]])
        sink.page("page", page)
        sink.close("done", {claim["claim"]: claim["verdict"] for claim in data["claims"]})


def _row(decision: Mapping[str, Any]) -> list[Any]:
    low, high = decision["interval95"] or (None, None)
    values = {**decision, "low": low, "high": high}
    return [values[column] for column in COLUMNS]


def _attempt(path: Path) -> int:
    """One more than the W&B records already made here: two under one id would overwrite each other."""
    return 1 + len(list((path / "wandb").glob("*run-*")))


class _Report(WandbSink):
    """A sink that also takes a table and a page, and whose failures are the user's to see."""

    def __init__(self, section: Wandb, info: RunInfo):
        super().__init__(section)
        self._info = info

    def __enter__(self) -> _Report:
        self._info.workdir.mkdir(parents=True, exist_ok=True)
        self.start(self._info)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            raise UserError(f"W&B failed ({reason}); the store is unharmed, push again later.") from error

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of plain values."""
        self._put("table", name, columns, rows)

    def page(self, name: str, html: str) -> None:
        """A whole HTML page."""
        self._put("page", name, html)

    def _table(self, run: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows]), "step": 0})

    def _page(self, run: Any, name: str, html: str) -> None:
        import wandb

        run.log({name: wandb.Html(html, inject=False), "step": 0})
