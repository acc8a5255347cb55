"""What a user names to be scored -> rows: a picture, a folder, a table, shards or standard input, and its prompts."""

from __future__ import annotations

import itertools
import logging
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ipiqa.datasets.readers import READERS
from ipiqa.errors import ConfigError, DataError, did_you_mean, shorten
from ipiqa.processors.image import ENDINGS
from ipiqa.registry import file_path
from ipiqa.scoring.completion import Completion, sidecar
from ipiqa.scoring.embedded import embedded_prompt
from ipiqa.scoring.lines import read_lines
from ipiqa.scoring.rows import ListedRows, Listing, Row, Rows
from ipiqa.scoring.tables import IMAGE_COLUMNS, PROMPT_COLUMNS, open_table, read_prompt_lines, read_prompts
from ipiqa.scoring.tar_rows import open_shards

logger = logging.getLogger("ipiqa")

Kind = Literal["a picture", "a folder", "a table", "shards", "standard input"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The options of `ipiqa score` that say what its images and prompts are; None where not given."""

    prompt: str | None = None  # one text for all images
    prompts: str | None = None  # a file of prompts, or "sidecar" or "embedded"
    image_column: str | None = None  # of a table that has none of the usual names
    prompt_column: str | None = None
    image_root: str | None = None  # folder that names in a table or in standard input are relative to
    prompt_member: str | None = None  # of a sample in shards: an ending, or "json:p" for the key p of a JSON member
    limit: int | None = None  # how many images to take, the first

    @property
    def gives_prompts(self) -> bool:
        return self.prompt is not None or self.prompts is not None

    @property
    def joins(self) -> bool:
        """Whether prompts come from a file."""
        return self.prompts is not None and self.prompts not in _READ

    @property
    def joins_lines(self) -> bool:
        """Whether that file has one a line, for the images in their order."""
        return self.joins and str(self.prompts).lower().endswith(".txt")


_READ = {"sidecar": sidecar, "embedded": embedded_prompt}
_WAYS = (
    "Give --prompt TEXT, or --prompts with a table of images and prompts, a .txt of one a line, sidecar or embedded."
)
_SHARDS = re.compile(r"\.(tar|tgz|tar\.\w+)\Z", re.IGNORECASE)


def open_rows(images: str, inputs: Inputs, *, needs_prompt: bool) -> Rows:
    """Returns the rows of a picture, a folder, a table, shards (`data/{000..999}.tar`) or standard input (`-`).

    What is wrong with all of it is a ConfigError or DataError, what is wrong with one row that row's problem.
    """
    kind = _kind(images)
    _check(images, kind, inputs, needs_prompt)
    complete = Completion(needs_prompt, inputs.prompt, _READ.get(inputs.prompts or ""))
    if kind == "shards":
        return open_shards(file_path(images, "images"), inputs.prompt_member or "txt", complete, inputs.limit)
    columns, total, listing = _listed(kind, Path(file_path(images, "images")), inputs, needs_prompt)
    if inputs.joins:
        path = Path(file_path(inputs.prompts or "", "prompts"))
        complete = replace(complete, lack=f"no prompt in '{path}'")
        listing = _joined(listing, total, kind, path, inputs)
    return ListedRows(columns, total, listing, complete, inputs.limit)


def _kind(images: str) -> Kind:
    path = file_path(images, "images")
    ending = os.path.splitext(path)[1].lower()  # noqa: PTH122
    if images == "-":
        return "standard input"
    if os.path.isdir(path):  # noqa: PTH112 (Path raises for a long one)
        return "a folder"
    return "a table" if ending in READERS else "shards" if _SHARDS.search(path.rstrip("}")) else "a picture"


def _check(images: str, kind: Kind, inputs: Inputs, needs_prompt: bool) -> None:
    """Raises ConfigError where options cannot be used together, or with what is to be scored."""
    has_columns, gives = kind in ("a table", "standard input"), inputs.gives_prompts
    joins_table = inputs.joins and not inputs.joins_lines
    if inputs.prompt is not None and inputs.prompts is not None:
        raise ConfigError("--prompt: given together with --prompts. Give one of them.")
    if needs_prompt and inputs.prompt is not None and not inputs.prompt.strip():
        raise ConfigError(f"--prompt: {inputs.prompt!r} is no prompt. Give a text.")
    if inputs.limit is not None and inputs.limit < 1:
        raise ConfigError(f"--limit: {inputs.limit} is no number of images. Give 1 or more.")
    if inputs.joins and Path(str(inputs.prompts)).suffix.lower() not in (".txt", *READERS):
        known = f"{shorten(inputs.prompts)} is no table, no .txt, and neither sidecar nor embedded"
        raise ConfigError(f"--prompts: {known}.{did_you_mean(str(inputs.prompts), _READ)} Give one text with --prompt.")
    if inputs.image_root is not None and not os.path.isdir(file_path(inputs.image_root, "--image-root")):  # noqa: PTH112
        raise ConfigError(f"--image-root: {shorten(inputs.image_root)} is no folder. Give that of the images.")
    if needs_prompt and not gives and kind in ("a picture", "a folder"):
        raise ConfigError(f"images: '{images}' is {kind}, and the scores depend on prompts. {_WAYS}")
    if kind == "shards" and inputs.prompts not in (None, "embedded"):
        raise ConfigError(f"--prompts: {inputs.prompts!r} cannot be joined with shards. Name their member of prompts.")
    if kind == "standard input" and inputs.joins_lines:
        raise ConfigError(f"--prompts: '{inputs.prompts}' may have too few lines. Write lines of image<TAB>prompt.")
    is_read = {
        "image_column": has_columns or joins_table, "prompt_column": (has_columns and not gives) or joins_table,
        "image_root": has_columns, "prompt_member": kind == "shards" and not gives,
    }  # fmt: skip
    for option in [name for name, read in is_read.items() if not read and getattr(inputs, name) is not None]:
        given = " and prompts are given" * (option.startswith("prompt") and gives)
        raise ConfigError(f"--{option.replace('_', '-')}: '{images}' is {kind}{given}: nothing reads it. Leave it out.")


Listed = tuple[tuple[str, ...], int | None, Listing]  # names of other columns, number of rows, and the rows


def _listed(kind: Kind, path: Path, inputs: Inputs, needs_prompt: bool) -> Listed:
    if kind == "a folder":
        root, names = path.absolute(), image_names(path)
        return (), len(names), lambda: (Row(name, root / name, None) for name in names)
    if kind == "a table":
        prompts: Literal["needed", "wanted", "other"] = "needed" if needs_prompt else "wanted"
        prompts = "other" if inputs.gives_prompts else prompts
        return open_table(path, inputs.image_column, inputs.prompt_column, inputs.image_root, prompts)
    if kind == "standard input":
        return _lines(inputs, needs_prompt)
    if not os.path.isfile(path):  # noqa: PTH113 (Path raises for a long one)
        right = "Give a picture, a folder, a table (.csv, .jsonl, ...), shards (.tar) or - for standard input."
        problem = "is no file" if os.path.exists(path) else "does not exist"  # noqa: PTH110
        raise DataError(f"images: {shorten(str(path))} {problem}. {right}")
    return (), 1, lambda: iter([Row(str(path), path.absolute(), None)])


def _lines(inputs: Inputs, needs_prompt: bool) -> Listed:
    images = IMAGE_COLUMNS if inputs.image_column is None else (inputs.image_column,)
    prompts = PROMPT_COLUMNS if inputs.prompt_column is None else (inputs.prompt_column,)
    lines = read_lines(sys.stdin.buffer, images, prompts) if sys.stdin is not None else iter([])
    root = Path(file_path(inputs.image_root or "", "--image-root")).absolute()
    if (first := next(lines, None)) is None:
        raise DataError("images: standard input is empty. Write an image a line, with a tab and its prompt.")
    if needs_prompt and not (first.prompt or first.problem or inputs.gives_prompts):
        known = f"its first line has no prompt: {shorten(first.image)}"
        raise ConfigError(f"images: standard input, and the scores depend on prompts: {known}. {_WAYS}")
    columns = tuple(first.others)
    rows = (line.row(columns, root) for line in itertools.chain([first], lines))
    return columns, None, lambda: rows


def _joined(before: Listing, total: int | None, kind: Kind, path: Path, inputs: Inputs) -> Listing:
    """Returns a listing with the prompts of a file: of a table by image names, of a .txt one after the other."""
    if inputs.joins_lines:
        prompts = read_prompt_lines(path, total or 0)
        return lambda: (replace(row, prompt=prompt) for row, prompt in zip(before(), prompts, strict=True))
    has_columns = kind in ("a table", "standard input")
    table = read_prompts(path, None if has_columns else inputs.image_column, inputs.prompt_column)
    if kind in ("a picture", "a folder"):
        names = {row.image: table.name_of(row) for row in before()}
        if set(names.values()) == {None}:
            known = f"the first image is {next(before()).image!r}, the first row {next(iter(table.prompts), '')!r}"
            raise DataError(f"prompts: '{path}' has a prompt for none of the {total} images: {known}.")
        surplus = sorted(table.prompts.keys() - names.values())
        if surplus and kind == "a folder":
            message = "prompts: '%s': %d of %d images in it are not there, first %r"
            logger.warning(message, path, len(surplus), len(table.prompts), surplus[0])
        if bare := [image for image, name in names.items() if "/" in image and name and image.endswith(f"/{name}")]:
            message = "prompts: '%s': %d images in subfolders take the prompt of their file name, first %r"
            logger.warning(message, path, len(bare), bare[0])
    return lambda: map(table.join, before())


def image_names(folder: Path) -> list[str]:
    """Returns the images in a folder and its subfolders by their relative POSIX paths, sorted.

    Hidden files and folders are left out, other files are counted in the log. DataError: there is no image.
    """
    names, others, links = [], Counter[str](), list[str]()

    def refuse(error: OSError) -> None:
        raise DataError(f"images: the folder '{error.filename}' cannot be read: {error.strerror}.")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [name for name in folders if os.path.islink(os.path.join(parent, name))]  # noqa: PTH114, PTH118
        start = Path(parent).relative_to(folder).as_posix()
        for name in files:
            if name.startswith("."):
                continue
            ending = name.rpartition(".")[2].lower()
            if ending in ENDINGS and "." in name:
                names.append(name if start == "." else f"{start}/{name}")
            else:
                others[ending if "." in name else "no ending"] += 1
    if others:
        kinds = ", ".join(f"{number} {ending}" for ending, number in others.most_common(5))
        logger.info("images: '%s': %d files that are no images are left out: %s", folder, others.total(), kinds)
    if links:
        logger.warning("images: '%s': %d links to folders are not followed, first %r", folder, len(links), links[0])
    if not names:
        shards = f" Give its shards as '{folder}/*.tar'." if "tar" in others else ""
        raise DataError(f"images: '{folder}' holds no image that ends in {', '.join(ENDINGS)}.{shards}")
    return sorted(names)
