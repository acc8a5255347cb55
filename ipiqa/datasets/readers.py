"""Table files as text, cell by cell: a prompt "NA", "null" or "007" stays what it is; and patterns of cells.

Text files are read by the csv module, as pandas cannot tell the line a bad row stands in, nor a row that is too short.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pandas

from ipiqa.errors import ConfigError, DataError, IpiqaError, did_you_mean, shorten
from ipiqa.files import require_package

MAX_WORKBOOK_BYTES = 10**9  # of a workbook unzipped; Excel's own limit of rows needs less
_BATCH = 4096  # rows of a parquet file held at once
NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # halves of characters: json may hold them; bad bytes are read as such

# Spellings of one column, the preferred one first; or one text: the name of a column, or a pattern with {braces}.
Source = Sequence[str]

# Headings that columns of images and prompts bear in tables of other people
IMAGE_COLUMNS = (
    "image", "image_path", "image_name", "image_file", "img", "img_path", "img_name", "file_name", "filename",
    "file_path", "file", "path", "name",
)  # fmt: skip
PROMPT_COLUMNS = ("prompt", "text", "caption")

_PART = re.compile(r"\{([^{}~:]+)(?::0(\d)d|~([^{}]+))?\}")
PATTERN = "{column}, {column:05d} for a number with leading zeros, or {column~regex} for what a (group) of it matches"

Rows = Iterator[tuple[int, list[str]]]  # (line or row number, the wanted cells)
Choose = Callable[[Sequence[str]], list[int]]  # heading -> positions of the wanted columns


def read_rows(
    path: Path, where: str, wanted: Sequence[Sequence[str]] | None = None, hint: str = "",
    optional: Collection[str] = (), limit: int | None = None,
) -> pandas.DataFrame:  # fmt: skip
    """Returns the wanted columns of a table file as strings, "" for an empty cell; DataError where it cannot be used.

    The index is the number of the "line" (text files) or "row" and bears that name, a column its preferred spelling.
    Rows without any of the wanted cells are left out. Arguments are those of `stream_rows`, but for:

    Args:
        wanted: spellings of each column, the preferred one first; case, spaces and dashes are forgiven. None takes all
            columns as they are, whatever they are called.
        optional: preferred spellings of columns that are left out where the file does not have them.
        limit: most rows to read.
    """
    names: list[str] = []

    def choose(heading: Sequence[str]) -> list[int]:
        if wanted is None:
            names[:] = heading
            return [*range(len(heading))]
        there = [one for one in wanted if one[0] not in optional or matching_columns(heading, one)]
        names[:] = [spellings[0] for spellings in there]
        return [find_column(heading, spellings, f"{where}: '{path}'") for spellings in there]

    numbers: list[int] = []
    columns: list[list[str]] = []
    for number, cells in itertools.islice(stream_rows(path, where, choose, hint), limit):
        columns = columns or [[] for _ in cells]  # by column: a million rows are not held twice
        numbers.append(number)
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
    frame = pandas.DataFrame(dict(enumerate(columns)), pandas.Index(numbers, name=counted(path)), dtype=object)
    return frame.set_axis(names, axis=1)


def read_json(path: Path, where: str, hint: str = "") -> Any:
    """Returns what a JSON file holds; DataError where it is absent or no JSON."""
    here = f"{where}: '{path}'"
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{here} cannot be read: {error.strerror}. {hint or 'Check the path.'}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{here} is no JSON ({shorten(str(error))}). {hint or 'Save it again.'}") from None


def stream_rows(path: Path, where: str, choose: Choose, hint: str = "") -> Rows:
    """Yields the chosen cells of a table file as strings, row by row in constant memory; DataError as in `read_rows`.

    What is wrong with a heading is found at the first row, rows that do not fit it only at the end: read a table once
    to know that it can be read.

    Args:
        path: file of one of the `READERS`. Text files are UTF-8; .json has one object a line, or is a list of them.
        where: setting that names the file, for messages; `hint`, where to get it.
        choose: gives the positions of the wanted columns in the heading; what it raises is passed on.
    """
    here, hint, ending = f"{where}: '{path}'", f" {hint}" if hint else "", path.suffix.lower()

    def choose_checked(heading: Sequence[str]) -> list[int]:
        if not "".join(heading).strip():
            raise DataError(f"{here} is empty.{hint}")
        if NOT_TEXT.search("".join(heading)):
            raise DataError(f"{here} is not UTF-8 text. Save it again as UTF-8.")
        return choose(heading)

    if ending not in READERS:
        raise DataError(f"{here} ends in '{path.suffix}'. Tables are read from {', '.join(READERS)}.")
    is_empty = True
    try:
        if not path.is_file():
            raise DataError(f"{here} {'is a folder, not a file' if path.is_dir() else 'does not exist'}.{hint}")
        for number, cells in READERS[ending](path, here, choose_checked):
            if "".join(cells).strip():
                is_empty = False
                yield number, cells
    except IpiqaError:
        raise
    except Exception as error:  # a damaged file fails in whichever of zip's, XML's, openpyxl's or Arrow's ways it likes
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}, {shorten(str(error))}"
        raise DataError(f"{here} cannot be read: {reason}. Check its permissions, or save it again.") from error
    if is_empty:
        raise DataError(f"{here} has a heading but no rows.{hint}")


def counted(path: Path) -> str:
    """Returns what the numbers of a table's rows count: "line" or "row"."""
    return "row" if path.suffix.lower() in (".xlsx", ".parquet") or _is_array(path) else "line"


