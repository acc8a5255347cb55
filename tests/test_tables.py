"""Table files: what is read from each format, and every way a table can be wrong."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipiqa.datasets.readers import read_rows
from ipiqa.datasets.table import AnnotationTable, DuplicateRule, Layout, Target, leaves_folder, make_table
from ipiqa.errors import DataError

LAYOUT = Layout(
    image=["name", "image"],
    prompt=["prompt"],
    targets={Target("quality"): ["mos"]},
    group=lambda name, prompt: prompt,
    mos_range=(0.0, 5.0),
)
HEADING = ["name", "prompt", "mos"]
ROWS: list[list[Any]] = [["a.jpg", "a cat", 1.5], ["b.jpg", "a dog", 2.25]]


def write(path: Path, rows: list[list[Any]], heading: list[str] | None = None) -> Path:
    """Writes rows in the format that the file name asks for."""
    heading = heading or HEADING
    if path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for row in [heading, *rows]:
            book.worksheets[0].append(row)
        book.save(path)
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps(dict(zip(heading, row, strict=True))) + "\n" for row in rows), encoding="utf-8"
        )
    else:
        import pandas

        frame = pandas.DataFrame(rows, columns=heading, dtype=object)
        frame.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False, encoding="utf-8")
    return path


def load(path: Path, layout: Layout = LAYOUT, duplicates: DuplicateRule = "auto") -> AnnotationTable:
    rows = read_rows(path, "dataset.annotations")
    return make_table(rows, layout, here=f"dataset.annotations: '{path}'", image_dir=Path("x"), duplicates=duplicates)[
        0
    ]


def message(path: Path, **options: Any) -> str:
    """Returns the one line that loading the table is refused with."""
    with pytest.raises(DataError) as caught:
        load(path, **options)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"dataset.annotations: '{path}'"), text
    return text


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".xlsx", ".jsonl"])
def test_formats_agree(tmp_path: Path, ending: str) -> None:
    awkward = [
        ["a.jpg", "NA", 0.1],
        ["b.jpg", "null", 2],
        ["c.jpg", "007", 1 / 3],
        ["d.jpg", 'ein "Hut",\tblau\nü猫', 5.0],
    ]
    table = load(write(tmp_path / f"t{ending}", awkward))
    assert table.prompts == ("NA", "null", "007", 'ein "Hut",\tblau\nü猫')
    assert table.names == ("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    np.testing.assert_array_equal(table.scores, [[0.1], [2.0], [1 / 3], [5.0]])
    assert table.sha256 == load(write(tmp_path / "reference.csv", awkward)).sha256
    awkward[0][2] = 0.1 + 1e-12
    assert table.sha256 != load(write(tmp_path / f"changed{ending}", awkward)).sha256


def test_columns_by_name_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [[3, "x", "a cat", "a.jpg"]], ["MOS", "adjective", " Prompt ", "Name"])
    table = load(path)
    assert (table.names, table.prompts, table.scores.item()) == (("a.jpg",), ("a cat",), 3.0)


def test_exact_heading_wins_over_tolerant_one(tmp_path: Path) -> None:
    assert load(write(tmp_path / "t.csv", [["a.jpg", "p", 1, 2]], [*HEADING, "MOS"])).scores.item() == 1.0


def test_byte_order_mark_blank_lines_and_wide_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffname,prompt,mos\r\n\r\na.jpg,"two\r\nlines",1\r\n,,\r\nb.jpg,p,x\r\n'.encode())
    assert read_rows(path, "dataset.annotations").columns.tolist() == ["name", "prompt", "mos"]
    assert "'x' (line 6)" in message(path)


COLUMN_CASES = {
    "near miss": (
        ["name", "prompt", "moss"],
        "no column 'mos'. Did you mean 'moss'? Its columns are: 'name', 'prompt', 'moss'.",
    ),
    "two spellings": (["image_name", "prompt", "mos"], "no column 'name' (or 'image')."),
    "ambiguous": (["name", "prompt", "MOS", "Mos"], "2 columns for 'mos': 'MOS', 'Mos'. Rename all but one."),
    "twice": (["name", "prompt", "mos", "mos"], "2 columns for 'mos': 'mos', 'mos'."),
}


@pytest.mark.parametrize("case", COLUMN_CASES)
def test_columns_refused(tmp_path: Path, case: str) -> None:
    heading, expected = COLUMN_CASES[case]
    path = tmp_path / "t.csv"
    path.write_text(",".join(heading) + "\n" + ",".join("1" for _ in heading) + "\n")
    assert expected in message(path)


CELL_CASES: dict[str, tuple[list[list[Any]], str]] = {
    "text in MOS": (
        [["c.jpg", "p", "good"], ["d.jpg", "p", "2,5"]],
        "2 of 4 rows have a quality score that is not a number, first 'good' (line 4)",
    ),
    "empty MOS": ([["c.jpg", "p", ""]], "1 of 3 rows have a quality score that is not a number, first '' (line 4)"),
    "underscore": ([["c.jpg", "p", "1_0"]], "not a number, first '1_0' (line 4)"),
    "NaN": ([["c.jpg", "p", "nan"]], "a quality score that is not finite, first 'nan' (line 4)"),
    "inf": (
        [["c.jpg", "p", "inf"], ["d.jpg", "p", "-inf"]],
        "2 of 4 rows have a quality score that is not finite, first 'inf' (line 4)",
    ),
    "too high": ([["c.jpg", "p", 5.01]], "1 of 3 rows have a quality score outside 0 to 5, first 5.01 (line 4)"),
    "too low": ([["c.jpg", "p", -0.5]], "a quality score outside 0 to 5, first -0.5 (line 4)"),
    "empty name": ([["", "p", 1]], "1 of 3 rows have an empty image name, first line 4"),
    "empty prompt": ([["c.jpg", " ", 1], ["d.jpg", "", 1]], "2 of 4 rows have an empty prompt, first line 4"),
    "parent folder": ([["../../etc/passwd", "p", 1]], "outside the image folder, first '../../etc/passwd' (line 4)"),
    "absolute": ([["/etc/passwd", "p", 1]], "outside the image folder, first '/etc/passwd' (line 4)"),
    "windows": ([["..\\..\\secret.jpg", "p", 1]], "outside the image folder"),
    "duplicate": ([["a.jpg", "a cat", 1]], "1 images stand in several rows, first 'a.jpg' (line 2, line 4)"),
    "duplicate in disguise": (
        [["./a.jpg", "a cat", 1]],
        "1 images stand in several rows, first 'a.jpg' (line 2, line 4)",
    ),
}


@pytest.mark.parametrize("case", CELL_CASES)
def test_cells_refused(tmp_path: Path, case: str) -> None:
    rows, expected = CELL_CASES[case]
    assert expected in message(write(tmp_path / "t.csv", ROWS + rows))


FILE_CASES = {
    "0 bytes": ("t.csv", b"", "is empty."),
    "blank": ("t.csv", b"\n \n", "is empty."),
    "0 rows": ("t.csv", b"name,prompt,mos\n", "has a heading but no rows."),
    "only blank rows": ("t.csv", b"name,prompt,mos\n,,\n", "has a heading but no rows."),
    "latin-1": ("t.csv", b"name,prompt,mos\na.jpg,caf\xe9,1\n", "is not UTF-8 text: byte 0xe9 in line 2."),
    "utf-16": ("t.csv", "name,prompt".encode("utf-16"), "is not UTF-8 text: byte 0xff in line 1."),
    "ragged": (
        "t.csv",
        b"name,prompt,mos\na.jpg,a, b,1\nb.jpg,p\n",
        "2 rows do not have the 3 cells of the heading, first line 2 has 4.",
    ),
    "open quote": (
        "t.csv",
        b'name,prompt,mos\na.jpg,"a,1\n',
        "is not well-formed near line 2: unexpected end of data.",
    ),
    "not a workbook": ("t.xlsx", b"<html>404</html>", "is not an Excel workbook (BadZipFile)."),
    "not json": ("t.jsonl", b'{"name": "a"}\n{"name":\n', "line 2 is not JSON"),
    "json array": ("t.json", b'[{"name": "a"}]\n', "line 1 is a list. Write one object a line."),
    "ending": ("t.xls", b"x", "ends in '.xls'. Tables are read from .csv, .tsv, .xlsx, .jsonl, .json."),
}


@pytest.mark.parametrize("case", FILE_CASES)
def test_files_refused(tmp_path: Path, case: str) -> None:
    name, content, expected = FILE_CASES[case]
    (tmp_path / name).write_bytes(content)
    assert expected in message(tmp_path / name)


def test_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t.csv' does not exist. Get it from there.$"):
        read_rows(tmp_path / "t.csv", "dataset.annotations", "Get it from there.")
    with pytest.raises(DataError, match="is a folder, not a file"):
        read_rows(tmp_path, "dataset.annotations")


def workbook(path: Path, change: Any) -> Path:
    book = openpyxl.load_workbook(write(path, ROWS))
    change(book.worksheets[0])
    book.save(path)
    return path


def test_merged_cells_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", lambda sheet: sheet.merge_cells("B2:B3"))
    assert "1 merged cells, first B2:B3. Unmerge them" in message(path)


def test_formula_without_value_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", lambda sheet: sheet.__setitem__("C3", "=C2+1"))
    assert "1 formula cells have no stored value, first C3." in message(path)


def test_error_cell_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", lambda sheet: sheet.__setitem__("C3", "#DIV/0!"))
    assert "not a number, first '#DIV/0!' (row 3)" in message(path)


def test_empty_workbook_refused(tmp_path: Path) -> None:
    openpyxl.Workbook().save(tmp_path / "t.xlsx")
    assert "is empty." in message(tmp_path / "t.xlsx")


def test_unnamed_spreadsheet_columns_are_ignored(tmp_path: Path) -> None:
    def add_notes(sheet: Any) -> None:
        sheet.insert_cols(2)
        sheet["B3"] = "a note between the columns"
        sheet["F9"] = "a note beside the table"

    assert load(workbook(tmp_path / "t.xlsx", add_notes)).prompts == ("a cat", "a dog")


def test_json_row_without_a_key(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"name": "a.jpg", "prompt": "p", "mos": 1}\n{"name": "b.jpg", "mos": 2}\n')
    assert "1 of 2 rows have an empty prompt, first line 2." in message(path)


def test_duplicates_kept_or_averaged(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [*ROWS, ["a.jpg", "a cat", 2.5]])
    assert "1 images stand in several rows" in message(path, duplicates="error")
    kept = load(path, duplicates="keep")
    assert (kept.names, kept.num_images) == (("a.jpg", "b.jpg", "a.jpg"), 2)
    mean = load(path, duplicates="mean")
    assert mean.names == ("a.jpg", "b.jpg")
    np.testing.assert_array_equal(mean.scores, [[2.0], [2.25]])


def test_duplicate_with_another_prompt_is_never_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [*ROWS, ["a.jpg", "a fish", 2.5]])
    expected = "'a.jpg' stands in line 2, line 4 in different groups or with different prompts."
    assert expected in message(path, duplicates="keep")


def test_empty_group_refused(tmp_path: Path) -> None:
    layout = Layout(image=["name"], prompt=["prompt"], targets={Target("quality"): ["mos"]}, group="scene")
    path = write(tmp_path / "t.csv", [[*ROWS[0], "s"], [*ROWS[1], ""]], [*HEADING, "scene"])
    assert "1 of 2 rows have an empty group, first line 3." in message(path, layout=layout)


text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(text.filter(str.strip), min_size=1, max_size=5), ending=st.sampled_from([".csv", ".tsv", ".jsonl"])
)
def test_any_prompt_is_read_as_written(tmp_path: Path, prompts: list[str], ending: str) -> None:
    rows = [[f"{row}.jpg", prompt, row % 5] for row, prompt in enumerate(prompts)]
    assert load(write(tmp_path / f"t{ending}", rows)).prompts == tuple(prompts)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), ending=st.sampled_from([".csv", ".tsv", ".xlsx", ".jsonl"]))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"t{ending}"
    path.write_bytes(content)
    with contextlib.suppress(DataError):  # any other exception fails the test
        load(path)


@given(parts=st.lists(st.sampled_from(["..", "a", ".", "", "b.jpg", "..b"]), max_size=5), slash=st.sampled_from("/\\"))
def test_names_never_leave_the_folder(parts: list[str], slash: str) -> None:
    name = slash.join(parts)
    root = Path("/root/images")
    if not leaves_folder(name):
        inside = Path(root, name.replace("\\", "/")).as_posix()
        assert Path(inside).is_relative_to(root) and ".." not in Path(inside).parts
