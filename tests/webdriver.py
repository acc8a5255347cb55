"""Chromium driven over the WebDriver protocol, as far as the tests of a page need it."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that the standard gives to a reference


class Browser:
    """One window."""

    def __init__(self, driver: str, width: int, height: int) -> None:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}"]
        screen = {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1, "touch": False}}
        chrome = {"args": options, "binary": shutil.which("chromium"), "mobileEmulation": screen}
        wanted = {"browserName": "chrome", "goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        session = _ask("POST", f"{driver}/session", {"capabilities": {"alwaysMatch": wanted}})
        self.at = f"{driver}/session/{session['sessionId']}"

    def open(self, url: str) -> None:
        _ask("POST", f"{self.at}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Returns what the body of a function returns."""
        return _ask("POST", f"{self.at}/execute/sync", {"script": script, "args": arguments})

    def until(self, condition: str, *arguments: Any, seconds: float = 30) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})", *arguments):
            assert time.monotonic() < end, f"{condition}\n{self.run('return document.body.innerText')}"
            time.sleep(0.05)

    def find(self, css: str) -> str:
        found: str = _ask("POST", f"{self.at}/element", {"using": "css selector", "value": css})[ELEMENT]
        return found

    def type(self, css: str, text: str) -> None:
        """Types text into an element; a file input takes paths, one a line."""
        _ask("POST", f"{self.at}/element/{self.find(css)}/value", {"text": text})

    def click(self, css: str) -> None:
        _ask("POST", f"{self.at}/element/{self.find(css)}/click", {})

    def messages(self) -> list[str]:
        """Returns what scripts and policies wrote to the console since the last call."""
        entries = _ask("POST", f"{self.at}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["source"] != "network"]

    def command(self, name: str, **parameters: Any) -> Any:
        """Returns the result of a command of the DevTools protocol."""
        return _ask("POST", f"{self.at}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def screenshot(self, path: Path) -> None:
        """Writes the whole page as PNG."""
        size = self.run("const r = document.documentElement; return [innerWidth, r.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        taken = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(taken["data"]))


@contextlib.contextmanager
def browser(width: int, height: int = 900) -> Iterator[Browser]:
    """Yields a window of a size in pixels; skips where there is no Chromium."""
    if not shutil.which("chromedriver") or not shutil.which("chromium"):
        pytest.skip("no chromium and chromedriver here to drive the page with")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    driver = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(["chromedriver", f"--port={port}", "--log-level=OFF"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                _ask("GET", f"{driver}/status")
                break
            time.sleep(0.1)
        window = Browser(driver, width, height)
        try:
            yield window
        finally:
            _ask("DELETE", window.at)
    finally:
        process.terminate()
        process.wait(30)


def _ask(method: str, url: str, content: Any = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from None
