"""The databases AGIQA-1k and AGIQA-3k, and tables of one's own, as registered datasets."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ipiqa.datasets.image_folder import ImageFolder
from ipiqa.datasets.readers import read_rows
from ipiqa.datasets.table import AnnotationTable, DuplicateRule, Layout, Target, make_table
from ipiqa.errors import ConfigError, DataError, did_you_mean
from ipiqa.registry import FilePath, register

AGIQA_1K_URL = "https://github.com/lcysyzxdxc/AGIQA-1k-Database"
AGIQA_3K_URL = "https://github.com/lcysyzxdxc/AGIQA-3k-Database"
QUALITY = Target("quality", 0.0, 5.0, "perceptual quality: how good the image looks")
ALIGNMENT = Target("alignment", 0.0, 5.0, "text-image alignment: how well the image shows what the prompt asks for")


@dataclass(frozen=True, kw_only=True)
class AnnotatedImages(ImageFolder):
    """A table file of scores and a folder of images.

    Attributes:
        annotations: table file.
        duplicates: what to do with an image that stands in several rows; see `table.make_table`.
    """

    annotations: FilePath
    duplicates: DuplicateRule = "auto"

    @abstractmethod
    def layout(self) -> Layout:
        """Returns which columns to read and how rows are grouped."""

    @property
    def num_targets(self) -> int:
        return len(self.layout().targets)

    def load(self) -> AnnotationTable:
        path, layout = Path(self.annotations), self.layout()
        rows = read_rows(path, "dataset.annotations", layout.columns, self.hint)
        here, images = f"dataset.annotations: '{path}'", Path(self.images)
        return make_table(rows, layout, here=here, image_dir=images, duplicates=self.duplicates)


@register("dataset", "agiqa_1k")
@dataclass(frozen=True, kw_only=True)
class Agiqa1k(AnnotatedImages):
    """AGIQA-1k: 1,080 images by two generators, one MOS (arXiv:2303.12618); `AIGC_MOS_Zscore.xlsx`."""

    @property
    def hint(self) -> str:
        return f"Get AGIQA-1k from {AGIQA_1K_URL}; cache/README.md shows where its files belong."

    def layout(self) -> Layout:
        return Layout(
            image=["Image", "name"],
            prompt=["Prompt"],
            targets={QUALITY: ["MOS", "mos_quality"]},
            group=agiqa_1k_group,
            mos_range=(0.0, 5.0),
            # reference: the published table ends with two rows of this name and different scores; both are trained on
            known_duplicates=frozenset({"dreamStudio_8_9_1_1.jpg"}),
            reference_draw="bernoulli",
        )


@register("dataset", "agiqa_3k")
@dataclass(frozen=True, kw_only=True)
class Agiqa3k(AnnotatedImages):
    """AGIQA-3k: 2,982 images of 300 prompts, quality and alignment MOS (arXiv:2306.04717).

    Read from `data.csv`, as published, or from a `mos_joint.xlsx` with the same columns.

    Attributes:
        targets: which of quality and alignment to predict; null for both.
    """

    targets: list[str] | None = None

    @property
    def hint(self) -> str:
        return f"Get AGIQA-3k from {AGIQA_3K_URL}; cache/README.md shows where its files belong."

    def layout(self) -> Layout:
        columns = {QUALITY: ["mos_quality", "quality"], ALIGNMENT: ["mos_align", "mos_alignment", "alignment"]}
        known = {target.name: target for target in columns}
        chosen = list(known) if self.targets is None else self.targets
        _check_targets(chosen, list(known))
        return Layout(
            image=["name", "Image"],
            prompt=["prompt"],
            targets={known[name]: columns[known[name]] for name in chosen},
            group=agiqa_3k_group,
            mos_range=(0.0, 5.0),
            reference_draw="permutation",
        )


@register("dataset", "table")
@dataclass(frozen=True, kw_only=True)
class OwnTable(AnnotatedImages):
    """Anyone's table: columns by name.

    Attributes:
        targets: score columns; each becomes a target of that name.
        image: column of image file names, relative to `images`.
        prompt: column of prompts.
        group: column of what a split may not cut; null groups by prompt, as the model reads it.
        mos_min: lowest score that can be right; null for no limit.
        mos_max: highest score that can be right; null for no limit.
    """

    targets: list[str]
    image: str = "image"
    prompt: str = "prompt"
    group: str | None = None
    mos_min: float | None = None
    mos_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_targets(self.targets, self.targets)
        for setting, limit in (("mos_min", self.mos_min), ("mos_max", self.mos_max)):
            if limit is not None and not math.isfinite(limit):
                raise ConfigError(f"dataset.{setting}: {limit:g} is not finite. Give a score, or null for no limit.")
        if self.mos_min is not None and self.mos_max is not None and self.mos_min >= self.mos_max:
            raise ConfigError(f"dataset.mos_min: {self.mos_min:g} is not below dataset.mos_max, {self.mos_max:g}.")

    def layout(self) -> Layout:
        lowest = -math.inf if self.mos_min is None else self.mos_min
        highest = math.inf if self.mos_max is None else self.mos_max
        return Layout(
            image=[self.image],
            prompt=[self.prompt],
            targets={Target(name, self.mos_min, self.mos_max): [name] for name in self.targets},
            group=self.group,
            mos_range=(lowest, highest),
        )


def _check_targets(chosen: list[str], known: list[str]) -> None:
    if not chosen:
        raise ConfigError(f"dataset.targets: empty. Name at least one{' of ' + ', '.join(known) if known else ''}.")
    for target in chosen:
        if target not in known:
            near = did_you_mean(target, known)
            raise ConfigError(f"dataset.targets: no target is called {target!r}.{near} There are: {', '.join(known)}.")
        if chosen.count(target) > 1:
            raise ConfigError(f"dataset.targets: {target!r} is named twice. Name each target once.")


def agiqa_3k_group(name: str) -> str:
    """Returns the prompt id: the last number field of the file name. The generator may hold a dot.

    >>> agiqa_3k_group("sd1.5_highcorr_012.jpg")
    '012'

    Raises:
        DataError: the name does not end so.
    """
    field = PurePosixPath(name).stem.rpartition("_")[2]
    if not re.fullmatch("[0-9]+", field):
        form = "'<generator>_<variant>_<prompt id>.jpg'"
        raise DataError(f"dataset.annotations: {name!r} has no prompt id. AGIQA-3k names have the form {form}.")
    return field


def agiqa_1k_group(name: str) -> str:
    """Returns the content code, the same for both generators: subject and action, e.g. "bird" and "having pizza".

    # reference: dreamStudio numbers its subjects without number 6 and its actions from 5 on; this undoes it.

    >>> agiqa_1k_group("deepai_9_14_1_1.jpg"), agiqa_1k_group("dreamStudio_8_9_1_1.jpg")
    ('9_14', '9_14')

    Raises:
        DataError: the name has no two number fields after the generator.
    """
    match = re.match(r"[^_]*_([0-9]+)_([0-9]+)_", PurePosixPath(name).name)
    if not match:
        form = "'<generator>_<subject>_<action>_<place>_<style>.jpg'"
        raise DataError(f"dataset.annotations: {name!r} has no content code. AGIQA-1k names have the form {form}.")
    subject, action = int(match[1]), int(match[2])
    if name.startswith("dream"):
        subject, action = subject + (subject > 5), action + 5
    return f"{subject}_{action}"
