"""A stand-in for the Hugging Face Hub on 127.0.0.1: the few requests that a download makes, as the Hub answers them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Handler(BaseHTTPRequestHandler):
    folders: Mapping[tuple[str, str], Path]  # (owner/name, revision) -> its files
    requests: list[str]

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def _answer(self, *, has_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        if path.startswith("/api/models/"):
            owner, name, kind, revision = path.removeprefix("/api/models/").split("/")[:4]
            self._about(f"{owner}/{name}", kind, revision)
            return
        if "/resolve/" not in path:  # the client asks for other things, which it can do without
            self._send(404, {}, b"")
            return
        owner, name, _, revision, *file = path.removeprefix("/").split("/")
        folder = self._folder(f"{owner}/{name}", revision)
        asked = folder / "/".join(file) if folder is not None else None
        content = asked.read_bytes() if asked is not None and asked.is_file() else b""
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": revision}
        if not content:
            headers["X-Error-Code"] = "EntryNotFound"
        self._send(200 if content else 404, headers, content, has_body=has_body)

    def _about(self, repository: str, kind: str, revision: str) -> None:
        """Answers what a repository holds."""
        if repository == "owner/private":
            self._send(401, {"X-Error-Message": "Invalid username or password."}, b"")
            return
        if all(known != repository for known, _ in self.folders):
            self._send(404, {"X-Error-Code": "RepoNotFound"}, b"")
            return
        folder = self._folder(repository, revision)
        if folder is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            return
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if kind == "tree":
            answer: object = [
                {"type": "file", "path": p.relative_to(folder).as_posix(), "size": p.stat().st_size, "oid": "0" * 40}
                for p in files
            ]
        else:
            names = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
            answer = {"id": repository, "sha": self._commit(repository, folder), "siblings": names}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _folder(self, repository: str, revision: str) -> Path | None:
        """Returns the files of a revision, by its name or its commit."""
        for (known, name), folder in self.folders.items():
            if known == repository and revision in (name, self._commit(known, folder)):
                return folder
        return None

    @staticmethod
    def _commit(repository: str, folder: Path) -> str:
        return hashlib.sha1(f"{repository} {folder}".encode()).hexdigest()

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, *, has_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def hub(folders: Mapping[tuple[str, str], Path]) -> Iterator[tuple[str, list[str]]]:
    """Yields the address of a hub with these repositories, and the requests that come in."""
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"folders": folders, "requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join(timeout=10)
