"""Weights & Biases as a view on a run: never asks, never blocks, never ends a run."""

from __future__ import annotations

import html
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformer.errors import UserError
from transformer.registry import Registry
from transformer.schema import Wandb
from transformer.training.sinks import RunInfo, to_stderr

MODES = Registry("wandb.mode")
"""Every builder returns what is wanted: "auto", "online", "offline" or "disabled"."""

_INIT_TIMEOUT = 10.0  # seconds wandb may look for its server
_FINISH_TIMEOUT = 10.0  # seconds it may go on uploading at the end; what is left stays on disk
_PATIENCE = 60.0  # seconds a single call may take before wandb counts as hanging
_CLOSE_TIMEOUT = 20.0  # seconds the end of a run may wait for it
_CLOSE_SILENTLY = 3.0  # of these, how many pass before the user is told why

_FROM_ENVIRONMENT = {  # values of WANDB_MODE; the second of each pair is wandb's older name
    **dict.fromkeys(("online", "run", "shared"), "online"),
    **dict.fromkeys(("offline", "dryrun"), "offline"),
    "disabled": "disabled",
}
_EXIT_CODES = {"done": 0, "diverged": 3, "preempted": 75, "interrupted": 130}
_ALERTS = ("diverged", "failed")


@MODES.register("auto")
def _auto() -> str:
    """WANDB_MODE where it is set; else online with credentials and offline without."""
    mode = os.environ.get("WANDB_MODE", "")
    if not mode:
        return "auto"
    if mode not in _FROM_ENVIRONMENT:
        raise UserError(f"WANDB_MODE={mode!r} is not one of: online, offline, disabled. Change or unset it.")
    return _FROM_ENVIRONMENT[mode]


@MODES.register("online")
def _online() -> str:
    """Sends rows as they come; offline, with a warning, where that is impossible."""
    return "online"


@MODES.register("offline")
def _offline() -> str:
    """Writes files that `wandb sync` publishes later."""
    return "offline"


@MODES.register("disabled")
def _disabled() -> str:
    """No wandb at all."""
    return "disabled"


