"""What a person sees: plain lines in a pipe, a bar below everything else on a terminal."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from transformer.training import console_sink
from transformer.training.console_sink import ConsoleSink
from transformer.training.sinks import RunInfo

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 90


def info(total: int = 100) -> RunInfo:
    return RunInfo("name", "group", "job", {}, "0123456789abcdef", Path("runs/x"), total_steps=total)


def row(step: int, split: str = "train", **more) -> dict:
    values = {"step": step, "tokens": 10 * step, "split": split, "loss": 2.34567, "bits_per_byte": 3.3841}
    return values | ({"tokens_per_second": 5.0} if split == "train" else {}) | more


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved: `clock[0] += seconds`."""
    now = [1000.0]
    monkeypatch.setattr(console_sink.time, "monotonic", lambda: now[0])
    return now


# --- Plain lines --------------------------------------------------------------------------------------------


def test_lines_have_the_numbers_and_the_time_left(capsys, clock):
    sink = ConsoleSink()
    sink.start(info())
    sink.scalars(row(1))
    sink.scalars(row(2, "validation"))
    clock[0] += 75
    sink.close("done", {"validation_loss": 2.25, "total_steps": 100, "fingerprint": "abc", "test_loss": None})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "step=1/100 loss=2.3457 bits_per_byte=3.3841 tokens/s=5 eta=3m18s",  # 990 tokens are left
        "step=2/100 split=validation loss=2.3457 bits_per_byte=3.3841",
        "done after 1m15s: validation_loss=2.2500",
    ]


def test_train_lines_are_limited_but_first_last_and_validation_always_show(capsys, clock):
    sink = ConsoleSink(interval=2.0)
    sink.start(info())
    for step in range(1, 101):
        clock[0] += 0.125
        sink.scalars(row(step))
        if step % 25 == 0:
            sink.scalars(row(step, "validation"))
    shown = re.findall(r"step=(\d+)/100 (split)?", capsys.readouterr().err)
    train = [int(step) for step, split in shown if not split]
    assert train == [*range(1, 100, 16), 100]  # 16 steps last two seconds
    assert [int(step) for step, split in shown if split] == [25, 50, 75, 100]


def test_quiet_shows_nothing(capsys):
    sink = ConsoleSink(quiet=True)
    sink.start(info())
    sink.scalars(row(1))
    sink.text(1, "sample", "text")
    sink.event("diverged", {"step": 1})
    sink.close("done", {"loss": 1.0})
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"loss": float("nan")}, "loss=nan"),
        ({"loss": None, "nonfinite": ["loss"]}, "loss=nan"),
        ({"loss": 1.5e-7}, "loss=1.5e-07"),
        ({"tokens_per_second": float("nan")}, "eta=?"),
        ({"tokens_per_second": float("inf")}, "eta=0s"),
        ({"tokens_per_second": 0.01}, "eta=27h30m"),
    ],
)
def test_odd_numbers_are_shown_too(capsys, more, expected):
    sink = ConsoleSink()
    sink.start(info())
    sink.scalars(row(1, **more))
    assert expected in capsys.readouterr().err


def test_a_row_without_speed_shows_no_time_left(capsys):
    sink = ConsoleSink()
    sink.start(info())
    sink.scalars({"step": 1, "split": "train", "loss": 1.0})
    assert capsys.readouterr().err == "step=1/100 loss=1.0000\n"


def test_events_and_texts_are_shown(capsys):
    sink = ConsoleSink()
    sink.start(info())
    sink.event("checkpoint", {"step": 5})
    sink.event("diverged", {"step": 7, "loss": float("inf")})
    sink.text(9, "sample", "To be,\n")
    assert capsys.readouterr().err == "event=diverged step=7 loss=inf\n--- sample, step 9\nTo be,\n---\n"


