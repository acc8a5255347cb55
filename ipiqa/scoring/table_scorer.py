"""A table of somebody's scores as a scorer: images are looked up by their paths."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ipiqa.datasets.table import Target
from ipiqa.errors import DataError
from ipiqa.models.bundle import Training
from ipiqa.scorers.table import ScoreTable
from ipiqa.scoring.images import OneImage
from ipiqa.scoring.scorer import Scorer


class TableScorer(Scorer):
    """Gives the scores of a table as they are; no image file need be there."""

    needs_prompt, image_size, trained_on = False, 0, Training()

    def __init__(self, table: ScoreTable) -> None:
        self.table, self.targets = table, tuple(Target(column) for column in table.columns)

    def prepare(self, image: OneImage) -> str:
        if not isinstance(image, (str, Path)):
            raise DataError(f"images: {type(image).__name__} is not in '{self.table.path}'. Give paths.")
        return Path(image).as_posix()

    def outputs(self, prepared: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
        return self.table.of(prepared, prompts)[None].astype(np.float32)
