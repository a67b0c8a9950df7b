"""A headless Chromium driven over its debugging pipe: no driver package, no network."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--no-first-run", "--disable-dev-shm-usage", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60.0  # seconds for an answer


class Browser:
    """One browser with one tab; `messages` collects what the console says, `requests` what is asked of a network."""

    def __init__(self, profile: Path):
        assert EXECUTABLE is not None
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        # The browser speaks on descriptors 3 and 4; a shell moves ours there, whatever numbers they have.
        line = 'exec "$@" 3<&"$READ_FD" 4>&"$WRITE_FD"'
        self._process = subprocess.Popen(
            ["bash", "-c", line, "chromium", EXECUTABLE, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(read_commands, write_answers),
            env={**os.environ, "READ_FD": str(read_commands), "WRITE_FD": str(write_answers)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        os.set_blocking(self._answers, False)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self._session = ""
        self.messages: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events that arrive meanwhile are kept."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for message in self._read():
                if message.get("id") == number:
                    assert "error" not in message, f"{method}: {message['error']}"
                    return message["result"]
        raise TimeoutError(f"Chromium did not answer {method} in {PATIENCE:.0f} s")

    def _read(self) -> list[dict[str, Any]]:
        try:
            self._buffer += os.read(self._answers, 1 << 20)
        except BlockingIOError:
            time.sleep(0.005)
        *whole, self._buffer = self._buffer.split(b"\0")
        messages = [json.loads(text) for text in whole]
        for message in messages:
            self._note(message)
        return messages

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Log.entryAdded":
            self.messages.append(parameters["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.messages.append(json.dumps(parameters)[:500])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Page.loadEventFired":
            self._events.append(message)

    def open(self, path: Path, width: int, dark: bool = False, scripts: bool = True) -> None:
        """Loads a file at a width, in a colour scheme, with scripts or without, and forgets earlier messages."""
        self.messages.clear()
        self.requests.clear()
        self._events.clear()
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + PATIENCE
        while not self._events and time.monotonic() < deadline:
            self._read()
        assert self._events, f"{path.name} did not load in {PATIENCE:.0f} s"

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; works with the page's own scripts off."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        os.close(self._commands)
        os.close(self._answers)
