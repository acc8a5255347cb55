"""The first config for a table of one's own: what is found in columns and beside them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import error_of

from ipiqa.build import make_dataset
from ipiqa.cli import main
from ipiqa.config.loading import load_config
from ipiqa.datasets.discover import discover
from ipiqa.report.database import first_config


def write(folder: Path, rows: list[dict[str, Any]], images: list[str] = (), name: str = "table.csv") -> Path:  # type: ignore[assignment]
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


ROWS = [
    {"": i, "file": f"{i}.png", "text": f"a cat {i // 4}, {{x}}", "width": 512, "mos_quality": 1 + i % 4}
    | {"std_quality": 0.5, "votes rating": f"[{1 + i % 5}, 5]" if i % 5 else "", "model": ["sd", "xl"][i % 2]}
    | {"part": "train" if i < 8 else "test"}
    for i in range(12)
]


def test_what_is_found(tmp_path: Path) -> None:
    write(tmp_path, ROWS, [f"pictures/{i}.png" for i in range(10)])
    write(tmp_path, [{"file": "0.png", "score": 1}], name="other.csv")  # without prompts
    found = discover(tmp_path)
    assert (found.table.name, found.images, found.num_images) == ("table.csv", tmp_path / "pictures", 10)
    assert (found.image, found.prompt, found.num_prompts, found.part) == ("file", "text", 3, "part")
    quality, votes = found.scores
    assert (quality.column, quality.name, quality.std, quality.scale) == (
        "mos_quality",
        "quality",
        "std_quality",
        (1, 5),
    )
    assert (votes.column, votes.name, votes.std, votes.num_missing, votes.scale) == (
        "votes rating",
        "votes",
        None,
        3,
        (1, 5),
    )
    assert found.segments == {"model": 2}


def test_what_is_written_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, ROWS, [f"pictures/{i}.png" for i in range(10)])
    out = tmp_path / "deep" / "first.yaml"
    assert main(["data", "init", str(tmp_path), "--out", str(out)]) == 0
    table = make_dataset(load_config(out)).load()
    assert table.target_names == ("quality", "votes") and table.targets[0].meaning.startswith("perceptual quality")
    assert table.official is not None and table.official.count("test") == 4
    assert table.segments["model"][:2] == ("sd", "xl") and table.scores[1, 1] == 3.5
    assert main(["data", "init", str(tmp_path), "--out", str(out)]) == 2
    assert f"--out: '{out}' is there already. Name another file." in capsys.readouterr().err


def test_names_without_endings_are_completed(tmp_path: Path) -> None:
    rows = [{"id": f"n{i}", "prompt": "p", "score": i / 7} for i in range(4)]
    found = discover(write(tmp_path, rows, [f"imgs/n{i}.webp" for i in range(4)]))
    assert (found.image, found.images.name, found.scores[0].scale) == ("{id}.webp", "imgs", (0, 1))
    settings = yaml.safe_load(first_config(found, tmp_path / "x.yaml"))
    assert settings["split"]["kind"] == "image_random"  # there is one prompt only
    assert settings["dataset"]["image"] == "{id}.webp"


def test_full_paths_are_names_below_their_common_folder(tmp_path: Path) -> None:
    pictures = [f"{tmp_path}/far/{side}/{i}.png" for i in range(2) for side in "ab"]
    rows = [{"file": name, "prompt": f"p{i}", "score": 1.5 * i, "odd": "nan"} for i, name in enumerate(pictures)]
    found = discover(write(tmp_path / "near", rows, ["../far/b/1.png", "../far/a/1.png"]))
    assert (found.images, found.image, found.num_images) == (tmp_path / "far", "file", 2)
    assert [score.column for score in found.scores] == ["score"]


def test_names_that_yaml_would_misread(tmp_path: Path) -> None:
    rows = [{"no: 1": "a.png", "prompt": "p", "yes": 3.25}, {"no: 1": "b.png", "prompt": "q", "yes": 88}]
    dataset = yaml.safe_load(first_config(discover(write(tmp_path, rows)), tmp_path / "x.yaml"))["dataset"]
    assert dataset["image"] == "no: 1" and list(dataset["targets"]) == ["yes"] and dataset["scale_to"] == 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file": "a.png", "score": 1}], "has no column 'prompt' or 'text_prompt' or 'text'"),
        ([{"file": "a", "prompt": "p", "score": 1}], "no column names image files beside it."),
        (
            [{"file": "a.png", "prompt": "p", "width": 1}],
            "has no column of scores. Its columns are: file, prompt, width.",
        ),
    ],
)
def test_tables_that_cannot_train(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = write(tmp_path, rows)
    assert message in error_of(lambda: discover(path))
    assert message in error_of(lambda: discover(tmp_path))


def test_a_folder_without_tables(tmp_path: Path) -> None:
    assert "none of its 0 tables can be trained on: Tables end in .csv" in error_of(lambda: discover(tmp_path))
