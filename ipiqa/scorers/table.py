"""A table of scores that any other tool gave: it scores the images it has rows for."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas

from ipiqa.datasets.readers import IMAGE_COLUMNS, PROMPT_COLUMNS, find_column, read_rows
from ipiqa.errors import DataError, did_you_mean, shorten
from ipiqa.prompts import clean
from ipiqa.registry import FilePath, register


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores (R, K), in whatever unit and direction, nan where there is none: K columns of a file with R rows."""

    path: Path
    names: tuple[str, ...]
    prompts: tuple[str, ...]  # "" where there are none
    columns: tuple[str, ...]
    scores: np.ndarray

    @functools.cached_property
    def _by_file(self) -> dict[str, list[tuple[tuple[str, ...], int]]]:
        """The parts of the path and the row of every name, by its last part."""
        rows: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for row, name in enumerate(self.names):
            parts = PurePosixPath(name.replace("\\", "/")).parts or ("",)
            rows.setdefault(parts[-1], []).append((parts, row))
        return rows

    def find(self, images: Sequence[str]) -> list[int]:
        """Returns the row of each image, -1 where there is none or it is not clear which.

        An image and a row belong together where one's path ends with the other's, in whole parts: dalle/p01.png is the
        image of a row p01.png or /data/dalle/p01.png, not of sd/p01.png. The row that shares most counts.
        """

        def row_of(image: tuple[str, ...]) -> int:
            shared = [(min(len(n), len(image)), n == image, r) for n, r in self._by_file.get(image[-1], ())
                      if n[-len(image) :] == image[-len(n) :]]  # fmt: skip
            best = [row for *rank, row in shared if rank == [*max(shared)[:2]]]
            return best[0] if len(best) == 1 else -1

        return [row_of(PurePosixPath(image).parts or ("",)) for image in images]

    def of(self, images: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
        """Returns the scores (N, K) of images by their paths; prompts must be those of the table, where both have any.

        DataError where an image has no row, or a row stands for several images, has another prompt or lacks a score.
        """
        found = self.find(images)
        users = Counter(row for row, _ in set(zip(found, images, strict=True)))
        asked = list(zip(prompts, (self.prompts[row] for row in found), strict=True))
        problems = {
            "has no row of its own": [row < 0 for row in found],
            "has a row that stands for several": [users[row] > 1 for row in found],
            "has another prompt there": [bool(a and b) and clean(a) != clean(b) for a, b in asked],
            "lacks a finite score": np.isnan(self.scores[found]).any(axis=1).tolist(),
        }
        for problem, bad in problems.items():
            if any(bad):
                shown = f"{sum(bad)} of {len(bad)} images, the first of them {shorten(images[bad.index(True)])}"
                remedy = "Give every image a row, its path relative to the image folder, and a number."
                raise DataError(f"scores: '{self.path}': {shown}, {problem}. {remedy}")
        return self.scores[found]


@register("scorer", "table")
def read_scores(*, scores: FilePath, column: str | None = None) -> ScoreTable:
    """Returns the scores in a table file.

    Args:
        scores: csv, tsv, xlsx, json, jsonl or parquet with a column of image paths, and perhaps one of prompts.
        column: the column of scores; null for all that hold nothing but numbers.
    """
    path = Path(scores)
    rows = read_rows(path, "scores")
    heading, cells = [*rows.columns], [tuple(column) for column in rows.to_numpy().T]
    image = find_column(heading, IMAGE_COLUMNS, f"scores: '{path}'")
    prompt = next((i for i, name in enumerate(heading) if name.strip().lower() in PROMPT_COLUMNS), None)
    scored = {name: cells[i] for i, name in enumerate(heading) if name.strip() and i not in (image, prompt)}
    numbers = {name: pandas.to_numeric(pandas.Series(texts), errors="coerce") for name, texts in scored.items()}
    held = {name: n.where(np.isfinite(n)) for name, n in numbers.items() if column in (None, name) and n.notna().any()}
    if not held:
        near = f"{did_you_mean(column or '', numbers)} It has: {', '.join(numbers)}"
        raise DataError(f"scores: '{path}' has no column of numbers {column or ''}.{near}.")
    prompts = ("",) * len(cells[0]) if prompt is None else cells[prompt]
    return ScoreTable(path, cells[image], prompts, tuple(held), np.stack([*held.values()], axis=1))
