"""Rows to be scored, opened and looked at as a job does."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ipiqa.scoring.rows import Inputs, Row, Rows
from ipiqa.scoring.sources import open_rows


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def opened(what: str | Path, needs_prompt: bool = True, **options: Any) -> Rows:
    return open_rows(str(what), Inputs(**options), needs_prompt=needs_prompt)


def rows_of(what: str | Path, needs_prompt: bool = True, **options: Any) -> list[Row]:
    """Returns all rows, and checks that their parts are the same in another process and of any size."""
    rows = opened(what, needs_prompt, **options)
    out: list[Row] = []
    for number, part in enumerate(rows.parts(2)):
        assert part.number == number and 1 <= len(part) <= 2
        content = part.rows()
        assert len(content) == len(part) and content == pickle.loads(pickle.dumps(part)).rows()
        out += content
    if what != "-":
        assert out == [row for part in rows.parts(1000) for row in part.rows()]
    assert rows.num_rows in (None, len(out)) and all(len(row.carried) == len(rows.columns) for row in out)
    return out


def brief(rows: list[Row]) -> list[tuple[str, str | None, str]]:
    return [(row.image, row.prompt, row.problem) for row in rows]


def message(kind: type[Exception], what: str | Path, needs_prompt: bool = True, **options: Any) -> str:
    """Returns the one line that opening rows is refused with."""
    with pytest.raises(kind) as caught:
        opened(what, needs_prompt, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
