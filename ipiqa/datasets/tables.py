"""Annotation tables: one row an image, its prompt and its mean opinion scores, read from csv, tsv, xlsx or json lines.

A file is read as text, cell by cell, so that a prompt "NA", "null" or "007" stays what it is; only the score columns
become numbers. Whatever is wrong with a table is found here, before anything is trained.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from ipiqa.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pandas

DuplicateRule = Literal["auto", "error", "keep", "mean"]
ReferenceDraw = Literal["permutation", "bernoulli"]
Records = list[tuple[int, list[str]]]  # (line or row number, cells)


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """N annotated images and T targets.

    Attributes:
        names: N image file names, relative to `image_dir`.
        prompts: N prompts.
        scores: (N, T) float64 mean opinion scores.
        targets: T names of what was scored.
        groups: N labels; rows that share one belong on the same side of a split.
        image_dir: folder of the images.
        reference_draw: how split kind `reference` draws its groups; None where it is not defined.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    scores: np.ndarray
    targets: tuple[str, ...]
    groups: tuple[str, ...]
    image_dir: Path
    reference_draw: ReferenceDraw | None = None

    def __len__(self) -> int:
        return len(self.names)

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


# ---------------------------------------------------------------------------------------------------- reading a file


def read_rows(path: Path, where: str, hint: str = "") -> pandas.DataFrame:
    """Returns the cells of a table file as text; columns are named by its first row.

    Args:
        path: file ending in .csv, .tsv, .xlsx, .jsonl or .json (one object a line). Text files are UTF-8.
        where: setting that names the file, for messages.
        hint: where to get the file, added to the message when it is missing.

    Returns:
        Strings only, "" for an empty cell. The index is the number of the line (text files) or row (xlsx) as an editor
        shows it, and bears that name. Wholly empty rows are left out.

    Raises:
        DataError: missing, unreadable or empty file, wrong encoding, rows of unequal length, merged cells, formula
            cells without a value.
    """
    import pandas

    readers: dict[str, Callable[[bytes, str], tuple[list[str], Records]]] = {
        ".csv": functools.partial(_read_csv, delimiter=","),
        ".tsv": functools.partial(_read_csv, delimiter="\t"),
        ".xlsx": _read_xlsx,
        ".jsonl": _read_jsonl,
        ".json": _read_jsonl,
    }
    ending = path.suffix.lower()
    if not path.is_file():
        found = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise DataError(f"{where}: '{path}' {found}.{' ' + hint if hint else ''}")
    if ending not in readers:
        raise DataError(f"{where}: '{path}' ends in '{path.suffix}'. Tables are read from {', '.join(readers)}.")
    here = f"{where}: '{path}'"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{here} cannot be read: {error.strerror}. Check its permissions.") from error
    columns, records = readers[ending](content, here) if content.strip() else ([], [])
    if not columns:
        raise DataError(f"{here} is empty.{' ' + hint if hint else ''}")
    records = [(number, cells) for number, cells in records if any(cell.strip() for cell in cells)]
    if not records:
        raise DataError(f"{here} has a heading but no rows.{' ' + hint if hint else ''}")
    unit = "row" if ending == ".xlsx" else "line"
    index = pandas.Index([number for number, _ in records], name=unit)
    return pandas.DataFrame([cells for _, cells in records], columns=pandas.Index(columns), index=index, dtype=object)


def _decode(content: bytes, here: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{here} is not UTF-8 text: byte 0x{content[error.start]:02x} in line {line}. Save it again as UTF-8."
        ) from error


def _read_csv(content: bytes, here: str, *, delimiter: str) -> tuple[list[str], Records]:
    text = _decode(content, here)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: Records = []
    try:
        start = 1  # a quoted cell may hold line breaks: count from the line where its row starts
        for cells in reader:
            records.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{here} is not well-formed near line {reader.line_num}: {error}. Check the quotes.") from error
    records = [(number, cells) for number, cells in records if any(cell.strip() for cell in cells)]
    columns = records[0][1] if records else []
    uneven = [f"line {number} has {len(cells)}" for number, cells in records if len(cells) != len(columns)]
    if uneven:
        raise DataError(
            f"{here}: {len(uneven)} rows do not have the {len(columns)} cells of the heading, first {uneven[0]}. "
            "Put quotes around text that holds the separator."
        )
    return columns, records[1:]


def _read_xlsx(content: bytes, here: str) -> tuple[list[str], Records]:
    import openpyxl

    try:
        book = openpyxl.load_workbook(io.BytesIO(content))
        sheet = book.worksheets[0]
    except Exception as error:  # a broken workbook fails in whichever of openpyxl's, zip's or XML's ways it likes
        raise DataError(f"{here} is not an Excel workbook ({type(error).__name__}). Save it again as .xlsx.") from error
    merged = sorted(str(cells) for cells in sheet.merged_cells.ranges)
    if merged:
        raise DataError(f"{here}: {len(merged)} merged cells, first {merged[0]}. Unmerge them: one value a cell.")
    formulas = [cell.coordinate for row in sheet.iter_rows() for cell in row if cell.data_type == "f"]
    if formulas:
        sheet = openpyxl.load_workbook(io.BytesIO(content), data_only=True).worksheets[0]
        bare = [name for name in formulas if sheet[name].value is None]
        if bare:
            raise DataError(
                f"{here}: {len(bare)} formula cells have no stored value, first {bare[0]}. "
                "Open it in a spreadsheet program and save it, or paste the values."
            )
    table = [[_text(value) for value in row] for row in sheet.iter_rows(values_only=True)]
    named = [position for position, heading in enumerate(table[0] if table else []) if heading.strip()]
    records = [(number, [cells[p] for p in named]) for number, cells in enumerate(table[1:], start=2)]
    return [table[0][p] for p in named], records


def _read_jsonl(content: bytes, here: str) -> tuple[list[str], Records]:
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(_decode(content, here).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # JSON can write half a character, which no file can hold
        except (ValueError, RecursionError) as error:
            raise DataError(f"{here}: line {number} is not JSON ({error}). Write one object a line.") from error
        if not isinstance(row, dict):
            raise DataError(f"{here}: line {number} is a {type(row).__name__}. Write one object a line.")
        rows.append((number, row))
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    return columns, [(number, [_text(row.get(column)) for column in columns]) for number, row in rows]


def _text(value: Any) -> str:
    """Returns a cell as text; a float keeps all its digits."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value) if isinstance(value, (list, dict, bool)) else str(value)


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
        targets: target name -> spellings of its score column.
        group: how an (image name, prompt) pair tells its group, or the name of a group column.
        mos_range: lowest and highest score that can be right; None accepts every finite number.
        known_duplicates: names that the published table bears twice and `duplicates: auto` keeps.
    """

    image: Sequence[str]
    prompt: Sequence[str]
    targets: Mapping[str, Sequence[str]]
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
    cells = {target: column(spellings) for target, spellings in layout.targets.items()}
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
