"""Rows that a table file names, read as they are scored; and tables of the prompts of images named elsewhere."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ipiqa.datasets.readers import counted, find_column, stream_rows
from ipiqa.errors import DataError
from ipiqa.registry import file_path
from ipiqa.scoring.rows import Listing, Row

logger = logging.getLogger("ipiqa")

IMAGE_COLUMNS = (
    "image", "image_path", "image_name", "image_file", "img", "img_path", "img_name", "file_name", "filename",
    "file_path", "file", "path", "name",
)  # fmt: skip
PROMPT_COLUMNS = ("prompt", "text", "caption")
_OR_GIVE = ", or give --prompt TEXT or --prompts FILE, sidecar or embedded"
_LOOKED_FOR = 100  # images that tell which folder the names of a table are relative to


def open_table(
    path: Path, image_column: str | None, prompt_column: str | None, image_root: str | None,
    prompts: Literal["needed", "wanted", "other"],
) -> tuple[tuple[str, ...], int, Listing]:  # fmt: skip
    """Returns the other columns, the number of rows and a listing of a table file; DataError: it cannot be used.

    All of it is read once, to know this. Images are looked for under `image_root`, or else beside the table and in its
    folder `images`. Columns without a heading are left out. With `other` prompts, their column is one of the others.
    """
    here = f"images: '{path}'"
    found: dict[str, list[int]] = {}  # "image", "prompt" and "others" -> positions
    columns: list[str] = []

    def choose(heading: Sequence[str]) -> list[int]:
        found["image"] = [_find(heading, image_column, IMAGE_COLUMNS, here, "--image-column")]
        found["prompt"] = []
        if prompts == "needed" or (prompts == "wanted" and prompt_column is not None):
            found["prompt"] = [_find(heading, prompt_column, PROMPT_COLUMNS, here, f"--prompt-column{_OR_GIVE}")]
        elif prompts == "wanted":
            with contextlib.suppress(DataError):
                found["prompt"] = [find_column(heading, PROMPT_COLUMNS, here)]
        chosen = found["image"] + found["prompt"]
        others = [position for position, name in enumerate(heading) if name.strip() and position not in chosen]
        columns[:] = [heading[position] for position in others]
        if again := [name for name in columns if columns.count(name) > 1]:
            raise DataError(f"{here} has {len(again)} columns {again[0]!r}. Rename all but one.")
        return chosen + others

    images = (cells[0] for _, cells in stream_rows(path, "images", choose))
    first = list(itertools.islice(images, _LOOKED_FOR))
    num_rows = len(first) + sum(1 for _ in images)
    roots = (
        [Path(file_path(image_root, "--image-root"))]
        if image_root is not None
        else [path.parent, path.parent / "images"]
    )
    there = [sum(os.path.isfile(root / name) for name in first) for root in roots]  # noqa: PTH113 (too long a name)
    if not any(there):
        message = "%s: none of its first %d images is in '%s'. Name their folder with --image-root"
        logger.warning(message, here, len(first), "' or '".join(map(str, roots)))
    root = roots[there.index(max(there))].absolute()

    def listing() -> Iterator[Row]:
        start = 1 + len(found["prompt"])
        for number, cells in stream_rows(path, "images", choose):
            problem = "" if cells[0].strip() else f"{counted(path)} {number} names no image"
            yield Row(cells[0], root / cells[0], cells[1] if start > 1 else None, tuple(cells[start:]), problem)

    return tuple(columns), num_rows, listing


def _find(heading: Sequence[str], name: str | None, spellings: Sequence[str], here: str, option: str) -> int:
    try:
        return find_column(heading, spellings if name is None else [name], here)
    except DataError as error:
        raise DataError(f"{error} Name the right one with {option}.") from None


@dataclass(frozen=True)
class PromptTable:
    """A table of prompts by image names, None for one that stands there with several."""

    path: Path
    prompts: dict[str, str | None]

    def name_of(self, row: Row) -> str | None:
        """Returns the name under which a row's image stands in the table, None where it does not.

        It is the name in the output, the path relative to the table, the whole path or the bare file name.
        """
        path = str(row.source)
        names = posixpath.normpath(row.image), os.path.relpath(path, self.path.parent), path, posixpath.basename(path)
        return next((name for name in names if name in self.prompts), None)

    def join(self, row: Row) -> Row:
        """Returns a row with its prompt; several different ones are its problem."""
        name = self.name_of(row)
        prompt = "" if name is None else self.prompts[name]
        if prompt is None and not row.problem:
            return replace(row, prompt=None, problem=f"several prompts in '{self.path}'")
        return replace(row, prompt=prompt or None)


def read_prompts(path: Path, image_column: str | None, prompt_column: str | None) -> PromptTable:
    """Returns the prompts in a table file."""
    here = f"prompts: '{path}'"

    def choose(heading: Sequence[str]) -> list[int]:
        image = _find(heading, image_column, IMAGE_COLUMNS, here, "--image-column")
        return [image, _find(heading, prompt_column, PROMPT_COLUMNS, here, "--prompt-column")]

    prompts: dict[str, str | None] = {}
    for _, (image, prompt) in stream_rows(path, "prompts", choose):
        if image.strip():
            name = posixpath.normpath(image)
            prompts[name] = prompt if prompts.get(name, prompt) == prompt else None
    return PromptTable(path, prompts)


def read_prompt_lines(path: Path, count: int) -> list[str]:
    """Returns the prompts of `count` images in a text file, one a line; all of the text where there is one image."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip("\n")
    except OSError as error:
        raise DataError(f"prompts: '{path}' cannot be read: {error.strerror}. Check the path.") from error
    except ValueError as error:
        raise DataError(f"prompts: '{path}' is not UTF-8 text. Save it again as UTF-8.") from error
    prompts = text.split("\n") if count > 1 else [text]
    if len(prompts) != count:
        wanted = f"{count} lines, for the images in their order, or a table of images and prompts"
        raise DataError(f"prompts: '{path}' has {len(prompts)} lines for {count} images. Give {wanted}.")
    return prompts
