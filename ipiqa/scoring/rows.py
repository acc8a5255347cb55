"""The rows of a scoring job: images and prompts, one after the other, in parts that any process can read again."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Row:
    """One image to be scored. Its texts can be written as UTF-8."""

    image: str  # what it is called in the output
    source: Path | bytes  # a file, by its absolute path, or the content of one
    prompt: str | None  # None where there is none
    carried: tuple[str, ...] = ()  # cells of the input's other columns
    problem: str = ""  # why it cannot be scored, where that is known before the image is opened


class Part(Protocol):
    """Some rows that follow each other. It can be pickled, and read as often as one likes, on any machine."""

    @property
    def number(self) -> int: ...  # from 0
    def __len__(self) -> int: ...
    def rows(self) -> list[Row]: ...


class Rows(Protocol):
    """What is scored, in a fixed order."""

    @property
    def columns(self) -> tuple[str, ...]: ...  # names of the input's other columns, which `Row.carried` has cells for
    @property
    def num_rows(self) -> int | None: ...  # None where it is not known before the end

    def parts(self, size: int) -> Iterator[Part]:
        """Yields all rows, at most `size` a part; a part that would be the last, or take much memory, may have fewer.

        Called again it yields the same, but for standard input, which can be read once.
        """


Listing = Callable[[], Iterator[Row]]  # gives all rows, each time it is called
Complete = Callable[[Row], Row]  # can be pickled; adds what is only known once a row's files are read


@dataclass(frozen=True)
class ListedPart:
    """Rows that are known without their images."""

    number: int
    listed: tuple[Row, ...]
    complete: Complete

    def __len__(self) -> int:
        return len(self.listed)

    def rows(self) -> list[Row]:
        return [self.complete(row) for row in self.listed]


@dataclass(frozen=True)
class ListedRows:
    """Rows that a table, a folder or standard input lists."""

    columns: tuple[str, ...]
    total: int | None  # rows that are listed, of which the first `limit` are taken
    listing: Listing
    complete: Complete
    limit: int | None = None

    @property
    def num_rows(self) -> int | None:
        return self.total if self.total is None or self.limit is None else min(self.total, self.limit)

    def parts(self, size: int) -> Iterator[ListedPart]:
        rows = itertools.islice(self.listing(), self.limit)
        chunks = iter(lambda: tuple(itertools.islice(rows, size)), ())
        return (ListedPart(number, chunk, self.complete) for number, chunk in enumerate(chunks))


def digest(rows: list[Row]) -> str:
    """Returns 16 hexadecimal digits that tell whether a part is still the same: names, prompts and other cells."""
    hashed = hashlib.blake2b(digest_size=8)
    for row in rows:
        for text in (row.image, row.prompt or "", *row.carried, row.problem):
            hashed.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return hashed.hexdigest()
