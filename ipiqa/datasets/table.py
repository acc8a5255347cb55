"""Annotation tables: one row an image, its prompt and its mean opinion scores, read from csv, tsv, xlsx or json lines.

A file is read as text, cell by cell, so that a prompt "NA", "null" or "007" stays what it is; only the score columns
become numbers. Whatever is wrong with a table is found here, before anything is trained.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np

from ipiqa.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pandas

DuplicateRule = Literal["auto", "error", "keep", "mean"]
ReferenceDraw = Literal["permutation", "bernoulli"]


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


# -------------------------------------------------------------------------------------------------- finding columns


def _plain(heading: str) -> str:
    return "".join(c for c in heading.casefold() if c.isalnum())


def find_column(columns: Sequence[str], spellings: Sequence[str], here: str) -> int:
    """Returns the position of the column that bears one of the spellings; case, spaces and dashes are forgiven.

    >>> find_column(["Prompt", "MOS quality"], ["mos_quality", "quality"], "table.csv")
    1

    Raises:
        DataError: no such column, or several that could be it.
    """
    for same in (lambda heading, spelling: heading == spelling, lambda h, s: _plain(h) == _plain(s)):
        for spelling in spellings:
            found = [position for position, heading in enumerate(columns) if same(heading, spelling)]
            if len(found) > 1:
                named = ", ".join(repr(columns[position]) for position in found)
                raise DataError(f"{here} has {len(found)} columns for {spelling!r}: {named}. Rename all but one.")
            if found:
                return found[0]
    near = next((words for words in (did_you_mean(s, columns) for s in spellings) if words), "")
    wanted = repr(spellings[0]) + "".join(f" (or {s!r})" for s in spellings[1:])
    raise DataError(f"{here} has no column {wanted}.{near} Its columns are: {', '.join(map(repr, columns))}.")


# --------------------------------------------------------------------------------------------------- rows to a table


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What to take from a table file.

    Attributes:
        image: spellings of the column of image file names, the preferred one first.
        prompt: spellings of the prompt column.
        targets: what is scored -> spellings of its score column.
        group: how an (image name, prompt) pair tells its group, or the name of a group column.
        mos_range: lowest and highest score that can be right; None accepts every finite number.
        known_duplicates: names that the published table bears twice and `duplicates: auto` keeps.
    """

    image: Sequence[str]
    prompt: Sequence[str]
    targets: Mapping[Target, Sequence[str]]
    group: Callable[[str, str], str] | str
    mos_range: tuple[float, float] | None = None
    known_duplicates: frozenset[str] = frozenset()
    reference_draw: ReferenceDraw | None = None


def make_table(
    rows: pandas.DataFrame, layout: Layout, *, here: str, image_dir: Path, duplicates: DuplicateRule
) -> tuple[AnnotationTable, list[str]]:
    """Returns the table that the rows hold, checked, and a warning for each duplicate that was kept or averaged.

    Args:
        rows: what `read_rows` returned.
        layout: what to take.
        here: setting and file, for messages.
        image_dir: folder the image names are relative to.
        duplicates: what to do with a name that stands in several rows: `error`, `keep` them, `mean` of their scores, or
            `auto`, which keeps those known from the published table and refuses others.

    Raises:
        DataError: a column is missing, or a cell cannot be right; all cells of a kind are counted, the first is shown.
    """
    columns = [str(column) for column in rows.columns]
    places = [f"{rows.index.name} {number}" for number in rows.index]

    def column(spellings: Sequence[str]) -> list[str]:
        return [str(cell) for cell in rows.iloc[:, find_column(columns, spellings, here)]]

    names, prompts = column(layout.image), column(layout.prompt)
    cells = {target.name: column(spellings) for target, spellings in layout.targets.items()}
    require_text(names, "image name", places, here)
    refuse_outside(names, places, here)
    require_text(prompts, "prompt", places, here)
    scores = np.stack([_numbers(c, target, places, here, layout.mos_range) for target, c in cells.items()], axis=1)
    if isinstance(layout.group, str):
        groups = column([layout.group])
        require_text(groups, "group", places, here)
    else:
        groups = [layout.group(name, prompt) for name, prompt in zip(names, prompts, strict=True)]

    kept, warnings = _settle_duplicates(names, prompts, groups, scores, places, here, layout, duplicates)
    table = AnnotationTable(
        names=tuple(names[row] for row in kept),
        prompts=tuple(prompts[row] for row in kept),
        scores=scores[kept],
        targets=tuple(layout.targets),
        groups=tuple(groups[row] for row in kept),
        image_dir=image_dir,
        reference_draw=layout.reference_draw,
    )
    return table, warnings


