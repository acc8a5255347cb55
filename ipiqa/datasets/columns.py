"""Texts of a table's rows: a column by its name, or what a pattern makes of several columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ipiqa.errors import ConfigError

if TYPE_CHECKING:
    import pandas

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


def texts_of(source: Source, rows: pandas.DataFrame) -> list[str]:
    """Returns a text for each row, "" where a pattern finds nothing in a cell; columns bear their preferred spelling.

    >>> import pandas
    >>> rows = pandas.DataFrame({"model": ["sd", "xl"], "file": ["a_7.png", "b.png"], "index": ["3", "12"]})
    >>> texts_of("{model}/{index:03d}.jpeg", rows), texts_of("{file~_([0-9]+)}", rows)
    (['sd/003.jpeg', 'xl/012.jpeg'], ['7', ''])
    """
    parts = _PART.findall(source) if isinstance(source, str) else []
    if not parts:
        column: list[str] = rows[source if isinstance(source, str) else source[0]].tolist()
        return column
    cells = [[_part(text, width, regex) for text in rows[name]] for name, width, regex in parts]
    template = _PART.sub("{}", str(source))
    return [template.format(*row) if all(row) else "" for row in zip(*cells, strict=True)]


def _part(text: str, width: str, regex: str) -> str:
    if regex:
        match = re.search(regex, text)
        return (match[1] or "") if match else ""
    return text if not width else text.zfill(int(width)) if text.isdecimal() else ""
