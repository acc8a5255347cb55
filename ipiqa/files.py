"""Files: atomic writes, locks, reads of files that nobody has to trust, optional packages."""

import contextlib
import gzip
import hashlib
import importlib
import json
import logging
import math
import os
import pickle
import secrets
import socket
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from ipiqa.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("ipiqa")

# package -> the extra of setup.py that brings it
EXTRAS = {
    "braceexpand": "shards", "pyarrow": "shards", "ray": "ray", "fastapi": "app", "python_multipart": "app",
    "starlette": "app", "uvicorn": "app", "onnx": "export", "onnxscript": "export", "onnxruntime": "export",
}  # fmt: skip

FORMAT = 1  # of checkpoints; a newer number is refused

_HELD: set[IO[str]] = set()  # lock files of this process

_MOST_HASHES = 2_000_000  # kept in one file, in records of 48 bytes: 96 MB
_SETTLED_NS = 2_000_000_000  # a file that was not written for so long has a time of its own


def seed_dir(run_dir: Path, seed: int) -> Path:
    """Returns the folder of the run of one seed, where a run has `run.seeds`."""
    return run_dir / f"seed_{seed}"


def seed_folders(run_dir: Path) -> dict[int, Path]:
    """Returns seed -> folder of its run, in order; none where a run was not trained with several."""
    found = {int(path.name[5:]): path for path in run_dir.glob("seed_*") if path.name[5:].isdecimal()}
    return dict(sorted(found.items()))


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` that takes its place when the block ends well, and is removed otherwise.

    The content reaches the disk before the name does: whoever kills the process finds the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
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


def try_lock(file: IO[Any], *, shared: bool = False, wait: bool = False) -> bool | None:
    """Locks a file until it is closed or its process ends; returns whether it did, None where files have no locks."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        return True
    except BlockingIOError:
        return False
    except (OSError, AttributeError):  # neither this file system nor, without fcntl, this system has them
        return None


@contextlib.contextmanager
def locked(*paths: Path, advice: str, wait: float = 0.0) -> Iterator[None]:
    """Holds lock files, all or none, while the block runs. Of several jobs on whatever machines, one holds a file.

    The locks are the operating system's, which a job that ends in any way leaves free. Their folders exist. Raises
    ConfigError, its message ending with the advice, where another job holds one for longer than `wait` seconds.
    """
    deadline = time.monotonic() + wait
    owner = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with contextlib.ExitStack() as held:
        for path in paths:
            while (file := _lock(path)) is None:
                with contextlib.suppress(FileNotFoundError):  # released meanwhile
                    holder = path.read_text(encoding="utf-8", errors="replace")[:200]
                    if time.monotonic() >= deadline:
                        raise ConfigError(f"{path}: held by another job, {holder}. {advice}")
                time.sleep(0.1)
            held.callback(_release, file, path)
            _HELD.add(file)
            file.truncate(0)
            file.write(owner)
            file.flush()
        yield


def _lock(path: Path) -> IO[str] | None:
    """Returns a lock file that is ours now; None where another job holds it, or has just removed it."""
    file = path.open("a", encoding="utf-8")
    is_ours = try_lock(file)
    if is_ours is None:
        logger.warning("%s: this file system has no locks; see that no other job works here", path)
    with contextlib.suppress(FileNotFoundError):
        if is_ours is not False and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    file.close()
    return None


def _release(file: IO[str], path: Path) -> None:
    _HELD.discard(file)
    with file:  # whoever opens the file now does not find it under its name once he has the lock
        path.unlink(missing_ok=True)


def _close_in_child() -> None:
    """A forked process must not keep the locks of one that has ended."""
    for file in _HELD:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


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
            file.write(gzip.compress(body, 0))  # not smaller: with a checksum
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


def _read_hashes(memory: Path) -> dict[bytes, bytes]:
    """Returns key -> sha256, nothing where the file is absent or damaged."""
    with contextlib.suppress(OSError, EOFError, zlib.error):
        body = gzip.decompress(memory.read_bytes())
        return {body[i : i + 16]: body[i + 16 : i + 48] for i in range(0, len(body), 48)}
    return {}


def require_package(name: str, where: str) -> ModuleType:
    """Returns a module of an optional package; ConfigError, with the extra that brings it, where it is absent."""
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        problem = f"{where} needs the package {package}, which is not installed"
        raise ConfigError(f"{problem}. Install it with: pip install -e '.[{EXTRAS[package]}]'") from error