def _is_array(path: Path) -> bool:
    """Returns whether a file is one JSON array, and not an object a line."""
    if path.suffix.lower() != ".json":
        return False
    with _open(path, newline="\n") as file:
        return file.read(1000).lstrip().startswith("[")


def find_column(columns: Sequence[str], spellings: Sequence[str], here: str) -> int:
    """Returns the position of the column that bears one of the spellings; case, spaces and dashes are forgiven."""
    if matching := matching_columns(columns, spellings):
        if len(matching) > 1:
            named = ", ".join(repr(columns[position]) for position in matching[:5])
            raise DataError(f"{here} has {len(matching)} columns for {spellings[0]!r}: {named}. Rename all but one.")
        return matching[0]
    filled = [column for column in columns if column.strip()]
    near = next(filter(None, (did_you_mean(spelling, filled[:1000]) for spelling in spellings)), "")
    wanted = " or ".join(map(repr, spellings))
    shown = ", ".join(map(shorten, filled[:30])) + (f" and {len(filled) - 30} more" if len(filled) > 30 else "")
    raise DataError(f"{here} has no column {wanted}.{near} Its columns are: {shown}.")


def matching_columns(columns: Sequence[str], spellings: Sequence[str]) -> list[int]:
    """Returns the positions of the columns that bear the first spelling which any bears, exactly or nearly so."""
    for form in (str, _plain):
        for spelling in spellings:
            if matching := [position for position, column in enumerate(columns) if form(column) == form(spelling)]:
                return matching
    return []


def check_pattern(source: str, where: str) -> None:
    """Raises ConfigError where a text with braces is no pattern."""
    rest, problem = _PART.sub("", source), "is not a pattern"
    try:
        groups = [re.compile(regex).groups for *_, regex in _PART.findall(source) if regex]
    except re.error as error:
        groups, problem = [0], f"holds no regular expression ({error})"
    if "{" in rest or "}" in rest or not all(groups):
        raise ConfigError(f"{where}: {source!r} {problem}. Write {PATTERN}.")


def spellings_of(source: Source) -> list[Sequence[str]]:
    """Returns the spellings of every column that a source reads."""
    if not isinstance(source, str):
        return [source]
    return [[name] for name, *_ in _PART.findall(source)] or [[source]]


def texts_of(source: Source, rows: pandas.DataFrame) -> pandas.Series:
    """Returns a text for each row, "" where a pattern finds nothing in a cell; columns bear their preferred spelling.

    >>> import pandas
    >>> rows = pandas.DataFrame({"model": ["sd", "xl"], "file": ["a_7.png", "b.png"], "index": ["3", "12"]})
    >>> [*texts_of("{model}/{index:03d}.jpeg", rows)], [*texts_of("{file~_([0-9]+)}", rows)]
    (['sd/003.jpeg', 'xl/012.jpeg'], ['7', ''])
    """
    parts = _PART.findall(source) if isinstance(source, str) else []
    if not parts:
        return rows[source if isinstance(source, str) else source[0]]
    cells = [[_part(text, width, regex) for text in rows[name]] for name, width, regex in parts]
    template = _PART.sub("{}", str(source))
    texts = [template.format(*row) if all(row) else "" for row in zip(*cells, strict=True)]
    return pandas.Series(texts, rows.index, dtype=object)


