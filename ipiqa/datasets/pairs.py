"""Images and the prompts they were made from, without scores: what Image2Prompt pre-training learns from.

Both datasets give an `AnnotationTable` without targets whose groups are its prompts, so that splits, loaders, checks
and the image cache serve them as they are, and no held-out prompt is ever trained on.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ipiqa.datasets.image_folder import ImageFolder
from ipiqa.datasets.readers import read_json
from ipiqa.datasets.table import AnnotationTable, Layout, make_table
from ipiqa.errors import DataError, shorten
from ipiqa.registry import FilePath, register

logger = logging.getLogger(__name__)


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
        here, rows = f"dataset.annotations: '{path}'", layout.read(path, self.hint)
        return make_table(rows, layout, here=here, image_dir=Path(self.images), duplicates="mean")


@register("dataset", "diffusiondb")
@dataclass(frozen=True, kw_only=True)
class DiffusionDB(ImageFolder):
    """DiffusionDB (arXiv:2210.14896) as it is published: `images` holds part-000001, part-000002 and so on.

    Each part is a folder of pictures and a json file of the folder's name, which has every picture's prompt under "p".

    Attributes:
        parts: number of parts to take, the first in order; null for all.
    """

    has_scores: ClassVar[bool] = False
    hint: ClassVar[str] = "Get DiffusionDB from https://huggingface.co/datasets/poloclub/diffusiondb, parts unpacked."

    parts: int | None = None

    def load(self) -> AnnotationTable:
        import pandas

        root = Path(self.images)
        here, wanted = f"dataset.images: '{root}'", 1 if self.parts is None else self.parts
        folders = [path for path in root.glob("part-[0-9]*") if path.is_dir()]
        if not 1 <= wanted <= len(folders):
            held = f"{here} holds {len(folders)} folders such as 'part-000001'"
            raise DataError(f"{held}, dataset.parts wants {wanted} (at least 1). {self.hint}")
        parts = sorted(folders, key=lambda path: (len(path.name), path.name))[: self.parts]
        prompts = {name: prompt for part in parts for name, prompt in _read_part(part).items()}
        if empty := [name for name, prompt in prompts.items() if not prompt.strip()]:
            message = "%s: %d of %d images left out, empty prompt, first %r"
            logger.warning(message, here, len(empty), len(prompts), empty[0])
        pairs = [(name, prompt) for name, prompt in prompts.items() if prompt.strip()]
        if not pairs:
            raise DataError(f"{here} names no image with a prompt. {self.hint}")
        index = pandas.Index([name for name, _ in pairs], name="file", dtype=object)
        rows = pandas.DataFrame(pairs, index, ["image", "prompt"], dtype=object)
        layout = Layout(image=["image"], prompt=["prompt"], targets={})
        return make_table(rows, layout, here=here, image_dir=root, duplicates="mean")


def _read_part(folder: Path) -> dict[str, str]:
    """Returns "<part>/<file>" -> prompt of one part; raises DataError where its file is of another form."""
    path = folder / f"{folder.name}.json"
    here, form = f"dataset.images: '{path}'", 'Its form is {"<file>.png": {"p": "<prompt>", ...}, ...}.'
    entries = read_json(path, "dataset.images", form)
    if not isinstance(entries, dict):
        raise DataError(f"{here} holds no object. {form}")
    if bare := [file for file, e in entries.items() if not isinstance(e, dict) or not isinstance(e.get("p"), str)]:
        share = f"{len(bare)} of {len(entries)} images have no prompt 'p', first {shorten(bare[0])}"
        raise DataError(f"{here}: {share}. {form}")
    return {f"{folder.name}/{file}": entry["p"] for file, entry in entries.items()}
