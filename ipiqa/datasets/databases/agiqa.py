"""The databases AGIQA-1k and AGIQA-3k, and tables of one's own, as registered datasets."""

import math
import re
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from ipiqa.datasets.image_folder import ImageFolder
from ipiqa.datasets.table import AnnotationTable, DuplicateRule, Layout, Target, read_table
from ipiqa.errors import ConfigError, DataError, did_you_mean
from ipiqa.registry import FilePath, register

_HINT = "Get {0} from https://github.com/lcysyzxdxc/{0}-Database; cache/README.md shows where its files belong."
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
        path, images = Path(self.annotations), Path(self.images)
        return read_table(path, self.layout(), image_dir=images, duplicates=self.duplicates, hint=self.hint)


@register("dataset", "agiqa_1k")
@dataclass(frozen=True, kw_only=True)
class Agiqa1k(AnnotatedImages):
    """AGIQA-1k: 1,080 images by two generators, one MOS (arXiv:2303.12618); `AIGC_MOS_Zscore.xlsx`."""

    hint: ClassVar[str] = _HINT.format("AGIQA-1k")

    def layout(self) -> Layout:
        return Layout(
            image=["Image", "name"], prompt=["Prompt"], targets={QUALITY: ["MOS", "mos_quality"]}, group=agiqa_1k_group,
            # reference: the published table ends with two rows of this name and different scores; both are trained on
            known_duplicates=frozenset({"dreamStudio_8_9_1_1.jpg"}), reference_draw="bernoulli",
        )  # fmt: skip


@register("dataset", "agiqa_3k")
@dataclass(frozen=True, kw_only=True)
class Agiqa3k(AnnotatedImages):
    """AGIQA-3k: 2,982 images of 300 prompts, quality and alignment MOS (arXiv:2306.04717).

    Read from `data.csv`, as published, or from a `mos_joint.xlsx` with the same columns.

    Attributes:
        targets: which of quality and alignment to predict; null for both.
    """

    hint: ClassVar[str] = _HINT.format("AGIQA-3k")

    targets: list[str] | None = None

    def layout(self) -> Layout:
        columns = {QUALITY: ["mos_quality", "quality"], ALIGNMENT: ["mos_align", "mos_alignment", "alignment"]}
        known = {target.name: target for target in columns}
        chosen = list(known) if self.targets is None else self.targets
        _check_targets(chosen, list(known))
        return Layout(
            image=["name", "Image"], prompt=["prompt"], targets={known[name]: columns[known[name]] for name in chosen},
            group=agiqa_3k_group, reference_draw="permutation",
        )  # fmt: skip


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
        limits = [limit for limit in (self.mos_min, self.mos_max) if limit is not None]
        if not all(map(math.isfinite, limits)) or limits != sorted(set(limits)):
            scale = f"{self.mos_min} to dataset.mos_max {self.mos_max}"
            raise ConfigError(f"dataset.mos_min: {scale} is no scale. Give finite numbers, the lower first, or null.")

    def layout(self) -> Layout:
        targets = {Target(name, self.mos_min, self.mos_max): [name] for name in self.targets}
        return Layout(image=[self.image], prompt=[self.prompt], targets=targets, group=self.group)


def _check_targets(chosen: list[str], known: list[str]) -> None:
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"dataset.targets: {chosen} is empty or names a target twice. Name each target once.")
    if unknown := [target for target in chosen if target not in known]:
        near = f"{did_you_mean(unknown[0], known)} There are: {', '.join(known)}."
        raise ConfigError(f"dataset.targets: no target is called {unknown[0]!r}.{near}")


def agiqa_3k_group(name: str) -> str:
    """Returns the prompt id, the last number field of a file name ("012" of "sd1.5_highcorr_012.jpg"), or DataError."""
    return _fields(r"(?s:.*_)?([0-9]+)(?:\.[^.]*)?", name, "'<generator>_<variant>_<prompt id>.jpg'")[0]


def agiqa_1k_group(name: str) -> str:
    """Returns the content code, subject and action ("bird", "having pizza") alike for both generators, or DataError.

    # reference: dreamStudio numbers its subjects without number 6 and its actions from 5 on; this undoes it.
    """
    fields = _fields("[^_]*_([0-9]+)_([0-9]+)_(?s:.*)", name, "'<generator>_<subject>_<action>_<place>_<style>.jpg'")
    subject, action = map(int, fields)
    if PurePosixPath(name).name.startswith("dream"):
        subject, action = subject + (subject > 5), action + 5
    return f"{subject}_{action}"


def _fields(pattern: str, name: str, form: str) -> tuple[str, ...]:
    """Returns the groups of a pattern in a file name; raises DataError where it is of another form."""
    match = re.fullmatch(pattern, PurePosixPath(name).name)
    if match is None:
        raise DataError(f"dataset.annotations: {name!r} tells no group. Names of the database have the form {form}.")
    return match.groups()