def _refuse(here: str, bad: Sequence[str], num_rows: int, what: str, remedy: str) -> NoReturn:
    raise DataError(f"{here}: {len(bad)} of {num_rows} rows {what}, first {bad[0]}. {remedy}")


def require_text(
    cells: Sequence[str], what: str, places: Sequence[str], here: str, remedy: str = "Fill in every row."
) -> None:
    """Raises DataError where a cell is empty."""
    if empty := [place for cell, place in zip(cells, places, strict=True) if not cell.strip()]:
        _refuse(here, empty, len(cells), f"have an empty {what}", remedy)


def leaves_folder(name: str) -> bool:
    """Returns whether a file name, read as POSIX or Windows would, points outside the folder it is relative to.

    >>> [leaves_folder(name) for name in ("a/b.jpg", "../a.jpg", "/etc/passwd", "C:a.jpg", "a..b.jpg")]
    [False, True, True, True, False]
    """
    return "\0" in name or any(p.anchor or ".." in p.parts for p in (PurePosixPath(name), PureWindowsPath(name)))


def refuse_outside(names: Sequence[str], places: Sequence[str], here: str) -> None:
    """Raises DataError where an image name points outside the image folder."""
    if outside := [f"{n!r} ({place})" for n, place in zip(names, places, strict=True) if leaves_folder(n)]:
        remedy = "Write names relative to dataset.images, without '..'."
        _refuse(here, outside, len(names), "name an image outside the image folder", remedy)


def _numbers(
    cells: Sequence[str], target: str, places: Sequence[str], here: str, limits: tuple[float, float] | None
) -> np.ndarray:
    """Returns (N,) float64 scores of one target."""
    values, texts, infinite, outside = [], [], [], []
    for cell, place in zip(cells, places, strict=True):
        try:
            value = float(cell.replace("_", "x"))  # float() would read "1_0" as ten
        except ValueError:
            texts.append(f"{cell!r} ({place})")
            continue
        values.append(value)
        if not math.isfinite(value):
            infinite.append(f"{cell!r} ({place})")
        elif limits and not limits[0] <= value <= limits[1]:
            outside.append(f"{cell} ({place})")
    score = f"{'an' if target[:1] in tuple('aeiou') else 'a'} {target} score"
    if texts:
        _refuse(here, texts, len(cells), f"have {score} that is not a number", "Write numbers such as 2.75.")
    if infinite:
        _refuse(here, infinite, len(cells), f"have {score} that is not finite", "Correct or remove these rows.")
    if outside and limits:
        scale = f"{limits[0]:g} to {limits[1]:g}"
        _refuse(here, outside, len(cells), f"have {score} outside {scale}", "Check the column and its scale.")
    return np.array(values, dtype=np.float64)


def _settle_duplicates(
    names: list[str],
    prompts: list[str],
    groups: list[str],
    scores: np.ndarray,
    places: list[str],
    here: str,
    layout: Layout,
    rule: DuplicateRule,
) -> tuple[list[int], list[str]]:
    """Returns the rows to keep and a warning per duplicate; with `mean`, the first row's scores become the mean."""
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(str(PurePosixPath(name)), []).append(row)
    several = {name: rows for name, rows in rows_of.items() if len(rows) > 1}
    known = layout.known_duplicates if rule == "auto" else frozenset()
    refused = [name for name in several if name not in known] if rule in ("auto", "error") else []
    if refused:
        first = f"{refused[0]!r} ({', '.join(places[row] for row in several[refused[0]])})"
        raise DataError(
            f"{here}: {len(refused)} images stand in several rows, first {first}. "
            "Remove the surplus rows, or set dataset.duplicates to keep or mean."
        )
    kept, warnings = list(range(len(names))), []
    for name, rows in several.items():
        if len({(prompts[row], groups[row]) for row in rows}) > 1:
            raise DataError(
                f"{here}: {name!r} stands in {', '.join(places[row] for row in rows)} in different groups "
                "or with different prompts. One image has one prompt: correct the table."
            )
        done = "kept as rows of their own" if rule != "mean" else "replaced by their mean"
        given = ", ".join("/".join(f"{score:.4g}" for score in scores[row]) for row in rows)
        warnings.append(f"{here}: {name!r} stands in {len(rows)} rows with the scores {given}; {done}.")
        if rule == "mean":
            scores[rows[0]] = scores[rows].mean(axis=0)
            kept = [row for row in kept if row not in rows[1:]]
    return kept, warnings
