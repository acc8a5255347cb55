"""Rows made ready to be scored: their prompts, and why a row cannot be scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ipiqa.datasets.readers import NOT_TEXT
from ipiqa.datasets.shard_reader import MAX_PROMPT_BYTES
from ipiqa.datasets.table import LONGEST_TEXT
from ipiqa.errors import DataError
from ipiqa.scoring.rows import Row


@dataclass(frozen=True)
class Completion:
    """Gives rows the prompts that their input has not, and says of each why it cannot be scored."""

    needs_prompt: bool
    text: str | None = None  # for all rows
    read: Callable[[Path | bytes], str] | None = None  # the prompt that belongs to an image; DataError: there is none
    lack: str = "no prompt"  # what is said of a row without one

    def __call__(self, row: Row) -> Row:
        prompt, problem = row.prompt if self.text is None else self.text, row.problem
        if not problem and NOT_TEXT.search(row.image):
            problem = "the name is not UTF-8 text"
        lack = self.lack
        if not problem and self.read is not None:
            try:
                prompt = self.read(row.source)
            except DataError as error:
                lack = f"no prompt: {error}"
        if not problem and self.needs_prompt:
            problem = _problem(prompt) if prompt is not None and prompt.strip() else lack
        return Row(
            legible(row.image), row.source, None if prompt is None else legible(prompt),
            tuple(map(legible, row.carried)), legible(problem),
        )  # fmt: skip


def sidecar(source: Path | bytes) -> str:
    """Returns the prompt in the text file beside an image: `cat.txt` of `cat.png`; DataError: there is none."""
    assert isinstance(source, Path)
    path = source.with_suffix(".txt")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PROMPT_BYTES)
        prompt = content.decode("utf-8-sig").strip()
    except OSError as error:
        raise DataError(f"'{path.name}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"'{path.name}' is not UTF-8 text") from error
    if not prompt:
        raise DataError(f"'{path.name}' is empty")
    return prompt


def _problem(prompt: str) -> str:
    """Returns why a prompt cannot be used, or ""."""
    if NOT_TEXT.search(prompt):
        return "the prompt is not UTF-8 text"
    return f"the prompt has {len(prompt):,} characters, more than {LONGEST_TEXT:,}" * (len(prompt) > LONGEST_TEXT)


def legible(text: str) -> str:
    r"""Returns a text as UTF-8 can hold it, without NUL.

    >>> legible("caf\udce9")
    'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0") if NOT_TEXT.search(text) else text
