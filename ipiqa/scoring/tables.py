"""Rows that a table file names, read as they are scored; and tables of the prompts of images named elsewhere."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipiqa.datasets.readers import counted, find_column, stream_rows
from ipiqa.errors import DataError
from ipiqa.scoring.rows import Row

logger = logging.getLogger("ipiqa")

IMAGE_COLUMNS = (
    "image", "image_path", "image_name", "image_file", "img", "img_path", "img_name", "file_name", "filename",
    "file_path", "file", "path", "name",
)  # fmt: skip
PROMPT_COLUMNS = ("prompt", "text", "caption")
_LOOKED_FOR = 100  # images that tell which folder the names of a table are relative to


@dataclass(frozen=True)
class ImageTable:
    """A table file whose first read found nothing wrong."""

    path: Path
    positions: tuple[int, ...]  # of the columns of images, of prompts where they are read, and of all others
    has_prompt: bool
    columns: tuple[str, ...]  # names of the others
    num_rows: int
    root: Path

    def listing(self) -> Iterator[Row]:
        """Yields all rows."""
        word, others = counted(self.path), 1 + self.has_prompt
        for number, cells in stream_rows(self.path, "images", lambda _: list(self.positions)):
            problem = "" if cells[0].strip() else f"{word} {number} names no image"
            prompt = cells[1] if self.has_prompt else None
            yield Row(cells[0], self.root / cells[0], prompt, tuple(cells[others:]), problem)


def open_table(
    path: Path, image_column: str | None, prompt_column: str | None, image_root: str | None, reads_prompt: bool
) -> ImageTable:
    """Returns a table that was read once to the end; DataError where something is wrong with it.

    Images are looked for under `image_root`, or else beside the table and in its folder `images`. Columns without a
    heading are left out. Without `reads_prompt` the column of prompts is one of the others; there may be none of them.
    """
    found: list[str] = []

    def choose(heading: Sequence[str]) -> list[int]:
        chosen = [_find(heading, image_column, IMAGE_COLUMNS, f"images: '{path}'", "--image-column")]
        if reads_prompt:
            chosen.append(_find(heading, prompt_column, PROMPT_COLUMNS, f"images: '{path}'", "--prompt-column"))
        others = [position for position, name in enumerate(heading) if name.strip() and position not in chosen]
        names = [heading[position] for position in others]
        if again := [name for name in names if names.count(name) > 1]:
            raise DataError(f"images: '{path}' has {len(again)} columns {again[0]!r}. Rename all but one.")
        found[:] = names
        positions[:] = [*chosen, *others]
        return positions

    positions: list[int] = []
    images = (cells[0] for _, cells in stream_rows(path, "images", choose))
    first = list(itertools.islice(images, _LOOKED_FOR))
    num_rows = len(first) + sum(1 for _ in images)
    roots = [Path(image_root)] if image_root is not None else [path.parent, path.parent / "images"]
    there = [sum(os.path.isfile(root / name) for name in first) for root in roots]  # noqa: PTH113 (too long a name)
    if not any(there):
        message = "images: '%s': none of its first %d images is in '%s'. Name their folder with --image-root"
        logger.warning(message, path, len(first), "' or '".join(map(str, roots)))
    root = roots[there.index(max(there))].absolute()
    return ImageTable(path, tuple(positions), reads_prompt, tuple(found), num_rows, root)


def _find(heading: Sequence[str], name: str | None, spellings: Sequence[str], here: str, option: str) -> int:
    try:
        return find_column(heading, spellings if name is None else [name], here)
    except DataError as error:
        raise DataError(f"{error} Name the right one with {option}.") from None
