"""Checkpoints of a training: written whole, kept twice, read without running anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ipiqa.errors import DataError
from ipiqa.files import FORMAT, CodeInFileError, read_data, refuse_newer, replacing

ANEW = "Delete it to start this fold anew."


class UnusableError(DataError):
    """A checkpoint that is damaged or holds something else: an older one may do."""


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
        UnusableError: the file is damaged, or holds more or something else than a checkpoint does.
        DataError: the file cannot be read at all, or was written by a newer version.
    """
    try:
        state = read_data(path)
    except CodeInFileError as error:
        raise UnusableError(f"{path}: refused, {error}. A checkpoint holds tensors and numbers only. {ANEW}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path}: cannot be read ({error.strerror}). Check its permissions and its disk.") from None
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise UnusableError(f"{path}: damaged or cut off ({reason}). {ANEW}") from None
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise UnusableError(f"{path}: not a checkpoint of this framework. Start from its weights with run.checkpoint.")
    refuse_newer(state, f"{path}:")
    return state
