"""Rows that a table file or standard input names, read as they are scored; and prompts of images named elsewhere."""

from __future__ import annotations

import itertools
import json
import logging
import os
import posixpath
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from ipiqa.datasets.readers import (
    IMAGE_COLUMNS,
    PROMPT_COLUMNS,
    as_text,
    counted,
    find_column,
    matching_columns,
    stream_rows,
)
from ipiqa.datasets.shard_reader import MAX_PROMPT_BYTES
from ipiqa.errors import ConfigError, DataError, shorten
from ipiqa.scoring.rows import Completion, Inputs, Row, Rows, legible

logger = logging.getLogger("ipiqa")

WAYS = "Give --prompt TEXT, or --prompts with a table of images and prompts, a .txt of one a line, sidecar or embedded"
_LOOKED_FOR = 100  # images that tell which folder the names of a table are relative to


def open_table(path: Path, inputs: Inputs, complete: Completion) -> Rows:
    """Returns the rows of a table file, which is read once to know that it can be; DataError: it cannot.

    Images are looked for in `image_root`, or else beside the table and in its folder `images`. Columns without a
    heading are left out. Where prompts come from elsewhere, a column of them is one of the others.
    """
    here, columns = f"images: '{path}'", list[str]()

    def choose(heading: Sequence[str]) -> list[int]:
        chosen = [_find(heading, inputs.image_column, IMAGE_COLUMNS, here, "--image-column")]
        wants = complete.needs_prompt or inputs.prompt_column is not None or matching_columns(heading, PROMPT_COLUMNS)
        if wants and not inputs.gives_prompts:
            option = "--prompt-column, or give --prompt TEXT or --prompts FILE, sidecar or embedded"
            chosen.append(_find(heading, inputs.prompt_column, PROMPT_COLUMNS, here, option))
        others = [position for position, name in enumerate(heading) if name.strip() and position not in chosen]
        columns[:] = [heading[position] for position in others]
        if again := [name for name in columns if columns.count(name) > 1]:
            raise DataError(f"{here} has {len(again)} columns {again[0]!r}. Rename all but one.")
        return chosen + others

    images = (cells[0] for _, cells in stream_rows(path, "images", choose))
    first = list(itertools.islice(images, _LOOKED_FOR))
    num_rows = len(first) + sum(1 for _ in images)
    roots = [path.parent, path.parent / "images"] if inputs.image_root is None else [Path(inputs.image_root)]
    there = [sum(os.path.isfile(root / name) for name in first) for root in roots]  # noqa: PTH113 (too long a name)
    if not any(there):
        message = "%s: none of its first %d images is in '%s'. Name their folder with --image-root"
        logger.warning(message, here, len(first), "' or '".join(map(str, roots)))
    root = roots[there.index(max(there))].absolute()

    def listing() -> Iterator[Row]:
        for number, cells in stream_rows(path, "images", choose):
            problem = "" if cells[0].strip() else f"{counted(path)} {number} names no image"
            own = len(cells) - len(columns)
            yield Row(cells[0], root / cells[0], cells[1] if own > 1 else None, tuple(cells[own:]), problem)

    return Rows(tuple(columns), num_rows, listing, complete)


def _find(heading: Sequence[str], name: str | None, spellings: Sequence[str], here: str, option: str) -> int:
    try:
        return find_column(heading, spellings if name is None else [name], here)
    except DataError as error:
        raise DataError(f"{error} Name the right one with {option}.") from None


def open_lines(inputs: Inputs, complete: Completion) -> Rows:
    """Returns the rows of standard input: `path`, `path<TAB>prompt` or a JSON object a line, as they come."""
    columns: list[str] = []
    rows = read_lines(sys.stdin.buffer, inputs, columns) if sys.stdin is not None else iter([])
    if (first := next(rows, None)) is None:
        raise DataError("images: standard input is empty. Write an image a line, with a tab and its prompt.")
    if complete.needs_prompt and not (first.prompt or first.problem or inputs.gives_prompts):
        known = f"its first line has no prompt: {shorten(first.image)}"
        raise ConfigError(f"images: standard input, and the scores depend on prompts: {known}. {WAYS}.")
    rows = itertools.chain([first], rows)
    return Rows(tuple(columns), None, lambda: rows, complete)


