"""Splits: equal to the reference code's, and the properties that make a split one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.tables import names_sha256, reference_splits, write_table

from ipiqa.datasets.databases.published import Agiqa1k, Agiqa3k
from ipiqa.datasets.splits import DRAWN, _natural, make_split
from ipiqa.datasets.table import AnnotationTable, ReferenceDraw
from ipiqa.errors import ConfigError, DataError, IpiqaError


def make(groups: list[str], reference_draw: ReferenceDraw | None = "permutation") -> AnnotationTable:
    names = tuple(f"{row}.jpg" for row in range(len(groups)))
    scores = np.zeros((len(groups), 1))
    return AnnotationTable(names, names, scores, ("quality",), tuple(groups), Path("x"), reference_draw)


TABLE = make([str(group) for group in range(20) for _ in range(3)])


@pytest.mark.parametrize("database", ["agiqa1k", "agiqa3k"])
def test_reference_splits(database: str, tmp_path: Path) -> None:
    dataset = Agiqa1k if database == "agiqa1k" else Agiqa3k
    table = dataset(annotations=str(write_table(tmp_path, database)), images="x").load()
    for fold, expected in enumerate(reference_splits(database)):
        split = make_split(table, kind="reference", seed=42, fold=fold, num_folds=10)
        assert names_sha256(split.to_json(table)["val"]) == expected
    if database == "agiqa1k":
        sizes = [len(make_split(table, kind="reference", seed=42, fold=fold, num_folds=10).val) for fold in range(10)]
        assert (min(sizes), max(sizes)) == (132, 316)


def test_reference_permutation_is_numpys_global_stream() -> None:
    """Independent of `make_split`: prompt ids against numpy's global generator, ids in mixed order in the table."""
    table = make([str(group) for group in reversed(range(150))])
    np.random.seed(7)
    for fold in range(4):
        train = set(np.random.permutation(150)[:120])
        split = make_split(table, kind="reference", seed=7, fold=fold, num_folds=1)
        assert {int(table.groups[row]) for row in split.train} == train


def test_no_global_state() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    for kind in DRAWN:
        make_split(TABLE, kind=kind, seed=1, fold=2, num_folds=5, val_fraction=0.2)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


drawn = st.lists(st.sampled_from("abcdefghijkl"), min_size=12, max_size=60).filter(lambda g: len(set(g)) >= 6)


@settings(max_examples=150, deadline=None)
@given(
    groups=drawn,
    kind=st.sampled_from(DRAWN),
    draw=st.sampled_from(["permutation", "bernoulli"]),
    seed=st.integers(0, 2**32 - 1),
    fold=st.integers(0, 4),
    val_fraction=st.sampled_from([0.0, 0.25, 0.5]),
)
def test_properties(groups: list[str], kind: str, draw: Any, seed: int, fold: int, val_fraction: float) -> None:
    table = make(groups, draw)
    given: dict[str, Any] = {"kind": kind, "seed": seed, "fold": fold, "val_fraction": val_fraction}
    try:
        split = make_split(table, num_folds=5, **given)
    except DataError:  # independent draws may put every group of a small table on one side
        assert kind == "reference" and draw == "bernoulli"
        return
    parts = [split.train, split.selection, split.val]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert len(split.train) and len(split.val) and bool(len(split.selection)) == bool(val_fraction)
    if kind != "image_random":
        labels = [{groups[row] for row in part} for part in parts]
        assert not labels[0] & labels[1] and not labels[0] & labels[2] and not labels[1] & labels[2]
    if kind != "kfold":
        assert make_split(table, num_folds=50, **given).sha256 == split.sha256
    plain = make_split(table, num_folds=5, **(given | {"val_fraction": 0.0}))
    np.testing.assert_array_equal(plain.val, split.val)  # what is reported does not depend on how one selects


def test_holdout_fraction_is_exact_and_draws_differ() -> None:
    splits = [
        make_split(TABLE, kind="holdout", seed=1, fold=fold, num_folds=9, train_fraction=0.7) for fold in range(9)
    ]
    assert {len(split.val) for split in splits} == {18}
    assert len({split.sha256 for split in splits}) == 9
    assert make_split(TABLE, kind="holdout", seed=2, fold=0, num_folds=9).sha256 != splits[0].sha256


def test_holdout_depends_on_groups_not_on_row_order() -> None:
    backwards = make(list(reversed(TABLE.groups)))
    held = [
        {table.groups[row] for row in make_split(table, kind="holdout", seed=1, fold=0, num_folds=1).val}
        for table in (TABLE, backwards)
    ]
    assert held[0] == held[1]


def test_kfold_holds_out_each_group_once() -> None:
    folds = [make_split(TABLE, kind="kfold", seed=3, fold=fold, num_folds=6).val for fold in range(6)]
    assert sorted(np.concatenate(folds).tolist()) == list(range(60))
    assert {len(fold) for fold in folds} == {9, 12}


