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
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ipiqa.datasets.readers import is_utf8
from ipiqa.errors import DataError, shorten
from ipiqa.prompts import same_prompts

if TYPE_CHECKING:
    import pandas

logger = logging.getLogger(__name__)

DuplicateRule = Literal["auto", "error", "keep", "mean"]
ReferenceDraw = Literal["permutation", "bernoulli"]

LONGEST_NAME = 1_000  # characters of an image file name
LONGEST_TEXT = 20_000  # characters of a prompt or group; CLIP reads some 300 of a prompt
_LEAVES_FOLDER = re.compile(r"[/\\]|.:|(.*[/\\])?\.\.([/\\]|\Z)", re.DOTALL)  # absolute, on a drive, or ".." in it


@dataclass(frozen=True)
class Target:
    """What is scored: its name, the ends of its scale in units of the MOS (None where unknown), and what it means."""

    name: str
    low: float | None = None
    high: float | None = None
    meaning: str = ""


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """N annotated images and T targets.

    Attributes:
        names: N image file names, relative to `image_dir`.
        prompts: N prompts.
        scores: (N, T) float64 mean opinion scores.
        targets: the T things that were scored.
        groups: N labels; rows that share one belong on the same side of a split.
        image_dir: folder of the images.
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
        """T names."""
        return tuple(target.name for target in self.targets)

    @property
    def num_images(self) -> int:
        """Number of different image files; less than the number of rows where duplicates are kept."""
        return len(set(self.names))

    @property
    def image_paths(self) -> list[Path]:
        """N paths, in table order."""
        return [self.image_dir / name for name in self.names]

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of names, prompts, scores and groups: the same for the same content in another file format."""
        scores = [[score.hex() for score in row] for row in self.scores.tolist()]
        content = json.dumps([self.names, self.prompts, scores, self.groups])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What to take from a table file.

    Attributes:
        image: spellings of the column of image file names, the preferred one first.
        prompt: spellings of the prompt column.
        targets: what is scored -> spellings of its score column.
        group: how an image name tells its group, or the name of a group column; None groups by prompt, where prompts
            are the same which the model reads alike.
        mos_range: lowest and highest score that can be right.
        known_duplicates: names that the published table bears twice and `duplicates: auto` keeps.
        reference_draw: see `AnnotationTable`.
    """

    image: Sequence[str]
    prompt: Sequence[str]
    targets: Mapping[Target, Sequence[str]]
    group: Callable[[str], str] | str | None = None
    mos_range: tuple[float, float] = (-math.inf, math.inf)
    known_duplicates: frozenset[str] = frozenset()
    reference_draw: ReferenceDraw | None = None

    @property
    def columns(self) -> list[Sequence[str]]:
        """Spellings of each column to read: image, prompt, targets, group."""
        group = [[self.group]] if isinstance(self.group, str) else []
        return [self.image, self.prompt, *self.targets.values(), *group]


def make_table(
    rows: pandas.DataFrame, layout: Layout, *, here: str, image_dir: Path, duplicates: DuplicateRule
) -> AnnotationTable:
    """Returns the table that the rows hold, checked; warns of duplicates kept or averaged, and of prompts cut apart.

    Args:
        rows: what `read_rows` returned for `layout.columns`.
        layout: what to take.
        here: setting and file, for messages.
        image_dir: folder the image names are relative to.
        duplicates: what to do with a name that stands in several rows: `error`, `keep` them, `mean` of their scores, or
            `auto`, which keeps those known from the published table and refuses others.

    Raises:
        DataError: a cell cannot be right; all cells of a kind are counted, the first is shown.
    """
    names, prompts, *others = (rows.iloc[:, position].tolist() for position in range(rows.shape[1]))
    check = _Cells(here, rows.index)
    check.text(names, "image name", LONGEST_NAME)
    check.refuse(
        [leaves_folder(name) for name in names], names, "name an image outside the image folder",
        "Write names relative to dataset.images, without '..'.",
    )  # fmt: skip
    check.text(prompts, "prompt", LONGEST_TEXT)
    scores = np.zeros((len(names), len(layout.targets)))
    for column, target in enumerate(layout.targets):
        scores[:, column] = check.numbers(others[column], f"{target.name} score", layout.mos_range)
    alike = same_prompts(prompts)
    if isinstance(layout.group, str):
        groups = others[-1]
        check.text(groups, "group", LONGEST_TEXT)
    else:
        groups = alike if layout.group is None else [layout.group(name) for name in names]

    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        rows_of[posixpath.normpath(name)].append(row)
    several = {name: same for name, same in rows_of.items() if len(same) > 1}
    known = layout.known_duplicates if duplicates == "auto" else frozenset()
    check.duplicates(several, list(zip(prompts, groups, strict=True)), scores, duplicates, known)
    check.cut_prompts(alike, groups)
    surplus: set[int] = set()
    if duplicates == "mean":
        for same in several.values():
            scores[same[0]] = scores[same].mean(axis=0)
            surplus.update(same[1:])
    kept = [row for row in range(len(names)) if row not in surplus]
    return AnnotationTable(
        names=tuple(names[row] for row in kept),
        prompts=tuple(prompts[row] for row in kept),
        scores=scores[kept],
        targets=tuple(layout.targets),
        groups=tuple(groups[row] for row in kept),
        image_dir=image_dir,
        reference_draw=layout.reference_draw,
    )


def leaves_folder(name: str) -> bool:
    """Returns whether a file name, read as POSIX or Windows would, points outside the folder it is relative to.

    >>> [leaves_folder(name) for name in ("a/b.jpg", "../a.jpg", "/etc/passwd", "C:a.jpg", "a..b.jpg")]
    [False, True, True, True, False]
    """
    return _LEAVES_FOLDER.match(name) is not None


class _Cells:
    """Checks of whole columns; a message counts the bad rows and shows the first."""

    def __init__(self, here: str, index: pandas.Index) -> None:
        self.here, self.index = here, index

    def places(self, rows: Sequence[int]) -> str:
        """Returns where rows stand in their file, the first of them."""
        return ", ".join(f"{self.index.name} {self.index[row]}" for row in rows[:5])

    def refuse(self, bad: Sequence[bool] | np.ndarray, cells: Sequence[str], what: str, remedy: str) -> None:
        """Raises DataError if any row is bad."""
        if rows := np.flatnonzero(bad).tolist():
            first = f"{shorten(cells[rows[0]])} ({self.places(rows[:1])})"
            raise DataError(f"{self.here}: {len(rows)} of {len(cells)} rows {what}, first {first}. {remedy}")

    def text(self, cells: Sequence[str], what: str, longest: int) -> None:
        """Raises DataError where a cell is empty, too long or nothing that a text file can hold."""
        remedy = "Fill in every row; merged cells and formulas without a stored value count as empty."
        self.refuse([not cell.strip() for cell in cells], cells, f"have an empty {what}", remedy)
        long = [len(cell) > longest for cell in cells]
        self.refuse(long, cells, f"have {_with_article(what)} of more than {longest:,} characters", "Shorten it.")
        odd = ["\0" in cell or not is_utf8(cell) for cell in cells]
        self.refuse(odd, cells, f"have {_with_article(what)} that is not UTF-8 text", "Save the table again as UTF-8.")

    def numbers(self, cells: Sequence[str], what: str, limits: tuple[float, float]) -> np.ndarray:
        """Returns (N,) float64 scores.

        Raises:
            DataError: a cell is not a finite number, or outside the limits.
        """
        values = np.array([_number(cell) for cell in cells])
        bad = f"have {_with_article(what)}"
        self.refuse(~np.isfinite(values), cells, f"{bad} that is not a finite number", "Write numbers such as 2.75.")
        outside = (values < limits[0]) | (values > limits[1])
        scale = f"{limits[0]:g} to {limits[1]:g}"
        self.refuse(outside, cells, f"{bad} outside {scale}", "Check the column and its scale.")
        return values

    def duplicates(
        self,
        several: Mapping[str, Sequence[int]],
        meanings: Sequence[tuple[str, str]],
        scores: np.ndarray,
        rule: DuplicateRule,
        known: frozenset[str],
    ) -> None:
        """Warns of images in several rows; raises DataError where the rule or a second prompt or group forbids them."""

        def message(names: Sequence[str], what: str) -> str:
            rows = several[names[0]][:5]
            first = f"first {names[0]!r} ({self.places(rows)})"
            if scores.shape[1]:
                first += " with the scores " + ", ".join("/".join(f"{score:.4g}" for score in scores[r]) for r in rows)
            return f"{self.here}: {len(names)} images stand in several rows{what}, {first}"

        if differing := [name for name, rows in several.items() if len({meanings[row] for row in rows}) > 1]:
            remedy = "One image has one prompt: correct the table."
            raise DataError(f"{message(differing, ' with different prompts or groups')}. {remedy}")
        if surplus := [name for name in several if rule in ("auto", "error") and name not in known]:
            remedy = "Remove the surplus rows, or set dataset.duplicates to keep or mean."
            raise DataError(f"{message(surplus, '')}. {remedy}")
        if several:
            kept = "kept as rows of their own"
            once = "made one row" + (" of their mean" if scores.shape[1] else "")
            logger.warning("%s; %s", message(list(several), ""), once if rule == "mean" else kept)

    def cut_prompts(self, alike: Sequence[str], groups: Sequence[str]) -> None:
        """Warns where rows whose prompts the model reads alike stand in several groups."""
        groups_of = defaultdict(set)
        for prompt, group in zip(alike, groups, strict=True):
            groups_of[prompt].add(group)
        if cut := [prompt for prompt, labels in groups_of.items() if len(labels) > 1]:
            logger.warning(
                "%s: %d of %d prompts, as the model reads them, stand in several groups, first %s. "
                "A split may train on prompts that it holds out: group by prompt to prevent it.",
                *(self.here, len(cut), len(groups_of), shorten(cut[0])),
            )


def _with_article(what: str) -> str:
    return f"{'an' if what[:1] in tuple('aeiou') else 'a'} {what}"


def _number(cell: str) -> float:
    """Returns the number in a cell; not-a-number where there is none."""
    try:
        return float(cell) if "_" not in cell else math.nan  # float() would read "1_0" as ten
    except ValueError:
        return math.nan
