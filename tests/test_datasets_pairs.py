"""Image-prompt pairs: from tables, from DiffusionDB's folders, and what is refused."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ipiqa import registry
from ipiqa.datasets.image_cache import CachedImages
from ipiqa.datasets.image_folder import DiffusionDB, ImageFolder, TablePairs
from ipiqa.datasets.loaders import Loading, train_loader
from ipiqa.datasets.splits import make_split
from ipiqa.errors import ConfigError, DataError, IpiqaError
from ipiqa.processors.image import SquashProcessor

ROWS = [("a.png", "NA"), ("sub/b.png", "two, words"), ("c.png", "007"), ("d.png", "na ")]
HEADING = ("image", "prompt")


def write_csv(
    path: Path, rows: list[tuple[str, str]], heading: tuple[str, str] = HEADING, delimiter: str = ","
) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([heading, *rows])


def write_part(root: Path, number: int, prompts: dict[str, str]) -> Path:
    """Writes a part in DiffusionDB's form and returns its folder; an image's red is 10 x its length of name + part."""
    folder = root / f"part-{number:06d}"
    folder.mkdir(parents=True)
    for name in prompts:
        Image.new("RGB", (8, 8), (10 * number + len(name), 0, 0)).save(folder / name)
    content = {name: {"p": prompt, "se": 1, "c": 7.0, "st": 50, "sa": "k_lms"} for name, prompt in prompts.items()}
    (folder / f"{folder.name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def diffusiondb(tmp_path: Path) -> Path:
    write_part(tmp_path, 1, {"a.png": "a fox", "bb.png": "a hen", "ccc.png": "a fox"})
    write_part(tmp_path, 2, {"a.png": "a cow", "dddd.png": " "})
    write_part(tmp_path, 10, {"a.png": "a dog"})
    return tmp_path


def data_error(dataset: ImageFolder) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        dataset.load()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])  # other formats: test_datasets_tables.py
def test_pairs_of_a_table(tmp_path: Path, name: str) -> None:
    write_csv(tmp_path / name, ROWS, delimiter="\t" if name.endswith("tsv") else ",")
    table = TablePairs(annotations=str(tmp_path / name), images=str(tmp_path / "images")).load()
    assert table.names == tuple(n for n, _ in ROWS) and table.prompts == tuple(p for _, p in ROWS)
    assert table.groups == ("NA", "two, words", "007", "NA")
    assert table.scores.shape == (4, 0) and table.targets == ()
    assert table.image_paths[1] == tmp_path / "images" / "sub" / "b.png"


def test_registered_with_its_columns(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ROWS, ("File Name", "caption"))
    given = {"name": "pairs", "annotations": str(tmp_path / "t.csv"), "images": ".", "image": "file_name"}
    section = registry.resolve("dataset", given | {"prompt": "caption"}, "dataset")
    assert registry.build("dataset", section, "dataset", {}).load().prompts[1] == "two, words"
    message = data_error(registry.build("dataset", registry.resolve("dataset", given, "dataset"), "dataset", {}))
    assert "has no column 'prompt'" in message and message.startswith("dataset.annotations: ")


def test_repeated_rows_are_taken_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_csv(tmp_path / "t.csv", [*ROWS, ROWS[0], ROWS[2]])
    assert len(TablePairs(annotations=str(tmp_path / "t.csv"), images=".").load()) == 4
    assert (
        "4 of 6 rows name an image again, first 'a.png' (line 2, line 6). They are averaged into one row" in caplog.text
    )


@pytest.mark.parametrize(
    ("columns", "fragment"),
    [
        ({"image": ["a.png"]}, "has no column 'prompt'. Its columns are: 'image'."),
        ({"image": ["a.png", None], "prompt": ["x", "y"]}, "first '' (row 2)."),
        ({"image": [{"bytes": b"1"}], "prompt": ["x"]}, "column 'image' holds struct<bytes: binary>, not text or"),
        ({"image": np.zeros(0), "prompt": np.zeros(0)}, "has a heading but no rows."),
    ],
)
def test_bad_parquet(tmp_path: Path, columns: dict[str, Any], fragment: str) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra [shards] is not installed")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), tmp_path / "t.parquet")
    message = data_error(TablePairs(annotations=str(tmp_path / "t.parquet"), images="."))
    assert message.startswith(f"dataset.annotations: '{tmp_path / 't.parquet'}'") and fragment in message


def test_parquet_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as Python remembers a module that is not there
    message = data_error(TablePairs(annotations=str(tmp_path / "t.parquet"), images="."))
    assert message.endswith(
        "t.parquet' needs the package pyarrow, which is not installed. Install it with: pip install -e '.[shards]'"
    )


def test_diffusiondb(diffusiondb: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = DiffusionDB(images=str(diffusiondb)).load()
    assert dict(zip(table.names, table.prompts, strict=True)) == {
        "part-000001/a.png": "a fox", "part-000001/bb.png": "a hen", "part-000001/ccc.png": "a fox",
        "part-000002/a.png": "a cow", "part-000010/a.png": "a dog",
    }  # fmt: skip
    assert table.groups == table.prompts and table.scores.shape == (5, 0)
    assert "1 of 6 images left out, empty prompt, first 'part-000002/dddd.png'" in caplog.text
    assert len(DiffusionDB(images=str(diffusiondb), parts=2).load()) == 4


def test_split_loader_and_cache_serve_pairs(diffusiondb: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = DiffusionDB(images=str(diffusiondb), cache_dir=str(diffusiondb / "cache"))
    processor, table = SquashProcessor(8), dataset.load()
    dataset.check_images(table, processor)
    split = make_split(table, kind="holdout", seed=0, fold=0, num_folds=1, train_fraction=0.5)
    prompts = [{table.prompts[row] for row in rows} for rows in (split.train, split.val)]
    assert len(split.train) + len(split.val) == 5 and not prompts[0] & prompts[1]
    images = dataset.open_images(table, dataset.image_hashes(table), processor)
    assert isinstance(images, CachedImages)
    tokens = torch.arange(5)[:, None]
    loading = Loading(batch_size=5, eval_batch_size=5, seed=0, num_workers=0)
    loader = train_loader(table, images, tokens, np.arange(5), loading, fold=0)
    batch = next(iter(loader))
    red = dict(zip(batch["rows"].tolist(), batch["images"][:, 0, 0, 0].tolist(), strict=True))
    assert [red[row] for row in range(5)] == [15, 16, 17, 25, 105] and batch["targets"].shape == (5, 0)


def no_json(root: Path) -> None:
    (root / "part-000002" / "part-000002.json").unlink()


def spoil(text: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / "part-000002" / "part-000002.json").write_text(text)

    return change


@pytest.mark.parametrize(
    ("change", "given_settings", "fragment"),
    [
        (no_json, {}, "part-000002.json' cannot be read: No such file"),
        (spoil('{"a.png": '), {}, "part-000002.json' is no JSON ('Expecting value"),
        (spoil("[" * 100_000), {}, "part-000002.json' is no JSON ('maximum recursion depth"),
        (spoil('{"a.png": {"p": ' + "9" * 5000 + "}}"), {}, "part-000002.json' is no JSON ('Exceeds the limit"),
        (
            spoil('{"a.png": {"p": "\\ud800"}}'),
            {},
            "1 of 5 rows have no prompt of 1 to 20,000 UTF-8 characters, first '\\ud800' (file part-",
        ),
        (spoil("[1, 2]"), {}, "part-000002.json' holds no object. Its form is"),
        (spoil('{"a.png": {"p": "x"}, "b.png": "y"}'), {}, "1 of 2 images have no prompt 'p', first 'b.png'. Its form"),
        (spoil('{"a.png": {"p": 3}}'), {}, "1 of 1 images have no prompt 'p', first 'a.png'."),
        (spoil('{"../../x.png": {"p": "x"}}'), {}, "outside the image folder, first 'part-000002/../../x.png'"),
        (
            None,
            {"parts": 4},
            "'{root}' holds 3 folders such as 'part-000001', dataset.parts wants 4 (at least 1). Get Diff",
        ),
        (None, {"parts": 0}, "dataset.parts wants 0 (at least 1)."),
        (None, {"images": "{root}/part-000001"}, "holds 0 folders such as 'part-000001'"),
        (None, {"images": "{root}/none"}, "dataset.images: '{root}/none' holds 0 folders such as"),
    ],
)
def test_other_forms_are_refused(
    diffusiondb: Path, change: Callable[[Path], None] | None, given_settings: dict[str, Any], fragment: str
) -> None:
    if change:
        change(diffusiondb)
    images = given_settings.get("images", "{root}").format(root=diffusiondb)
    dataset = DiffusionDB(**(given_settings | {"images": images}))
    assert fragment.replace("{root}", str(diffusiondb)) in data_error(dataset)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 70), length=st.integers(0, 10), new=st.binary(max_size=10) | st.just(b"\\ud800"))
def test_any_part_is_read_or_refused(tmp_path: Path, at: int, length: int, new: bytes) -> None:
    content = b'{"a.png": {"p": "a fox", "se": 1}, "b.png": {"p": "\\u00e9", "c": 7.0}}'
    (tmp_path / "part-000001").mkdir(exist_ok=True)
    (tmp_path / "part-000001" / "part-000001.json").write_bytes(content[:at] + new + content[at + length :])
    with contextlib.suppress(IpiqaError):  # any other exception fails the test
        DiffusionDB(images=str(tmp_path)).load()


def test_an_empty_part_is_no_mistake_beside_others(diffusiondb: Path) -> None:
    spoil("{}")(diffusiondb)
    assert len(DiffusionDB(images=str(diffusiondb)).load()) == 4


def test_parts_without_prompts(tmp_path: Path) -> None:
    write_part(tmp_path, 1, {"a.png": ""})
    assert data_error(DiffusionDB(images=str(tmp_path))).startswith(
        f"dataset.images: '{tmp_path}' names no image with a prompt."
    )
