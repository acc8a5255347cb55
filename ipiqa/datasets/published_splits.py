"""Published splits: which images train and which are held out, in the forms that papers publish them in."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

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
    names, columns = _columns(path, known)
    cells = [[cell.strip().casefold() for cell in column] for column in columns]
    labelled = [column for column in cells if any(column) and all(cell in PARTS or not cell for cell in column)]
    numbered = [column for column in cells if all(cell.isdecimal() for cell in column)]
    if not labelled and len(numbered) == 1:
        return _held_out_in_turn(_by_label(names, numbered[0]))
    return [_by_label(names, [PARTS.get(cell, "") for cell in column]) for column in labelled]


def _by_label(names: Sequence[str], labels: Sequence[str]) -> dict[str, list[str]]:
    out = defaultdict(list)
    for name, label in zip(names, labels, strict=True):
        out[label].append(name)
    return {label: out[label] for label in sorted(out) if label}


def _held_out_in_turn(lists: Mapping[str, Sequence[str]]) -> list[Fold]:
    """Returns a fold for each list of names: it is held out, the others train."""
    return [
        {"test": held_out, "train": [name for other in lists if other != one for name in lists[other]]}
        for one, held_out in lists.items()
    ]


def _of_json(content: Any, here: str) -> list[Fold]:
    """Returns the folds in what a json file holds."""
    if isinstance(content, list):
        content = {str(number): item for number, item in enumerate(content)}
    if not isinstance(content, dict):
        return []
    content = {key: value for key, value in content.items() if key not in _OUR_FACTS}
    if content and all(isinstance(value, dict) for value in content.values()):
        return [fold for value in content.values() for fold in _of_json(value, here)]
    if not all(isinstance(value, list) for value in content.values()):
        return []
    if not all(key.casefold() in PARTS for key in content):
        return _held_out_in_turn({key: list(map(str, names)) for key, names in content.items()})
    by_part = {PARTS[key.casefold()]: value for key, value in content.items()}
    if not any(isinstance(item, list) for value in by_part.values() for item in value):
        return [{part: list(map(str, names)) for part, names in by_part.items()}]
    lengths = {len(value) for value in by_part.values()}
    if len(lengths) > 1 or not all(isinstance(item, list) for value in by_part.values() for item in value):
        raise DataError(f"{here}: its parts do not have a list for each fold. {FORMS}.")
    return [{part: list(map(str, value[fold])) for part, value in by_part.items()} for fold in range(lengths.pop())]


def _names_in(path: Path, known: Mapping[str, Any]) -> list[str]:
    """Returns the names that a table or a text file of one a line lists."""
    if path.suffix.lower() in READERS:
        return _columns(path, known)[0]
    return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _columns(path: Path, known: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the column of a table that has names the annotations know, and all columns."""
    columns = read_rows(path, "split.file", hint=FORMS).to_numpy().T.tolist()
    hits = [sum(cell in known or PurePosixPath(cell).name in known for cell in column[:_SAMPLE]) for column in columns]
    if not max(hits):
        raise DataError(f"split.file: '{path}' has no column with image names of the table. {FORMS}.")
    return columns[hits.index(max(hits))], columns
