"""What every dataset can do, whether its rows are known in advance (a table) or streamed (tar shards)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from ipiqa.datasets.checks import ImageReader
from ipiqa.datasets.table import AnnotationTable


@dataclass
class Findings:
    """What a look at every image and prompt of a dataset has found.

    Attributes:
        problems: one line for each image or shard that cannot be used.
        refusal: why nothing can be trained on this dataset, "" where it can.
        summary: what the dataset holds, in lines.
    """

    problems: list[str] = field(default_factory=list)
    refusal: str = ""
    summary: list[str] = field(default_factory=list)


class Source(Protocol):
    """A dataset, as its settings describe it."""

    @property
    def has_scores(self) -> bool:
        """Whether its images have scores, and not only prompts."""

    @property
    def streamed(self) -> bool:
        """Whether it has batches only, and no table."""

    @property
    def num_targets(self) -> int:
        """Number of scores of an image."""

    def load(self) -> AnnotationTable:
        """Returns the table of rows; raises ConfigError where rows are streamed."""

    def check(self, processor: ImageReader) -> Findings:
        """Looks at every image and prompt; decodes every pixel."""
