"""Tables of strangers: file names from patterns, lists of ratings, spreads, missing scores, segments, splits."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import error_of

from ipiqa.datasets.databases.annotated import OwnTable
from ipiqa.datasets.splits import make_split
from ipiqa.datasets.table import AnnotationTable, Target

ROWS = [
    {"model": "sd", "no": "7", "text": "a cat", "votes": "[1, 2, 3]", "fit": "4", "fit_std": "0.5", "part": "Train"},
    {"model": "xl", "no": "7", "text": "a cat", "votes": "[5]", "fit": "", "fit_std": "", "part": "training"},
    {"model": "sd", "no": "12", "text": "a dog", "votes": "", "fit": "2.5", "fit_std": "1", "part": "TEST"},
    {"model": "xl", "no": "12", "text": "a dog", "votes": "[4, 4]", "fit": "1", "fit_std": "0.25", "part": "val"},
]
TARGETS = {
    "quality": {"column": "votes", "low": 1, "high": 5, "meaning": "how good it looks"},
    "alignment": {"column": "fit", "std": "fit_std", "low": 0, "high": 4},
}


def dataset(folder: Path, rows: list[dict[str, str]] = ROWS, **changes: Any) -> OwnTable:
    path = folder / "table.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    settings: dict[str, Any] = {
        "annotations": str(path), "images": "x", "image": "{model}/{no:03d}.png", "prompt": "text",
        "targets": TARGETS, "missing_scores": "mask", "raters": 10, "split_column": "part",
        "segments": {"generator": "model", "kind": "{text~^a (.)}"},
    }  # fmt: skip
    return OwnTable(**settings | changes)


def test_everything_a_table_can_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        table = dataset(tmp_path).load()
    assert table.names == ("sd/007.png", "xl/007.png", "sd/012.png", "xl/012.png")
    assert table.targets == (Target("quality", 1, 5, "how good it looks"), Target("alignment", 0, 4))
    np.testing.assert_array_equal(table.scores, [[2, 4], [5, np.nan], [np.nan, 2.5], [4, 1]])
    assert table.rater_std is not None and table.num_raters is not None
    np.testing.assert_array_equal(table.rater_std, [[1, 0.5], [np.nan, np.nan], [np.nan, 1], [0, 0.25]])
    np.testing.assert_array_equal(table.num_raters, [[3, 10], [np.nan, 10], [np.nan, 10], [2, 10]])
    assert table.segments == {"generator": ("sd", "xl", "sd", "xl"), "kind": ("c", "c", "d", "d")}
    assert table.official == ("train", "train", "test", "val")
    assert table.groups == ("a cat", "a cat", "a dog", "a dog")
    assert "scores are missing (1 of quality, 1 of alignment of 4 rows): they count in no loss and no metric" in (
        caplog.text
    )
    split = make_split(table, kind="official", seed=1, fold=0, num_folds=1)
    assert [list(rows) for rows in (split.train, split.selection, split.val)] == [[0, 1], [3], [2]]


def test_check_counts_what_is_missing(tmp_path: Path) -> None:
    lines = dataset(tmp_path).summary(dataset(tmp_path).load())
    assert lines[2:] == [
        "  MOS quality: 2.000 to 5.000, mean 3.667, 1 missing",
        "  MOS alignment: 1.000 to 4.000, mean 2.500, 1 missing",
        "  generator: 2 different",
        "  kind: 2 different",
        "  split that comes with it: train 2, test 1, val 1",
    ]


def test_lists_and_mappings_of_targets_are_one(tmp_path: Path) -> None:
    def load(targets: Any, **limits: float) -> AnnotationTable:
        return dataset(tmp_path, targets=targets, **limits).load()

    listed, mapped = load(["fit"], mos_min=0.0, mos_max=4.0), load({"fit": {}}, mos_min=0.0, mos_max=4.0)
    assert listed.targets == mapped.targets == (Target("fit", 0.0, 4.0),)
    assert listed.sha256 == mapped.sha256
    assert load({"fit": {"high": 9.0}}, mos_max=4.0).targets == (Target("fit", None, 9.0),)


def test_scale_to_stretches_scores_and_their_spread(tmp_path: Path) -> None:
    plain, wide = dataset(tmp_path).load(), dataset(tmp_path, scale_to=100.0).load()
    assert [(target.low, target.high) for target in wide.targets] == [(0, 100), (0, 100)]
    np.testing.assert_array_equal(wide.scores, (plain.scores - [1, 0]) * 25)
    assert wide.rater_std is not None and plain.rater_std is not None
    np.testing.assert_array_equal(wide.rater_std, plain.rater_std * 25)


def test_full_paths_below_the_images_are_names(tmp_path: Path) -> None:
    rows = [row | {"file": f"{tmp_path}/pictures/{i}/a.png"} for i, row in enumerate(ROWS)]
    table = dataset(tmp_path, rows, image="file", images=str(tmp_path / "pictures")).load()
    assert table.names == ("0/a.png", "1/a.png", "2/a.png", "3/a.png")
    elsewhere = dataset(tmp_path, rows, image="file", images=str(tmp_path / "others"))
    assert "4 of 4 rows name an image outside the image folder" in error_of(elsewhere.load)


def test_the_mean_of_duplicates_leaves_missing_scores_out(tmp_path: Path) -> None:
    again = [*ROWS, ROWS[1] | {"fit": "3", "votes": "[1]"}, ROWS[1] | {"votes": ""}]
    table = dataset(tmp_path, again, duplicates="mean").load()
    np.testing.assert_array_equal(table.scores[:2], [[2, 4], [3, 3]])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"missing_scores": "error"}, "1 of 4 rows have no finite score 'quality' from 1 to 5, first ''"),
    "how to allow it": ({"missing_scores": "error"}, "Where scores are missing, set dataset.missing_scores to mask."),
    "pattern": ({"image": "{model/x.png"}, "dataset.image: '{model/x.png' is not a pattern. Write {column}, {column:"),
    "no group": ({"segments": {"a": "{text~cat}"}}, "dataset.segments.a: '{text~cat}' is not a pattern."),
    "regex": ({"group": "{text~(}"}, "dataset.group: '{text~(}' holds no regular expression (missing )"),
    "column": ({"image": "{modle}.png"}, "has no column 'modle'. Did you mean 'model'?"),
    "taken": ({"segments": ["prompt"]}, "dataset.segments: 'prompt' means something else."),
    "part": ({"split_column": "model"}, "4 of 4 rows name no part of a split (train, training, val"),
    "raters": ({"raters": 0.0}, "dataset.raters: 0 is out of range. Give how many rated an image, or null."),
    "setting": ({"targets": {"a": {"std_column": "x"}}}, "dataset.targets.a.std_column: no such setting. Did you mean"),
    "scale": ({"targets": {"a": {"low": 5, "high": 1}}}, "5.0 to dataset.mos_max 1.0 is no scale of 'a'."),
    "to": ({"scale_to": -1.0}, "dataset.scale_to: -1 is no end of a scale. Give one such as 5, or null."),
    "no ends": (
        {"targets": {"a": {"column": "fit"}}, "scale_to": 5.0},
        "dataset.scale_to: the scale of 'a' is not known. Give its ends, or set dataset.scale_to to null.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    changes, expected = REFUSED[case]
    assert expected in error_of(lambda: dataset(tmp_path, **changes).load())


@pytest.mark.parametrize(
    "cell", ["[1, 9]", "[true]", '["3"]', "[nan]", "[1", "{}", "x", "1_0", "[[1]]", "[1e999]", "9"]
)
def test_ratings_that_are_none(tmp_path: Path, cell: str) -> None:
    rows = [*ROWS, ROWS[0] | {"no": "99", "votes": cell}]
    assert "1 of 5 rows have no finite score 'quality' from 1 to 5" in error_of(dataset(tmp_path, rows).load)


def test_an_image_whose_name_cannot_be_made_is_refused(tmp_path: Path) -> None:
    rows = [*ROWS, ROWS[0] | {"no": "seven"}]
    assert "1 of 5 rows have no image name" in error_of(dataset(tmp_path, rows).load)
