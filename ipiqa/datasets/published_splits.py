"""Published splits: which images train and which are held out, in the forms that papers publish them in."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas

from ipiqa.datasets.readers import READERS, read_json, read_rows
from ipiqa.datasets.table import PARTS, AnnotationTable
from ipiqa.errors import DataError, shorten

logger = logging.getLogger(__name__)

TRAIN, SELECTION, HELD_OUT, UNUSED = 0, 1, 2, -1
FORMS = (
    "Give a json file of {train: names, test: names}, one or a list of them by fold, or of a list of names per fold; "
    "a table with a column of names and one per fold that says train, val or test, or one of fold numbers; a folder "
    "of train and test lists; or a run folder"
)
_OUR_FACTS = ("kind", "seed", "fold", "sha256")  # beside the names in a split.json
_SAMPLE = 200  # rows that tell which column has the names

Fold = Mapping[str, Sequence[str]]  # part -> names


def read_splits(path: Path, table: AnnotationTable) -> list[np.ndarray]:
    """Returns for each fold the part of every row, (N,): TRAIN, SELECTION, HELD_OUT or UNUSED.

    Where a fold has a val and a test part, the epoch is chosen on val. Where it has one part only, all other rows are
    the other. Names are matched as they stand or, failing that, by their last part.

    Raises DataError where the file is of no known form, names what the table does not have, or names it twice.
    """
    here = f"split.file: '{path}'"
    rows_of, known = defaultdict(list), Counter(PurePosixPath(name).name for name in table.names)
    for row, name in enumerate(table.names):
        rows_of[name].append(row)
        if (last := PurePosixPath(name).name) != name and known[last] == 1:
            rows_of[last].append(row)
    folds = _read_folds(path, here, rows_of)
    if not folds or not all(any(fold.values()) for fold in folds):
        raise DataError(f"{here} holds no split. {FORMS}.")
    return [_parts(fold, len(table), rows_of, f"{here}: fold {number}") for number, fold in enumerate(folds)]


def roles(labels: Iterable[str]) -> dict[str, int]:
    """Returns what each of the parts train, val, test and selection that occur is for."""
    occurring = set(labels)
    roles = {"train": TRAIN, "selection": SELECTION, "val": SELECTION if "test" in occurring else HELD_OUT}
    return roles | {"test": HELD_OUT, "": UNUSED}


def _parts(fold: Fold, num_rows: int, rows_of: Mapping[str, list[int]], here: str) -> np.ndarray:
    role = roles(fold)
    out = np.full(num_rows, UNUSED)
    for part, names in fold.items():
        found = [rows_of.get(name) or rows_of.get(PurePosixPath(name).name) for name in names]
        if None in found:
            unknown = names[found.index(None)]
            share = f"{found.count(None)} of {len(names)} names are not in the table, first {shorten(unknown)}"
            raise DataError(f"{here}: {share}. It belongs to another table.")
        rows = np.array([row for some in found for row in some or ()], dtype=np.int64)
        if (out[rows] != UNUSED).any():
            again = names[int(np.argmax([(out[some] != UNUSED).any() for some in found]))]
            raise DataError(f"{here}: {shorten(again)} stands in two parts. An image either trains or is held out.")
        out[rows] = role[part]
    if len(set(out) - {UNUSED}) == 1:
        out[out == UNUSED] = TRAIN if HELD_OUT in out else HELD_OUT
    if unused := int((out == UNUSED).sum()):
        logger.warning("%s: %d of %d rows are in no part: they neither train nor are reported", here, unused, num_rows)
    return out


def _read_folds(path: Path, here: str, known: Mapping[str, Any]) -> list[Fold]:
    if path.is_dir():
        if runs := sorted(path.glob("fold_*/split.json")):
            return [fold for run in runs for fold in _of_json(read_json(run, "split.file"), here)]
        files = {PARTS[f.stem.casefold()]: f for f in sorted(path.iterdir()) if f.stem.casefold() in PARTS}
        return [{part: _names_in(file, known) for part, file in files.items()}] if files else []
    if path.suffix.lower() == ".json":
        return _of_json(read_json(path, "split.file", FORMS + "."), here)
    rows = read_rows(path, "split.file", hint=FORMS)
    names = _names_of(rows, path, known)
    cells = rows.map(lambda cell: PARTS.get(cell.strip().casefold(), cell.strip()))
    labelled = [column for _, column in cells.items() if column.isin([*PARTS, ""]).all() and column.any()]
    numbered = [column for _, column in cells.items() if column.str.isdecimal().all()]
    columns = numbered if not labelled and len(numbered) == 1 else labelled
    contents = [{label: [*some] for label, some in names.groupby(column) if label} for column in columns]
    return [fold for content in contents for fold in _of_json(content, here)]


def _of_json(content: Any, here: str) -> list[Fold]:
    if isinstance(content, list):
        content = {str(number): item for number, item in enumerate(content)}
    if not isinstance(content, dict):
        return []
    content = {key: value for key, value in content.items() if key not in _OUR_FACTS}
    if content and all(isinstance(value, dict) for value in content.values()):
        return [fold for value in content.values() for fold in _of_json(value, here)]
    if not all(isinstance(value, list) for value in content.values()):
        return []
    kinds = {type(item) for items in content.values() for item in items}
    if not all(key.casefold() in PARTS for key in content):  # each list is held out in turn, the others train
        folds = [
            {"test": content[key], "train": [name for other in content if other != key for name in content[other]]}
            for key in content
        ]
    elif list not in kinds:
        folds = [content]
    elif kinds == {list} and len({len(items) for items in content.values()}) == 1:
        folds = [dict(zip(content, parts, strict=True)) for parts in zip(*content.values(), strict=True)]
    else:
        raise DataError(f"{here}: its parts do not have a list for each fold. {FORMS}.")
    return [{PARTS[key.casefold()]: [*map(str, names)] for key, names in fold.items()} for fold in folds]


def _names_in(path: Path, known: Mapping[str, Any]) -> list[str]:
    if path.suffix.lower() in READERS:
        return _names_of(read_rows(path, "split.file", hint=FORMS), path, known).tolist()
    return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _names_of(rows: pandas.DataFrame, path: Path, known: Mapping[str, Any]) -> pandas.Series:
    hits = rows[:_SAMPLE].map(lambda cell: cell in known or PurePosixPath(cell).name in known).sum().to_numpy()
    if not hits.max():
        raise DataError(f"split.file: '{path}' has no column with image names of the table. {FORMS}.")
    return rows.iloc[:, hits.argmax()]
