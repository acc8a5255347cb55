"""What a command ends with: its exit status, the one line, and streams that are closed, full or of another encoding."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from conftest import REPOSITORY
from test_cli_commands import ENVIRONMENT, error_line

from ipiqa.cli.guard import guarded
from ipiqa.engine.stop import Interrupted
from ipiqa.errors import ConfigError, DataError


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("x: wrong. Do y."), 2, "x: wrong. Do y."),
        (DataError("z"), 2, "z"),
        (KeyboardInterrupt(), 130, "stopped"),
        (
            Interrupted("in epoch 3"),
            130,
            "stopped in epoch 3. The state is saved; go on with the same command and --resume",
        ),
        (Interrupted("in epoch 3", signal.SIGTERM), 143, "stopped in epoch 3. The state is saved;"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 2, "'/a/b': Permission denied. Check the path,"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", ".tmp", None, "out"), 2, "'out': Is a directory. Check"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "standard output: No space left on device. Check"),
    ],
)
def test_exit_status(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert guarded(raising(error)) == status
    assert error_line(capsys).startswith(message)


def test_success_and_our_own_mistakes() -> None:
    assert guarded(lambda: None) == 0 and guarded(lambda: 3) == 3
    for error in (ValueError("ours"), OSError(errno.EINVAL, "ours"), ConnectionError("ours")):
        with pytest.raises(type(error), match="ours"):  # with a traceback, to be reported
            guarded(raising(error))


def test_other_processes_let_rank_0_speak_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        guarded(raising(DataError(rank)))
        assert error_line(capsys) == rank
    assert waited == [3]


def test_a_reader_that_has_gone_makes_no_traceback() -> None:
    code = "from ipiqa.cli.guard import guarded; raise SystemExit(guarded(lambda: print('x' * 100)))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("redirection", "status", "out"),
    [
        ("", 0, "  images: \\u732b/\\udcff\n"),  # cp1252 has no cat
        (">&-", 0, ""),
        ("2>&-", 0, "  images: \\u732b/\\udcff\n"),
        (">&- 2>&-", 0, ""),
        ("run.seed=-1 >&- 2>&-", 2, ""),
        ("run.seed=-1 2>/dev/full", 2, ""),
    ],
)
def test_any_output_takes_any_text(redirection: str, status: int, out: str) -> None:
    code = "from ipiqa.cli.guard import guarded; from ipiqa.errors import DataError; import sys\n"
    code += "def f():\n print('  images: \\u732b/\\udcff')\n if len(sys.argv) > 1: raise DataError('\\u732b')\n"
    code += "sys.exit(guarded(f))"
    script = f'exec "$0" -c "$1" {redirection}'
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, code], cwd=REPOSITORY, env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, b"")
    assert done.stdout.decode() in (out, "  images: \\u732b/\\udcff\n")
