"""Files: atomic writes, reads of files that nobody has to trust, optional packages."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import os
import pickle
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from ipiqa.errors import ConfigError, DataError

FORMAT = 1  # of checkpoints; a newer number is refused

_HASHES = b"ipiqa hashes 1\n"  # first bytes of a file of hashes; then the sha256 of its records, of 48 bytes each
_MOST_HASHES = 2_000_000  # kept in one file: 96 MB
_SETTLED_NS = 2_000_000_000  # a file that was not written for so long has a time of its own


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` that takes its place when the block ends well, and is removed otherwise.

    The content reaches the disk before the name does: whoever kills the process finds the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        text = "b" not in mode
        with temporary.open(mode, encoding="utf-8" if text else None, newline="" if text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """Writes a json file atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(without_nan(content), indent=1) + "\n")


def without_nan(content: Any) -> Any:
    """Returns the content with None for every number that is not finite: json has no word for them."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


class CodeInFileError(Exception):
    """A file wants something run, which data has no need of."""


def read_data(path: Path) -> Any:
    """Returns the tensors, numbers and containers in a file of `torch.save`; nothing in it is ever run.

    Raises:
        CodeInFileError: it wants something run.
        Exception: it is damaged or of another kind, for which torch has exceptions of all sorts.
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


def refuse_newer(content: Mapping[str, Any], where: str) -> None:
    """Raises DataError, its message beginning with `where`, when a checkpoint is of a newer format."""
    number = content.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise DataError(f"{where} format {number} is newer than this version reads ({FORMAT}). Update ipiqa.")


def content_sha256(paths: Sequence[Path], memory: Path | None = None) -> list[str]:
    """Returns the sha256 of the whole content of each file.

    Args:
        paths: files; several are read at once.
        memory: keeps the hashes between runs; a file of the same path, size, times and inode is not read again.

    Raises:
        OSError: a file cannot be read.
        ValueError: a path has a character that no path can have.
    """
    known = _read_hashes(memory) if memory else {}
    keys = [_file_key(path, path.stat()) for path in paths]
    unknown = [path for path, key in zip(paths, keys, strict=True) if key not in known]
    with ThreadPoolExecutor() as pool:
        fresh = dict(zip(unknown, pool.map(_sha256, unknown), strict=True))
    found = [fresh[path][0] if path in fresh else known[key] for path, key in zip(paths, keys, strict=True)]
    lasting = {key: digest for digest, key in fresh.values() if key is not None}
    if memory and lasting:
        records = [key + digest for key, digest in (known | lasting).items()][-_MOST_HASHES:]
        body = b"".join(records)
        with contextlib.suppress(OSError), replacing(memory, "wb") as file:  # without it, files are only read again
            file.write(_HASHES + hashlib.sha256(body).digest() + body)
    return [digest.hex() for digest in found]


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
    start = len(_HASHES) + 32
    try:
        if memory.stat().st_size > start + 48 * _MOST_HASHES:
            return {}
        content = memory.read_bytes()
    except OSError:
        return {}
    body = content[start:]
    if content[:start] != _HASHES + hashlib.sha256(body).digest() or len(body) % 48:
        return {}
    return {body[i : i + 16]: body[i + 16 : i + 48] for i in range(0, len(body), 48)}


def require_package(name: str, where: str) -> ModuleType:
    """Returns a module of the extra `shards`, which is not installed by default.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        install = "Install it with: pip install -e '.[shards]'"
        raise ConfigError(f"{where} needs the package {package}, which is not installed. {install}") from error
