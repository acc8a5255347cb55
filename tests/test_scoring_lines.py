"""Lines of standard input: what they say, and those that cannot be used."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_rows import brief, opened
from test_datasets_tables import write

from ipiqa.errors import ConfigError, DataError
from ipiqa.scoring.rows import Inputs, Rows
from ipiqa.scoring.tables import read_lines


def lines(monkeypatch: pytest.MonkeyPatch, content: bytes, **options: Any) -> Rows:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    return opened("-", **options)


def test_lines_of_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = b'\xef\xbb\xbfa.png\ta cat\r\n\n{"file": "b.png", "text": "a\\tdog"}\nc.png\n{"image": 3}\n{"a"\n\tx\n'
    content += b'{"image": "d.png", "seed": 1}\ncaf\xe9.png\tp\n' + b'{"a":' * 5000
    rows = [row for part in lines(monkeypatch, content).parts(2) for row in part.rows()]
    assert [row.image for row in rows] == [
        "a.png", "b.png", "c.png", "line 5", "line 6", "", "d.png", "caf\\udce9.png", "line 10",
    ]  # fmt: skip
    assert [row.prompt for row in rows] == ["a cat", "a\tdog", None, None, None, "x", None, "p", None]
    assert rows[0].source == tmp_path / "a.png"
    assert [row.problem[:51] for row in rows] == [
        "", "", "no prompt", "line 5 has no text 'image', or 'prompt' is no text",
        "line 6 is not a JSON object (Expecting ':' delimite", "line 7 names no image",
        "line 8 has a key that the first line has not, 'seed", "the name is not UTF-8 text",
        "line 10 is not a JSON object (maximum recursion dep",
    ]  # fmt: skip


def test_other_keys_are_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b'{"pic": "a.png", "prompt": "A", "seed": 7, "\\ud800": ["x"]}\nb.png\tB\n'
    content += b'{"pic": "c.png", "prompt": "C", "seed": null}'
    rows = lines(monkeypatch, content, image_column="pic", image_root=str(tmp_path))
    assert rows.columns == ("seed", "\\ud800") and rows.num_rows is None
    [part] = rows.parts(9)
    assert [row.carried for row in part.rows()] == [("7", '["x"]'), ("", ""), ("", "")]
    assert part.rows()[1].source == tmp_path / "b.png" and not any(row.problem for row in part.rows())


def test_lines_are_read_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = lines(monkeypatch, b"a.png\n" * 10, prompt="p")
    parts = rows.parts(2)
    assert len(next(parts)) == 2 and sys.stdin.buffer.tell() == 12
    assert len(list(rows.parts(100))) == 1, "what was read is gone"


def test_lines_joined_with_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write(tmp_path / "t.csv", [["a.png", "A"]], ["image", "prompt"])
    [part] = lines(monkeypatch, b"in/a.png\nb.png\n", prompts=str(table)).parts(5)
    assert brief(part.rows()) == [("in/a.png", "A", ""), ("b.png", None, f"no prompt in '{table}'")]


def test_standard_input_that_cannot_be_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="images: standard input is empty. Write an image a line, with a tab and its"):
        lines(monkeypatch, b"\n \n")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="images: standard input is empty."):
        opened("-")
    with pytest.raises(ConfigError, match="its first line has no prompt: 'a.png'. Give --prompt TEXT, or"):
        lines(monkeypatch, b"a.png\n")


plain = st.none() | st.floats() | st.text(max_size=5)
keys = st.sampled_from(["image", "prompt", "text", "", "a"])
objects = st.dictionaries(keys, plain | st.lists(plain) | st.dictionaries(keys, plain), max_size=3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=40) | objects.map(lambda value: json.dumps(value).encode()), max_size=5))
def test_any_line_is_a_row_or_its_problem(content: list[bytes]) -> None:
    joined = b"\n".join(content)
    found = list(read_lines(io.BytesIO(joined), Inputs(), []))
    assert len(found) == sum(1 for line in joined.decode("utf-8-sig", "surrogateescape").split("\n") if line.strip())
    assert all(row.problem or row.image.strip() for row in found)


def test_lines_and_a_text_file_cannot_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--prompts: 'p.txt' may have too few lines. Write lines of image<TAB>prompt"):
        lines(monkeypatch, b"a.png\n", prompts="p.txt")
