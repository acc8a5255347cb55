"""Table files as text, cell by cell: a prompt "NA", "null" or "007" stays what it is."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipiqa.errors import DataError

if TYPE_CHECKING:
    import pandas

Records = list[tuple[int, list[str]]]  # (line or row number, cells)


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
