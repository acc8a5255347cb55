"""Table files as text, cell by cell: a prompt "NA", "null" or "007" stays what it is.

Text files are read by the csv module, as pandas cannot tell the line a bad row stands in, nor a row that is too short.
"""

from __future__ import annotations

import csv
import functools
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ipiqa.errors import DataError, IpiqaError, did_you_mean, shorten
from ipiqa.files import require_package

if TYPE_CHECKING:
    import pandas

MAX_WORKBOOK_BYTES = 10**9  # of a workbook unzipped; Excel's own limit of rows needs less

Records = list[tuple[int, list[str]]]  # (line or row number, the wanted cells)
Choose = Callable[[Sequence[str]], list[int]]  # heading -> positions of the wanted columns


def read_rows(path: Path, where: str, wanted: Sequence[Sequence[str]], hint: str = "") -> pandas.DataFrame:
    """Returns the wanted columns of a table file as text.

    Args:
        path: file ending in .csv, .tsv, .xlsx, .jsonl or .json (one object a line) or .parquet. Text files are UTF-8.
        where: setting that names the file, for messages.
        wanted: spellings of each column, the preferred one first; see `find_column`.
        hint: where to get the file, added to the message when it is missing.

    Returns:
        Strings only, "" for an empty cell; a column bears its preferred spelling. The index is the number of the line
        (text files) or row (xlsx, parquet) and bears that name. Wholly empty rows are left out.

    Raises:
        DataError: missing, unreadable or empty file, wrong encoding, a missing column, rows of unequal length.
    """
    import pandas

    readers: dict[str, tuple[str, Callable[[Path, str, Choose], Records | None]]] = {
        ".csv": ("line", functools.partial(_read_csv, delimiter=",")),
        ".tsv": ("line", functools.partial(_read_csv, delimiter="\t")),
        ".xlsx": ("row", _read_xlsx),
        ".jsonl": ("line", _read_jsonl),
        ".json": ("line", _read_jsonl),
        ".parquet": ("row", _read_parquet),
    }
    here, hint = f"{where}: '{path}'", f" {hint}" if hint else ""

    def choose(heading: Sequence[str]) -> list[int]:
        if not all(map(is_utf8, heading)):
            raise DataError(f"{here} is not UTF-8 text. Save it again as UTF-8.")
        return [find_column(heading, spellings, here) for spellings in wanted]

    if path.suffix.lower() not in readers:
        raise DataError(f"{here} ends in '{path.suffix}'. Tables are read from {', '.join(readers)}.")
    unit, read = readers[path.suffix.lower()]
    try:
        if not path.is_file():
            raise DataError(f"{here} {'is a folder, not a file' if path.is_dir() else 'does not exist'}.{hint}")
        records = read(path, here, choose)
    except OSError as error:
        raise DataError(f"{here} cannot be read: {error.strerror}. Check its permissions.") from error
    if records is None:
        raise DataError(f"{here} is empty.{hint}")
    if not records:
        raise DataError(f"{here} has a heading but no rows.{hint}")
    index = pandas.Index([number for number, _ in records], name=unit)
    names = pandas.Index([spellings[0] for spellings in wanted])
    return pandas.DataFrame([cells for _, cells in records], columns=names, index=index, dtype=object)


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
            matching = [position for position, heading in enumerate(columns) if same(heading, spelling)]
            if len(matching) > 1:
                named = ", ".join(repr(columns[position]) for position in matching[:5])
                raise DataError(f"{here} has {len(matching)} columns for {spelling!r}: {named}. Rename all but one.")
            if matching:
                return matching[0]
    shown, short = [shorten(column) for column in columns[:30]], [name for name in columns[:1000] if len(name) < 100]
    near = next((words for words in (did_you_mean(s, short) for s in spellings) if words), "")
    wanted = repr(spellings[0]) + "".join(f" (or {s!r})" for s in spellings[1:])
    more = f" and {len(columns) - len(shown)} more" if len(columns) > len(shown) else ""
    raise DataError(f"{here} has no column {wanted}.{near} Its columns are: {', '.join(shown)}{more}.")


