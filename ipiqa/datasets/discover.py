"""A first config for a table of one's own, from what its columns hold and where its images are."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipiqa.datasets.databases.annotated import MEANINGS
from ipiqa.datasets.readers import READERS, find_column, read_rows
from ipiqa.datasets.table import PARTS, ratings_in
from ipiqa.errors import DataError
from ipiqa.processors.image import ENDINGS

MOST_ROWS = 100_000  # that are looked at
DOTTED = tuple(f".{ending}" for ending in ENDINGS)
PROMPTS = ("prompt", "text_prompt", "text", "caption", "prompts")
SCORE = re.compile(r"mos|score|rating|quality|align|appeal|aesthet|realis|authentic|correspond", re.IGNORECASE)
STD = re.compile(r"(?<![a-z])(std|sd|stdev|stddev|sigma)(?![a-z])|standard.deviation", re.IGNORECASE)
NO_SCORE = re.compile(
    r"(unnamed.*|(.*_)?id|index|idx|no|n|width|height|size|seed|steps?|cfg|fold|.*count|raters?)?", re.IGNORECASE
)
SCALES = ((0, 1), (1, 5), (0, 5), (1, 7), (1, 10), (0, 10), (0, 100))


@dataclass(frozen=True)
class Score:
    """A column of scores, and what its numbers look like."""

    column: str
    name: str  # of the target
    meaning: str  # of a usual name
    values: tuple[float, ...]  # those that are there
    num_missing: int
    scale: tuple[int, int] | None  # the narrowest usual one that holds all values
    std: str | None


@dataclass(frozen=True)
class Found:
    """What a table and its surroundings look like."""

    table: Path
    num_rows: int
    is_whole: bool  # whether all rows were looked at
    images: Path
    num_images: int  # that are there, of those looked for
    image: str  # column or pattern
    prompt: str
    num_prompts: int
    scores: tuple[Score, ...]
    segments: dict[str, int]  # column -> different texts
    part: str | None  # column


def discover(path: Path) -> Found:
    """Returns what a table, or the tables in a folder, look like; DataError where none can be trained on."""
    if not path.exists():
        raise DataError(f"data init: '{path}' does not exist. Give a table, or a folder that has one.")
    if not path.is_dir():
        return _look_at(path)
    problems, found = [], []
    for table in sorted(p for p in path.iterdir() if p.suffix.lower() in READERS and p.is_file()):
        try:
            found.append(_look_at(table))
        except DataError as error:
            problems.append(str(error))
    if not found:
        seen = f"the first says {problems[0]}" if problems else f"Tables end in {', '.join(READERS)}."
        raise DataError(f"'{path}': none of its {len(problems)} tables can be trained on: {seen}")
    return max(found, key=lambda one: (one.num_images, one.num_rows))


def _look_at(path: Path) -> Found:
    rows = read_rows(path, "data init", limit=MOST_ROWS + 1)
    heading, num_rows = [*rows.columns], len(rows)
    columns = dict(zip(heading, rows[:MOST_ROWS].to_numpy().T.tolist(), strict=True))
    here = f"data init: '{path}'"
    prompt = heading[find_column(heading, PROMPTS, here)]
    images, image, count = _images(path, {name: cells for name, cells in columns.items() if name != prompt}, here)
    others = {n: cells for n, cells in columns.items() if n not in (image, prompt) and not NO_SCORE.fullmatch(n)}
    numbers = {name: found for name, cells in others.items() if (found := _numbers(cells)) is not None}
    std = [name for name in numbers if STD.search(name)]
    likely = [name for name, found in numbers.items() if name not in std and _is_no_counter(found)]
    named = [name for name in likely if SCORE.search(name)] or likely
    if not named:
        raise DataError(f"{here} has no column of scores. Its columns are: {', '.join(heading)}.")
    stems, scores = [_stem(name) for name in named], []
    for column, stem in zip(named, stems, strict=True):
        name, values = stem if stems.count(stem) == 1 else column, tuple(numbers[column])
        missing = len(others[column]) - len(values)
        scale = next(((low, high) for low, high in SCALES if low <= min(values) and max(values) <= high), None)
        spread = next((one for one in std if _stem(STD.sub("", one)) == stem), None)
        scores.append(Score(column, name, MEANINGS.get(name, ""), values, missing, scale, spread))
    parts = [n for n, cells in others.items() if any(cells) and all(c.strip().casefold() in PARTS for c in cells)]
    different = {name: len({*cells}) for name, cells in others.items() if name not in (*numbers, *parts)}
    segments = {name: count for name, count in different.items() if 2 <= count <= min(100, num_rows // 3)}
    return Found(
        path, min(num_rows, MOST_ROWS), num_rows <= MOST_ROWS, images, count, image, prompt,
        len(set(columns[prompt])), tuple(scores), segments, parts[0] if parts else None,
    )  # fmt: skip


def _images(path: Path, columns: dict[str, list[str]], here: str) -> tuple[Path, str, int]:
    """Returns the folder of the images, the column (or pattern) of their names, and how many of a sample are there."""
    folders = [path.parent, *(folder for folder in sorted(path.parent.iterdir()) if folder.is_dir())]
    bare = [name for name in columns if not SCORE.search(name)]  # names of files that lack their ending
    for names, endings in ((list(columns), ("",)), (bare, DOTTED)):
        best: tuple[int, Path, str] = (0, path.parent, "")
        for name, folder, ending in itertools.product(names, folders, endings):
            cells = columns[name]
            if any(os.path.isfile(folder / (cell + ending)) for cell in cells[:20]):  # noqa: PTH113 (it may be too long)
                count = sum(os.path.isfile(folder / (cell + ending)) for cell in cells[:1000])  # noqa: PTH113
                if all(map(os.path.isabs, cells)):
                    folder = Path(os.path.commonpath(map(os.path.dirname, cells)))
                best = max(best, (count, folder, f"{{{name}}}{ending}" if ending else name), key=lambda one: one[0])
        if best[0]:
            return best[1], best[2], best[0]
    named = [name for name, cells in columns.items() if all(cell.lower().endswith(DOTTED) for cell in cells)]
    if not named:
        raise DataError(f"{here}: no column names image files beside it. Its columns are: {', '.join(columns)}.")
    return path.parent / "images", named[0], 0


def _numbers(cells: Iterable[str]) -> list[float] | None:
    """Returns the numbers in a column, or in its lists of ratings; None where it holds other text or nothing."""
    numbers = [sum(ratings) / len(ratings) for ratings in map(ratings_in, cells) if ratings]
    return numbers if numbers and all(map(math.isfinite, numbers)) else None


def _is_no_counter(numbers: Sequence[float]) -> bool:
    return len(numbers) < 3 or any(b - a != 1 for a, b in itertools.pairwise(numbers))


def _stem(column: str) -> str:
    stem = re.sub(r"(?i)(?<![a-z])(mos|scores?|ratings?|mean|total)(?![a-z])", "", column.replace("_", " "))
    return "_".join(re.findall(r"\w+", stem.lower())) or "quality"
