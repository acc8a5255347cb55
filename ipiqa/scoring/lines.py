"""Rows that come line by line, from standard input: `path`, `path<TAB>prompt`, or a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ipiqa.datasets.readers import as_text
from ipiqa.datasets.shard_reader import MAX_PROMPT_BYTES
from ipiqa.scoring.completion import legible
from ipiqa.scoring.rows import Row


@dataclass(frozen=True)
class Line:
    """What a line says: its image and prompt, the other keys of an object, and why it cannot be used."""

    number: int
    image: str
    prompt: str | None = None
    others: dict[str, str] = field(default_factory=dict)
    problem: str = ""

    def row(self, columns: Sequence[str], root: Path) -> Row:
        """Returns the row that is scored; other keys than `columns` are its problem."""
        problem = self.problem or ("" if self.image.strip() else f"line {self.number} names no image")
        if not problem and (unknown := [key for key in self.others if key not in columns]):
            problem = f"line {self.number} has a key that the first line has not, {unknown[0]!r}"
        carried = tuple(self.others.get(name, "") for name in columns)
        return Row(self.image, root / self.image, self.prompt, carried, problem)


def read_lines(file: BinaryIO, images: Sequence[str], prompts: Sequence[str]) -> Iterator[Line]:
    """Yields the lines that are not empty, as they come; of the keys of an object, the first that is there counts."""
    for number, content in enumerate(iter(lambda: file.readline(MAX_PROMPT_BYTES), b""), start=1):
        text = content.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").strip("\r\n")
        if text.lstrip().startswith("{"):
            yield _read_object(number, text, images, prompts)
        elif text.strip():
            image, tab, prompt = text.partition("\t")
            yield Line(number, image, prompt if tab else None)


def _read_object(number: int, text: str, images: Sequence[str], prompts: Sequence[str]) -> Line:
    here = f"line {number}"
    try:
        found: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Line(number, here, problem=f"{here} is not a JSON object ({error})")
    image, prompt = (found.pop(next((key for key in keys if key in found), ""), None) for keys in (images, prompts))
    others = {legible(key): as_text(value) for key, value in found.items()}
    if not isinstance(image, str) or not (prompt is None or isinstance(prompt, str)):
        return Line(number, here, None, others, f"{here} has no text {images[0]!r}, or {prompts[0]!r} is no text")
    return Line(number, image, prompt, others)