def is_utf8(text: str) -> bool:
    """Returns whether a text can be written; json can hold half a character, and odd bytes are read as such."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _open(path: Path, newline: str) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)  # `is_utf8` finds bad bytes


def _read_csv(path: Path, here: str, choose: Choose, *, delimiter: str) -> Records | None:
    heading: list[str] | None = None
    records: Records = []
    uneven: list[str] = []
    with _open(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        end = 0
        try:
            for cells in reader:
                number, end = end + 1, reader.line_num  # a quoted cell may hold line breaks: a row's first line counts
                if not "".join(cells).strip():
                    continue
                if heading is None:
                    heading, chosen = cells, choose(cells)
                elif len(cells) != len(heading):
                    uneven.append(f"line {number} has {len(cells)}")
                else:
                    records.append((number, [cells[position] for position in chosen]))
        except csv.Error as error:
            raise DataError(
                f"{here} is not well-formed near line {reader.line_num}: {error}. Check the quotes."
            ) from error
    if uneven:
        raise DataError(
            f"{here}: {len(uneven)} rows do not have the {len(heading or ())} cells of the heading, first {uneven[0]}. "
            "Put quotes around text that holds the separator."
        )
    return None if heading is None else records


def _read_xlsx(path: Path, here: str, choose: Choose) -> Records | None:
    import openpyxl

    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_WORKBOOK_BYTES:
            raise DataError(f"{here} unpacks to {size / 1e9:.1f} GB, more than 1 GB. Save it as .csv.")
        # Rows one by one, no further than the last wanted column: a stray cell far out does not fill the memory.
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # what a file says of its size need not be true
            heading = [_text(value) for value in next(sheet.iter_rows(max_row=1, values_only=True), ())]
            named = [position for position, name in enumerate(heading) if name.strip()]
            if not named:
                return None
            chosen = [named[number] for number in choose([heading[position] for position in named])]
            rows = sheet.iter_rows(min_row=2, max_col=max(chosen) + 1, values_only=True)
            return _filled(
                (number, [_text(row[position]) if position < len(row) else "" for position in chosen])
                for number, row in enumerate(rows, start=2)
            )
        finally:
            book.close()
    except (OSError, IpiqaError):
        raise
    except Exception as error:  # a broken workbook fails in whichever of openpyxl's, zip's or XML's ways it likes
        raise DataError(f"{here} is not an Excel workbook ({type(error).__name__}). Save it again as .xlsx.") from error


def _read_jsonl(path: Path, here: str, choose: Choose) -> Records | None:
    rows: list[tuple[int, Any]] = []
    with _open(path, newline="\n") as file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append((number, json.loads(line)))
                    if not isinstance(rows[-1][1], dict):
                        kind = type(rows[-1][1]).__name__
                        raise DataError(f"{here}: line {number} is a {kind}. Write one object a line.")
        except (ValueError, RecursionError) as error:
            raise DataError(f"{here}: line {number} is not JSON ({error}). Write one object a line.") from error
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    if not columns:
        return None
    names = [columns[position] for position in choose(columns)]
    return _filled((number, [_text(row.get(name)) for name in names]) for number, row in rows)


def _read_parquet(path: Path, here: str, choose: Choose) -> Records | None:
    arrow = require_package("pyarrow", here)
    parquet = require_package("pyarrow.parquet", here)
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if not columns:
                return None
            names = [columns[position] for position in choose(columns)]
            table = file.read(columns=list(dict.fromkeys(names)))
    except IpiqaError:
        raise
    except Exception as error:  # a damaged file fails in ways of Arrow's and of Python's
        raise DataError(f"{here} is not a parquet file that can be read ({type(error).__name__}).") from error
    texts: dict[str, list[str]] = {}
    for name in table.column_names:
        try:
            texts[name] = [text or "" for text in table.column(name).cast(arrow.string()).to_pylist()]
        except (ValueError, arrow.ArrowException) as error:
            kind = table.schema.field(name).type
            raise DataError(f"{here}: column {name!r} holds {kind}, not text or numbers.") from error
    return _filled(enumerate(map(list, zip(*(texts[name] for name in names), strict=True)), start=1))


def _filled(records: Iterable[tuple[int, list[str]]]) -> Records:
    """Returns the rows in which any cell is filled."""
    return [(number, cells) for number, cells in records if "".join(cells).strip()]


def _text(value: Any) -> str:
    """Returns a cell as text; a float keeps all its digits."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value) if isinstance(value, (list, dict, bool)) else str(value)
