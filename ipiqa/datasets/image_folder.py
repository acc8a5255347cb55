"""A folder of images: what all datasets share which have one, and those of images and prompts without scores.

Those are what Image2Prompt pre-training learns from. They give an `AnnotationTable` without targets whose groups are
its prompts, so that splits, loaders, checks and the image cache serve them as they are.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas

from ipiqa.datasets.checks import Findings, image_hashes, look_at_images
from ipiqa.datasets.image_cache import ImageSource, open_images
from ipiqa.datasets.readers import read_json
from ipiqa.datasets.table import AnnotationTable, Layout, make_table
from ipiqa.errors import ConfigError, DataError, shorten
from ipiqa.processors.image import SquashProcessor
from ipiqa.prompts import describe
from ipiqa.registry import FilePath, register

logger = logging.getLogger(__name__)

ImageLook = Literal["decode", "headers", "none"]


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ABC):
    """Images in a folder, and what is known of them.

    Attributes:
        images: folder of the images.
        image_cache: whether to keep decoded images in a file, for all epochs, folds and runs.
        feature_cache: whether to keep what a frozen image tower gives for each image in a file, too.
        cache_dir: folder of those files, and of the hashes of the images, kept for the next run.
        cache_limit_gb: most that those files take together; what does not fit is computed each time.
    """

    has_scores: ClassVar[bool] = True
    streamed: ClassVar[Literal[False]] = False

    images: FilePath
    image_cache: bool = True
    feature_cache: bool = True
    cache_dir: FilePath = "cache/images"
    cache_limit_gb: float = 16.0

    def __post_init__(self) -> None:
        if not 0 <= self.cache_limit_gb < math.inf:
            raise ConfigError(f"dataset.cache_limit_gb: {self.cache_limit_gb:g} is not a size. Give one such as 16.")

    @abstractmethod
    def load(self) -> AnnotationTable:
        """Returns the table, images not touched; raises DataError: a file is missing, or something in it is wrong."""

    @property
    def hint(self) -> str:
        """Where the files come from, for messages."""
        return "Check the path."

    @property
    def num_targets(self) -> int:
        """Number of scores of an image; 0 where only prompts are known."""
        return 0

    def check_images(self, table: AnnotationTable, processor: SquashProcessor) -> None:
        """Raises DataError when an image is missing or, by its header, cannot be used."""
        if refusal := look_at_images(table, processor.verify, self.hint).refusal:
            raise DataError(refusal)

    def check(self, processor: SquashProcessor, images: ImageLook = "decode") -> Findings:
        """Decodes every image, reads their headers or no image at all, and says what the table holds."""
        table = self.load()
        look = processor.decode if images == "decode" else processor.verify
        findings = Findings() if images == "none" else look_at_images(table, look, self.hint)
        findings.summary = self.summary(table)
        findings.summary[0] += ": images not looked at" if images == "none" else ": all usable"
        return findings

    def summary(self, table: AnnotationTable) -> list[str]:
        """Returns what a table holds, in lines."""
        counts = f"{len(table)} rows, {table.num_images} images, {len(set(table.prompts))} prompts"
        lines = [f"{counts}, {len(set(table.groups))} groups", f"  {describe(table.prompts)}"]
        for target, scores in zip(table.target_names, table.scores.T, strict=True):
            known = scores[~np.isnan(scores)]
            spread = f"{known.min():.3f} to {known.max():.3f}, mean {known.mean():.3f}" if len(known) else "none"
            lack = f", {len(scores) - len(known)} missing" if len(known) < len(scores) else ""
            lines.append(f"  MOS {target}: {spread}{lack}")
        lines += [f"  {name}: {len(set(texts))} different" for name, texts in table.segments.items()]
        if table.official is not None:
            parts = ", ".join(f"{part} {count}" for part, count in Counter(table.official).items())
            lines.append(f"  split that comes with it: {parts}")
        return lines

    def image_hashes(self, table: AnnotationTable) -> tuple[str, ...]:
        """Returns the sha256 of each row's image file."""
        return image_hashes(table, Path(self.cache_dir) / "hashes")

    def open_images(self, table: AnnotationTable, hashes: Sequence[str], processor: SquashProcessor) -> ImageSource:
        """Returns the images of the table by row number, from the cache (built now if need be) or decoded each time."""
        limit_gb = self.cache_limit_gb if self.image_cache else 0.0
        return open_images(table, hashes, processor, cache_dir=Path(self.cache_dir), limit_gb=limit_gb)


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
