"""Annotation tables: one row an image, its prompt and its mean opinion scores.

Whatever is wrong with the cells of a table is found here, before anything is trained.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ipiqa.datasets.readers import NOT_TEXT, read_rows
from ipiqa.errors import DataError, shorten
from ipiqa.prompts import same_prompts

if TYPE_CHECKING:
    import pandas

logger = logging.getLogger(__name__)

DuplicateRule = Literal["auto", "error", "keep", "mean"]
ReferenceDraw = Literal["permutation", "bernoulli"]

LONGEST_NAME = 1_000  # characters of an image file name
LONGEST_TEXT = 20_000  # characters of a prompt or group; CLIP reads some 300 of a prompt
# absolute, on a drive or with ".." in it, whether POSIX or Windows reads it
LEAVES_FOLDER = re.compile(r"[/\\]|.:|(.*[/\\])?\.\.([/\\]|\Z)", re.DOTALL)


def json_sha256(content: Any) -> str:
    """Returns the hash of what json can hold."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class Target:
    """What is scored: its name, the ends of its scale in units of the MOS (None where unknown), and what it means."""

    name: str
    low: float | None = None
    high: float | None = None
    meaning: str = ""


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """N annotated images and the T targets they were scored for.

    Attributes:
        names: image file names, relative to `image_dir`.
        scores: (N, T) float64 mean opinion scores.
        groups: rows that share one belong on the same side of a split.
        reference_draw: how split kind `reference` draws its groups; None where it is not defined.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    scores: np.ndarray
    targets: tuple[Target, ...]
    groups: tuple[str, ...]
    image_dir: Path
    reference_draw: ReferenceDraw | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def target_names(self) -> tuple[str, ...]:
        return tuple(target.name for target in self.targets)

    @property
    def num_images(self) -> int:
        """Number of different image files; less than the number of rows where duplicates are kept."""
        return len(set(self.names))

    @property
    def image_paths(self) -> list[Path]:
        return [self.image_dir / name for name in self.names]

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of names, prompts, scores and groups: the same for the same content in another file format."""
        scores = [[score.hex() for score in row] for row in self.scores.tolist()]
        return json_sha256([self.names, self.prompts, scores, self.groups])


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What to take from a table file; each column is named by its spellings, the preferred one first.

    Attributes:
        targets: what is scored -> its score column; no score outside the target's scale can be right.
        group: how an image name tells its group, or the name of a group column; None groups by prompt, where prompts
            are the same which the model reads alike.
        known_duplicates: names that the published table bears twice and `duplicates: auto` keeps.
        reference_draw: see `AnnotationTable`.
    """

    image: Sequence[str]
    prompt: Sequence[str]
    targets: Mapping[Target, Sequence[str]]
    group: Callable[[str], str] | str | None = None
    known_duplicates: frozenset[str] = frozenset()
    reference_draw: ReferenceDraw | None = None


def read_table(path: Path, layout: Layout, *, image_dir: Path, duplicates: DuplicateRule, hint: str) -> AnnotationTable:
    """Returns the table in the file that `dataset.annotations` names; see `read_rows` and `make_table`."""
    group = [[layout.group]] if isinstance(layout.group, str) else []
    wanted = [layout.image, layout.prompt, *layout.targets.values(), *group]
    rows = read_rows(path, "dataset.annotations", wanted, hint)
    return make_table(rows, layout, here=f"dataset.annotations: '{path}'", image_dir=image_dir, duplicates=duplicates)


def make_table(
    rows: pandas.DataFrame, layout: Layout, *, here: str, image_dir: Path, duplicates: DuplicateRule
) -> AnnotationTable:
    """Returns the table that the rows hold; warns of duplicates kept or averaged, and of prompts cut apart.

    Raises DataError where a cell cannot be right: all cells of a kind are counted, the first is shown.

    Args:
        rows: columns of text: image names, prompts, a score column per target, groups if they have a column. The index
            bears the name of what it counts.
        duplicates: what to do with a name that stands in several rows: `error`, `keep` them, `mean` of their scores, or
            `auto`, which keeps those known from the published table and refuses others.
    """
    import pandas

    names, prompts, *others = (rows.iloc[:, position] for position in range(rows.shape[1]))
    _check_text(names, "image name", LONGEST_NAME, here)
    remedy = "Write names relative to dataset.images, without '..'."
    _report(names, map(LEAVES_FOLDER.match, names), "name an image outside the image folder", remedy, here)
    _check_text(prompts, "prompt", LONGEST_TEXT, here)
    scores = np.zeros((len(rows), len(layout.targets)))
    for column, target in enumerate(layout.targets):
        scores[:, column] = _scores(others[column], target, here)
    alike = pandas.Series(same_prompts(prompts.tolist()), rows.index, dtype=object)
    groups = alike if layout.group is None else others[-1] if isinstance(layout.group, str) else names.map(layout.group)
    _check_text(groups, "group", LONGEST_TEXT, here)
    remedy = "A split may train on prompts that it holds out: group by prompt to prevent it."
    cut = "have a prompt, as the model reads it, that stands in several groups"
    _report(alike, _with_several(alike, groups), cut, remedy, here, warn=True)
    paths = names.map(posixpath.normpath)
    remedy = "One image has one prompt and group: correct the table."
    differs = _with_several(paths, zip(prompts, groups, strict=True))
    _report(paths, differs, "name an image again with another prompt or group", remedy, here)
    again = paths.duplicated(keep=False)
    if duplicates in ("auto", "error"):
        known = layout.known_duplicates if duplicates == "auto" else ()
        remedy = "Remove the surplus rows, or set dataset.duplicates to keep or mean."
        _report(paths, again & ~paths.isin(known), "name an image again", remedy, here)
    remedy = "They are averaged into one row each." if duplicates == "mean" else "They are kept as rows of their own."
    _report(paths, again, "name an image again", remedy, here, warn=True, scores=scores)
    kept = np.ones(len(rows), bool)
    if duplicates == "mean":
        kept = ~paths.duplicated().to_numpy()
        for _, same in pandas.Series(np.flatnonzero(again)).groupby(paths[again].to_numpy()):
            scores[same.iloc[0]] = scores[same].mean(axis=0)
    return AnnotationTable(
        names=tuple(names[kept]), prompts=tuple(prompts[kept]), scores=scores[kept], targets=tuple(layout.targets),
        groups=tuple(groups[kept]), image_dir=image_dir, reference_draw=layout.reference_draw,
    )  # fmt: skip


def _check_text(cells: pandas.Series, what: str, longest: int, here: str) -> None:
    """Raises DataError where a cell is empty, too long or nothing that a text file can hold."""
    bad = [not text.strip() or len(text) > longest or NOT_TEXT.search(text) for text in cells]
    remedy = "Fill in every row (merged cells and formulas without a stored value are empty) and save it as UTF-8."
    _report(cells, bad, f"have no {what} of 1 to {longest:,} UTF-8 characters", remedy, here)


def _scores(cells: pandas.Series, target: Target, here: str) -> np.ndarray:
    """Returns (N,) float64; raises DataError where a cell is not a finite number on the target's scale."""
    values = np.array([_number(cell) for cell in cells])
    low = -math.inf if target.low is None else target.low
    high = math.inf if target.high is None else target.high
    bad = ~(np.isfinite(values) & (low <= values) & (values <= high))
    remedy = "Write numbers such as 2.75, and check the column and its scale."
    _report(cells, bad, f"have no finite score {target.name!r} from {low:g} to {high:g}", remedy, here)
    return values


