"""Checkpoints of a training: written whole, kept twice, read without running anything."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ipiqa.errors import DataError, IpiqaError
from ipiqa.files import FORMAT, read_data, refuse_newer, replacing

ANEW = "Delete it to start this fold anew."


class UnusableError(DataError):
    """A checkpoint that is damaged or holds something else: an older one may do."""


def save(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Writes a checkpoint atomically; with `previous`, the file it replaces is kept under that name.

    A full disk is a DataError; what was there before is untouched.
    """
    try:
        with replacing(path, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            if previous is not None and path.exists():
                file.flush()
                os.fsync(file.fileno())
                os.replace(path, previous)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        reason = " ".join(str(error).split())[:100]
        raise DataError(
            f"{path}: the checkpoint could not be written ({reason}). The last good one is intact: "
            "free some space and continue with --resume."
        ) from error


@contextlib.contextmanager
def refusing(path: Path, what: str) -> Iterator[None]:
    """Says of a file `what` is wrong with it, in an UnusableError, where the block raises anything else."""
    try:
        yield
    except IpiqaError:
        raise
    except Exception as error:  # torch has exceptions of all sorts for what is damaged or does not fit
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise UnusableError(f"{path}: {what} ({reason}). {ANEW}") from None


def load(path: Path) -> dict[str, Any]:
    """Returns a checkpoint; nothing in it is ever run.

    One that is damaged or holds something else is an UnusableError; one that cannot be read at all, or was written by a
    newer version, a DataError.
    """
    with refusing(path, "damaged or cut off, or not a checkpoint of this framework"):
        try:
            state = read_data(path)
        except OSError as error:
            if error.errno is None:
                raise
            raise DataError(f"{path}: cannot be read ({error.strerror}). Check its permissions and its disk.") from None
        if not isinstance(state["format"], int):
            raise TypeError("its format is not a number")
    refuse_newer(state, f"{path}:")
    return state
