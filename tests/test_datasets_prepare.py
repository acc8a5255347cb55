"""Published databases laid out: from folders, archives and addresses, stopped and gone on with, and what is refused."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import error_of
from PIL import Image

from ipiqa.cli import main
from ipiqa.datasets import prepare as module
from ipiqa.datasets.databases.published import Agiqa3k, Aigiqa20k, GenAiBench
from ipiqa.datasets.prepare import download, prepare

RATINGS = {"DALLE_3": [5, 4, 3], "SDXL_Base": [1, 1, 2]}


def picture(colour: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (colour, 0, 0)).save(content, "JPEG")
    return content.getvalue()


def tree() -> dict[str, bytes]:
    """Returns name -> content of a published GenAI-Bench of two prompts, and what else such archives hold."""
    table = {f"{i:05d}": {"prompt": f"p{i}", "models": RATINGS} for i in range(2)}
    files = {f"top/{model}/{i:05d}.jpeg": picture(9 * i + len(model)) for model in RATINGS for i in range(2)}
    return {"top/genai_image.json": json.dumps(table).encode(), "top/README.md": b"x", **files}


def as_folder(path: Path) -> Path:
    for name, content in tree().items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def as_zip(path: Path) -> Path:
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in tree().items():
            archive.writestr(name, content)
    return path


def as_tar(path: Path, ending: str = ".tar.gz") -> Path:
    path = path.with_suffix(ending)
    with tarfile.open(path, "w:" + ending.rpartition(".")[2].replace("tar", "")) as archive:
        for name, content in tree().items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def dataset(tmp_path: Path) -> GenAiBench:
    return GenAiBench(annotations=str(tmp_path / "out" / "genai_image.json"), images=str(tmp_path / "out" / "images"))


def written(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


EXPECTED = {
    n.removeprefix("top/") if n.endswith("json") else n.replace("top/", "images/"): c for n, c in tree().items()
}
EXPECTED.pop("images/README.md")


@pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar, functools.partial(as_tar, ending=".tar")])
def test_sources_give_the_same_tree(tmp_path: Path, pack: Callable[[Path], Path]) -> None:
    table = prepare(dataset(tmp_path), [str(pack(tmp_path / "source"))], tmp_path / "downloads")
    assert len(table) == 4 and written(tmp_path / "out") == EXPECTED


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """What is there with its size stays, what is cut is written again, and a further source adds what was missing."""
    first = as_folder(tmp_path / "source")
    late = first / "top" / "SDXL_Base"
    late.rename(tmp_path / "SDXL_Base")
    message = error_of(lambda: prepare(dataset(tmp_path), [str(first)], tmp_path))
    assert "2 of 4 images are in none of them, first 'SDXL_Base/00000.jpeg'" in message
    there, cut = (tmp_path / "out/images/DALLE_3" / name for name in ("00000.jpeg", "00001.jpeg"))
    os.utime(there, (1, 1))
    cut.write_bytes(b"")
    (tmp_path / "more").mkdir()
    (tmp_path / "SDXL_Base").rename(tmp_path / "more" / "SDXL_Base")
    prepare(dataset(tmp_path), [str(first), str(tmp_path / "more")], tmp_path)
    assert written(tmp_path / "out") == EXPECTED and there.stat().st_mtime == 1
    assert len(prepare(dataset(tmp_path), [str(tmp_path / "more")], tmp_path)) == 4  # all is there


@pytest.mark.parametrize("name", ["../evil.jpeg", "/etc/evil.jpeg", "a/../../evil.jpeg", "C:\\evil.jpeg", "..\\evil"])
def test_archives_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    path = as_zip(tmp_path / "source")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    assert "which leads out of it. Do not trust it." in error_of(
        lambda: prepare(dataset(tmp_path), [str(path)], tmp_path)
    )
    other = tmp_path / "source.tar"
    with tarfile.open(other, "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    assert "which leads out of it." in error_of(lambda: prepare(dataset(tmp_path), [str(other)], tmp_path))
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("evil*"))


def test_links_in_a_tar_are_passed_over(tmp_path: Path) -> None:
    path = as_tar(tmp_path / "source", ".tar")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            link = tarfile.TarInfo("other/DALLE_3/00000.jpeg")
            link.type, link.linkname = kind, str(secret)
            tar.addfile(link)
    prepare(dataset(tmp_path), [str(path)], tmp_path)
    assert written(tmp_path / "out") == EXPECTED


def break_zip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 40] = b"\xff" * 40
    path.write_bytes(content)


def test_damaged_archives_are_one_line(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "source")
    break_zip(path)
    assert "cannot be read:" in error_of(lambda: prepare(dataset(tmp_path), [str(path)], tmp_path))
    path = as_tar(tmp_path / "source")
    path.write_bytes(path.read_bytes()[:-200])
    assert "cannot be read:" in error_of(lambda: prepare(dataset(tmp_path), [str(path)], tmp_path))
    assert "'s.zip' does not exist." in error_of(lambda: prepare(dataset(tmp_path), ["s.zip"], tmp_path))


def test_what_is_not_the_database(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "source")
    again = source / "again" / "DALLE_3" / "00000.jpeg"
    again.parent.mkdir(parents=True)
    again.write_bytes(b"other")
    assert "holds 'DALLE_3/00000.jpeg' 2 times, 'again/DALLE_3/00000.jpeg' and 'top/" in error_of(
        lambda: prepare(dataset(tmp_path), [str(source)], tmp_path)
    )
    (tmp_path / "empty").mkdir()
    other = GenAiBench(annotations=str(tmp_path / "x" / "genai_image.json"), images="x")
    assert "--from: no 'genai_image.json' in " in error_of(lambda: prepare(other, [str(tmp_path / "empty")], tmp_path))


def test_a_table_that_differs_from_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("name,prompt,mos_quality,mos_align\na_0.jpg,p,1,2\n")
    one = Agiqa3k(annotations=str(tmp_path / "out" / "data.csv"), images=str(tmp_path / "out"))
    message = error_of(lambda: prepare(one, [str(tmp_path / "data.csv")], tmp_path))
    assert "has the sha256 " in message and "the published 4b1945c2137e196d" in message


def test_further_table_files_come_along(tmp_path: Path) -> None:
    for name, row in {"info_train.csv": "A_0.png,p,1", "info_test.csv": "A_1.png,q,2"}.items():
        (tmp_path / name).write_text(f"name,prompt,mos\n{row}\n")
    for i in range(2):
        (tmp_path / f"A_{i}.png").write_bytes(b"x")
    one = Aigiqa20k(annotations=str(tmp_path / "out/info_train.csv"), images=str(tmp_path / "out/images"))
    table = prepare(
        one, [str(tmp_path / name) for name in ("info_train.csv", "info_test.csv", "A_0.png", "A_1.png")], tmp_path
    )
    assert table.official == ("train", "test")


def test_no_room_is_said_before_anything_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    message = error_of(lambda: prepare(dataset(tmp_path), [str(as_zip(tmp_path / "source"))], tmp_path))
    assert "GB are needed and not free. Make room" in message


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves one archive, which it breaks off after some bytes unless the rest is asked for."""

    content, most, ranges = b"", 0, list[str | None]()

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.ranges.append(asked)
        start = int(asked[6:-1]) if asked else 0
        body = self.content[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if asked else body[: self.most])

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    Server.content, Server.most, Server.ranges = as_zip(tmp_path / "source").read_bytes(), 500, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/some/where.zip"
        server.shutdown()
        thread.join(10)


