"""Files: atomic writes, reads of files that nobody has to trust, optional packages."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from ipiqa.errors import ConfigError, DataError

FORMAT = 1  # of checkpoints; a newer number is refused


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


def content_sha256(paths: Sequence[Path]) -> list[str]:
    """Returns the sha256 of the whole content of each file.

    Raises:
        OSError: a file cannot be read.
    """

    def digest(path: Path) -> str:
        with path.open("rb") as file:
            hashed = hashlib.sha256()
            while block := file.read(1 << 20):
                hashed.update(block)
        return hashed.hexdigest()

    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest, paths))


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
