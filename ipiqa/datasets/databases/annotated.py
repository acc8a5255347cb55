"""What the definitions of annotated databases share: a table file of scores and a folder of images."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ipiqa.datasets.image_folder import ImageFolder
from ipiqa.datasets.table import AnnotationTable, DuplicateRule, Layout, make_table
from ipiqa.errors import ConfigError
from ipiqa.registry import FilePath

if TYPE_CHECKING:
    import pandas

# What the usual names of targets stand for
MEANINGS = {"quality": "perceptual quality: how good the image looks"}
MEANINGS |= dict.fromkeys(
    ("align", "alignment", "correspondence"), "text-image alignment: how well the image shows what the prompt asks for"
)
MEANINGS |= dict.fromkeys(("authenticity", "realism"), "authenticity: how real the image looks")


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
    made: ClassVar[tuple[str, ...]] = ()  # columns of the layout that `read` makes

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

    def read(self) -> "pandas.DataFrame":
        """Returns the rows of the table file, columns of text as `layout` names them."""
        return self.layout().read(Path(self.annotations), self.hint, self.made)

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
