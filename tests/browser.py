"""Chromium driven over its debugging pipe (DevTools protocol): open a page, run script in it, type, take a picture."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-pipe"]
PATIENCE_S = 20


class Page:
    """One page. What it logged as errors, and where it sent requests, is kept."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, os.fdopen(from_browser, "rb", 0)
        self._held, self._number, self._session = b"", 0, {}
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **options: Any) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": options, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def _next(self) -> dict:
        while b"\0" not in self._held:
            more = self._from.read(65536)
            assert more, "Chromium closed its pipe"
            self._held += more
        text, _, self._held = self._held.partition(b"\0")
        found = json.loads(text)
        told = found.get("params", {})
        if found.get("method") == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif found.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(told["entry"]["text"])
        elif found.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"]))
        return found

    def run(self, script: str) -> Any:
        """Return the value of an expression of the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait for an expression to be true."""
        end = time.monotonic() + PATIENCE_S
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}; page says {self.run('document.body.innerText')}"
            self.run("new Promise(requestAnimationFrame)")
        return value

    def open(self, url: str, width: int = 1200, height: int = 800, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def key(self, key: str) -> None:
        extra = {"text": "\r", "windowsVirtualKeyCode": 13} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, **extra)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Start Chromium with a new profile; yield a page."""
    assert CHROMIUM is not None
    its_in, to_browser = os.pipe()
    from_browser, its_out = os.pipe()
    script = f'exec "$@" 3<&{its_in} 4>&{its_out}'
    with subprocess.Popen(["bash", "-c", script, "-", CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}"],
                          pass_fds=(its_in, its_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        os.close(its_in)
        os.close(its_out)
        try:
            yield Page(to_browser, from_browser)
        finally:
            process.terminate()
            os.close(to_browser)
