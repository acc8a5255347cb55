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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas

from ipiqa.datasets.comparisons import Comparisons
from ipiqa.datasets.readers import NOT_TEXT, Source, read_rows, spellings_of, texts_of
from ipiqa.errors import ConfigError, DataError, shorten
from ipiqa.prompts import same_prompts

logger = logging.getLogger(__name__)

DuplicateRule = Literal["auto", "error", "keep", "mean"]
ReferenceDraw = Literal["permutation", "bernoulli"]

LONGEST_NAME = 1_000  # characters of an image file name
LONGEST_TEXT = 20_000  # characters of a prompt, group or segment; CLIP reads some 300 of a prompt
# absolute, on a drive or with ".." in it, whether POSIX or Windows reads it
LEAVES_FOLDER = re.compile(r"[/\\]|.:|(.*[/\\])?\.\.([/\\]|\Z)", re.DOTALL)
# The part of a published split by the words that name it; "selection" is ours, for what the epoch is chosen on.
PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "selection": "selection",
}  # fmt: skip


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
        scores: (N, T) float64 mean opinion scores; nan where one is missing, which a dataset has to allow.
        groups: rows that share one belong on the same side of a split.
        reference_draw: how split kind `reference` draws its groups; None where it is not defined.
        segments: what rows can be told apart by, such as generator or style -> N texts, "" where it is not known.
        rater_std: (N, T) float64 standard deviation over the raters of an image, nan where it is not known.
        num_raters: (N, T) float64 how many raters a score is the mean of, nan where it is not known.
        official: the part of each row in the split that was published with the table: train, val or test.
        comparisons: pairs of rows and the choices between them, of a table of preferences.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    scores: np.ndarray
    targets: tuple[Target, ...]
    groups: tuple[str, ...]
    image_dir: Path
    reference_draw: ReferenceDraw | None = None
    segments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rater_std: np.ndarray | None = None
    num_raters: np.ndarray | None = None
    official: tuple[str, ...] | None = None
    comparisons: Comparisons | None = None

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
    def prompts_read(self) -> list[str]:
        """For each row, one prompt that stands for all that the model reads alike."""
        return same_prompts(self.prompts)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of names, prompts, scores, groups and pairs: the same for the same content in another file format."""
        scores = [[score.hex() for score in row] for row in self.scores.tolist()]
        compared = [] if self.comparisons is None else [self.comparisons.rows.tolist(), self.comparisons.words]
        return json_sha256([self.names, self.prompts, scores, self.groups, *compared])


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What to take from a table file.

    Attributes:
        targets: what is scored -> its score column; no score outside the target's scale can be right. A cell may hold
            a list of ratings, as in "[4, 3, 5]": their mean is the score.
        group: what tells a row's group; None groups by prompt, where prompts are the same which the model reads alike.
        std: name of a target -> column of the standard deviation over raters; for lists of ratings it is computed.
        num_raters: how many raters each image had, where `std` has a column.
        segments: name -> what tells a row's.
        official: column of the part, in the words of `PARTS`, of the split that comes with the table.
        may_lack: whether columns of `std` and `segments` that the file does not have are left out.
        missing: whether an empty score cell is a missing score; it is refused otherwise.
        scale_to: where given, the scale of every target is stretched to 0 to this, and its scores with it.
        known_duplicates: names that the published table bears twice and `duplicates: auto` keeps.
        reference_draw: see `AnnotationTable`.
        made: columns that the file does not have -> what makes them of the rows, whose image names are checked by then.
    """

    image: Source
    prompt: Source
    targets: Mapping[Target, Source]
    group: Source | None = None
    std: Mapping[str, Source] = field(default_factory=dict)
    num_raters: float | None = None
    segments: Mapping[str, Source] = field(default_factory=dict)
    official: Source | None = None
    may_lack: bool = False
    missing: bool = False
    scale_to: float | None = None
    known_duplicates: Collection[str] = ()
    reference_draw: ReferenceDraw | None = None
    made: Mapping[str, Callable[[pandas.DataFrame], Sequence[str]]] = field(default_factory=dict)

    def read(self, path: Path, hint: str) -> pandas.DataFrame:
        """Returns the columns of the file that `dataset.annotations` names, each once, but those that are made."""
        given = [*filter(None, (self.group, self.official)), *self.targets.values(), self.prompt, self.image]
        more = [*self.std.values(), *self.segments.values()]
        columns, extra = (
            {one[0]: one for source in sources for one in spellings_of(source) if one[0] not in self.made}
            for sources in (given, more)
        )
        optional = extra.keys() - columns.keys() if self.may_lack else ()
        return read_rows(path, "dataset.annotations", [*(extra | columns).values()], hint, optional)


