"""Splits: which rows train and which are held out, as a pure function of (groups, kind, seed, fold).

"Folds" are repeated draws, except in kind `kfold`. Of the kinds that are drawn, none but `image_random` cuts a group:
its images, of one prompt or one content, all stand on the same side. Published splits are as they were published.
A leak is what a split gives away: held-out rows that share their prompt or their picture with rows that train.
"""

import random
from collections.abc import Hashable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ipiqa.datasets.published_splits import HELD_OUT, SELECTION, TRAIN, UNUSED, read_splits, roles
from ipiqa.datasets.table import AnnotationTable, json_sha256
from ipiqa.errors import ConfigError, DataError
from ipiqa.prompts import clean

DRAWN = ("reference", "holdout", "kfold", "image_random")
SPLIT_KINDS = (*DRAWN, "file", "official", "all")

# RandomState seeded by [seed, fold, purpose]: streams that no two purposes share
_HELD_OUT, _SELECTION, _TRAINING = 1, 2, 3


@dataclass(frozen=True, eq=False)
class Split:
    """One draw: the rows to train on, to choose the best epoch on (none unless asked for) and to report.

    Row numbers are int64, ascending, in table order; `sha256` is the hash of the image names of the three parts.
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
        names = {part: [table.names[row] for row in rows] for part, rows in parts.items() if len(rows)}
        return names | {"kind": self.kind, "seed": self.seed, "fold": self.fold, "sha256": self.sha256}


def make_split(
    table: AnnotationTable, *, kind: str, seed: int, fold: int, num_folds: int,
    train_fraction: float = 0.8, val_fraction: float = 0.0, file: str | None = None, train_groups: int | None = None,
) -> Split:  # fmt: skip
    """Returns the split of one fold; it does not depend on other folds having been drawn.

    Args:
        kind: `reference` draws as the reference code does; `holdout` holds out an exact fraction of the groups, each
            fold anew; `kfold` holds out each group in exactly one fold; `image_random` ignores groups; `file` is read
            from a file, `official` from the table; `all` holds out every row.
        seed: of all draws, 0 to 2**32 - 1.
        fold: which draw, from 0.
        num_folds: only `kfold` draws depend on it.
        train_fraction: share of the groups that trains, above 0 and below 1; only the first two kinds and
            `image_random` read it.
        val_fraction: share of the training groups that becomes the selection part, from 0 to below 1.
        file: file or folder of the published split; see `read_splits`.
        train_groups: number of training groups (of `image_random`, images) that are kept, for a learning curve; the
            rows of the others are in no part. What a smaller number keeps, a larger one keeps too. None keeps all.

    Raises:
        ConfigError: the kind is unknown or not for this dataset, or has no such fold.
        DataError: the table has one group only, a part would be empty, or the published split cannot be used.
    """
    if kind not in SPLIT_KINDS:
        raise ConfigError(f"split.kind: {kind!r} is not one of {', '.join(SPLIT_KINDS)}.")
    if kind == "image_random" and table.comparisons is not None:
        raise ConfigError("split.kind: 'image_random' would part the images of pairs. Use holdout or kfold.")
    labels = table.names if kind == "image_random" else table.groups
    if kind in DRAWN:
        held_out = _draw(table, labels, kind, seed, fold, num_folds, train_fraction)
        part_of = np.array([HELD_OUT if label in held_out else TRAIN for label in labels])
    else:
        part_of = _published(table, kind, fold, file)
    if val_fraction and SELECTION in part_of:
        raise ConfigError("run.val_fraction: the split has a part to choose the epoch on. Set run.val_fraction=0.")
    training = sorted({labels[row] for row in np.flatnonzero(part_of == TRAIN)}, key=_natural)
    if selected := _choose(training, val_fraction, [seed, fold, _SELECTION]):
        part_of[[part == TRAIN and label in selected for part, label in zip(part_of, labels, strict=True)]] = SELECTION
    if train_groups is not None:
        left = [label for label in training if label not in selected]
        if train_groups > len(left):
            raise ConfigError(f"split.train_groups: {train_groups}, but fold {fold} has {len(left)} to train on.")
        kept = set(_shuffled(left, [seed, fold, _TRAINING])[:train_groups])
        part_of[[part == TRAIN and label not in kept for part, label in zip(part_of, labels, strict=True)]] = UNUSED

    train, selection, val = parts = [np.flatnonzero(part_of == part).astype(np.int64) for part in range(3)]
    for part, rows in zip(("train", "selection", "val"), parts, strict=True):
        is_needed = val_fraction if part == "selection" else part == "val" or kind != "all"
        if not len(rows) and is_needed:
            given = f"split.train_fraction {train_fraction:g}, run.val_fraction {val_fraction:g}"
            given = given if kind in DRAWN else f"what split.kind {kind} reads"
            raise DataError(
                f"split: the {part} part of fold {fold} is empty ({len(set(labels))} groups). Check {given}."
            )
    sha256 = json_sha256([[table.names[row] for row in rows] for rows in parts])
    return Split(train, selection, val, kind, seed, fold, sha256)


def splits_in(path: Path, table: AnnotationTable) -> list[Split]:
    """Returns every fold of a published split, or of a run; see `read_splits`."""
    folds = range(len(read_splits(path, table)))
    return [make_split(table, kind="file", seed=0, fold=fold, num_folds=len(folds), file=str(path)) for fold in folds]


def _published(table: AnnotationTable, kind: str, fold: int, file: str | None) -> np.ndarray:
    if kind == "all":
        folds = [np.full(len(table), HELD_OUT)]
    elif kind == "file":
        if file is None:
            raise ConfigError("split.file: missing. Name the file of the published split.")
        folds = read_splits(Path(file), table)
    elif table.official is None:
        raise ConfigError("split.kind: no official split comes with this dataset. Use holdout, kfold or file.")
    else:
        role = roles(table.official)
        folds = [np.array([role[part] for part in table.official])]
    if fold >= len(folds):
        raise ConfigError(f"run.num_folds: split.kind {kind} has no fold {fold}. It has {len(folds)}, counted from 0.")
    return folds[fold]


def _draw(
    table: AnnotationTable, labels: Sequence[str], kind: str, seed: int, fold: int, num_folds: int, fraction: float
) -> set[str]:
    """Returns the groups that one draw holds out."""
    if kind == "reference" and table.reference_draw is None:
        raise ConfigError("split.kind: 'reference' is defined for AGIQA-1k and AGIQA-3k only. Use holdout or kfold.")
    groups = sorted(set(labels), key=_natural)
    if len(groups) < 2:
        share = f"all {len(table)} rows belong to one group, {groups[0]!r}, so none can be held out"
        raise DataError(f"split: {share}. Check dataset.group, or use split.kind image_random.")
    if kind == "kfold":  # a partition whose parts differ by one group at most
        if not fold < num_folds <= len(groups):
            cut = f"kfold cannot cut {len(groups)} groups into {num_folds} folds for fold {fold}, counted from 0"
            raise ConfigError(f"num_folds: {cut}. Use 2 to {len(groups)} folds.")
        return set(_shuffled(groups, [seed, 0, _HELD_OUT])[fold::num_folds])
    if kind == "reference" and table.reference_draw == "bernoulli":
        return _bernoulli(labels, seed, fold, fraction)
    if kind == "reference":  # successive permutations of one stream, as the reference draws for AGIQA-3k
        return set(_shuffled(groups, seed, fold)[round(len(groups) * fraction) :])
    return _choose(groups, 1 - fraction, [seed, fold, _HELD_OUT])


def _natural(label: str) -> tuple[bool, int, str, str]:
    """Sorts numbers by value, before words, so that prompt id n is group n."""
    if not (label.isascii() and label.isdigit()):
        return True, 0, "", label
    digits = label.lstrip("0")  # int() refuses more than 4,300 of them
    return False, len(digits), digits, label


def _bernoulli(labels: Sequence[str], seed: int, fold: int, train_fraction: float) -> set[str]:
    """Returns the held-out groups as the reference draws them for AGIQA-1k: one number per group, at its first row."""
    groups = list(dict.fromkeys(labels))
    draws = random.Random(seed)
    numbers = [draws.random() for _ in range((fold + 1) * len(groups))]
    return {group for group, number in zip(groups, numbers[-len(groups) :], strict=True) if number >= train_fraction}


def _shuffled(groups: Sequence[str], seed: int | list[int], draw: int = 0) -> list[str]:
    """Returns the groups in the order of one of the successive permutations of a stream."""
    draws = np.random.RandomState(seed)
    order = [draws.permutation(len(groups)) for _ in range(draw + 1)][-1]
    return [groups[number] for number in order]


def _choose(groups: Sequence[str], fraction: float, seed: list[int]) -> set[str]:
    """Returns a fraction of the groups, rounded to a whole number of them."""
    return set(_shuffled(groups, seed)[: round(len(groups) * fraction)])


@dataclass(frozen=True)
class Leak:
    """How many of the held-out rows are known from the rows that train or choose the epoch.

    Attributes:
        num_held_out: number of held-out rows.
        prompts: rows whose prompt is known, letter case and white space aside.
        tokens: rows whose prompt is known to a model that reads CLIP's tokens, no more than its context.
        images: rows whose image file is known, name aside; None where files were not read.
    """

    num_held_out: int
    prompts: int
    tokens: int
    images: int | None = None

    def describe(self) -> str:
        """Returns the line that a report has."""
        images = "" if self.images is None else f", {self._share(self.images)} the image"
        rows = f"Of {self.num_held_out} held-out rows, {self._share(self.tokens)} share the prompt"
        return f"{rows}{images} with rows trained on."

    def _share(self, count: int) -> str:
        return f"{count} ({100 * count / max(1, self.num_held_out):.1f} %)" if count else "none"


def leak(table: AnnotationTable, split: Split, image_hashes: Sequence[str] | None = None) -> Leak:
    """Returns what a split gives away; `image_hashes` are of each row's file, see `checks.image_hashes`."""
    known_rows, texts = [*split.train, *split.selection], {prompt: clean(prompt) for prompt in set(table.prompts)}

    def count(keys: Sequence[Hashable]) -> int:
        known = {keys[row] for row in known_rows}
        return sum(keys[row] in known for row in split.val)

    images = None if image_hashes is None else count(image_hashes)
    return Leak(len(split.val), count([texts[prompt] for prompt in table.prompts]), count(table.prompts_read), images)


def over_folds(leaks: Sequence[Leak]) -> Leak:
    """Returns the leak of all folds together."""
    counts = zip(*map(astuple, leaks), strict=True)  # of each kind
    totals: list[Any] = [None if None in each else sum(each) for each in counts]
    return Leak(*totals)


def leak_rows(splits: Sequence[Split], leaks: Sequence[Leak]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a table of leaks, the last one over all folds."""
    names = [(str(split.fold), str(len(split.train) + len(split.selection))) for split in splits] + [("all", "")]
    rows = []
    for (name, count), one in zip(names, [*leaks, over_folds(leaks)], strict=True):
        shares = [one.prompts, one.tokens, one.images]
        cells = ["-" if share is None else f"{share} ({100 * share / one.num_held_out:.1f} %)" for share in shares]
        rows.append([name, count, str(one.num_held_out), *cells])
    return ["fold", "trained on", "held out", "same prompt", "same tokens", "same image"], rows