class WandbSink:
    """Logs exactly the rows of metrics.jsonl.

    All of wandb, its import included, runs on one background thread fed by a queue: training starts at once,
    and rows that arrive before wandb is ready wait for it. When a call fails, or takes longer than a minute,
    the next call on the sink raises, so that `Sinks` reports it once and drops the sink.

    Keys are `<split>/<name>`, beside `step` (the x-axis of all charts), `tokens` and `attempt`. wandb's own
    step is not used: it refuses to go back.

    A resumed run measures and logs the steps after its checkpoint again. Online, these rows join the same W&B
    run, which then has both; the row with the highest `attempt` is the one that stands in metrics.jsonl.
    Offline, wandb cannot continue a run, and publishing two records under one id would overwrite the first:
    every attempt leaves its own directory `wandb/offline-run-*` and becomes its own W&B run, with the same
    name and group and `-a<attempt>` at the end of its id. Rows of the last seconds before a kill -9 may be
    missing in W&B. metrics.jsonl alone has neither gaps nor duplicates.

    Args:
      section: the config's `wandb` section.
      say: takes one line of text for the screen; called from the background thread.

    Raises:
      UserError: mode "auto" and WANDB_MODE is not a mode.
    """

    def __init__(
        self,
        section: Wandb,
        say: Callable[[str], None] = to_stderr,
        *,
        patience: float = _PATIENCE,
        close_timeout: float = _CLOSE_TIMEOUT,
    ):
        self._section = section
        self._say = say
        self._patience = patience
        self._close_timeout = close_timeout
        self._mode = MODES.build(section.mode)
        self._calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None
        self._error: Exception | None = None
        self._record: str | None = None  # the directory `wandb sync` takes

    def start(self, info: RunInfo) -> None:
        if self._mode == "disabled":
            return
        self._busy_since = time.monotonic()
        self._thread = threading.Thread(target=self._work, args=(info,), name="wandb", daemon=True)
        self._thread.start()

    def scalars(self, row: Mapping[str, Any]) -> None:
        self._put("scalars", row)

    def text(self, step: int, name: str, text: str) -> None:
        self._put("text", step, name, text)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        if kind in _ALERTS:
            self._put("alert", kind, fields)

    def close(self, state: str, summary: Mapping[str, Any]) -> None:
        """Waits for wandb, but not for long; says so where it is left behind."""
        if self._thread is None:
            return
        self._put("close", state, summary)
        silent = min(_CLOSE_SILENTLY, self._close_timeout)
        self._thread.join(silent)
        if self._thread.is_alive():
            self._say(f"wandb: finishing, for at most {self._close_timeout:g} s")
            self._thread.join(self._close_timeout - silent)
        if self._thread.is_alive():
            later = f"; publish the rest with: wandb sync {self._record}" if self._record else ""
            self._say(f"wandb: not finished after {self._close_timeout:g} s, left behind{later}")
        elif self._error:
            raise self._error

    def _put(self, method: str, *arguments: Any) -> None:
        if self._thread is None:
            return
        if self._error:
            raise self._error
        busy_since = self._busy_since  # the other thread may reset it meanwhile
        if busy_since is not None and time.monotonic() - busy_since > self._patience:
            self._calls.put(("close", ("failed", {})))  # should it wake up again
            raise TimeoutError(f"no answer for {self._patience:g} s")
        self._calls.put((method, arguments))

    # --- On the background thread ---------------------------------------------------------------------------

    def _work(self, info: RunInfo) -> None:
        method = ""
        try:
            run = self._init(info)
            while method != "close":
                self._busy_since = None
                method, arguments = self._calls.get()
                self._busy_since = time.monotonic()
                getattr(self, f"_{method}")(run, *arguments)
        except BaseException as error:  # a SystemExit from here must not end the training
            self._error = error if isinstance(error, Exception) else RuntimeError(repr(error))

    def _init(self, info: RunInfo) -> Any:
        # wandb's reports about itself make the end of a process wait for a server that does not answer.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        wandb.setup(wandb.Settings(silent=True, console="off"))
        reason = "as configured"
        if self._mode in ("auto", "online"):
            try:
                if wandb.login(prompt=False, verify=False):
                    return self._open(wandb, info, "online", "")
                reason = "no credentials"
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".split("\n")[0]
        return self._open(wandb, info, "offline", reason)

    def _open(self, wandb: Any, info: RunInfo, mode: str, reason: str) -> Any:
        identifier = _identifier(info)
        online = mode == "online"
        run = wandb.init(
            mode=mode,
            id=identifier if online else f"{identifier}-a{info.attempt}",
            resume="allow" if online else None,
            reinit="create_new",  # several members of a population may log side by side
            project=self._section.project,
            entity=self._section.entity or None,
            group=self._section.group or info.group,
            job_type=self._section.job_type or info.job_type,
            name=info.name,
            tags=list(self._section.tags),
            config={**info.config, "config_hash": info.hash},
            dir=str(info.workdir),
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=_INIT_TIMEOUT,
                finish_timeout=_FINISH_TIMEOUT,
                finish_timeout_raises=True,
            ),
        )
        run.define_metric("*", step_metric="step")
        self._attempt = info.attempt
        record = os.path.relpath(run.settings.sync_dir)
        self._record = run.settings.sync_dir if record.startswith("..") else record
        if online:
            self._say(f"wandb: {run.url}")
        else:
            self._say(f"wandb: offline ({reason}); publish later with: wandb sync {self._record}")
        return run

    def _scalars(self, run: Any, row: Mapping[str, Any]) -> None:
        run.log({**_named(row), "attempt": self._attempt})

    def _text(self, run: Any, step: int, name: str, text: str) -> None:
        import wandb

        run.log(
            {
                name: wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False),
                "step": step,
                "attempt": self._attempt,
            }
        )

    def _alert(self, run: Any, kind: str, fields: Mapping[str, Any]) -> None:
        run.alert(kind, ", ".join(f"{name}={value}" for name, value in fields.items()))

    def _close(self, run: Any, state: str, summary: Mapping[str, Any]) -> None:
        run.summary.update({"state": state, **{f"final/{name}": value for name, value in summary.items()}})
        try:
            run.finish(exit_code=_EXIT_CODES.get(state, 1))
        except TimeoutError:
            self._say(f"wandb: could not send everything; publish later with: wandb sync {self._record}")


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a row under the names they have in W&B."""
    named = {}
    for name, value in row.items():
        if value is None and name in row.get("nonfinite", ()):
            value = float("nan")
        if isinstance(value, int | float):
            named[name if name in ("step", "tokens") else f"{row['split']}/{name}"] = value
    return named


def _identifier(info: RunInfo) -> str:
    """The W&B id of the run in this directory: its hash and something random, kept for later attempts.

    The hash alone would mix the records of two directories with the same config.
    """
    file = info.workdir / "wandb" / "id.txt"
    if file.exists():
        return file.read_text().strip()
    file.parent.mkdir(parents=True, exist_ok=True)
    identifier = f"{info.hash[:8]}-{secrets.token_hex(3)}"
    file.write_text(identifier + "\n")
    return identifier
