"""What every dataset can do, whether its rows are known in advance (a table) or streamed (tar shards)."""

from __future__ import annotations

from typing import Protocol

from ipiqa.datasets.checks import Findings, ImageReader
from ipiqa.datasets.table import AnnotationTable


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
