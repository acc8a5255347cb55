"""Rows made ready to be scored: their prompts, and why a row cannot be scored."""

from __future__ import annotations

from dataclasses import dataclass

from ipiqa.datasets.readers import NOT_TEXT
from ipiqa.datasets.table import LONGEST_TEXT
from ipiqa.scoring.rows import Row


@dataclass(frozen=True)
class Completion:
    """Gives rows the prompts that their input has not, and says of each why it cannot be scored."""

    needs_prompt: bool
    text: str | None = None  # for all rows

    def __call__(self, row: Row) -> Row:
        prompt, problem = self.text if self.text is not None else row.prompt, row.problem
        if not problem and NOT_TEXT.search(row.image):
            problem = "its name is not UTF-8 text"
        if not problem and self.needs_prompt:
            problem = _problem(prompt or "")
        return Row(
            legible(row.image), row.source, None if prompt is None else legible(prompt),
            tuple(map(legible, row.carried)), legible(problem),
        )  # fmt: skip


def _problem(prompt: str) -> str:
    """Returns why a prompt cannot be used, or ""."""
    if not prompt.strip():
        return "it has no prompt"
    if NOT_TEXT.search(prompt):
        return "its prompt is not UTF-8 text"
    return f"its prompt has {len(prompt):,} characters, more than {LONGEST_TEXT:,}" * (len(prompt) > LONGEST_TEXT)


def legible(text: str) -> str:
    r"""Returns a text as UTF-8 can hold it, without NUL.

    >>> legible("caf\udce9")
    'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0") if NOT_TEXT.search(text) else text
