"""What a run came to, in one long frame: spreads over folds, what must be known to read them, and paired folds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ipiqa.evaluation.results import RunResult, fold_numbers
from ipiqa.metrics import METRICS, PairedTest, Spread, describe, paired_test

Key = tuple[str, str, str]  # target, checkpoint, metric
Values = dict[tuple[str, str, str, str], pd.Series]  # run, target, checkpoint, metric -> values by fold

_SPLIT_WORDS = {
    "reference": "prompt-disjoint draws as in the reference code; folds overlap",
    "holdout": "prompt-disjoint draws, exact share of the groups; folds overlap",
    "kfold": "disjoint groups, every image is held out exactly once over all folds",
    "image_random": "prompts leak between parts: do not compare with prompt-disjoint results",
}


@dataclass(frozen=True)
class Summary:
    """A run, its values as a long frame, their spreads over folds, and notes: warnings, and what is undefined."""

    run: RunResult
    frame: pd.DataFrame
    spreads: dict[Key, Spread]
    notes: tuple[str, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return metric_names(self.frame["metric"])


def long_frame(runs: Mapping[str, RunResult]) -> pd.DataFrame:
    """Returns one row for each value, with the columns run, fold, target, checkpoint, metric, value.

    A metric that some folds of a run have is nan in its others.
    """
    rows = []
    for name, run in runs.items():
        for target in run.targets:
            measured = [(f.number, c, m.metrics[target]) for f in run.folds for c, m in f.checkpoints.items()]
            metrics = metric_names(key for _, _, values in measured for key in values)
            for fold, checkpoint, values in measured:
                for metric in metrics:
                    value = values.get(metric)
                    rows.append(
                        (name, fold, target, checkpoint, metric, value if isinstance(value, float) else math.nan)
                    )
    return pd.DataFrame(rows, columns=["run", "fold", "target", "checkpoint", "metric", "value"])


def metric_names(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of metrics once each: the known ones in their order, then others as they come.

    >>> metric_names(["lcc", "plcc", "srcc", "notes", "plcc"])
    ('srcc', 'plcc', 'lcc')
    """
    distinct = dict.fromkeys(names)
    return tuple([m for m in METRICS if m in distinct] + [m for m in distinct if m not in (*METRICS, "notes")])


def by_fold(frame: pd.DataFrame) -> Values:
    """Returns the values of a long frame by fold, for each run, target, checkpoint and metric."""
    keys = ["run", "target", "checkpoint", "metric"]
    return {key: part.set_index("fold")["value"] for key, part in frame.groupby(keys, sort=False)}


def summarise(run: RunResult) -> Summary:
    """Returns mean, std, median and confidence interval over folds of every metric, for best and last epoch."""
    frame = long_frame({run.name: run})
    spreads = {key[1:]: describe(values, overlap=run.overlap) for key, values in by_fold(frame).items()}
    notes = dict.fromkeys(warnings(run))  # a set that keeps order: best and last are often the same epoch
    for fold in run.folds:
        for measured in fold.checkpoints.values():
            epoch = "" if measured.epoch is None else f", epoch {measured.epoch}"
            for target in run.targets:
                reasons = measured.metrics[target].get("notes")
                for reason in reasons if isinstance(reasons, list) else ():
                    notes[f"fold {fold.number}{epoch}, {target}: {reason}"] = None
    return Summary(run, frame, spreads, tuple(notes))


def warnings(run: RunResult) -> list[str]:
    """Returns what stands in every view of a run because its figures are not what they seem."""
    out = []
    if run.first.split.kind == "image_random":
        out.append(
            "Prompts leak between the parts of this split: do not compare with prompt-disjoint results. "
            "The intervals are too sure."
        )
    seen = {fold.number: fold.scores.seen_in_training or 0 for fold in run.folds}
    if any(seen.values()):
        total = sum(fold.scores.split.num_val for fold in run.folds)
        folds = fold_numbers([number for number, count in seen.items() if count])
        out.append(f"The checkpoint was trained on {sum(seen.values())} of the {total} held-out images (fold {folds}).")
    unknown = [fold.number for fold in run.folds if fold.scores.settings is None]
    if unknown and len(run.folds) > 1:
        out.append(f"Fold {fold_numbers(unknown)} does not record its settings: they may differ.")
    return out


