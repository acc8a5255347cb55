"""A table file of scores and a folder of images: what annotated databases share, and a table of one's own."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas

from ipiqa.datasets.image_folder import ImageFolder
from ipiqa.datasets.readers import check_pattern
from ipiqa.datasets.table import AnnotationTable, DuplicateRule, Layout, Target, make_table
from ipiqa.errors import ConfigError
from ipiqa.registry import FilePath, check_settings, register

# What the usual names of targets stand for
MEANINGS = {"quality": "perceptual quality: how good the image looks"}
MEANINGS |= dict.fromkeys(
    ("align", "alignment", "correspondence"), "text-image alignment: how well the image shows what the prompt asks for"
)
MEANINGS |= dict.fromkeys(("authenticity", "realism"), "authenticity: how real the image looks")
TAKEN = ("image", "prompt", "group")  # columns of predictions.csv


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of a published database besides its files."""

    name: str
    num_rows: Sequence[int]  # of the whole table; several where it was published in several sizes
    source: str  # where its files are
    licence: str
    raters: str  # how many people rated an image, and how that is known
    sha256: Mapping[str, str] = field(default_factory=dict)  # of a table file, by its name, where it is known

    def compare(self, table: AnnotationTable) -> str:
        """Returns in words whether a table has the rows that were published."""
        counts = " or ".join(f"{count:,}" for count in self.num_rows) or "a number not known to us of"
        missing = "" if len(table) in (self.num_rows or [len(table)]) else f", this table has {len(table):,}"
        return f"{self.name} has {counts} rows{missing}"


@dataclass(frozen=True, kw_only=True)
class AnnotatedImages(ImageFolder):
    """A table file of scores and a folder of images.

    Attributes:
        annotations: table file.
        duplicates: what to do with an image that stands in several rows; see `table.make_table`.
        scale_to: where given, scores are stretched from their scale to 0 to this; what a head starts from is near 0.
    """

    about: ClassVar[About | None] = None
    beside: ClassVar[tuple[str, ...]] = ()  # further table files, relative to the folder of `annotations`

    annotations: FilePath
    duplicates: DuplicateRule = "auto"
    scale_to: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_to is not None and not 0 < self.scale_to < math.inf:
            raise ConfigError(f"dataset.scale_to: {self.scale_to:g} is no end of a scale. Give one such as 5, or null.")

    @abstractmethod
    def layout(self) -> Layout:
        """Returns which columns to read and how rows are grouped."""

    def read(self) -> pandas.DataFrame:
        """Returns the rows of the table file, columns of text as `layout` names them."""
        return self.layout().read(Path(self.annotations), self.hint)

    @property
    def hint(self) -> str:
        if self.about is None:
            return "Check the path."
        return f"Get {self.about.name} from {self.about.source}; cache/README.md shows where its files belong."

    @property
    def num_targets(self) -> int:
        return len(self.layout().targets)

    def load(self) -> AnnotationTable:
        here, layout = f"dataset.annotations: '{self.annotations}'", replace(self.layout(), scale_to=self.scale_to)
        return make_table(self.read(), layout, here=here, image_dir=Path(self.images), duplicates=self.duplicates)

    def summary(self, table: AnnotationTable) -> list[str]:
        about = self.about
        known = [] if about is None else [f"  {about.compare(table)}", f"  licence: {about.licence}"]
        return super().summary(table) + known


@dataclass(frozen=True, kw_only=True)
class ScoreColumn:
    """What is said of one target.

    Attributes:
        column: column of its scores, or of lists of ratings such as "[4, 3, 5]"; null: the one of its name.
        std: column of the standard deviation of the ratings of an image.
        low: a lower score cannot be right; null: `mos_min`.
        high: a higher score cannot be right; null: `mos_max`.
        meaning: what a high score means, in words, for whoever reads the model.
    """

    column: str | None = None
    std: str | None = None
    low: float | None = None
    high: float | None = None
    meaning: str = ""


@register("dataset", "table")
@dataclass(frozen=True, kw_only=True)
class OwnTable(AnnotatedImages):
    """Images and a table of one's own: csv, tsv, xlsx, json, json lines or parquet.

    What is called a column is the name of one, or a pattern such as "{model}/{index}.jpeg": see `readers.PATTERN`.

    Attributes:
        targets: score columns, or name -> settings of `ScoreColumn`.
        image: column of image file names, relative to `images` or full paths below it.
        prompt: column of prompts.
        group: column of what a split may not cut, such as a scene; null groups by prompt.
        segments: columns that reports tell images apart by, or name -> column.
        split_column: column that says train, val or test, for split.kind official.
        missing_scores: an empty score is an error, or masked: it then counts in no loss and no metric.
        raters: how many people rated each image, where `std` columns are given; null where it is not known.
        mos_min: no score below it is right; null for no limit.
        mos_max: no score above it is right; null for no limit.
    """

    targets: list[str] | dict[str, dict[str, Any]]
    image: str = "image"
    prompt: str = "prompt"
    group: str | None = None
    segments: list[str] | dict[str, str] | None = None
    split_column: str | None = None
    missing_scores: Literal["error", "mask"] = "error"
    raters: float | None = None
    mos_min: float | None = None
    mos_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        layout = self.layout()
        if not layout.targets or len(layout.targets) < len(self.targets):
            raise ConfigError(f"dataset.targets: {self.targets} is empty or names a target twice. Name each once.")
        for target in layout.targets:
            limits = [limit for limit in (target.low, target.high) if limit is not None]
            if not all(map(math.isfinite, limits)) or limits != sorted(set(limits)):
                scale = f"{target.low} to dataset.mos_max {target.high} is no scale of {target.name!r}"
                raise ConfigError(f"dataset.mos_min: {scale}. Give finite numbers, the lower first, or null.")
        if self.raters is not None and not 1 <= self.raters < math.inf:
            raise ConfigError(
                f"dataset.raters: {self.raters:g} is out of range. Give how many rated an image, or null."
            )
        columns = {"image": self.image, "prompt": self.prompt, "group": self.group or "", **self._segments()}
        for name, column in columns.items():
            check_pattern(column, f"dataset.{name}" if name in TAKEN else f"dataset.segments.{name}")
        if taken := [name for name in self._segments() if name in TAKEN]:
            raise ConfigError(f"dataset.segments: {taken[0]!r} means something else. Write another name: column.")

    def layout(self) -> Layout:
        given = self.targets if isinstance(self.targets, dict) else {name: {} for name in self.targets}
        columns: dict[Target, list[str]] = {}
        std: dict[str, list[str]] = {}
        for name, section in given.items():
            one = ScoreColumn(**check_settings(ScoreColumn, section, f"dataset.targets.{name}"))
            low, high = (self.mos_min if one.low is None else one.low), (self.mos_max if one.high is None else one.high)
            columns[Target(name, low, high, one.meaning)] = [one.column or name]
            std |= {name: [one.std]} if one.std else {}
        return Layout(
            image=self.image, prompt=self.prompt, targets=columns, group=self.group, std=std, num_raters=self.raters,
            segments=self._segments(), official=self.split_column, missing=self.missing_scores == "mask",
        )  # fmt: skip

    def _segments(self) -> dict[str, str]:
        given = self.segments or {}
        return given if isinstance(given, dict) else {name: name for name in given}
