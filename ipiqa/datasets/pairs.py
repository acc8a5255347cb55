"""Images and the prompts they were made from, without scores: what Image2Prompt pre-training learns from.

Both datasets give an `AnnotationTable` without targets whose groups are its prompts, so that splits, loaders, checks
and the image cache serve them as they are, and no held-out prompt is ever trained on.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ipiqa.datasets.image_folder import ImageFolder
from ipiqa.datasets.readers import read_rows
from ipiqa.datasets.table import AnnotationTable, Layout, make_table
from ipiqa.errors import ConfigError, DataError, shorten
from ipiqa.registry import FilePath, register

logger = logging.getLogger(__name__)

DIFFUSIONDB_URL = "https://huggingface.co/datasets/poloclub/diffusiondb"


@register("dataset", "pairs")
@dataclass(frozen=True, kw_only=True)
class TablePairs(ImageFolder):
    """A table of image file names and prompts: csv, tsv, xlsx, json lines or parquet.

    Attributes:
        annotations: table file.
        image: column of image file names, relative to `images`.
        prompt: column of prompts.
    """

    has_scores: ClassVar[bool] = False

    annotations: FilePath
    image: str = "image"
    prompt: str = "prompt"

    def load(self) -> AnnotationTable:
        path, layout = Path(self.annotations), Layout(image=[self.image], prompt=[self.prompt], targets={})
        rows = read_rows(path, "dataset.annotations", layout.columns, self.hint)
        here, images = f"dataset.annotations: '{path}'", Path(self.images)
        return make_table(rows, layout, here=here, image_dir=images, duplicates="mean")


@register("dataset", "diffusiondb")
@dataclass(frozen=True, kw_only=True)
class DiffusionDB(ImageFolder):
    """DiffusionDB (arXiv:2210.14896) as it is published: `images` holds part-000001, part-000002 and so on.

    Each part is a folder of pictures and a json file of the folder's name, which has every picture's prompt under "p".

    Attributes:
        parts: number of parts to take, the first in order; null for all.
    """

    has_scores: ClassVar[bool] = False

    parts: int | None = None

    @property
    def hint(self) -> str:
        return f"Get DiffusionDB from {DIFFUSIONDB_URL} and unpack its parts."

    def load(self) -> AnnotationTable:
        import pandas

        root = Path(self.images)
        names: list[str] = []
        prompts: list[str] = []
        empty: list[str] = []
        here = f"dataset.images: '{root}'"
        try:
            parts = self._chosen_parts(root)
        except OSError as error:
            raise DataError(f"{here} cannot be read: {error.strerror}.") from error
        for part in parts:
            for file, prompt in _read_part(part / f"{part.name}.json").items():
                name = f"{part.name}/{file}"
                if prompt.strip():
                    names.append(name)
                    prompts.append(prompt)
                else:
                    empty.append(name)
        if empty:
            total = len(empty) + len(names)
            logger.warning("%s: %d of %d images left out, empty prompt, first %r", here, len(empty), total, empty[0])
        if not names:
            raise DataError(f"{here} names no image with a prompt. {self.hint}")
        layout = Layout(image=["image"], prompt=["prompt"], targets={})
        places = pandas.Index(names, name="file", dtype=object)
        rows = pandas.DataFrame({"image": names, "prompt": prompts}, places, dtype=object)
        return make_table(rows, layout, here=here, image_dir=root, duplicates="mean")

    def _chosen_parts(self, root: Path) -> list[Path]:
        if self.parts is not None and self.parts < 1:
            raise ConfigError(f"dataset.parts: {self.parts} is less than 1. Give a number of parts, or null for all.")
        if not root.is_dir():
            raise DataError(f"dataset.images: the folder '{root}' does not exist. {self.hint}")
        found = [path for path in root.iterdir() if re.fullmatch("part-[0-9]+", path.name) and path.is_dir()]
        parts = sorted(found, key=lambda path: int(path.name.removeprefix("part-")))
        if not parts:
            packed = len(list(root.glob("part-*.zip")))
            zips = f", but {packed} zip files of parts" if packed else ""
            raise DataError(f"dataset.images: '{root}' holds no folder such as 'part-000001'{zips}. {self.hint}")
        if self.parts is not None and self.parts > len(parts):
            raise DataError(f"dataset.parts: {self.parts} wanted, '{root}' holds {len(parts)}. {self.hint}")
        chosen = parts[: self.parts]
        bare = [f"'{part.name}'" for part in chosen if not (part / f"{part.name}.json").is_file()]
        if bare:
            raise DataError(
                f"dataset.images: {len(bare)} of {len(chosen)} parts under '{root}' have no json file of their name, "
                f"first {bare[0]}. {self.hint}"
            )
        return chosen


def _read_part(path: Path) -> dict[str, str]:
    """Returns image file name -> prompt of one part.

    Raises:
        DataError: the file cannot be read or has another form.
    """
    here = f"dataset.images: '{path}'"
    form = 'Its form is {"<file>.png": {"p": "<prompt>", ...}, ...}.'
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{here} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise DataError(f"{here} is not JSON ({error}). {form}") from error
    if not isinstance(content, dict):
        raise DataError(f"{here} holds a {type(content).__name__}. {form}")
    prompts: dict[str, Any] = {
        file: entry.get("p") if isinstance(entry, dict) else None for file, entry in content.items()
    }
    bare = [file for file, prompt in prompts.items() if not isinstance(prompt, str)]
    if bare:
        first = shorten(bare[0])
        raise DataError(f"{here}: {len(bare)} of {len(prompts)} images have no prompt 'p', first {first}. {form}")
    return prompts