def make_table(
    rows: pandas.DataFrame, layout: Layout, *, here: str, image_dir: Path, duplicates: DuplicateRule
) -> AnnotationTable:
    """Returns the table that the rows hold; warns of duplicates kept or averaged, and of prompts cut apart.

    Raises DataError where a cell cannot be right: all cells of a kind are counted, the first is shown.

    Args:
        rows: columns of text that bear their preferred spelling, "" for an empty cell. The index bears the name of
            what it counts.
        duplicates: what to do with a name that stands in several rows: `error`, `keep` them, `mean` of their scores, or
            `auto`, which keeps those known from the published table and refuses others.
    """
    names = texts_of(layout.image, rows).str.removeprefix(f"{image_dir.absolute().as_posix()}/")
    prompts = texts_of(layout.prompt, rows)
    _check_text(names, "image name", LONGEST_NAME, here)
    remedy = "Write names relative to dataset.images, without '..'."
    report(names, map(LEAVES_FOLDER.match, names), "name an image outside the image folder", remedy, here)
    _check_text(prompts, "prompt", LONGEST_TEXT, here)
    rows = rows.assign(**layout.made)
    numbers = _numbers(rows, layout, here)
    targets = tuple(layout.targets)
    if layout.scale_to is not None:
        targets = tuple(_stretched(target, numbers[:, :, t], layout.scale_to) for t, target in enumerate(targets))
    alike = pandas.Series(same_prompts(prompts.tolist()), rows.index, dtype=object)
    groups = alike if layout.group is None else texts_of(layout.group, rows)
    _check_text(groups, "group", LONGEST_TEXT, here)
    remedy = "A split may train on prompts that it holds out: group by prompt to prevent it."
    cut = "have a prompt, as the model reads it, that stands in several groups"
    report(alike, _with_several(alike, groups), cut, remedy, here, warn=True)
    paths = names.map(posixpath.normpath)
    remedy = "One image has one prompt and group: correct the table."
    report(
        paths, _with_several(paths, prompts, groups), "name an image again with another prompt or group", remedy, here
    )
    kept = _without_duplicates(paths, numbers, duplicates, layout.known_duplicates, here)
    scores, std, raters = numbers[:, kept]
    segments = {n: texts_of(source, rows)[kept] for n, source in layout.segments.items() if _are_there(source, rows)}
    for name, texts in segments.items():
        remedy = f"Check the column or pattern of segment {name!r}."
        report(texts, [len(text) > LONGEST_TEXT for text in texts], f"have a too long {name}", remedy, here)
    return AnnotationTable(
        names=tuple(names[kept]), prompts=tuple(prompts[kept]), scores=scores, targets=targets,
        groups=tuple(groups[kept]), image_dir=image_dir, reference_draw=layout.reference_draw,
        segments={name: tuple(texts) for name, texts in segments.items()},
        rater_std=None if np.isnan(std).all() else std, num_raters=None if np.isnan(raters).all() else raters,
        official=None if layout.official is None else _parts(texts_of(layout.official, rows)[kept], here),
    )  # fmt: skip


def _without_duplicates(
    paths: pandas.Series, numbers: np.ndarray, rule: DuplicateRule, expected: Collection[str], here: str
) -> np.ndarray:
    """Returns which rows stay; where images that stand in several rows are averaged, the first has the mean."""
    again, kept = paths.duplicated(keep=False), np.ones(len(paths), bool)
    if rule in ("auto", "error"):
        known = expected if rule == "auto" else ()
        remedy = "Remove the surplus rows, or set dataset.duplicates to keep or mean."
        report(paths, again & ~paths.isin(known), "name an image again", remedy, here)
    remedy = "They are averaged into one row each." if rule == "mean" else "They are kept as rows of their own."
    report(paths, again, "name an image again", remedy, here, warn=True, scores=numbers[0])
    if rule == "mean":
        kept = ~paths.duplicated().to_numpy()
        for same in paths[again].groupby(paths[again]).indices.values():
            rows = np.flatnonzero(again)[same]
            some = numbers[:, rows]
            with np.errstate(invalid="ignore"):  # the mean of those that are known; of none it is nan
                numbers[:, rows[0]] = np.nansum(some, axis=1) / (~np.isnan(some)).sum(axis=1)
    return kept


def _are_there(source: Source, rows: pandas.DataFrame) -> bool:
    """Returns whether rows have the columns of a source; `Layout.read` refuses a file that must have them."""
    return all(spellings[0] in rows for spellings in spellings_of(source))


