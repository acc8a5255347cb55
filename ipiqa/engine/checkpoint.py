"""Checkpoints of a training: written whole, kept twice, read without running anything."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ipiqa.errors import DataError
from ipiqa.files import FORMAT, CodeInFileError, read_data, refuse_newer, replacing

logger = logging.getLogger("ipiqa")

_ANEW = "Delete it to start this fold anew."


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
