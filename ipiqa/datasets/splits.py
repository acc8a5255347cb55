"""Splits: which rows train and which are held out, as a pure function of (groups, kind, seed, fold).

"Folds" are repeated draws, except in kind `kfold`. No kind but `image_random` cuts a group: its images, of one
prompt or one content, all stand on the same side.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import ConfigError, DataError, did_you_mean

SplitKind = Literal["reference", "holdout", "kfold", "image_random"]
SPLIT_KINDS: tuple[str, ...] = get_args(SplitKind)

# RandomState seeded by [seed, fold, purpose]: streams that no two purposes share
_HELD_OUT, _SELECTION = 1, 2


@dataclass(frozen=True, eq=False)
class Split:
    """One draw. Row numbers are int64, ascending, in table order.

    Attributes:
        train: rows to train on.
        selection: rows carved out of the training groups to choose the best epoch on; empty unless asked for.
        val: held-out rows, the reported part.
        kind: one of SPLIT_KINDS.
        seed: seed of all draws.
        fold: number of the draw, from 0.
        sha256: hash of the image names of the three parts.
    """

    train: np.ndarray
    selection: np.ndarray
    val: np.ndarray
    kind: str
    seed: int
    fold: int
    sha256: str

    def to_json(self, table: AnnotationTable) -> dict[str, Any]:
        """Returns the split by image names, as `split.json` holds it."""
        parts = {"train": self.train, "selection": self.selection, "val": self.val}
        shown = {part: rows for part, rows in parts.items() if part != "selection" or len(rows)}
        names = {part: [table.names[row] for row in rows] for part, rows in shown.items()}
        return names | {"kind": self.kind, "seed": self.seed, "fold": self.fold, "sha256": self.sha256}


def make_split(
    table: AnnotationTable,
    *,
    kind: str,
    seed: int,
    fold: int,
    num_folds: int,
    train_fraction: float = 0.8,
    val_fraction: float = 0.0,
) -> Split:
    """Returns the split of one fold; it does not depend on other folds having been drawn.

    Args:
        table: rows and their groups.
        kind: `reference` draws as the reference code does; `holdout` holds out an exact fraction of the groups, each
            fold anew; `kfold` holds out each group in exactly one fold; `image_random` ignores groups.
        seed: seed of all draws, 0 to 2**32 - 1.
        fold: which draw, from 0.
        num_folds: number of folds; only `kfold` draws depend on it.
        train_fraction: share of the groups that trains, above 0 and below 1; `kfold` does not read it.
        val_fraction: share of the training groups that becomes the selection part, from 0 to below 1.

    Raises:
        ConfigError: a setting is out of range or the kind is not offered for this dataset.
        DataError: the table has one group only, or a part would be empty.
    """
    _check(table, kind, seed, fold, num_folds, train_fraction, val_fraction)
    labels: Sequence[str] = table.names if kind == "image_random" else table.groups
    groups = sorted(set(labels), key=_natural)
    if len(groups) < 2:
        raise DataError(
            f"split: all {len(table)} rows belong to one group, {groups[0]!r}, so none can be held out. "
            "Check dataset.group, or use split.kind image_random."
        )
    if kind == "reference" and table.reference_draw == "bernoulli":
        held_out = _bernoulli(labels, seed, fold, train_fraction)
    elif kind == "reference":
        held_out = _permutation(groups, seed, fold, train_fraction)
    elif kind == "kfold":
        held_out = _kfold(groups, seed, fold, num_folds)
    else:
        held_out = _choose(groups, 1 - train_fraction, [seed, fold, _HELD_OUT])
    training = [group for group in groups if group not in held_out]
    selected = _choose(training, val_fraction, [seed, fold, _SELECTION]) if val_fraction else set()

    part_of = np.array([2 if label in held_out else 1 if label in selected else 0 for label in labels])
    train, selection, val = (np.flatnonzero(part_of == part).astype(np.int64) for part in range(3))
    for part, rows in (("train", train), ("val", val)):
        if not len(rows):
            key = "run.val_fraction" if part == "train" and training else "split.train_fraction"
            raise DataError(f"split: the {part} part of fold {fold} is empty ({len(groups)} groups). Check {key}.")
    if val_fraction and not len(selection):
        raise DataError(
            f"run.val_fraction: {val_fraction:g} of {len(training)} training groups is less than one group. Raise it."
        )
    names = [[table.names[row] for row in rows] for rows in (train, selection, val)]
    sha256 = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    return Split(train, selection, val, kind, seed, fold, sha256)


def _check(
    table: AnnotationTable, kind: str, seed: int, fold: int, num_folds: int, train_fraction: float, val_fraction: float
) -> None:
    if kind not in SPLIT_KINDS:
        near = did_you_mean(kind, SPLIT_KINDS)
        raise ConfigError(f"split.kind: no split is called {kind!r}.{near} There are: {', '.join(SPLIT_KINDS)}.")
    if kind == "reference" and table.reference_draw is None:
        raise ConfigError("split.kind: 'reference' is defined for AGIQA-1k and AGIQA-3k only. Use holdout or kfold.")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"split.seed: {seed} is not from 0 to {2**32 - 1}.")
    if fold < 0 or num_folds < 1 or (kind == "kfold" and fold >= num_folds):
        raise ConfigError(f"fold: {fold} is not one of the {num_folds} folds, numbered from 0 to {num_folds - 1}.")
    num_groups = len(set(table.groups))
    if kind == "kfold" and num_groups > 1 and not 2 <= num_folds <= num_groups:
        raise ConfigError(f"num_folds: kfold cannot cut {num_groups} groups into {num_folds}. Use 2 to {num_groups}.")
    if not 0 < train_fraction < 1:
        raise ConfigError(f"split.train_fraction: {train_fraction:g} is not above 0 and below 1.")
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"run.val_fraction: {val_fraction:g} is not from 0 to below 1.")


def _natural(label: str) -> tuple[bool, int, str, str]:
    """Sorts numbers by value, before words, so that prompt id n is group n.

    >>> sorted(["10", "b", "9", "a"], key=_natural)
    ['9', '10', 'a', 'b']
    """
    if not (label.isascii() and label.isdigit()):
        return True, 0, "", label
    digits = label.lstrip("0")  # int() refuses more than 4,300 of them
    return False, len(digits), digits, label


def _permutation(groups: Sequence[str], seed: int, fold: int, train_fraction: float) -> set[str]:
    """Returns the held-out groups as the reference draws them for AGIQA-3k: successive permutations of one stream."""
    draws = np.random.RandomState(seed)
    for _ in range(fold):
        draws.permutation(len(groups))
    order = draws.permutation(len(groups))
    return {groups[number] for number in order[round(len(groups) * train_fraction) :]}


def _bernoulli(labels: Sequence[str], seed: int, fold: int, train_fraction: float) -> set[str]:
    """Returns the held-out groups as the reference draws them for AGIQA-1k: one number per group, at its first row."""
    groups = list(dict.fromkeys(labels))
    draws = random.Random(seed)
    for _ in range(fold * len(groups)):
        draws.random()
    return {group for group in groups if not draws.random() < train_fraction}


def _kfold(groups: Sequence[str], seed: int, fold: int, num_folds: int) -> set[str]:
    """Returns the held-out groups of one fold of a partition whose parts differ by one group at most."""
    order = np.random.RandomState([seed, 0, _HELD_OUT]).permutation(len(groups))
    return {groups[number] for number in order[fold::num_folds]}


def _choose(groups: Sequence[str], fraction: float, seed: Sequence[int]) -> set[str]:
    """Returns a fraction of the groups, rounded to a whole number of them."""
    order = np.random.RandomState(list(seed)).permutation(len(groups))
    return {groups[number] for number in order[: round(len(groups) * fraction)]}
