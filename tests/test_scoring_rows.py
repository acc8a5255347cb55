"""What a user names to be scored: pictures, folders, tables and lines, with prompts from everywhere."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from scored_rows import brief, images, message, opened, rows_of
from test_datasets_tables import write

from ipiqa.errors import ConfigError, DataError
from ipiqa.scoring.rows import Row
from ipiqa.scoring.sources import image_names

# --------------------------------------------------------------------------------------------- pictures, folders


def test_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)
    [row] = rows_of("a.png", prompt="a cat")
    assert row == Row("a.png", tmp_path / "a.png", "a cat")
    (tmp_path / "p.txt").write_text("a dog\nthat barks\n")
    assert brief(rows_of("a.png", prompts="p.txt")) == [("a.png", "a dog\nthat barks", "")]
    assert brief(rows_of("a.png", needs_prompt=False)) == [("a.png", None, "")]


def test_a_folder_in_order_of_its_paths(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["B.PNG", "a-b/1.jpg", "a/2.webp", "a/b/c.gif", "a.png"]
    images(tmp_path, *names, ".hidden/x.png", "a/._y.png")
    (tmp_path / "note.txt").write_text("")
    (tmp_path / "png").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with caplog.at_level(logging.INFO):
        rows = rows_of(tmp_path, prompt="p")
    assert [row.image for row in rows] == sorted(names)
    assert all(row.source == tmp_path / row.image for row in rows)
    assert "2 files that are no images are left out: 1 txt, 1 no ending" in caplog.text
    assert "1 links to folders are not followed, first 'link'" in caplog.text
    assert [row.image for row in rows_of(tmp_path, prompt="p", limit=3)] == sorted(names)[:3]
    monkeypatch.chdir(tmp_path)
    assert rows_of(".", prompt="p") == rows


def test_a_folder_that_cannot_be_scored(tmp_path: Path) -> None:
    assert message(DataError, tmp_path, prompt="p").startswith(f"images: '{tmp_path}' holds no image that ends in png,")
    (tmp_path / "0.tar").write_bytes(b"")
    assert message(DataError, tmp_path, prompt="p").endswith(f" Give its shards as '{tmp_path}/*.tar'.")


def test_a_folder_inside_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path, "a.png", "in/b.png")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("in"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=re.escape(f"the folder '{tmp_path}/in' cannot be read: Permission denied.")):
        image_names(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take no such name")
def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    assert brief(rows_of(tmp_path, prompt="p")) == [("caf\\udce9.png", "p", "the name is not UTF-8 text")]


# --------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".xlsx", ".jsonl", ".parquet"])
def test_tables_agree(tmp_path: Path, ending: str) -> None:
    heading = ["seed", "file_name", "model", "Prompt"]
    cells = [["1", "a.png", "x", "a cat"], ["2", "", "", "p"], ["3", "b.png", "y,\tz", ""], ["4", "c.png", "", "NA"]]
    images(tmp_path / "images", "a.png")
    table = write(tmp_path / f"t{ending}", cells, heading)
    assert opened(table).columns == ("seed", "model") and opened(table).num_rows == 4
    rows = rows_of(table)
    number = f"{'row' if ending in ('.xlsx', '.parquet') else 'line'} {2 if ending in ('.jsonl', '.parquet') else 3}"
    assert brief(rows) == [
        ("a.png", "a cat", ""), ("", "p", f"{number} names no image"), ("b.png", "", "no prompt"), ("c.png", "NA", ""),
    ]  # fmt: skip
    assert [row.carried for row in rows] == [("1", "x"), ("2", ""), ("3", "y,\tz"), ("4", "")]
    assert rows[0].source == tmp_path / "images" / "a.png"
    assert brief(rows_of(table, limit=1)) == brief(rows)[:1]


def test_more_parquet_rows_than_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipiqa.datasets.readers._BATCH", 2)
    table = write(tmp_path / "t.parquet", [["" if i == 4 else f"{i}.png", "p"] for i in range(5)], ["image", "prompt"])
    assert [row.image for row in rows_of(table)] == ["0.png", "1.png", "2.png", "3.png", ""]
    assert rows_of(table)[4].problem == "row 5 names no image"


def test_where_the_images_of_a_table_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = write(tmp_path / "t.csv", [["gone.png", "p"], ["a.png", "p"]], ["image", "prompt"])
    images(tmp_path / "images", "a.png")
    assert rows_of(table)[1].source == tmp_path / "images" / "a.png"
    images(tmp_path, "a.png")
    assert rows_of(table)[1].source == tmp_path / "a.png" and not caplog.text
    (tmp_path / "else").mkdir()
    assert rows_of(table, image_root=str(tmp_path / "else"))[1].source == tmp_path / "else" / "a.png"
    assert f"none of its first 2 images is in '{tmp_path}/else'. Name their folder with --image-root" in caplog.text
    absolute = write(tmp_path / "u.csv", [[str(tmp_path / "images" / "a.png"), "p"]], ["path", "caption"])
    assert rows_of(absolute)[0].source == tmp_path / "images" / "a.png"


def test_columns_are_named_or_guessed(tmp_path: Path) -> None:
    rows = [["a.png", "b.png", "a cat", "a dog", "", "1"]]
    table = write(tmp_path / "t.csv", rows, ["name", "image", "caption", "text", "", "seed"])
    assert opened(table).columns == ("name", "caption", "seed")
    assert brief(rows_of(table)) == [("b.png", "a dog", "")]
    assert brief(rows_of(table, image_column="name", prompt_column="caption")) == [("a.png", "a cat", "")]
    assert opened(table, prompt="p").columns == ("name", "caption", "text", "seed")
    assert brief(rows_of(table, prompt="p")) == [("b.png", "p", "")]


def test_a_table_without_prompts(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", [["a.png", "1"]], ["image", "seed"])
    assert brief(rows_of(table, needs_prompt=False)) == [("a.png", None, "")]
    assert message(DataError, table) == (
        f"images: '{table}' has no column 'prompt' or 'text' or 'caption'. Its columns are: 'image', 'seed'. Name the "
        "right one with --prompt-column, or give --prompt TEXT or --prompts FILE, sidecar or embedded."
    )
    assert message(DataError, table, needs_prompt=False, prompt_column="p").startswith(f"images: '{table}' has no colu")


TABLE_CASES = {
    "no image": ("seed,prompt\n1,p\n", "has no column 'image' or 'image_path' or"),
    "twice": ("image,prompt,a,a\n1,p,1,2\n", "has 2 columns 'a'. Rename all but one."),
    "uneven far down": ("image,prompt\n" + "a.png,p\n" * 5000 + "b.png,a, b\n", "first line 5002 has 3. Put quotes"),
    "0 rows": ("image,prompt\n", "has a heading but no rows."),
}


@pytest.mark.parametrize("case", TABLE_CASES)
def test_tables_are_refused_before_anything_is_scored(tmp_path: Path, case: str) -> None:
    content, expected = TABLE_CASES[case]
    (tmp_path / "t.csv").write_text(content)
    line = message(DataError, tmp_path / "t.csv")
    assert line.startswith(f"images: '{tmp_path}/t.csv'") and expected in line


def test_prompts_that_no_model_should_read(tmp_path: Path) -> None:
    objects = [
        {"image": "a", "prompt": "\ud800", "tag": "\udcff"},
        {"image": "b", "prompt": "p" * 20_001},
        {"image": "c\0", "prompt": "p"},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects))
    rows = rows_of(tmp_path / "t.jsonl")
    assert [row.problem for row in rows] == [
        "the prompt is not UTF-8 text", "the prompt has 20,001 characters, more than 20,000",
        "the name is not UTF-8 text",
    ]  # fmt: skip
    assert (rows[0].prompt, rows[2].image, rows[0].carried) == ("\\ud800", "c\\0", ("\\udcff",))


def test_long_tables_take_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "t.jsonl").open("w") as file:
        file.writelines(f'{{"image": "{i}.png", "prompt": "thing {i}", "seed": {i}}}\n' for i in range(10_000))
    tracemalloc.start()
    rows = opened(tmp_path / "t.jsonl")
    assert sum(len(part.rows()) for part in rows.parts(500)) == 10_000
    assert tracemalloc.get_traced_memory()[1] < 1.5e6  # all of it: over 5 MB
    tracemalloc.stop()


def test_real_tables_are_read_as_they_are(shared: Path) -> None:
    rows = rows_of(shared / "data" / "avt_ai_images" / "ratings.csv")
    assert len(rows) == 135 - 1 and not any(row.problem for row in rows)
    assert all(isinstance(row.source, Path) and row.source.is_file() for row in rows)


# -------------------------------------------------------------------------------------------------------- prompts


def test_a_folder_joined_with_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = images(tmp_path / "pictures", "a.png", "b.png", "c.png", "in/d.png", "in/e.png", "none.png")
    cells = [["./a.png", "A"], ["pictures/b.png", "B"], [str(folder / "c.png"), "C"], ["d.png", "D"], ["in/e.png", "E"]]
    cells += [["e.png", "other"], ["gone.png", "p"], ["", "p"]]
    table = write(tmp_path / "t.csv", cells, ["image", "prompt"])
    assert brief(rows_of(folder, prompts=str(table))) == [
        ("a.png", "A", ""), ("b.png", "B", ""), ("c.png", "C", ""), ("in/d.png", "D", ""), ("in/e.png", "E", ""),
        ("none.png", None, f"no prompt in '{table}'"),
    ]  # fmt: skip
    assert f"prompts: '{table}': 2 of 7 images in it are not there, first 'e.png'" in caplog.text
    assert f"prompts: '{table}': 1 images in subfolders take the prompt of their file name, first 'in/d" in caplog.text


def test_a_table_with_several_prompts_of_an_image(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    rows = [["a.png", "A"], ["a.png", "other"], ["a.png", "A"], ["b.png", "B"], ["b.png", "B"]]
    table = write(tmp_path / "t.csv", rows, ["image", "prompt"])
    several = f"several prompts in '{table}'"
    assert brief(rows_of(tmp_path, prompts=str(table))) == [("a.png", None, several), ("b.png", "B", "")]


def test_a_table_of_other_images(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    table = write(tmp_path / "t.csv", [["x.png", "X"]], ["image", "prompt"])
    assert message(DataError, tmp_path, prompts=str(table)) == (
        f"prompts: '{table}' has a prompt for none of the 2 images: the first image is 'a.png', the first row 'x.png'."
    )


def test_a_table_joined_with_another(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", [["a.png", "old", 1], ["b.png", "old", 2]], ["picture", "prompt", "seed"])
    prompts = write(tmp_path / "p.jsonl", [["b.png", "B"]], ["image", "recaption"])
    rows = rows_of(table, image_column="picture", prompts=str(prompts), prompt_column="recaption")
    assert brief(rows) == [("a.png", None, f"no prompt in '{prompts}'"), ("b.png", "B", "")]
    assert [row.carried for row in rows] == [("old", "1"), ("old", "2")]


def test_a_line_for_each_image(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png", "c.png")
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffA\r\n\r\nC \u2028\r\n\r\n".encode())
    expected = [("a.png", "A", ""), ("b.png", "", f"no prompt in '{path}'"), ("c.png", "C \u2028", "")]
    assert brief(rows_of(tmp_path, prompts=str(path))) == expected
    assert brief(rows_of(tmp_path, prompts=str(path), limit=1)) == expected[:1]
    path.write_text("A\nB\n")
    assert message(DataError, tmp_path, prompts=str(path), limit=2) == (
        f"prompts: '{path}' has 2 lines for 3 images. Give 3 lines, for the images in their order, or a table of "
        "images and prompts."
    )
    path.write_bytes(b"A\ncaf\xe9\nC")
    assert brief(rows_of(tmp_path, prompts=str(path)))[1] == ("b.png", "caf\\udce9", "the prompt is not UTF-8 text")


def test_text_files_beside_the_images(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.jpg", "c.png", "d.png", "e.png", "f.v2.png")
    for name, content in (("a", b"\xef\xbb\xbf a cat\n"), ("c", b" \n"), ("d", b"caf\xe9"), ("f.v2", b"two\nlines")):
        (tmp_path / f"{name}.txt").write_bytes(content)
    (tmp_path / "e.txt").mkdir()
    assert brief(rows_of(tmp_path, prompts="sidecar")) == [
        ("a.png", "a cat", ""),
        ("b.jpg", None, "no prompt: 'b.txt' cannot be read: No such file or directory"),
        ("c.png", "", "no prompt"),
        ("d.png", "caf\\udce9", "the prompt is not UTF-8 text"),
        ("e.png", None, "no prompt: 'e.txt' cannot be read: Is a directory"),
        ("f.v2.png", "two\nlines", ""),
    ]
    assert brief(rows_of(tmp_path, prompts="sidecar", needs_prompt=False))[2] == ("c.png", "", "")


# --------------------------------------------------------------------------------------------------------- refusals

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "a.png",
        {},
        "images: '{}/a.png' is a picture, and the scores depend on prompts. Give --prompt TEXT, or --prompts",
    ),
    (
        "",
        {},
        "is a folder, and the scores depend on prompts. Give --prompt TEXT, or --prompts with a table of images an",
    ),
    ("a.png", {"prompt": " "}, "--prompt: ' ' is no prompt. Give a text."),
    (
        "a.png",
        {"prompts": "sidecars"},
        "'sidecars' is no table, no .txt, and neither sidecar nor embedded. Did you mean 'si",
    ),
    ("t.csv", {"image_root": "gone"}, "--image-root: 'gone' is no folder. Give that of the images."),
    ("", {"prompt": "p", "image_column": "x"}, "--image-column: '{}/' is a folder: nothing reads it. Leave it out."),
    (
        "t.csv",
        {"prompt": "p", "prompt_column": "x"},
        "' is a table and prompts are given: nothing reads it. Leave it out",
    ),
    ("t.csv", {"prompt_member": "x"}, "--prompt-member: '{}/t.csv' is a table: nothing reads it."),
    ("a.png", {"prompts": "sidecar", "image_root": "/"}, "--image-root: '{}/a.png' is a picture: nothing reads it."),
    (
        "0.tar",
        {"prompts": "sidecar"},
        "--prompts: 'sidecar' cannot be joined with shards. Name their member of prompts.",
    ),
]


@pytest.mark.parametrize(("name", "options", "expected"), REFUSED)
def test_options_that_cannot_be_used(tmp_path: Path, name: str, options: dict[str, Any], expected: str) -> None:
    images(tmp_path, "a.png")
    assert expected.format(tmp_path) in message(ConfigError, f"{tmp_path}/{name}", **options)


@pytest.mark.parametrize("name", ["gone.png", "gone", "*.png", "a" * 200 + "/b" * 3000])
def test_what_does_not_exist(tmp_path: Path, name: str) -> None:
    wanted = "Give a picture, a folder, a table (.csv, .jsonl, ...), shards (.tar) or - for standard input."
    assert message(DataError, f"{tmp_path}/{name}", prompt="p").endswith(f" does not exist. {wanted}")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "pipe' is no file. Give a picture" in message(DataError, tmp_path / "pipe", prompt="p")
