"""Table files: what is read from each format, and every way a table can be wrong."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipiqa.datasets import readers
from ipiqa.datasets.readers import read_rows
from ipiqa.datasets.table import LEAVES_FOLDER, AnnotationTable, DuplicateRule, Layout, Target, make_table
from ipiqa.errors import DataError, IpiqaError

LAYOUT = Layout(
    image=["name", "image"],
    prompt=["prompt"],
    targets={Target("quality", 0.0, 5.0): ["mos"]},
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
    elif path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow", reason="the extra [shards] is not installed")
        columns = {name: list(cells) for name, cells in zip(heading, zip(*rows, strict=True), strict=True)}
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps(dict(zip(heading, row, strict=True))) + "\n" for row in rows), encoding="utf-8"
        )
    elif path.suffix == ".json":
        path.write_text(json.dumps([dict(zip(heading, row, strict=True)) for row in rows]), encoding="utf-8")
    else:
        import pandas

        frame = pandas.DataFrame(rows, columns=heading, dtype=object)
        frame.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False, encoding="utf-8")
    return path


def load(path: Path, layout: Layout = LAYOUT, duplicates: DuplicateRule = "auto") -> AnnotationTable:
    rows = layout.read(path, "Get it from there.")
    return make_table(rows, layout, here=f"dataset.annotations: '{path}'", image_dir=Path("x"), duplicates=duplicates)


def message(path: Path, **options: Any) -> str:
    """Returns the one line that loading the table is refused with."""
    with pytest.raises(DataError) as caught:
        load(path, **options)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"dataset.annotations: '{path}'"), text
    return text


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".xlsx", ".jsonl", ".json", ".parquet"])
def test_formats_agree(tmp_path: Path, ending: str) -> None:
    awkward = [
        ["a.jpg", "NA", 0.1],
        ["b.jpg", "null", 2.0],
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
    assert "'x' (line 6)" in message(path)


COLUMN_CASES = {
    "near miss": (["name", "prompt", "moss"], "no column 'mos'. Did you mean 'moss'? Its columns are: 'name', 'pr"),
    "two spellings": (["image_name", "prompt", "mos"], "no column 'name' or 'image'."),
    "ambiguous": (["name", "prompt", "MOS", "Mos"], "2 columns for 'mos': 'MOS', 'Mos'. Rename all but one."),
    "very many": (["name", "prompt", *(f"a{i}" for i in range(16_000))], "'a27' and 15972 more."),
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
        "2 of 4 rows have no finite score 'quality' from 0 to 5, first 'good' (line 4). Write numbers such as 2.75",
    ),
    "underscore": ([["c.jpg", "p", "1_0"]], "first '1_0' (line 4)"),
    "not finite": ([["c.jpg", "p", "nan"], ["d.jpg", "p", "-inf"]], "2 of 4 rows have no finite score"),
    "5,000 digits": ([["c.jpg", "p", "9" * 5000]], f"first '{'9' * 99}... (5002 characters) (line 4)"),
    "too high": ([["c.jpg", "p", 5.01]], "first '5.01' (line 4)"),
    "too low": ([["c.jpg", "p", -0.5], ["d.jpg", "p", -0.5]], "first '-0.5' (line 4, line 5)"),
    "empty name": (
        [["", "p", 1]],
        "1 of 3 rows have no image name of 1 to 1,000 UTF-8 characters, first '' (line 4). F",
    ),
    "empty prompt": ([["c.jpg", " ", 1], ["d.jpg", "", 1]], "2 of 4 rows have no prompt of 1 to 20,000 UTF-8 char"),
    "long name": ([["c" * 5000, "p", 1]], "have no image name"),
    "long prompt": ([["c.jpg", "p" * 20_001, 1]], "have no prompt"),
    "parent folder": ([["../../etc/passwd", "p", 1]], "outside the image folder, first '../../etc/passwd' (line 4)"),
    "duplicate": ([["./a.jpg", "a cat", 1]], "2 of 3 rows name an image again, first 'a.jpg' (line 2, line 4). Remove"),
}
HAS_NUL = sys.version_info >= (3, 11)  # before, Python's csv module neither wrote nor read it
if HAS_NUL:
    message_of_nul = "have no image name of 1 to 1,000 UTF-8 characters, first 'c\\x00.jpg' (line 4)"
    CELL_CASES["NUL"] = ([["c\0.jpg", "p", 1]], message_of_nul)


@pytest.mark.parametrize("case", CELL_CASES)
def test_cells_refused(tmp_path: Path, case: str) -> None:
    rows, expected = CELL_CASES[case]
    assert expected in message(write(tmp_path / "t.csv", ROWS + rows))


HEAD = b"name,prompt,mos\n"
FILE_CASES = {
    "0 bytes": ("t.csv", b"", "is empty."),
    "blank": ("t.jsonl", b"\n \n", "is empty."),
    "0 rows": ("t.csv", HEAD + b",,\n", "has a heading but no rows."),
    "latin-1": (
        "t.csv",
        HEAD + b"a.jpg,caf\xe9,1\n",
        "have no prompt of 1 to 20,000 UTF-8 characters, first 'caf\\udce9' (l",
    ),
    "half a character": (
        "t.jsonl",
        b'{"name": "a", "prompt": "\\ud800", "mos": 1}\n',
        "UTF-8 characters, first '\\ud800'",
    ),
    "utf-16": ("t.csv", "name,prompt".encode("utf-16"), "is not UTF-8 text." if HAS_NUL else "contains NUL"),
    "ragged": (
        "t.csv",
        HEAD + b"a.jpg,a, b,1\nb.jpg,p\n",
        "2 rows do not have the 3 cells of the heading, first line 2 has 4.",
    ),
    "open quote": ("t.csv", HEAD + b'a.jpg,"a,1\n', "unexpected end of data near line 2. Check the quotes."),
    "open quote far": ("t.csv", HEAD + b'a.jpg,"' + b"a,1\n" * 50_000, "near line"),
    "not a workbook": ("t.xlsx", b"<html>404</html>", "cannot be read: BadZipFile, 'File is not a zip file'. Check"),
    "not parquet": ("t.parquet", b"PAR1 and nothing more", "cannot be read: Arrow"),
    "not json": ("t.jsonl", b'{"name": "a"}\n{"name":\n', "line 2 is not a JSON object (Expecting"),
    "json array": ("t.json", b'[["a", "b"]]', "is a list, but not of objects. Write an object for each row."),
    "cut json array": ("t.json", b'[{"name": "a"}', "is no JSON ("),
    "nested json": ("t.jsonl", b"[" * 100_000, "line 1 is not a JSON object (maximum recursion depth"),
    "huge number": ("t.jsonl", b'{"mos": ' + b"9" * 5000 + b"}", "line 1 is not a JSON object (Exceeds the limit"),
    "ending": ("t.xls", b"x", "ends in '.xls'. Tables are read from .csv, .tsv, .xlsx, .jsonl, .json, .parquet."),
}


@pytest.mark.parametrize("case", FILE_CASES)
def test_files_refused(tmp_path: Path, case: str) -> None:
    name, content, expected = FILE_CASES[case]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="the extra [shards] is not installed")
    (tmp_path / name).write_bytes(content)
    assert expected in message(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("t.csv", "t.csv' does not exist. Get it from there."),
        ("folder.csv", "is a folder, not a file. Get it from there."),
        ("a\0b.csv", "does not exist."),
        (f"{'a' * 300}.csv", "cannot be read: File name too long."),
    ],
)
def test_paths_refused(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=re.escape(expected)):
        load(tmp_path / name)


def test_unwanted_columns_are_not_read(tmp_path: Path) -> None:
    rows = [f'{{"name": "{i}.jpg", "prompt": "p", "mos": 1, "note {i}": 0}}\n' for i in range(20_000)]
    (tmp_path / "t.jsonl").write_text("".join(rows))
    assert read_rows(tmp_path / "t.jsonl", "x", [["name"], ["prompt"], ["mos"]]).shape == (20_000, 3)


def workbook(path: Path, change: Callable[[Any], object]) -> Path:
    book = openpyxl.load_workbook(write(path, ROWS))
    change(book.worksheets[0])
    book.save(path)
    return path


WORKBOOK_CASES: dict[str, tuple[Callable[[Any], object], str]] = {
    "merged": (
        lambda sheet: sheet.merge_cells("B2:B3"),
        "have no prompt of 1 to 20,000 UTF-8 characters, first '' (row 3)",
    ),
    "formula": (lambda sheet: sheet.__setitem__("C3", "=C2+1"), "first '' (row 3)"),
    "error": (lambda sheet: sheet.__setitem__("C3", "#DIV/0!"), "first '#DIV/0!' (row 3)"),
    "empty": (lambda sheet: sheet.delete_rows(1, 3), "is empty."),
    "no rows": (lambda sheet: sheet.delete_rows(2, 3), "has a heading but no rows."),
}


@pytest.mark.parametrize("case", WORKBOOK_CASES)
def test_workbooks_refused(tmp_path: Path, case: str) -> None:
    change, expected = WORKBOOK_CASES[case]
    assert expected in message(workbook(tmp_path / "t.xlsx", change))


@pytest.mark.parametrize("cell", ["E3", "XFD1048576"])
def test_notes_beside_a_table_in_a_workbook_are_ignored(tmp_path: Path, cell: str) -> None:
    def add_notes(sheet: Any) -> None:
        sheet.insert_cols(2)
        sheet["B3"] = "a note between the columns"
        sheet[cell] = "a note beside the table"

    assert load(workbook(tmp_path / "t.xlsx", add_notes)).prompts == ("a cat", "a dog")


def test_a_workbook_of_more_than_its_limit_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_WORKBOOK_BYTES", 1000)
    assert "unpacks to 0.0 GB, more than 1 GB" in message(write(tmp_path / "t.xlsx", ROWS))


def test_duplicates_kept_or_averaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "t.csv", [*ROWS, ["a.jpg", "a cat", 2.5]])
    assert "2 of 3 rows name an image again" in message(path, duplicates="error")
    kept = load(path, duplicates="keep")
    assert (kept.names, kept.num_images) == (("a.jpg", "b.jpg", "a.jpg"), 2)
    assert "first 'a.jpg' (line 2: 1.500, line 4: 2.500). They are kept as rows of their own" in caplog.text
    mean = load(path, duplicates="mean")
    assert mean.names == ("a.jpg", "b.jpg") and "line 4: 2.500). They are averaged into one row each" in caplog.text
    np.testing.assert_array_equal(mean.scores, [[2.0], [2.25]])


def test_many_duplicates_take_no_time_and_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "t.jsonl", [[f"{row // 2}.jpg", "p", row % 2] for row in range(40_000)])
    started = time.perf_counter()
    table = load(path, duplicates="mean")
    assert len(table) == 20_000 and (table.scores == 0.5).all() and len(caplog.records) == 1
    assert time.perf_counter() - started < 20  # rows looked through for each duplicate: minutes


def test_duplicate_with_another_prompt_is_never_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [*ROWS, ["a.jpg", "a fish", 2.5]])
    expected = "2 of 3 rows name an image again with another prompt or group, first 'a.jpg' (line 2, line 4). One image"
    assert expected in message(path, duplicates="keep")


def test_prompts_the_model_reads_alike_are_one_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [["a.jpg", "A cat", 1], ["b.jpg", "a  cat ", 1], ["c.jpg", "a cat &amp; dog", 1], ["d.jpg", "a cat&dog", 1]]
    table = load(write(tmp_path / "t.csv", rows))
    assert table.groups == ("A cat", "A cat", "a cat &amp; dog", "a cat &amp; dog") and not caplog.text
    assert table.prompts == tuple(prompt for _, prompt, _ in rows)


def test_groups_that_cut_a_prompt_give_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = Layout(image=["name"], prompt=["prompt"], targets={Target("quality"): ["mos"]}, group="scene")
    rows = [["a.jpg", "A cat", 1, "x"], ["b.jpg", "a cat", 1, "y"], ["c.jpg", "dog", 1, "y"], ["d.jpg", "dog", 1, "y"]]
    path = write(tmp_path / "t.csv", rows, [*HEADING, "scene"])
    assert load(path, layout).groups == ("x", "y", "y", "y") and len(caplog.records) == 1
    assert (
        "2 of 4 rows have a prompt, as the model reads it, that stands in several groups, first 'A cat'" in caplog.text
    )
    rows[0][3] = ""
    assert "1 of 4 rows have no group of 1 to 20,000 UTF-8 characters, first '' (line 2)." in message(
        write(tmp_path / "u.csv", rows, [*HEADING, "scene"]), layout=layout
    )


SHARED_FOLDER = [HealthCheck.function_scoped_fixture]
text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=SHARED_FOLDER)
@given(
    prompts=st.lists(text.filter(str.strip), min_size=1, max_size=5), ending=st.sampled_from([".csv", ".tsv", ".jsonl"])
)
def test_any_prompt_is_read_as_written(tmp_path: Path, prompts: list[str], ending: str) -> None:
    rows = [[f"{row}.jpg", prompt, row % 5] for row, prompt in enumerate(prompts)]
    assert load(write(tmp_path / f"t{ending}", rows)).prompts == tuple(prompts)


WHOLE = {
    ".csv": HEAD + b'a.jpg,"a, cat",1.5\nb.jpg,a dog,2\n',
    ".jsonl": b'{"name": "a.jpg", "prompt": "a", "mos": 1}\n{"name": "b.jpg", "prompt": "\\u00e9", "mos": 1e3}\n',
}


@functools.cache
def whole(folder: Path, ending: str) -> bytes:
    return WHOLE.get(ending) or write(folder / f"whole{ending}", ROWS).read_bytes()


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=SHARED_FOLDER)
@given(
    ending=st.sampled_from([".csv", ".tsv", ".jsonl", ".xlsx", ".parquet"]),
    start=st.floats(0, 1), length=st.integers(0, 30), new=st.binary(max_size=30), end=st.sampled_from([0.5, 0.98, 1.0]),
)  # fmt: skip
def test_any_bytes_are_read_or_refused(
    tmp_path: Path, ending: str, start: float, length: int, new: bytes, end: float
) -> None:
    """A table with some bytes replaced and its end cut off; or the new bytes alone, where the cut leaves nothing."""
    content = whole(tmp_path, ".csv" if ending == ".tsv" else ending)
    at = int(start * len(content))
    path = tmp_path / f"t{ending}"
    path.write_bytes((content[:at] + new + content[at + length :])[: int(end * len(content))])
    with contextlib.suppress(IpiqaError):  # any other exception fails the test
        load(path)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(name=st.lists(st.sampled_from(["..", "a", ".", "b.jpg", "..b", "/", "\\", "C:", "\n"]), max_size=6).map("".join))
def test_names_never_leave_the_folder(name: str) -> None:
    paths = PurePosixPath(name), PureWindowsPath(name)
    assert bool(LEAVES_FOLDER.match(name)) == any(path.anchor or ".." in path.parts for path in paths)
