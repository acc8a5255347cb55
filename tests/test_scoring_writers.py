"""What a scoring job writes: every form holds the same, and nothing of a user's is overwritten."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import error_of

from ipiqa.scoring.writers import Columns, check_output, write_output

ODD = ['a "quoted", text', "two\nlines", "a carriage\rreturn", "été 绿色 🟢", "", "=1+1", "  spaces  "]


def chunks_of(values: Sequence[float | None]) -> list[list[list[Any]]]:
    rows = [[f"{i}.png", text, text, values[i % len(values)], None] for i, text in enumerate(ODD)]
    rows[-1][1:] = [None, "", None, "an error"]
    return [rows[:3], [], rows[3:]]


def test_every_form_holds_the_same(tmp_path: Path) -> None:
    values = [float(str(np.float32(x))) for x in (1 / 3, 1e-7, 123456.79, -2.0)]
    columns, chunks = Columns(("note",), ("score",)), chunks_of(values)
    rows = [row for chunk in chunks for row in chunk]
    for suffix in (".csv", ".jsonl"):
        write_output(tmp_path / f"out{suffix}", columns, chunks)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [[*json.loads(line).values()] for line in lines] == rows and [*json.loads(lines[0])] == columns.names
    assert "绿色" in lines[3]
    with (tmp_path / "out.csv").open(newline="") as file:
        found = [*csv.reader(file)]
    assert found == [columns.names] + [["" if cell is None else str(cell) for cell in row] for row in rows]
    assert found[1][3] == "0.33333334" and b"\r\n" not in (tmp_path / "out.csv").read_bytes()


def test_parquet_holds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    monkeypatch.setattr("ipiqa.scoring.writers.ROW_GROUP", 4)
    values = [float(str(np.float32(x))) for x in (1 / 3, 1e-7, 123456.79, -2.0)]
    write_output(tmp_path / "out.parquet", Columns(("note",), ("score",)), chunks_of(values))
    table = parquet.read_table(tmp_path / "out.parquet")
    assert [str(field.type) for field in table.schema] == ["string", "string", "string", "float", "string"]
    rows = [row for chunk in chunks_of(values) for row in chunk]
    assert table.drop_columns("score").to_pylist() == [
        {"image": r[0], "prompt": r[1], "note": r[2], "error": r[4]} for r in rows
    ]
    expected = [np.nan if row[3] is None else np.float32(row[3]) for row in rows]
    np.testing.assert_array_equal(table["score"].to_numpy(), np.array(expected, np.float32))


def test_carried_columns_never_bear_a_name_of_the_output() -> None:
    carried = ("note", "quality", "prompt", "input_quality", "error", "Image")
    columns = Columns.of(carried, ("quality",))
    names = ("note", "input_input_quality", "input_prompt", "input_quality", "input_error", "Image")
    assert columns.carried == names and len({*columns.names}) == len(columns.names)


def test_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("precious")
    (tmp_path / "folder.csv").mkdir()
    for name, message in [
        ("scores.txt", "has no form that is known. End it in .csv, .jsonl, .parquet; - is csv, too."),
        ("folder.csv", "is a folder. Give a file."),
        ("there.csv", "exists. Give another file, or --overwrite."),
    ]:
        assert error_of(lambda name=name: check_output(tmp_path / name, overwrite=False)) == (
            f"--out: '{tmp_path / name}' {message}"
        )
    check_output(tmp_path / "there.csv", overwrite=True)