def facts(run: RunResult) -> list[tuple[str, str]]:
    """Returns what stands above every table: (label, words) for dataset, split, selection rule and folds."""
    split, dataset = run.first.split, run.first.dataset
    held_out = [fold.scores.split.num_val for fold in run.folds]
    sizes = f"{held_out[0]}" if len(set(held_out)) == 1 else f"{min(held_out)} to {max(held_out)}"
    words = _SPLIT_WORDS.get(split.kind, "")
    each = " per fold" if len(run.folds) > 1 else ""
    count = f"{len(run.folds)}"
    if run.missing:
        count += f" of {run.num_folds}, missing: {fold_numbers(run.missing)}"
    return [
        ("dataset", f"{dataset.name}, {dataset.num_images} images, {sizes} held out{each}"),
        ("split", f"{split.kind}, seed {split.seed}{': ' if words else ''}{words}"),
        ("best" if run.trained else "weights", selection_rule(run)),
        ("folds", count),
    ]


def selection_rule(run: RunResult) -> str:
    """Returns in words how the epoch called best was chosen."""
    if not run.trained:
        return "not trained here: the checkpoint given in run.checkpoint, evaluated on the held-out part"
    if run.first.selection == "reported part":
        return "best epoch on the reported part (optimistic: the reported images also choose the epoch)"
    fraction = (run.first.settings or {}).get("run.val_fraction")
    share = f" of {100 * fraction:g} %" if isinstance(fraction, float) else ""
    return f"best epoch on a validation part{share} of the training groups"


def interval_words(run: RunResult) -> str:
    """Returns in words what the intervals and tests of a run allow for."""
    if run.first.split.kind == "kfold":
        return "t over folds, which are disjoint"
    return "corrected resampled t over folds, which share images (Nadeau & Bengio 2003)"


def common_folds(a: RunResult, b: RunResult, target: str) -> tuple[list[int], str]:
    """Returns the folds over which two runs can be compared in a target, and why they cannot be, "" where they can.

    Both must have held out the same images with the same scores of this target. Hashes of split and table do not
    decide it: a run that trains on one target has read a narrower table, and one with a validation part splits the
    others in another way. Only where predictions are missing, the hashes must be equal.
    """
    theirs = {fold.number: fold for fold in b.folds}
    pairs = [(fold, theirs[fold.number]) for fold in a.folds if fold.number in theirs]
    if target not in a.targets or target not in b.targets:
        return [], f"no common target, {', '.join(a.targets)} against {', '.join(b.targets)}"
    if not pairs:
        ours = fold_numbers([fold.number for fold in a.folds])
        return [], f"no common fold, {ours} against {fold_numbers(list(theirs))}"
    for one, other in pairs:
        if one.predictions is None or other.predictions is None:
            same_images = one.scores.split.sha256 == other.scores.split.sha256
            same_scores = one.scores.dataset.sha256 == other.scores.dataset.sha256
        else:
            order = ["image", f"mos_{target}"]
            parts = one.predictions, other.predictions
            rows, others = (part[order].sort_values(order).to_numpy() for part in parts)
            same_images = np.array_equal(rows[:, 0], others[:, 0])
            same_scores = same_images and np.array_equal(rows[:, 1], others[:, 1])
        if not same_images:
            return [], f"other images were held out in fold {one.number}"
        if not same_scores:
            return [], f"the scores of {target} are others"
    return [one.number for one, _ in pairs], ""


def compare(values: Values, runs: Mapping[str, RunResult], a: str, b: str, key: Key, folds: list[int]) -> PairedTest:
    """Returns the paired test of run a minus run b over common folds."""
    overlap = max(runs[a].overlap, runs[b].overlap)
    one, other = values[a, key[0], key[1], key[2]], values[b, key[0], key[1], key[2]]
    return paired_test(one.loc[folds], other.loc[folds], overlap=overlap)
