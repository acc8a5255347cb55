"""Files that are whole or not there at all."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from ipiqa.errors import DataError

logger = logging.getLogger("ipiqa")

FORMAT = 1  # of checkpoints; a newer number is refused

_ANEW = "Delete it to start this fold anew."


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


def save(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Writes a checkpoint atomically; with `previous`, the file it replaces is kept under that name.

    Raises:
        DataError: the disk is full; what was there before is untouched.
    """
    try:
        with replacing(path, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            if previous is not None and path.exists():
                file.flush()
                os.fsync(file.fileno())
                os.replace(path, previous)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer
        if isinstance(error, OSError) and error.errno is None:
            raise
        reason = " ".join(str(error).split())[:100]
        raise DataError(
            f"{path}: the checkpoint could not be written ({reason}). The last good one is intact: "
            "free some space and continue with --resume."
        ) from error


class CodeInFileError(Exception):
    """A file wants something run, which data has no need of."""


def read_data(path: Path) -> Any:
    """Returns the tensors, numbers and containers in a file of `torch.save`; nothing in it is ever run.

    Raises:
        CodeInFileError: it wants something run.
        Exception: it is damaged or of another kind, for which torch has exceptions of all sorts.
    """
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


def load(path: Path) -> dict[str, Any]:
    """Returns a checkpoint; nothing in it is ever run.

    Raises:
        DataError: the file is damaged, holds more than data, or was written by a newer version.
    """
    try:
        state = read_data(path)
    except CodeInFileError as error:
        raise DataError(f"{path}: refused, {error}. A checkpoint holds tensors and numbers only. {_ANEW}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise DataError(f"{path}: damaged or cut off ({reason}). {_ANEW}") from None
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise DataError(f"{path}: not a checkpoint of this framework. Start from its weights with run.checkpoint.")
    refuse_newer(state, f"{path}:")
    return state


def load_newest(paths: list[Path], check: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
    """Returns the first state of a training in the list that can be read, or None when none of the files exists.

    Args:
        paths: newest first. A damaged file is named in a warning and the next one is used.
        check: raises when the checkpoint must not be continued.

    Raises:
        DataError: files are there but none can be read.
    """
    last_error = None
    for path in paths:
        if not path.exists():
            continue
        try:
            state = load(path)
            if "optimizer" not in state:
                raise DataError(f"{path}: holds weights but not the state of a training. {_ANEW}")
        except DataError as error:
            logger.warning("%s Looking for the one before it.", error)
            last_error = error
            continue
        check(state)
        return state
    if last_error is not None:
        raise last_error
    return None