def _check_text(cells: pandas.Series, what: str, longest: int, here: str) -> None:
    """Raises DataError where a cell is empty, too long or nothing that a text file can hold."""
    bad = [not text.strip() or len(text) > longest or NOT_TEXT.search(text) for text in cells]
    remedy = "Fill in every row (merged cells and formulas without a stored value are empty) and save it as UTF-8."
    report(cells, bad, f"have no {what} of 1 to {longest:,} UTF-8 characters", remedy, here)


def _parts(cells: pandas.Series, here: str) -> tuple[str, ...]:
    parts = [PARTS.get(cell.strip().casefold(), "") for cell in cells]
    report(cells, [not part for part in parts], f"name no part of a split ({', '.join(PARTS)})", "Correct them.", here)
    return tuple(parts)


def _numbers(rows: pandas.DataFrame, layout: Layout, here: str) -> np.ndarray:
    """Returns (3, N, T) float64: scores, their standard deviations over raters, and numbers of raters; nan: unknown."""
    out = np.full((3, len(rows), len(layout.targets)), math.nan)
    for t, (target, source) in enumerate(layout.targets.items()):
        out[:, :, t] = _ratings(texts_of(source, rows), target, here, missing=layout.missing)
        if target.name in layout.std and _are_there(layout.std[target.name], rows):
            of = Target(f"std of {target.name}", 0.0)
            out[1, :, t] = _ratings(texts_of(layout.std[target.name], rows), of, here, missing=True)[0]
            out[2, :, t] = math.nan if layout.num_raters is None else layout.num_raters
    if np.isnan(out[0]).any():
        counts = ", ".join(f"{n} of {t.name}" for t, n in zip(layout.targets, np.isnan(out[0]).sum(0), strict=True))
        message = "%s: scores are missing (%s of %d rows): they count in no loss and no metric"
        logger.warning(message, here, counts, len(rows))
    return out


def _stretched(target: Target, numbers: np.ndarray, high: float) -> Target:
    """Returns the target on the scale from 0 to `high`, and puts its scores and their deviations (3, N) on it."""
    if target.low is None or target.high is None:
        advice = "Give its ends, or set dataset.scale_to to null."
        raise ConfigError(f"dataset.scale_to: the scale of {target.name!r} is not known. {advice}")
    factor = high / (target.high - target.low)
    numbers[0] = (numbers[0] - target.low) * factor
    numbers[1] *= factor
    return replace(target, low=0.0, high=high)


def _ratings(cells: pandas.Series, target: Target, here: str, *, missing: bool) -> np.ndarray:
    """Returns (3, N) float64: mean, standard deviation and number of the ratings in each cell, nan where unknown.

    Raises DataError where a cell has no finite number on the target's scale, unless it is empty and may be.
    """
    lists = [ratings_in(cell) for cell in cells]
    low = -math.inf if target.low is None else target.low
    high = math.inf if target.high is None else target.high
    bad = [not (missing or some) or not all(low <= value <= high and math.isfinite(value) for value in some)
           for some in lists]  # fmt: skip
    remedy = "Write numbers such as 2.75, and check the column and its scale."
    if not missing and not all(lists):
        remedy += " Where scores are missing, set dataset.missing_scores to mask."
    report(cells, bad, f"have no finite score {target.name!r} from {low:g} to {high:g}", remedy, here)
    out = np.full((3, len(lists)), math.nan)
    out[0] = [some[0] if len(some) == 1 else sum(some) / len(some) if some else math.nan for some in lists]
    for row in [row for row, some in enumerate(lists) if len(some) > 1]:
        out[1, row], out[2, row] = np.std(lists[row], ddof=1), len(lists[row])
    return out


def ratings_in(cell: str) -> list[float]:
    """Returns the numbers in a cell: one, those of a list, or none; nan for what is no number."""
    try:
        if not cell.lstrip().startswith("["):
            return [math.nan if "_" in cell else float(cell)]  # float() would read "1_0" as ten
        ratings = json.loads(cell)
        return [float(value) if type(value) in (int, float) else math.nan for value in ratings]
    except (ValueError, OverflowError, RecursionError):
        return [math.nan] if cell.strip() else []


def report(
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


def _with_several(cells: pandas.Series, *meanings: pandas.Series) -> list[bool]:
    """Returns which rows share their cell with a row of another meaning."""
    number = Counter(cell for cell, *_ in set(zip(cells, *meanings, strict=True)))
    return [number[cell] > 1 for cell in cells]
