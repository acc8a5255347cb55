"""A live server on 127.0.0.1, requests to it, and a scorer that does what a test needs."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from ipiqa.datasets.table import Target
from ipiqa.errors import DataError
from ipiqa.models.bundle import Training
from ipiqa.scoring.scorer import Scorer

for package in ("fastapi", "python_multipart", "uvicorn"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[app]'")

BOUNDARY = "a-boundary-of-the-tests"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
TIMEOUT = 60  # seconds


class WidthScorer(Scorer):
    """Scores an image by its width, in two folds that differ by 2; a prompt can make it slow or fail."""

    targets = (Target("size", 0, 100), Target("other"))
    needs_prompt = True
    image_size = 8
    trained_on = Training(quantiles={"size": [float(i) for i in range(101)]}, images=["secret"])

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.entered, self.may_go_on = threading.Event(), threading.Event()

    def prepare(self, image: Any) -> int:
        if not isinstance(image, bytes):
            raise AssertionError("a server must open nothing")
        try:
            return Image.open(io.BytesIO(image)).width
        except OSError:
            raise DataError("no image") from None

    def outputs(self, prepared: Sequence[int], prompts: Sequence[str]) -> np.ndarray:
        self.batches.append(list(prompts))
        if "wait" in prompts:
            self.entered.set()
            assert self.may_go_on.wait(TIMEOUT)
        if "fail" in prompts:
            raise RuntimeError("a secret of the server")
        widths = np.array([float("nan") if p == "nan" else w for w, p in zip(prepared, prompts, strict=True)])
        return np.stack([widths - 1, widths + 1])[..., None].repeat(2, axis=2).astype(np.float32)


def png(width: int = 20, height: int = 10) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(file, "PNG")
    return file.getvalue()


def form(*fields: tuple[str, str | bytes]) -> bytes:
    """Returns the body of a form; bytes are files."""
    out = []
    for name, value in fields:
        file = "" if isinstance(value, str) else '; filename="a.png"\r\nContent-Type: application/octet-stream'
        content = value.encode() if isinstance(value, str) else value
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        out.append(head.encode() + content + b"\r\n")
    return b"".join(out) + f"--{BOUNDARY}--\r\n".encode()


class Answer(NamedTuple):
    status: int
    content: Any
    headers: dict[str, str]


class Client:
    """A connection to a server; use it as a context manager."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, path: str, body: Any = None, kind: str = "", method: str = "") -> Answer:
        headers = {"Content-Type": kind} if kind else {}
        self.connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
        answer = self.connection.getresponse()
        text = answer.read().decode()
        is_json = answer.headers.get_content_type() == "application/json"
        return Answer(
            answer.status, json.loads(text) if is_json else text, {k.lower(): v for k, v in answer.getheaders()}
        )

    def form(self, *fields: tuple[str, str | bytes], path: str = "/v1/score") -> Answer:
        return self.ask(path, form(*fields), FORM)

    def json(self, content: Any, path: str = "/v1/score") -> Answer:
        return self.ask(path, content if isinstance(content, bytes) else json.dumps(content), "application/json")


@contextlib.contextmanager
def serving(scorer: Scorer, limits: Any = None) -> Iterator[int]:
    """Yields the port of a server that answers until the block ends, and has ended itself after it."""
    from ipiqa.serve.app import make_app, make_server
    from ipiqa.serve.bodies import Limits

    limits, before = limits or Limits(), working_threads()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = make_server(make_app(scorer, limits, "toy"), limits)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        eventually(lambda: server.started)
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(TIMEOUT)
            assert not thread.is_alive() and working_threads() == before


def working_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ipiqa-")}


def eventually(condition: Any) -> None:
    """Waits until a call returns something true."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def images_of(folder: Path) -> list[Path]:
    return sorted((folder / "images").iterdir())
