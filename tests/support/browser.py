"""A headless Chromium, driven over two pipes with the DevTools protocol.

Nothing but the standard library is needed: the browser reads commands from file descriptor 3 and
answers on 4, each message JSON that ends in a zero byte.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-default-apps", "--disable-extensions", "--hide-scrollbars"),
    *("--disable-features=OptimizationHints,MediaRouter,Translate", "--disable-dev-shm-usage"),
)
_PATIENCE_S = 60.0


@dataclass
class Page:
    """One page of a running browser."""

    read: int
    write: int
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Everything that the browser told unasked."""
    _last: int = 0
    _rest: bytes = b""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Give a command and wait for its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == self._last:
                assert "error" not in found, (method, found["error"])
                return found["result"]
            self.events.append(found)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self.read, 1 << 20)
            assert piece, "the browser has gone"
            self._rest += piece
        head, _, self._rest = self._rest.partition(b"\0")
        return json.loads(head)

    def open(self, url: str) -> None:
        """Go to a page and wait until it has loaded."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait(lambda: self.run("document.readyState") == "complete")

    def wait(self, ready: Callable[[], bool]) -> None:
        """Ask until it is so."""
        until = time.monotonic() + _PATIENCE_S
        while not ready():
            assert time.monotonic() < until, "the page does not load"
            time.sleep(0.02)

    def run(self, expression: str) -> Any:
        """Evaluate JavaScript in the page; return its value."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was opened."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Errors, warnings and console messages since the page was opened."""
        names = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(e["params"]) for e in self.events if e.get("method") in names]

    def look(self, width: int, height: int, *, dark: bool = False, mobile: bool = False) -> None:
        """Set the window's size and the preferred colours."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=mobile)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, *, whole: bool = False) -> bytes:
        """Take a picture of the window, or of the whole page; return a PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])

    def pdf(self) -> bytes:
        """Print the page."""
        found = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        return base64.b64decode(found["data"])


@contextlib.contextmanager
def browser(*flags: str) -> Iterator[Page]:
    """Start Chromium with an empty profile; end it afterwards."""
    assert CHROMIUM is not None
    from_us, to_us = os.pipe(), os.pipe()

    def connect() -> None:  # in the child: commands on 3, answers on 4
        read, write = os.dup(from_us[0]), os.dup(to_us[1])
        os.dup2(read, 3)
        os.dup2(write, 4)

    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={home}/profile", *flags, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": home},
            preexec_fn=connect,  # noqa: PLW1509 (no threads here; only it can choose the numbers)
            close_fds=False,
        )
        os.close(from_us[0])
        os.close(to_us[1])
        try:
            page = Page(read=to_us[0], write=from_us[1])
            targets = page.call("Target.getTargets")["targetInfos"]
            target = next(t["targetId"] for t in targets if t["type"] == "page")
            attached = page.call("Target.attachToTarget", targetId=target, flatten=True)
            page.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            yield page
        finally:
            process.terminate()
            process.wait(timeout=20)
            os.close(to_us[0])
            os.close(from_us[1])
            shutil.rmtree(Path(home) / "profile", ignore_errors=True)
