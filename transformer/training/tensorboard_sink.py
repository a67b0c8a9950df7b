"""TensorBoard files below the run directory, in `tb/`; written by tensorboardX, which needs no TensorFlow."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

from transformer.errors import UserError
from transformer.training.sinks import RunInfo


class TensorboardSink:
    """Rows as scalars `<split>/<name>` over steps, texts and the config as texts.

    A resumed run adds a file that tells TensorBoard to disregard the points after the step it continues from.

    Raises:
      UserError: tensorboardX is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("tensorboardX") is None:
            raise UserError(
                "tensorboard=True needs the package tensorboardX, which is not installed. "
                "Run `pip install -e '.[tensorboard]'`, or set tensorboard=False."
            )
        self._writer: Any = None

    def start(self, info: RunInfo) -> None:
        from tensorboardX import SummaryWriter

        purge = {"purge_step": info.resumed_from + 1} if info.resumed_from else {}
        # The suffix keeps two attempts within one second from writing the same file.
        suffix = f".{info.attempt}"
        self._writer = SummaryWriter(str(info.workdir / "tb"), flush_secs=10, filename_suffix=suffix, **purge)
        if not info.resumed_from:
            self._writer.add_text("config", f"```\n{json.dumps(info.config, indent=1)}\n```", 0)

    def scalars(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name == "step":
                continue
            if value is None and name in row.get("nonfinite", ()):
                value = float("nan")
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(name, f"```\n{text}\n```", step)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        if kind != "checkpoint":
            self._writer.add_text(f"events/{kind}", json.dumps(fields, default=str), fields.get("step", 0))

    def close(self, state: str, summary: Mapping[str, Any]) -> None:
        self._writer.add_text("state", state)
        self._writer.close()