def read_lines(file: BinaryIO, inputs: Inputs, columns: list[str]) -> Iterator[Row]:
    """Yields the rows of lines that are not empty; `columns` gets the keys of the first beside its image and prompt."""
    images = IMAGE_COLUMNS if inputs.image_column is None else (inputs.image_column,)
    prompts = PROMPT_COLUMNS if inputs.prompt_column is None else (inputs.prompt_column,)
    root, is_first = Path(inputs.image_root or "").absolute(), True
    for number, content in enumerate(iter(lambda: file.readline(MAX_PROMPT_BYTES), b""), start=1):
        text = content.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").strip("\r\n")
        if not text.strip():
            continue
        here, problem, found = f"line {number}", "", dict[Any, Any]()
        if text.lstrip().startswith("{"):
            try:
                found = json.loads(text)
            except (ValueError, RecursionError) as error:
                problem = f"{here} is not a JSON object ({error})"
        else:
            found[images[0]], tab, rest = text.partition("\t")
            found |= {prompts[0]: rest} if tab else {}
        image, prompt = (found.pop(next(filter(found.__contains__, keys), None), None) for keys in (images, prompts))
        if not problem and not (isinstance(image, str) and isinstance(prompt, str | None)):
            problem = f"{here} has no text {images[0]!r}, or {prompts[0]!r} is no text"
        if problem:
            image, prompt = here, None
        elif not image.strip():
            problem = f"{here} names no image"
        others = {legible(key): as_text(value) for key, value in found.items()}
        columns += others if is_first else ()
        is_first = False
        if not problem and (unknown := [key for key in others if key not in columns]):
            problem = f"{here} has a key that the first line has not, {unknown[0]!r}"
        yield Row(image, root / image, prompt, tuple(others.get(name, "") for name in columns), problem)


def join_table(rows: Rows, path: Path, inputs: Inputs, *, of_folder: bool) -> Rows:
    """Returns rows with the prompts of a table.

    An image is found there by its name in the output, its path relative to the table, its whole path or its bare name.
    """
    here = f"prompts: '{path}'"
    prompts: dict[str, str | None] = {}  # None for an image with several

    def choose(heading: Sequence[str]) -> list[int]:
        image = _find(heading, inputs.image_column if of_folder else None, IMAGE_COLUMNS, here, "--image-column")
        return [image, _find(heading, inputs.prompt_column, PROMPT_COLUMNS, here, "--prompt-column")]

    for _, (image, prompt) in stream_rows(path, "prompts", choose):
        if image.strip():
            name = posixpath.normpath(image)
            prompts[name] = prompt if prompts.get(name, prompt) == prompt else None

    def name_of(row: Row) -> str | None:
        source = str(row.source)
        names = posixpath.normpath(row.image), os.path.relpath(source, path.parent), source, posixpath.basename(source)
        return next((name for name in names if name in prompts), None)

    def join(row: Row) -> Row:
        name = name_of(row)
        prompt = "" if name is None else prompts[name]
        problem = f"several prompts in '{path}'" if prompt is None else ""
        return replace(row, prompt=prompt or None, problem=row.problem or problem)

    if of_folder:
        names = {row.image: name_of(row) for row in rows.listing()}
        if not any(names.values()):
            known = f"the first image is {next(iter(names))!r}, the first row {next(iter(prompts), '')!r}"
            raise DataError(f"{here} has a prompt for none of the {len(names)} images: {known}.")
        surplus = sorted(prompts.keys() - names.values())
        if surplus and len(names) > 1:
            message = "%s: %d of %d images in it are not there, first %r"
            logger.warning(message, here, len(surplus), len(prompts), surplus[0])
        if bare := [image for image, name in names.items() if name and image.endswith(f"/{name}")]:
            message = "%s: %d images in subfolders take the prompt of their file name, first %r"
            logger.warning(message, here, len(bare), bare[0])
    return rows.map(join)


def join_lines(rows: Rows, path: Path) -> Rows:
    """Returns rows with the prompts of a text file, one a line; all of the text where there is one image."""
    text, count = path.read_text(encoding="utf-8-sig", errors="surrogateescape").rstrip("\n"), rows.num_rows or 0
    prompts = text.split("\n") if count > 1 else [text]
    if len(prompts) != count:
        wanted = f"{count} lines, for the images in their order, or a table of images and prompts"
        raise DataError(f"prompts: '{path}' has {len(prompts)} lines for {count} images. Give {wanted}.")
    return replace(rows, listing=lambda: (replace(r, prompt=p) for r, p in zip(rows.listing(), prompts, strict=True)))