def _number(cell: str) -> float:
    try:
        return math.nan if "_" in cell else float(cell)  # float() would read "1_0" as ten
    except ValueError:
        return math.nan


def _report(
    cells: pandas.Series, bad: Iterable[object], what: str, remedy: str, here: str, *,
    warn: bool = False, scores: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Raises DataError, or warns, if any row is bad: how many are, where the first and its like stand, their scores."""
    chosen = np.array([bool(is_bad) for is_bad in bad])
    if not chosen.any():
        return
    first = cells[chosen].iloc[0]
    places = []
    for row in np.flatnonzero(chosen & (cells == first).to_numpy())[:5]:
        score = " and ".join(f"{value:.3f}" for value in scores[row]) if scores is not None else ""
        places.append(f"{cells.index.name} {cells.index[row]}" + (f": {score}" if score else ""))
    line = f"{here}: {chosen.sum()} of {len(cells)} rows {what}, first {shorten(first)} ({', '.join(places)}). {remedy}"
    if not warn:
        raise DataError(line)
    logger.warning("%s", line)


def _with_several(cells: pandas.Series, meanings: Iterable[object]) -> list[bool]:
    """Returns which rows share their cell with a row of another meaning."""
    number = Counter(cell for cell, _ in set(zip(cells, meanings, strict=True)))
    return [number[cell] > 1 for cell in cells]
