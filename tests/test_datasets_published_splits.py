"""Splits as papers publish them, those that come with a table, and what a split gives away."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import error_of

from ipiqa.datasets.databases.published import Agiqa1k, Agiqa3k
from ipiqa.datasets.published_splits import read_splits
from ipiqa.datasets.splits import Leak, leak, make_split, over_folds, splits_in
from ipiqa.datasets.table import AnnotationTable

NAMES = [f"sub/{i}.png" for i in range(6)]


def make(names: list[str] = NAMES, prompts: list[str] | None = None, official: Any = None) -> AnnotationTable:
    texts = tuple(prompts or names)
    scores = np.zeros((len(names), 1))
    return AnnotationTable(tuple(names), texts, scores, ("q",), texts, Path("x"), official=official)  # type: ignore[arg-type]


def parts(path: Path) -> list[tuple[list[int], list[int], list[int]]]:
    return [(list(s.train), list(s.selection), list(s.val)) for s in splits_in(path, make())]


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


TWO = [([0, 1, 2, 3], [], [4, 5]), ([2, 3, 4, 5], [], [0, 1])]
IN_TURN = [([2, 3, 4, 5], [], [0, 1]), ([0, 1, 4, 5], [], [2, 3]), ([0, 1, 2, 3], [], [4, 5])]
N = NAMES
FORMS: dict[str, tuple[Callable[[Path], Path], list[Any]]] = {
    "json of one fold": (lambda p: write_json(p / "s.json", {"train": N[:4], "test": N[4:]}), TWO[:1]),
    "json of one part": (lambda p: write_json(p / "s.json", {"test": N[4:]}), TWO[:1]),
    "json of training": (lambda p: write_json(p / "s.json", {"Train": N[:4]}), TWO[:1]),
    "json of lists by part": (
        lambda p: write_json(p / "s.json", {"train": [N[:4], N[2:]], "val": [N[4:], N[:2]]}), TWO,
    ),
    "json of folds": (
        lambda p: write_json(p / "s.json", {"a": {"train": N[:4], "val": N[4:]}, "b": {"val": N[:2], "train": N[2:]}}),
        TWO,
    ),
    "json list of folds": (
        lambda p: write_json(p / "s.json", [{"train": N[:4], "test": N[4:]}, {"test": N[:2], "train": N[2:]}]), TWO,
    ),
    "json lists per fold": (lambda p: write_json(p / "s.json", [N[:2], N[2:4], N[4:]]), IN_TURN),
    "json names by fold": (lambda p: write_json(p / "s.json", {"f1": N[:2], "f2": N[2:4], "f3": N[4:]}), IN_TURN),
    "three parts": (
        lambda p: write_json(p / "s.json", {"train": N[:3], "val": N[3:4], "test": N[4:]}), [([0, 1, 2], [3], [4, 5])],
    ),
    "our own file": (
        lambda p: write_json(p / "s.json", {"train": N[:3], "selection": N[3:4], "val": N[4:], "kind": "x", "seed": 1}),
        [([0, 1, 2], [3], [4, 5])],
    ),
    "names without folders": (
        lambda p: write_json(p / "s.json", {"train": ["0.png", "1.png", "2.png", "3.png"], "test": ["4.png", "5.png"]}),
        TWO[:1],
    ),
    "table of folds": (
        lambda p: write_rows(p / "s.csv", [["score", "image", "fold1", "fold2"], *(
            [f"{i}.5", n, "train" if i < 4 else "test", "training" if i > 1 else "val"] for i, n in enumerate(N))]),
        TWO,
    ),
    "table of fold numbers": (
        lambda p: write_rows(p / "s.csv", [["name", "fold"], *([n, str(i // 2)] for i, n in enumerate(N))]), IN_TURN,
    ),
    "folder of tables": (
        lambda p: write_rows(p / "train.csv", [["name", "mos"], *([n, "1"] for n in N[:4])]) and (
            write_rows(p / "test.csv", [["name", "mos"], *([n, "1"] for n in N[4:])]).parent), TWO[:1],
    ),
    "folder of texts": (
        lambda p: (p / "train.txt").write_text("\n".join(N[:4])) and (p / "val.txt").write_text("\n".join(N[4:])) and p,
        TWO[:1],
    ),
    "run": (
        lambda p: write_json(p / "fold_00" / "split.json", {"train": N[:4], "val": N[4:]}) and (
            write_json(p / "fold_01" / "split.json", {"train": N[2:], "val": N[:2]}).parent.parent), TWO,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path: Path, form: str) -> None:
    write, expected = FORMS[form]
    assert parts(write(tmp_path)) == expected


def test_a_split_of_ours_comes_back_with_its_hash(tmp_path: Path) -> None:
    table = make()
    split = make_split(table, kind="holdout", seed=3, fold=0, num_folds=1, val_fraction=0.3)
    path = write_json(tmp_path / "s.json", split.to_json(table))
    assert splits_in(path, table)[0].sha256 == split.sha256


def test_rows_in_no_part_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_json(tmp_path / "s.json", {"train": NAMES[:2], "test": NAMES[4:]})
    with caplog.at_level(logging.WARNING):
        assert parts(path) == [([0, 1], [], [4, 5])]
    assert "fold 0: 2 of 6 rows are in no part: they neither train nor are reported" in caplog.text


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown name": ({"train": NAMES[:4], "test": ["9.png", "8.png"]}, "fold 0: 2 of 2 names are not in the table"),
    "twice": ({"train": NAMES[:4], "test": NAMES[3:]}, "fold 0: 'sub/3.png' stands in two parts."),
    "nothing": ({}, "holds no split. Give a json file of {train: names, test: names}, one or a list"),
    "numbers": ({"train": 5}, "holds no split."),
    "uneven": ({"train": [NAMES[:4]], "test": [NAMES[4:], NAMES[:2]]}, "its parts do not have a list for each fold."),
    "text": ("a", "holds no split."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    content, expected = REFUSED[case]
    message = error_of(lambda: read_splits(write_json(tmp_path / "s.json", content), make()))
    assert expected in message and message.startswith("split.file: ")


def test_tables_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "s.csv", [["image", "part"], ["z.png", "train"]])
    assert "has no column with image names of the table" in error_of(lambda: read_splits(path, make()))
    path = write_rows(tmp_path / "s.csv", [["image", "part"], ["0.png", "maybe"]])
    assert "holds no split" in error_of(lambda: read_splits(path, make()))
    assert "holds no split" in error_of(lambda: read_splits(tmp_path, make()))
    assert "does not exist" in error_of(lambda: read_splits(tmp_path / "missing.csv", make()))


KINDS: dict[str, tuple[AnnotationTable, dict[str, Any], str]] = {
    "no such fold": (make(), {"kind": "all", "fold": 1}, "split.kind all has no fold 1. It has 1, counted from 0."),
    "none": (make(), {"kind": "official"}, "split.kind: no official split comes with this dataset."),
    "no file": (make(), {"kind": "file"}, "split.file: missing."),
    "one part": (make(official=("train",) * 6), {"kind": "official"}, "Check what split.kind official reads."),
    "both": (
        make(official=("train",) * 4 + ("val", "test")), {"kind": "official", "val_fraction": 0.5},
        "run.val_fraction: the split has a part to choose the epoch on. Set run.val_fraction=0.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_kinds_refused(case: str) -> None:
    table, settings, expected = KINDS[case]
    given = {"seed": 1, "fold": 0, "num_folds": 1} | settings
    assert expected in error_of(lambda: make_split(table, **given))


def test_a_part_to_choose_the_epoch_on_is_drawn_from_what_trains() -> None:
    table = make(prompts=list("aabbcc"), official=("train",) * 4 + ("test",) * 2)
    split = make_split(table, kind="official", seed=1, fold=0, num_folds=1, val_fraction=0.5)
    assert list(split.val) == [4, 5] and sorted([*split.train, *split.selection]) == [0, 1, 2, 3]
    assert [*split.selection] in ([0, 1], [2, 3])  # a whole prompt
    everything = make_split(table, kind="all", seed=1, fold=0, num_folds=1)
    assert list(everything.val) == [0, 1, 2, 3, 4, 5] and not len(everything.train)


def test_leak_counts_prompts_tokens_and_images(tmp_path: Path) -> None:
    long = "word " * 80
    prompts = ["A  cat", "a dog", f"{long}one", "a cat", f"{long}two", "a bird"]
    table = make(prompts=prompts)
    path = write_json(tmp_path / "s.json", {"train": NAMES[:2], "selection": NAMES[2:3], "val": NAMES[3:]})
    split = splits_in(path, table)[0]
    found = leak(table, split, image_hashes=("x", "y", "z", "q", "r", "y"))
    assert found == Leak(num_held_out=3, prompts=1, tokens=2, images=1)
    assert leak(table, split) == dataclasses.replace(found, images=None)
    assert found.describe() == (
        "Of 3 held-out rows, 2 (66.7 %) share the prompt, 1 (33.3 %) the image with rows trained on."
    )
    assert over_folds([found, Leak(5, 0, 0, 0)]) == Leak(8, 1, 2, 1)
    assert over_folds([found, Leak(5, 0, 0)]).images is None


def test_leak_of_real_tables(shared: Path) -> None:
    table = Agiqa3k(annotations=str(shared / "data/agiqa3k/data.csv"), images="x").load()
    first = Agiqa1k(annotations=str(shared / "data/agiqa1k/AIGC_MOS_Zscore.xlsx"), images="x").load()
    for one in (table, first):
        disjoint = leak(one, make_split(one, kind="reference", seed=42, fold=0, num_folds=1))
        assert (disjoint.prompts, disjoint.tokens) == (0, 0)
    drawn = leak(table, make_split(table, kind="image_random", seed=42, fold=0, num_folds=1))
    assert drawn.tokens == drawn.num_held_out == 596
    half = leak(first, make_split(first, kind="image_random", seed=42, fold=0, num_folds=1))
    assert 0.4 < half.tokens / half.num_held_out < 0.7  # most of its prompts have one or two images
