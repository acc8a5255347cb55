"""`ipiqa serve`: what is wrong is known at once, signals end it well; and the page of the guide does what it says."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY, error_of
from serving import BOUNDARY, Client, form, images_of, serving
from test_layout import blocks
from toy import write_config

import ipiqa
from ipiqa.cli import main
from ipiqa.cli.serve import listen, name_of
from ipiqa.config.loading import load_config
from ipiqa.serve.bodies import Limits
from ipiqa.training.cross_validation import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a toy run is, and images under the names of the guide."""
    made = tmp_path_factory.mktemp("toy")
    run(load_config(write_config(made)))
    for path, name in zip(images_of(made), ("cat.png", "dog.png"), strict=False):
        (made / name).write_bytes(path.read_bytes())
    return made


def test_an_address_that_cannot_be_listened_on_is_refused_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = error_of(lambda: listen("127.0.0.1", port))
    assert message.startswith(f"--host '127.0.0.1' --port {port}: cannot be listened on (Address already in use")
    assert message.endswith("Give an address of this machine and a free port, such as --port 0.")
    for host in ("192.0.2.1", "a" * 300, "a\0b", "ä" * 70, ""):
        assert "cannot be listened on" in error_of(functools.partial(listen, host, 0))
    with listen("localhost", 0) as listener:
        assert listener.getsockname()[0] in ("127.0.0.1", "::1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "ipiqa.load: 'nothing' does not exist."),
        (["x", "--max-pairs", "300"], "--max-queue: 256 is less than the 300 pairs of one request"),
        (["x", "--port", "65536"], "--port: '65536' is out of range. Give a whole number from 0 to 65535."),
        (["x", "--folds", "a"], "--folds: 'a' is no list of folds."),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_served(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = arguments if "--port" in arguments else [*arguments, "--port", "0"]
    assert main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    assert main(["serve", "x"]) == 2
    assert "serve needs the package python_multipart, which is not installed" in (err := capsys.readouterr().err)
    assert "pip install -e '.[app]'" in err


def test_a_model_is_called_as_its_run_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert name_of("output/toy/") == name_of(f"{folder}/output/toy") == "toy"
    assert name_of("output/toy/fold_01/best.pt") == name_of("output/toy/fold_01") == "toy/fold_01"
    assert (
        name_of("clipscore weights=a/b.pt") == "clipscore" and name_of("hf-hub:owner/name@1") == "hf-hub:owner/name@1"
    )


@pytest.mark.parametrize(("address", "warns"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("::", True)])
def test_a_server_that_others_reach_is_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str, warns: bool
) -> None:
    listener, ran = SimpleNamespace(getsockname=lambda: (address, 8000)), []
    monkeypatch.setattr("ipiqa.cli.serve.listen", lambda host, port: contextlib.nullcontext(listener))
    monkeypatch.setattr("ipiqa.serve.app.make_server", lambda app, limits: SimpleNamespace(run=ran.append))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["serve", str(folder / "output" / "toy"), "--host", address]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ran == [[listener]]
    shown = capsys.readouterr()
    assert (
        shown.out
        == f"Serving toy at http://{'[' + address + ']' if ':' in address else address}:8000/ (Ctrl-C stops it)\n"
    )
    assert shown.err == f"ipiqa: warning: --host {address}: all who reach this machine can use the server\n" * warns


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGTERM, 0, ""), (signal.SIGINT, 130, "ipiqa: stopped\n")]
)
def test_a_signal_ends_it_when_the_running_request_is_answered(
    folder: Path, number: int, status: int, said: str
) -> None:
    command = [sys.executable, "-m", "ipiqa", "serve", "output/toy", "--port", "0", "--folds", "0"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"Serving toy at http://127.0.0.1:(\d+)/ \(Ctrl-C stops it\)\n", line)
        assert found is not None, process.communicate()
        body = form(("image", (folder / "cat.png").read_bytes()), ("prompt", "a cat"))
        with socket.create_connection(("127.0.0.1", int(found[1])), 30) as connection:
            head = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}"
            connection.sendall(f"POST /v1/score HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode() + body[:50])
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            connection.sendall(body[50:])
            assert connection.recv(20).startswith(b"HTTP/1.1 200 OK")
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (status, "", said)
    finally:
        process.kill()
        process.communicate()


def test_the_guide_does_what_it_says(folder: Path) -> None:
    """Runs what the page tells to type for programs, against a server on another port."""
    if shutil.which("curl") is None:
        pytest.skip("no curl here to ask the server with")
    scorer = ipiqa.load(folder / "output" / "toy")
    score = {
        name: scorer.score(folder / name, text)[0, 0] for name, text in (("cat.png", "a cat"), ("dog.png", "a dog"))
    }
    with serving(scorer) as port, Client(port) as client:
        for command in "".join(blocks("docs/serve.md", "sh")).splitlines():
            words = shlex.split(command.replace(":8000/", f":{port}/"))
            answer = json.loads(subprocess.run(words, cwd=folder, capture_output=True, check=True).stdout)
            if "/v1/score" in command:
                scores = [pair["quality"]["score"] for pair in answer["scores"]]
                assert scores == pytest.approx([score[n] for n in re.findall(r"image=@(\w+\.png)", command)], abs=1e-5)
            else:
                assert {*answer} & {"maps", "needs_prompt", "status"}
        (code,) = blocks("docs/serve.md", "python")
        program = [sys.executable, "-c", code.replace(":8000/", f":{port}/")]
        done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [name for pair in score.items() for name in (pair[0], f"{pair[1]:.2f}")]
        (shown,) = blocks("docs/serve.md", "json")
        answer = client.form(("image", (folder / "cat.png").read_bytes()), ("prompt", "a cat")).content
        assert {*json.loads(shown)} == {*answer}
        assert {*json.loads(shown)["scores"][0]["quality"]} == {*answer["scores"][0]["quality"]}


def test_the_guide_has_the_limits() -> None:
    text = (REPOSITORY / "docs" / "serve.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `(--[a-z-]+)` \| ([\d,]+)", text, re.MULTILINE))
    limits = Limits()
    assert {flag: int(value.replace(",", "")) for flag, value in shown.items()} == {
        "--max-upload": limits.upload >> 20, "--max-pixels": limits.pixels // 10**6, "--max-pairs": limits.pairs,
        "--max-queue": limits.queue, "--timeout": limits.seconds, "--batch-size": limits.batch_size,
    }  # fmt: skip
    assert f"{limits.prompt:,} characters" in text
