"""Image files, looked at before anything is trained: missing ones, and those no model should see."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ipiqa.datasets.table import AnnotationTable, json_sha256
from ipiqa.errors import DataError
from ipiqa.files import content_sha256

_LISTER = "list them with: ipiqa data check --cfg-path ..."


def num_threads() -> int:
    """Returns how many files are worth reading at once: one per core this process may use, 16 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16)


@dataclass
class Findings:
    """What a look at a dataset has found."""

    problems: list[str] = field(default_factory=list)  # one line for each image or shard that cannot be used
    refusal: str = ""  # why nothing can be trained on this dataset, "" where it can
    summary: list[str] = field(default_factory=list)  # what the dataset holds, in lines


def look_at_images(table: AnnotationTable, look: Callable[[Path], object], hint: str) -> Findings:
    """Returns which images of a table are missing or cannot be used, in table order; several are looked at at once.

    `look` raises DataError where a file cannot be used: `verify` (under a second for 3,000) or `decode` (minutes) of a
    processor. `hint`, for messages, says where to get the images.
    """
    folder = table.image_dir
    if not folder.is_dir():
        return Findings(refusal=f"dataset.images: the folder '{folder}' does not exist. {hint}")

    def problem(name: str) -> str:
        try:
            look(folder / name)
        except DataError as error:
            return str(error)
        return ""

    exists = {name: os.path.isfile(folder / name) for name in table.names}  # noqa: PTH113 (a name may be too long)
    missing = [name for name in exists if not exists[name]]
    with ThreadPoolExecutor(num_threads()) as pool:
        unusable = list(filter(None, pool.map(problem, filter(exists.get, exists))))
    refusal = describe_unusable(unusable, table.num_images) if unusable else ""
    if missing:
        lack = f"{len(missing)} of {table.num_images} images are missing under '{folder}', first {missing[0]!r}"
        refusal = f"dataset.images: {lack}. Check the path, or {_LISTER}"
    return Findings([*(f"missing: {name}" for name in missing), *unusable], refusal)


def describe_unusable(messages: Sequence[str], num_images: int) -> str:
    """Returns the one line about images that cannot be used, with their number and the first."""
    share = f"{len(messages)} of {num_images} images cannot be used"
    return f"dataset.images: {share}, first {messages[0]} Replace them, or {_LISTER}"


def file_hashes(setting: str, paths: Sequence[Path], memory: Path | None = None) -> list[str]:
    """Returns the sha256 of the content of each file that a setting names, kept in `memory`; DataError: unreadable."""
    try:
        return content_sha256(paths, memory)
    except OSError as error:
        raise DataError(f"dataset.{setting}: '{error.filename}' cannot be read: {error.strerror}.") from error


def image_hashes(table: AnnotationTable, memory: Path | None = None) -> tuple[str, ...]:
    """Returns the hash of each row's image, as `file_hashes`."""
    names = list(dict.fromkeys(table.names))
    hash_of = dict(zip(names, file_hashes("images", [table.image_dir / name for name in names], memory), strict=True))
    return tuple(hash_of[name] for name in table.names)


def image_set_sha256(table: AnnotationTable, hashes: Sequence[str]) -> str:
    """Returns one hash of all images of a table: of their names and the hashes of their contents."""
    return json_sha256(sorted(set(zip(table.names, hashes, strict=True))))
