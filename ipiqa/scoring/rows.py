"""The rows of a scoring job: images and prompts, one after the other, in parts that any process can read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from ipiqa.datasets.readers import NOT_TEXT
from ipiqa.datasets.shard_reader import TarMember
from ipiqa.datasets.table import LONGEST_TEXT
from ipiqa.errors import DataError

MAX_PART_BYTES = 128 << 20  # of images that a part holds, which are those of compressed shards


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The options of `ipiqa score` that say what its images and prompts are; None where not given."""

    prompt: str | None = None  # one text for all images
    prompts: str | None = None  # a file of prompts, or "sidecar" or "embedded"
    image_column: str | None = None  # of a table that has none of the usual names
    prompt_column: str | None = None
    image_root: str | None = None  # folder that names in a table or in standard input are relative to
    prompt_member: str | None = None  # of a sample in shards: an ending, or "json:p" for the key p of a JSON member
    limit: int | None = None  # how many images to take, the first

    @property
    def gives_prompts(self) -> bool:
        return self.prompt is not None or self.prompts is not None


@dataclass(frozen=True)
class Row:
    """One image to be scored. Its texts, once complete, can be written as UTF-8."""

    image: str  # what it is called in the output
    source: Path | bytes | TarMember  # a file, by its absolute path, or the content of one
    prompt: str | None  # None where there is none
    carried: tuple[str, ...] = ()  # cells of the input's other columns
    problem: str = ""  # why it cannot be scored, where that is known before the image is opened

    @property
    def cells(self) -> list[str | None]:
        """What the output has of it beside the scores."""
        return [self.image, self.prompt, *self.carried]

    def file(self) -> Path | bytes:
        """Returns the image as it can be opened; DataError: its shard has changed."""
        return self.source.read() if isinstance(self.source, TarMember) else self.source


@dataclass(frozen=True)
class Completion:
    """Adds to a row what is known once its files are read: its prompt, and why it cannot be scored."""

    needs_prompt: bool
    read: Callable[[Path | bytes], str] | None = None  # the prompt that belongs to an image; DataError: there is none
    lack: str = "no prompt"  # what is said of a row without one

    def __call__(self, row: Row) -> Row:
        prompt, problem, lack = row.prompt, row.problem, self.lack
        if not problem and NOT_TEXT.search(row.image):
            problem = "the name is not UTF-8 text"
        if not problem and self.read is not None:
            try:
                prompt = self.read(row.file())
            except DataError as error:
                prompt, lack = None, f"no prompt: {error}"
        if not problem and self.needs_prompt:
            if prompt is None or not prompt.strip():
                problem = lack
            elif NOT_TEXT.search(prompt):
                problem = "the prompt is not UTF-8 text"
            elif len(prompt) > LONGEST_TEXT:
                problem = f"the prompt has {len(prompt):,} characters, more than {LONGEST_TEXT:,}"
        prompt, carried = None if prompt is None else legible(prompt), tuple(map(legible, row.carried))
        return Row(legible(row.image), row.source, prompt, carried, legible(problem))


@dataclass(frozen=True)
class Part:
    """Some rows that follow each other. It can be pickled, and read as often as one likes, on any machine."""

    number: int  # from 0
    listed: tuple[Row, ...]
    complete: Completion

    def __len__(self) -> int:
        return len(self.listed)

    def rows(self) -> list[Row]:
        return [self.complete(row) for row in self.listed]


@dataclass(frozen=True)
class Rows:
    """What is scored, in a fixed order."""

    columns: tuple[str, ...]  # names of the input's other columns, which `Row.carried` has cells for
    num_rows: int | None  # None where it is not known before the end
    listing: Callable[[], Iterator[Row]]  # gives all rows, each time it is called; standard input only once
    complete: Completion

    def map(self, change: Callable[[Row], Row]) -> Rows:
        """Returns these rows, each of them changed."""
        return replace(self, listing=lambda: map(change, self.listing()))

    def first(self, count: int) -> Rows:
        """Returns at most so many of these rows."""
        num_rows = None if self.num_rows is None else min(self.num_rows, count)
        return replace(self, num_rows=num_rows, listing=lambda: islice(self.listing(), count))

    def parts(self, size: int) -> Iterator[Part]:
        """Yields all rows, at most `size` a part; the last, or one whose rows take much memory, may have fewer."""
        number, held, listed = 0, 0, list[Row]()
        for row in self.listing():
            listed.append(row)
            held += len(row.source) if isinstance(row.source, bytes) else 0
            if len(listed) == size or held > MAX_PART_BYTES:
                yield Part(number, tuple(listed), self.complete)
                number, held, listed = number + 1, 0, []
        if listed:
            yield Part(number, tuple(listed), self.complete)


def legible(text: str) -> str:
    r"""Returns a text as UTF-8 can hold it, without NUL.

    >>> legible("caf\udce9")
    'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0") if NOT_TEXT.search(text) else text
