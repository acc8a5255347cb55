"""What a user names to be scored -> rows: a picture, a folder, a table, shards or standard input, and its prompts."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ipiqa.datasets.readers import READERS
from ipiqa.errors import DataError
from ipiqa.processors.image import FORMATS
from ipiqa.registry import file_path
from ipiqa.scoring.completion import Completion
from ipiqa.scoring.rows import ListedRows, Row, Rows
from ipiqa.scoring.tables import open_table

logger = logging.getLogger("ipiqa")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The options of `ipiqa score` that say what its images and prompts are; None where not given.

    Attributes:
        prompt: one text for all images.
        prompts: file of prompts, or "sidecar" or "embedded".
        image_column: of a table, where it has none of the usual names.
        prompt_column: as that.
        image_root: folder that image names in a table or in standard input are relative to.
        prompt_member: of a sample in shards: an ending, or "json:p" for the key p of a JSON member.
        limit: how many images to take, the first.
    """

    prompt: str | None = None
    prompts: str | None = None
    image_column: str | None = None
    prompt_column: str | None = None
    image_root: str | None = None
    prompt_member: str | None = None
    limit: int | None = None


def open_rows(images: str, inputs: Inputs, *, needs_prompt: bool) -> Rows:
    """Returns the rows of a picture, a folder, a table, shards (`data/{000..999}.tar`) or standard input (`-`).

    Whatever is wrong with all of it is a ConfigError or DataError; what is wrong with one row, that row's problem.
    """
    path = Path(file_path(images, "images"))
    given = inputs.prompt is not None or inputs.prompts is not None
    complete = Completion(needs_prompt, text=inputs.prompt)
    if path.is_dir():
        names = image_names(path)
        root = path.absolute()
        return _rows([Row(name, root / name, None) for name in names], complete, inputs.limit)
    if path.suffix.lower() in READERS:
        table = open_table(
            path, inputs.image_column, inputs.prompt_column, inputs.image_root, needs_prompt and not given
        )
        num_rows = min(table.num_rows, inputs.limit or table.num_rows)
        return ListedRows(table.columns, num_rows, table.listing, complete, inputs.limit)
    return _rows([Row(images, path.absolute(), None)], complete, None)


def _rows(listed: list[Row], complete: Completion, limit: int | None) -> ListedRows:
    return ListedRows((), min(len(listed), limit or len(listed)), lambda: iter(listed), complete, limit)


def image_names(folder: Path) -> list[str]:
    """Returns the images in a folder and its subfolders by their relative POSIX paths, sorted.

    Hidden files and folders are left out, other files are counted in the log. DataError: there is no image.
    """
    Image.init()
    endings = {ending for ending, form in Image.registered_extensions().items() if form in FORMATS}
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
            ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 (of a million names)
            if ending in endings:
                names.append(name if start == "." else f"{start}/{name}")
            else:
                others[ending or "no ending"] += 1
    if others:
        kinds = ", ".join(f"{number} {ending}" for ending, number in others.most_common(5))
        logger.info("images: '%s': %d files that are no images are left out: %s", folder, others.total(), kinds)
    if links:
        logger.warning("images: '%s': %d links to folders are not followed, first %r", folder, len(links), links[0])
    if not names:
        shards = f" Give its shards as '{folder}/*.tar'." if ".tar" in others else ""
        raise DataError(f"images: '{folder}' holds no image that ends in {', '.join(sorted(endings))}.{shards}")
    return sorted(names)
