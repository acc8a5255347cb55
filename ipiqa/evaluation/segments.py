"""More than one number: within prompts, beside what no picture gives, and by generator, style or prompt length."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from ipiqa.errors import ConfigError, did_you_mean
from ipiqa.evaluation.baselines import MEASURED
from ipiqa.evaluation.held_out import Basis, HeldOut, Label
from ipiqa.evaluation.results import TEXTS, RunResult
from ipiqa.metrics import DRAWN, Spread, plain

ALL, IMAGES, ORDER = "all", "images", "order"
BY_SEGMENT = ("srcc", "srcc_within", "bias", "slope", "intercept")
MAX_SEGMENTS = 100  # of one column: nobody reads a longer table
PROMPT_LENGTH = "prompt_length"
NAME_FIELDS = {"generator": 1, "variant": 2}  # how many fields of a file name they are, as in AGIQA-1k and AGIQA-3k

Key = tuple[str, str, str, str]  # target, epoch or baseline, subset, metric
Row = tuple[int, str, str, str, str, float]  # fold, then the key, then the value


@dataclass(frozen=True)
class Breakdown:
    """A run in parts, `subsets`, by a column: the spread over folds of each metric, and of the number of images.

    `frame` is long, one row a value: run, fold, seed (of training), target, epoch, subset, metric, value.
    """

    by: str
    subsets: tuple[str, ...]
    spreads: dict[Key, Spread]
    frame: pd.DataFrame


def beside_baselines(run: RunResult) -> Breakdown:
    """Returns agreement over all images and within prompts, of the run and of the baselines that see no picture.

    Baselines stand in the place of epochs, under their names. Folds of an earlier version have none.
    """
    held_out = HeldOut(run)
    spreads, rows = _measured(run, held_out, MEASURED, {ALL: None})
    names = dict.fromkeys(name for fold in run.folds for name in fold.scores.baselines or {})
    for name, target, metric in itertools.product(names, run.targets, MEASURED):
        of_folds = {fold.number: (fold.scores.baselines or {}).get(name, {}) for fold in run.folds}
        found = {fold: of_targets.get(target, {}).get(metric) for fold, of_targets in of_folds.items()}
        values = {fold: math.nan if value is None else value for fold, value in found.items()}
        spread = held_out.spread(metric, {}, values)
        if held_out.basis is Basis.PROMPTS:  # folds alone are too sure here, and there is nothing to draw again
            spread = dataclasses.replace(spread, low=math.nan, high=math.nan)
        spreads[target, name, ALL, metric] = spread
        rows += [(fold, target, name, ALL, metric, value) for fold, value in values.items()]
    return Breakdown("", (ALL,), spreads, _frame(run, rows))


def by_segment(run: RunResult, by: str) -> Breakdown:
    """Returns agreement, bias and calibration for all images and for each value of a column of the predictions.

    `by` may also be prompt_length, in quarters, and, where there is no such column, generator and variant: the first
    field and the first two fields of the file name. For all images there is the metric "order": do mean predictions
    order the segments as mean scores do? Raises ConfigError where the column is not there or has too many values.
    """
    held_out = HeldOut(run, label=_labelling(run, by))
    if not 1 < (count := len(held_out.segments)) <= MAX_SEGMENTS:
        values = f"{by!r} has {count} value{'s' * (count != 1)} in {run.run_dir}"
        raise ConfigError(f"--by: {values}. Give a column with 2 to {MAX_SEGMENTS}.")
    subsets = {ALL: None} | {f"{by}={label}": number for number, label in enumerate(held_out.segments)}
    spreads, rows = _measured(run, held_out, BY_SEGMENT, subsets)
    return Breakdown(by, tuple(subsets), spreads, _frame(run, rows))


def _labelling(run: RunResult, by: str) -> Label:
    """Returns what reads the label of each image off the predictions of a fold."""
    frames = [fold.predictions for fold in run.folds if fold.predictions is not None]
    known = {TEXTS[0], *(f"{name}_{target}" for name in ("mos", "best", "last") for target in run.targets)}
    columns = [name for name in (frames[0] if frames else ()) if all(name in frame for frame in frames)]
    columns = [name for name in columns if name not in known]
    if by in columns:
        return lambda frame: frame[by].tolist()
    if by in NAME_FIELDS:
        count = NAME_FIELDS[by]
        return lambda frame: ["_".join(PurePosixPath(name).name.split("_")[:count]) for name in frame["image"]]
    if by != PROMPT_LENGTH:
        choices = dict.fromkeys([*columns, *NAME_FIELDS, PROMPT_LENGTH])
        problem = f"{by!r} is no column of the predictions in {run.run_dir}.{did_you_mean(by, choices)}"
        raise ConfigError(f"--by: {problem} There are: {', '.join(choices)}.")
    prompts = set[str]().union(*(frame["prompt"] for frame in frames))
    words = np.array([len(prompt.split()) for prompt in prompts] or [0])
    ends = np.unique(np.quantile(words, (0.25, 0.5, 0.75, 1), method="lower")).tolist()
    starts = [int(words.min()), *(end + 1 for end in ends[:-1])]
    names = [f"{a} to {b} words" if a < b else f"{a} words" for a, b in zip(starts, ends, strict=True)]
    return lambda frame: [names[np.searchsorted(ends, len(prompt.split()))] for prompt in frame["prompt"]]


def _measured(
    run: RunResult, held_out: HeldOut, metrics: Sequence[str], subsets: Mapping[str, int | None]
) -> tuple[dict[Key, Spread], list[Row]]:
    """Returns the spread of each metric, and its values by fold; the order of the subsets, where there are several."""
    spreads: dict[Key, Spread] = {}
    rows: list[Row] = []
    for target, checkpoint, (subset, segment) in itertools.product(run.targets, run.checkpoints, subsets.items()):
        parts = held_out.parts(target, checkpoint, segment)
        values = {IMAGES: {fold: float(len(images.mos)) for fold, images in parts.items()}}
        for metric in (*metrics, *[ORDER] * (segment is None and len(subsets) > 1)):
            values[metric] = {fold: plain(DRAWN[metric], images) for fold, images in parts.items()}
        for metric, by_fold in values.items():
            spreads[target, checkpoint, subset, metric] = held_out.spread(metric, parts, by_fold)
            rows += [(fold, target, checkpoint, subset, metric, value) for fold, value in by_fold.items()]
    return spreads, rows


def _frame(run: RunResult, rows: list[Row]) -> pd.DataFrame:
    """Returns the long frame of values by fold."""
    frame = pd.DataFrame(rows, columns=["fold", "target", "epoch", "subset", "metric", "value"])
    seed = {fold.number: (fold.scores.settings or {}).get("run.seed") for fold in run.folds}
    frame.insert(0, "run", run.name)
    frame.insert(2, "seed", frame["fold"].map(seed))
    return frame
