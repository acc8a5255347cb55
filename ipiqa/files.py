"""Files: atomic writes, locks, reads of files that nobody has to trust, optional packages."""

import contextlib
import hashlib
import importlib
import json
import logging
import math
import os
import pickle
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from ipiqa.errors import ConfigError, DataError

logger = logging.getLogger("ipiqa")

# package -> the extra of setup.py that brings it
EXTRAS = {
    "braceexpand": "shards", "pyarrow": "shards", "ray": "ray", "fastapi": "app", "python_multipart": "app",
    "starlette": "app", "uvicorn": "app", "onnx": "export", "onnxscript": "export", "onnxruntime": "export",
}  # fmt: skip

FORMAT = 1  # of checkpoints; a newer number is refused

HEARTBEAT, STALE_AFTER = 10.0, 90.0  # seconds between two touches of a lock, and after which it is given up
_NO_LOCK = ("", 0)

_MOST_HASHES = 2_000_000  # kept in one file, in records of 48 bytes: 96 MB
_SETTLED_NS = 2_000_000_000  # a file that was not written for so long has a time of its own


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` that takes its place when the block ends well, and is removed otherwise.

    The content reaches the disk before the name does: whoever kills the process finds the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        text = "b" not in mode
        with temporary.open(mode, encoding="utf-8" if text else None, newline="" if text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as of a write to a full disk
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """Writes a json file atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(without_nan(content), indent=1) + "\n")


def without_nan(content: Any) -> Any:
    """Returns the content with None for every number that is not finite, which json has no word for."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextlib.contextmanager
def locked(*paths: Path, advice: str, wait: float = 0.0) -> Iterator[None]:
    """Holds lock files, all or none, while the block runs. Of several jobs on whatever machines, one holds a file.

    The owner touches its locks every HEARTBEAT seconds. One whose process has ended (on this machine), or that is not
    touched any more (from elsewhere), is taken over with a warning. Their folders exist. Raises ConfigError, its
    message ending with the advice, where another living job holds one for longer than `wait` seconds.
    """
    pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")
    owner = (f"process {pid} on {socket.gethostname()} since {since}", _system(), str(pid), _start_of_process(pid))
    content = "\n".join((*owner, secrets.token_hex(8)))
    held: list[Path] = []
    ended = threading.Event()

    def for_each_held(action: Callable[[Path], None]) -> None:
        for path in held:
            with contextlib.suppress(OSError):
                if _read_lock(path)[0] == content:
                    action(path)

    def touch() -> None:
        while not ended.wait(HEARTBEAT):
            for_each_held(os.utime)

    try:
        for path in paths:
            _acquire(path, content, advice, time.monotonic() + wait)
            held.append(path)
        threading.Thread(target=touch, daemon=True).start()
        yield
    finally:
        ended.set()
        for_each_held(Path.unlink)


def _acquire(path: Path, content: str, advice: str, deadline: float) -> None:
    """Makes a lock file; waits until the deadline for a living owner, and until it is known whether one lives."""
    lock, last_change = _NO_LOCK, 0.0  # as last seen
    while not _make_lock(path, content):
        before, lock = lock, _read_lock(path)
        if lock == _NO_LOCK:  # released meanwhile
            continue
        if lock != before:
            last_change = time.monotonic()
        owner, system, pid, start, *_ = lock[0].split("\n") + [""] * 4
        if system == _system() != "":
            is_alive = start == _start_of_process(pid)
            is_gone = not is_alive
        else:
            is_alive = before not in (lock, _NO_LOCK) and before[0] == lock[0]  # touched
            is_gone = time.monotonic() - last_change > STALE_AFTER
            if lock[0] != before[0]:
                logger.info("%s: looking for up to %d s whether %s is alive", path, STALE_AFTER, owner)
        if is_gone:
            _take_over(path, lock[0], owner)
        elif is_alive and time.monotonic() >= deadline:
            raise ConfigError(f"{path}: held by another job, {owner}. {advice}")
        else:
            time.sleep(min(0.1, STALE_AFTER / 10))


def _make_lock(path: Path, content: str) -> bool:
    """Makes a lock file with its content at once, by a hard link where there are any; returns whether it is ours."""
    temporary = _beside(path)
    try:
        temporary.write_text(content, encoding="utf-8")
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
                file.write(content)
    finally:
        temporary.unlink(missing_ok=True)
    return _read_lock(path)[0] == content  # read, as a network file system may repeat and deny what has succeeded


def _take_over(path: Path, content: str, owner: str) -> None:
    """Removes the lock of an owner that is gone, unless another job did so and has made its own."""
    aside = _beside(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read_lock(aside)[0] == content:
            logger.warning("%s: taken over from a job that has ended, %s", path, owner)
            aside.unlink()
        else:
            aside.rename(path)


def _beside(path: Path) -> Path:
    """Returns a name for a temporary file in the same folder."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _read_lock(path: Path) -> tuple[str, int]:
    """Returns (content, when it was last touched as its file system counts) of a lock file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:  # opening asks the server of a network file system
            return file.read(4096), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return _NO_LOCK


def _system() -> str:
    """Returns a name of what numbers processes, a machine since its start or a container; "" where it is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _start_of_process(pid: int | str) -> str:
    """Returns when a process of this system was started, in its own unit; "" where there is none."""
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, ValueError, IndexError):
        return ""


class CodeInFileError(Exception):
    """A file wants something run, which data has no need of."""


def read_data(path: Path) -> Any:
    """Returns the tensors, numbers and containers in a file of `torch.save`; nothing in it is ever run.

    Raises CodeInFileError where it wants something run, and exceptions of all sorts where it is damaged.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd files: the exception that follows says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        if any(sign in str(error) for sign in ("GLOBAL", "call reduce", "Can only", "TorchScript")):
            raise CodeInFileError("it asks for code to be run") from None
        if isinstance(error, RuntimeError):
            raise
        raise ValueError("torch.save has not written it") from None  # torch's own words are about trusting the file


def refuse_newer(content: Any, where: str) -> None:
    """Raises DataError, its message beginning with `where`, when a checkpoint is of a newer format."""
    number = content.get("format") if isinstance(content, Mapping) else None
    if isinstance(number, int) and number > FORMAT:
        raise DataError(f"{where} format {number} is newer than this version reads ({FORMAT}). Update ipiqa.")


def content_sha256(paths: Sequence[Path], memory: Path | None = None) -> list[str]:
    """Returns the sha256 of the whole content of each file; several are read at once.

    The file `memory` keeps hashes between runs: what has the same path, size, times and inode is not read again.
    Raises OSError where a file cannot be read, ValueError for a path with a character that none can have.
    """
    known = _read_hashes(memory) if memory else {}
    keys = [_file_key(path, path.stat()) for path in paths]
    unknown = [path for path, key in zip(paths, keys, strict=True) if key not in known]
    with ThreadPoolExecutor() as pool:
        fresh = dict(zip(unknown, pool.map(_sha256, unknown), strict=True))
    hashes = [fresh[path][0] if path in fresh else known[key] for path, key in zip(paths, keys, strict=True)]
    lasting = {key: digest for digest, key in fresh.values() if key is not None}
    if memory and lasting:
        body = b"".join([key + digest for key, digest in (known | lasting).items()][-_MOST_HASHES:])
        with contextlib.suppress(OSError), replacing(memory, "wb") as file:  # without it, files are only read again
            file.write(_sealed(body))
    return [digest.hex() for digest in hashes]


def _file_key(path: Path, status: os.stat_result) -> bytes:
    """Returns 16 bytes that change when a file is written or replaced, whatever size and time it is given."""
    facts = (path.absolute(), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return hashlib.blake2b("\0".join(map(str, facts)).encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _sha256(path: Path) -> tuple[bytes, bytes | None]:
    """Returns the hash of a file, and its key where the key may be kept.

    It may not where the file was written a moment ago: another write in the same tick of the clock would go unnoticed.
    """
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        while block := file.read(1 << 20):
            hashed.update(block)
    settled = time.time_ns() - status.st_ctime_ns > _SETTLED_NS
    return hashed.digest(), _file_key(path, status) if settled else None


def _sealed(body: bytes) -> bytes:
    """Returns records of hashes as their file has them, which shows damage."""
    return b"ipiqa hashes 1\n" + hashlib.sha256(body).digest() + body


def _read_hashes(memory: Path) -> dict[bytes, bytes]:
    """Returns key -> sha256, nothing where the file is absent or damaged."""
    content = b""
    with contextlib.suppress(OSError):
        content = memory.read_bytes()
    body = content[len(_sealed(b"")) :]
    starts = range(0, len(body), 48) if content == _sealed(body) else ()
    return {body[i : i + 16]: body[i + 16 : i + 48] for i in starts}


def require_package(name: str, where: str) -> ModuleType:
    """Returns a module of an optional package; ConfigError, with the extra that brings it, where it is absent."""
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        problem = f"{where} needs the package {package}, which is not installed"
        raise ConfigError(f"{problem}. Install it with: pip install -e '.[{EXTRAS[package]}]'") from error