def test_an_address_is_loaded_in_two_goes(tmp_path: Path, address: str) -> None:
    message = error_of(lambda: prepare(dataset(tmp_path), [address], tmp_path / "downloads"))
    assert f"ended after 500 of {len(Server.content)} bytes. Run it again to go on." in message or (
        "cannot be loaded" in message and "Run it again to go on." in message
    )
    prepare(dataset(tmp_path), [address], tmp_path / "downloads")
    assert written(tmp_path / "out") == EXPECTED
    assert Server.ranges == [None, "bytes=500-"]
    prepare(dataset(tmp_path), [address], tmp_path / "downloads")
    assert len(Server.ranges) == 2  # it is there


@pytest.mark.parametrize("wrong", ["file:///etc/passwd", "ftp://x/a.zip", "http://127.0.0.1", "https://x/.."])
def test_what_is_no_address(tmp_path: Path, wrong: str) -> None:
    assert "is no address of a file." in error_of(lambda: download(wrong, tmp_path))
    assert "cannot be loaded" in error_of(lambda: download("http://127.0.0.1:9/a.zip", tmp_path))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = as_zip(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", "genai_bench", "--from", str(source)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 rows, 4 images, 2 prompts, 2 groups: all usable\n") and "this table has 4" in out
    assert (tmp_path / "cache/data/genai_bench/images/DALLE_3/00000.jpeg").is_file()
    (tmp_path / "cache/data/genai_bench/images/DALLE_3/00000.jpeg").write_bytes(tree()["top/DALLE_3/00000.jpeg"][::-1])
    assert main(["data", "prepare", "genai_bench", "--from", str(source)]) == 2
    captured = capsys.readouterr()
    assert "DALLE_3/00000.jpeg" in captured.out and "1 of 4 images cannot be used" in captured.err
    assert main(["data", "prepare", "genai_bensh", "--from", "x"]) == 2
    assert "no database is called 'genai_bensh'. Did you mean 'genai_bench'?" in capsys.readouterr().err