def _part(text: str, width: str, regex: str) -> str:
    if regex:
        match = re.search(regex, text)
        return (match[1] or "") if match else ""
    return text if not width else text.zfill(int(width)) if text.isdecimal() else ""


def _plain(heading: str) -> str:
    return "".join(filter(str.isalnum, heading.casefold()))


def _open(path: Path, newline: str) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)  # see NOT_TEXT


def _read_csv(path: Path, here: str, choose: Choose) -> Rows:
    heading: list[str] = []
    num_uneven, first = 0, ""
    with _open(path, newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        end = 0
        try:
            for cells in reader:
                number, end = end + 1, reader.line_num  # a quoted cell may hold line breaks: a row's first line counts
                if not heading and "".join(cells).strip():
                    heading, chosen = cells, choose(cells)
                elif len(cells) == len(heading):
                    yield number, [cells[position] for position in chosen]
                elif "".join(cells).strip():
                    num_uneven, first = num_uneven + 1, first or f"line {number} has {len(cells)}"
        except csv.Error as error:
            raise DataError(f"{here}: {error} near line {reader.line_num}. Check the quotes.") from error
    if num_uneven:
        counts = f"{num_uneven} rows do not have the {len(heading)} cells of the heading, first {first}"
        raise DataError(f"{here}: {counts}. Put quotes around text that holds the separator.")
    if not heading:
        choose([])


def _read_xlsx(path: Path, here: str, choose: Choose) -> Rows:
    import openpyxl

    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_WORKBOOK_BYTES:
        raise DataError(f"{here} unpacks to {size / 1e9:.1f} GB, more than 1 GB. Save it as .csv.")
    # Rows one by one, no further than the last wanted column: a stray cell far out does not fill the memory.
    with contextlib.closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as book:
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # what a file says of its size need not be true
        chosen = choose([as_text(value) for value in next(sheet.iter_rows(max_row=1, values_only=True), ())])
        rows = sheet.iter_rows(min_row=2, max_col=max(chosen) + 1, values_only=True)
        for number, row in enumerate(rows, start=2):
            yield number, [as_text(row[position]) for position in chosen]


def _read_jsonl(path: Path, here: str, choose: Choose) -> Rows:
    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        if _is_array(path):
            content = read_json(path, here.rpartition(": ")[0])
            if not all(isinstance(row, dict) for row in content):
                raise DataError(f"{here} is a list, but not of objects. Write an object for each row.")
            yield from enumerate(content, start=1)
            return
        with _open(path, newline="\n") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip():
                        yield number, {**json.loads(line)}
                except (ValueError, TypeError, RecursionError) as error:
                    problem = f"line {number} is not a JSON object ({error}). Write one a line."
                    raise DataError(f"{here}: {problem}") from error

    columns = list(dict.fromkeys(key for _, row in objects() for key in row))  # known when all lines are
    names = [columns[position] for position in choose(columns)]
    yield from ((number, [as_text(row.get(name)) for name in names]) for number, row in objects())


def _read_parquet(path: Path, here: str, choose: Choose) -> Rows:
    arrow, parquet = require_package("pyarrow", here), require_package("pyarrow.parquet", here)
    with parquet.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        names = [columns[position] for position in choose(columns)]
        start = 1
        for batch in file.iter_batches(_BATCH, columns=list(dict.fromkeys(names))):
            texts: list[list[str | None]] = []
            for name in names:
                try:
                    texts.append(batch.column(name).cast(arrow.string()).to_pylist())
                except (ValueError, arrow.ArrowException) as error:
                    kind = batch.schema.field(name).type
                    raise DataError(f"{here}: column {name!r} holds {kind}, not text or numbers.") from error
            yield from enumerate(([text or "" for text in row] for row in zip(*texts, strict=True)), start)
            start += batch.num_rows


def as_text(value: Any) -> str:
    """Returns a cell as text; a float keeps all its digits."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value) if isinstance(value, (list, dict, bool)) else str(value)


READERS: dict[str, Callable[[Path, str, Choose], Rows]] = {
    ".csv": _read_csv, ".tsv": _read_csv, ".xlsx": _read_xlsx, ".jsonl": _read_jsonl, ".json": _read_jsonl,
    ".parquet": _read_parquet,
}  # fmt: skip