def test_image_random_cuts_groups_but_not_an_image() -> None:
    split = make_split(TABLE, kind="image_random", seed=1, fold=0, num_folds=1)
    assert {TABLE.groups[row] for row in split.train} & {TABLE.groups[row] for row in split.val}
    assert len(split.val) == 12
    twice = AnnotationTable(("a", "b", "a", "b"), ("p",) * 4, np.zeros((4, 1)), ("quality",), ("g",) * 4, Path("x"))
    assert make_split(twice, kind="image_random", seed=0, fold=0, num_folds=1, train_fraction=0.5).val.tolist() in (
        [0, 2],
        [1, 3],
    )


def test_numbers_as_groups_are_in_order_of_value() -> None:
    labels = ["10", "9", "09", "b", "9" * 5000, "0"]
    assert sorted(labels, key=_natural) == ["0", "09", "9", "10", "9" * 5000, "b"]


def test_json() -> None:
    split = make_split(TABLE, kind="holdout", seed=1, fold=0, num_folds=1)
    shown = json.loads(json.dumps(split.to_json(TABLE)))
    assert list(shown) == ["train", "val", "kind", "seed", "fold", "sha256"]
    assert shown["val"] == [TABLE.names[row] for row in split.val]
    nested = make_split(TABLE, kind="holdout", seed=1, fold=0, num_folds=1, val_fraction=0.25)
    assert len(nested.to_json(TABLE)["selection"]) == 12
    assert nested.sha256 != split.sha256


ONE_GROUP = make(["g"] * 5)
REFUSED: dict[str, tuple[AnnotationTable, dict[str, Any], str]] = {
    "kind": (
        TABLE,
        {"kind": "holdot"},
        "split.kind: 'holdot' is not one of reference, holdout, kfold, image_random, file, official, all.",
    ),
    "not offered": (
        make(["a", "b"], None),
        {"kind": "reference"},
        "split.kind: 'reference' is defined for AGIQA-1k and AGIQA-3k only. Use holdout or kfold.",
    ),
    "one group": (ONE_GROUP, {}, "split: all 5 rows belong to one group, 'g', so none can be held out."),
    "one group, kfold": (ONE_GROUP, {"kind": "kfold"}, "split: all 5 rows belong to one group, 'g', so"),
    "fold": (TABLE, {"kind": "kfold", "fold": 5}, "num_folds: kfold cannot cut 20 groups into 5 folds for fold 5"),
    "too many folds": (TABLE, {"kind": "kfold", "num_folds": 21}, "kfold cannot cut 20 groups into 21 folds"),
    "one fold": (TABLE, {"kind": "kfold", "num_folds": 1}, "split: the train part of fold 0 is empty (20 groups)."),
    "small val fraction": (TABLE, {"val_fraction": 0.01}, "split: the selection part of fold 0 is empty (20 groups)."),
    "large val fraction": (
        TABLE,
        {"val_fraction": 0.99},
        "the train part of fold 0 is empty (20 groups). Check split.train_fraction 0.8, run.val_fraction 0.99.",
    ),
    "nothing held out": (TABLE, {"train_fraction": 0.99}, "split: the val part of fold 0 is empty (20 groups)."),
    "nothing trains": (TABLE, {"train_fraction": 0.01}, "split: the train part of fold 0 is empty (20 groups)."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    table, changes, expected = REFUSED[case]
    arguments: dict[str, Any] = {"kind": "holdout", "seed": 1, "fold": 0, "num_folds": 5} | changes
    with pytest.raises(IpiqaError) as caught:
        make_split(table, **arguments)
    assert expected in str(caught.value) and isinstance(caught.value, (ConfigError, DataError))


@pytest.mark.parametrize("kind", DRAWN)
def test_fewer_training_groups(kind: str) -> None:
    """A learning curve: the held-out and the selection part stay, and the training parts are nested."""

    def draw(train_groups: int | None) -> tuple[set[int], list[int], list[int]]:
        split = make_split(TABLE, kind=kind, seed=1, fold=1, num_folds=5, val_fraction=0.25, train_groups=train_groups)
        return set(split.train.tolist()), split.selection.tolist(), split.val.tolist()

    whole, few, more = draw(None), draw(3), draw(6)
    assert few[1:] == more[1:] == whole[1:]
    assert few[0] < more[0] < whole[0]
    if kind != "image_random":
        assert len({TABLE.groups[row] for row in few[0]}) == 3 and len(few[0]) == 9


def test_more_training_groups_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"split.train_groups: 17, but fold 0 has 16 to train on"):
        make_split(TABLE, kind="kfold", seed=1, fold=0, num_folds=5, train_groups=17)
