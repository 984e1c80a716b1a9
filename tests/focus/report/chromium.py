"""Headless Chromium, driven over a pipe by its own protocol (DevTools), with the standard library.

Chromium reads commands from file descriptor 3 and answers on 4: JSON, each message ended by a zero
byte. So no driver of a matching version, no port and no package is needed.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Puts the two ends of the pipes where Chromium looks for them.
_LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(x), fcntl.F_DUPFD, 10) for x in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_KEYS = {
    "Enter": 13,
    " ": 32,
    "Tab": 9,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


def installed() -> str | None:
    """The path of a Chromium, or None."""
    asked = os.environ.get("ATTNJAX_CHROMIUM")
    found = [shutil.which(name) for name in ([asked] if asked else NAMES)]
    return next((path for path in found if path), None)


class Chromium:
    """A browser; a context manager that ends it."""

    def __init__(self, executable: str, profile: Path, timeout: float = 60.0) -> None:
        self._timeout, self._next, self._buffer = timeout, 0, b""
        self.events: list[dict[str, Any]] = []
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        fcntl.fcntl(self._in, fcntl.F_SETFL, os.O_NONBLOCK)
        self._log = (profile / "chromium.log").open("wb")
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _LAUNCHER,
                str(theirs_in),
                str(theirs_out),
                executable,
                *FLAGS,
                f"--user-data-dir={profile / 'profile'}",
            ],
            pass_fds=(theirs_in, theirs_out),
            stdout=self._log,
            stderr=self._log,
        )
        os.close(theirs_in)
        os.close(theirs_out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.send("Browser.close")
            self._process.wait(20)
        except (OSError, TimeoutError, RuntimeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        for end in (self._in, self._out):
            os.close(end)
        self._log.close()

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Sends a command, and returns its result; events that come meanwhile are kept."""
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self._timeout
        while True:
            answer = self._receive(deadline, method)
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method: str, session: str) -> None:
        """Waits for an event of a page, which may have come already."""
        deadline = time.monotonic() + self._timeout
        while not any(
            e.get("method") == method and e.get("sessionId") == session for e in self.events
        ):
            self.events.append(self._receive(deadline, method))

    def _receive(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                raise TimeoutError(f"Chromium did not answer {what} within {self._timeout} s")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError(f"Chromium ended while {what} was waited for")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def page(self, path: Path, width: int, *, height: int = 900, dark: bool = False) -> "Page":
        """Opens a file in a window of `width` pixels, and waits until it is loaded."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session, width, height)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        if dark:
            page.send(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": "dark"}],
            )
        page.send("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("Page.loadEventFired", session)
        return page


class Page:
    """An open page."""

    def __init__(
        self, browser: Chromium, target: str, session: str, width: int, height: int
    ) -> None:
        self.browser, self.target, self.session = browser, target, session
        self.width, self.height = width, height

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **params)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, which JSON can hold."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        """Presses a key, as a keyboard would: what has the focus gets it."""
        text = {"Enter": "\r", " ": " "}.get(key)
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                self.send(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=key,
                    code=key if text != " " else "Space",
                    windowsVirtualKeyCode=_KEYS[key],
                    **({"text": text} if text and kind == "keyDown" else {}),
                )

    def complaints(self) -> list[str]:
        """What the console has been told that is an error or a warning, and what was not loaded."""
        self.run("0")  # events of what happened before have come when this is answered
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            kind, about = event["method"], event["params"]
            if kind == "Runtime.exceptionThrown":
                found.append(json.dumps(about["exceptionDetails"]))
            elif kind == "Runtime.consoleAPICalled" and about["type"] in (
                "error",
                "warning",
                "assert",
            ):
                found.append(json.dumps(about["args"]))
            elif kind == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                found.append(about["entry"]["text"])
            elif kind == "Network.loadingFailed":
                found.append(f"not loaded: {about['errorText']}")
        return found

    def requests(self) -> list[str]:
        """Addresses that were asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.browser.events
            if event.get("sessionId") == self.session
            and event["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path, *, top: int = 0, height: int | None = None) -> None:
        """Writes a PNG of the whole page, or of a part of it."""
        whole = self.run("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": top, "width": self.width, "height": height or whole - top, "scale": 1}
        found = self.send(
            "Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        self.browser.send("Target.closeTarget", targetId=self.target)
