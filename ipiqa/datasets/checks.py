"""Image files, looked at before anything is trained: missing ones, and those no model should see."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch

from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import DataError
from ipiqa.files import content_sha256

_LISTER = "list them with: ipiqa data check --cfg-path ..."


class ImageReader(Protocol):
    """What the datasets need of an image processor."""

    @property
    def image_size(self) -> int:
        """Side S of a decoded image, in pixels."""

    @property
    def key(self) -> str:
        """All that decides the decoded pixels, apart from the file."""

    def verify(self, path: Path, *, full: bool = False) -> None:
        """Raises DataError when the header, or with `full` the pixels, cannot be used."""

    def decode(self, source: Path | bytes, name: str | None = None) -> torch.Tensor:
        """Returns the uint8 image (3, S, S) of a file or of its content; raises DataError when it cannot be used."""


def num_threads() -> int:
    """Returns how many files are worth reading at once: one per core this process may use, 16 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16)


def missing_images(table: AnnotationTable) -> list[str]:
    """Returns the names of the images that are not there, each once, in table order."""
    return [name for name in dict.fromkeys(table.names) if not (table.image_dir / name).is_file()]


def unusable_images(table: AnnotationTable, reader: ImageReader, *, full: bool) -> list[str]:
    """Returns one message per image that is there and cannot be used, in table order.

    Args:
        table: names and folder of the images.
        reader: judges one file.
        full: decode every pixel (finds truncated files; minutes) instead of reading headers (under a second for 3,000).
    """
    paths = [table.image_dir / name for name in dict.fromkeys(table.names) if (table.image_dir / name).is_file()]
    return failures(lambda path: reader.verify(path, full=full), paths)


def failures(look: Callable[[Path], None], paths: Sequence[Path]) -> list[str]:
    """Returns the messages of the DataErrors that looking at each file raises; several files are looked at at once."""

    def problem(path: Path) -> str | None:
        try:
            look(path)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(num_threads()) as pool:
        return [message for message in pool.map(problem, paths) if message]


def check_images(
    table: AnnotationTable, reader: ImageReader, *, full: bool = False, hint: str = "Check the path."
) -> None:
    """Raises when the folder, or any image of the table, is missing or cannot be used.

    Args:
        table: names and folder of the images.
        reader: judges one file.
        full: decode every pixel instead of reading headers.
        hint: where to get the images.

    Raises:
        DataError: with the number of images concerned and the first of them.
    """
    _, refusal = look_at_images(table, reader, full=full, hint=hint)
    if refusal:
        raise DataError(refusal)


def look_at_images(table: AnnotationTable, reader: ImageReader, *, full: bool, hint: str) -> tuple[list[str], str]:
    """Returns a line for each image that is missing or cannot be used, and why to refuse the table, "" if it is sound.

    Args: as in `check_images`. A quick look is content with the missing ones.
    """
    if not table.image_dir.is_dir():
        return [], f"dataset.images: the folder '{table.image_dir}' does not exist. {hint}"
    missing = missing_images(table)
    unusable = [] if missing and not full else unusable_images(table, reader, full=full)
    refusal = _unusable(unusable, table.num_images)
    if missing:
        refusal = (
            f"dataset.images: {len(missing)} of {table.num_images} images are missing under '{table.image_dir}', "
            f"first {missing[0]!r}. Check the path, or {_LISTER}"
        )
    return [*(f"missing: {name}" for name in missing), *unusable], refusal


def refuse_unusable(messages: Sequence[str], num_images: int) -> None:
    """Raises DataError when there is any message about an image, with their number and the first."""
    if messages:
        raise DataError(_unusable(messages, num_images))


def _unusable(messages: Sequence[str], num_images: int) -> str:
    if not messages:
        return ""
    first = f"dataset.images: {len(messages)} of {num_images} images cannot be used, first {messages[0]}"
    return f"{first} Replace them, or {_LISTER}"


def image_hashes(table: AnnotationTable, memory: Path | None = None) -> tuple[str, ...]:
    """Returns the sha256 of the whole image file of each row, in table order.

    Args:
        table: names and folder of the images.
        memory: file that keeps the hashes between runs; see `files.content_sha256`.

    Raises:
        DataError: a file cannot be read.
    """
    names = list(dict.fromkeys(table.names))
    try:
        hash_of = dict(zip(names, content_sha256([table.image_dir / name for name in names], memory), strict=True))
    except OSError as error:
        raise DataError(f"dataset.images: '{error.filename}' cannot be read: {error.strerror}.") from error
    return tuple(hash_of[name] for name in table.names)


def image_set_sha256(table: AnnotationTable, hashes: Sequence[str]) -> str:
    """Returns one hash of all images of a table: of their names and the hashes of their contents."""
    return hashlib.sha256(json.dumps(sorted(set(zip(table.names, hashes, strict=True)))).encode()).hexdigest()