def test_plain_lines_need_no_rich():
    code = (
        "import sys; from pathlib import Path; from transformer.training.console_sink import ConsoleSink; "
        "from transformer.training.sinks import RunInfo; sink = ConsoleSink(); "
        "sink.start(RunInfo('n', 'g', 'j', {}, 'h', Path('x'), 1)); "
        "sink.scalars({'step': 1, 'split': 'train', 'loss': 1.0}); sink.close('done', {}); "
        "print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- On a terminal ------------------------------------------------------------------------------------------

ON_TERMINAL = """
import logging, sys, warnings
from pathlib import Path
from absl import flags, logging as absl_logging
flags.FLAGS.mark_as_parsed()
absl_logging.use_absl_handler()
absl_logging.set_stderrthreshold("info")
standard = logging.getLogger("standard")
standard.addHandler(logging.StreamHandler())
standard.propagate = False
from transformer.training.console_sink import ConsoleSink
from transformer.training.sinks import RunInfo, to_stderr

print("before")
sink = ConsoleSink()
sink.start(RunInfo("name", "g", "j", {}, "h", Path("x"), 20))
for step in range(1, 21):
    sink.scalars({"step": step, "tokens": 10 * step, "split": "train", "loss": 2.5, "tokens_per_second": 5.0})
    if step % 10 == 0:
        sink.scalars({"step": step, "split": "validation", "loss": 2.25})
    if step == 5:
        print("printed")
        print("to standard error", file=sys.stderr)
        to_stderr("wandb: publish later with: wandb sync " + "long-name/" * 10 + "end")
        absl_logging.warning("from absl")
    if step == 15:
        standard.warning("from logging")
        sink.text(15, "sample", "To be")
sink.close("done", {"loss": 2.25})
standard.warning("after")
"""


def terminal(code: str, **environment: str) -> str:
    """What a terminal of WIDTH columns receives from a Python program."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, WIDTH, 0, 0))
    variables = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=variables | {"TERM": "xterm-256color"} | environment,
    )
    os.close(theirs)
    received = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not data:
            break
        received += data
    os.close(ours)
    assert process.wait() == 0, received.decode()
    return received.decode()


def screen(received: str) -> list[str]:
    """The lines a terminal shows after `received`, the blank ones left out."""
    lines, line, column = [""], 0, 0
    for control, character in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z])|([^\x1b])", received, re.DOTALL):
        if control:
            count = int(re.sub(r"\D", "", control) or 1)
            if control.endswith("A"):
                line = max(0, line - count)
            elif control.endswith("K"):
                lines[line] = "" if control == "\x1b[2K" else lines[line][:column]
            continue
        if character == "\r":
            column = 0
            continue
        if character == "\n" or column == WIDTH:
            line, column = line + 1, (column if character == "\n" else 0)
            lines += [""] * (line + 1 - len(lines))
        if character != "\n":
            text = lines[line].ljust(column)
            lines[line] = text[:column] + character + text[column + 1 :]
            column += 1
    return [text.rstrip() for text in lines if text.strip()]


def test_the_bar_stays_below_everything_that_is_printed():
    received = terminal(ON_TERMINAL)
    shown = screen(received)
    sync = "wandb: publish later with: wandb sync " + "long-name/" * 10 + "end"
    expected = [
        "before",
        "printed",
        "to standard error",
        sync[:WIDTH],  # wrapped by the terminal, not cut by line breaks: it can be copied
        sync[WIDTH:],
        "from absl",
        "step=10/20 split=validation loss=2.2500",
        "from logging",
        "--- sample, step 15",
        "To be",
        "---",
        "step=20/20 split=validation loss=2.2500",
        "done after 0s: loss=2.2500",
        "after",
    ]
    assert [re.sub(r"^W\d{4} .*\] ", "", text) for text in shown] == expected
    assert re.search(r"1/20.*loss=2\.5000 tokens/s=5 eta=38s", received)  # the bar was there
    assert "20/20" in received and "━" in received
    assert received.rfind("\x1b[?25l") < received.rfind("\x1b[?25h")  # and left a cursor behind


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true"}])
def test_no_bar_where_nobody_watches(environment):
    received = terminal(ON_TERMINAL, **environment)
    assert "\x1b" not in received and "step=1/20 loss=2.5000" in received
