"""What a run came to: its values by fold, their spreads, what must be known to read them, and paired folds."""

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from ipiqa.datasets.splits import over_folds
from ipiqa.errors import ConfigError, did_you_mean
from ipiqa.evaluation.baselines import MEASURED
from ipiqa.evaluation.held_out import Basis, HeldOut, Label, Part, basis_of, over_seeds
from ipiqa.evaluation.results import TEXTS, FoldResult, RunResult, fold_numbers
from ipiqa.metrics import DRAWN, METRICS, PairedTest, Spread, paired_test, plain

ALL, IMAGES, ORDER = "all", "images", "order"
BY_SEGMENT = ("srcc", "srcc_within", "bias", "slope", "intercept")
MAX_SEGMENTS = 100  # of one column: nobody reads a longer table
PROMPT_LENGTH = "prompt_length"
NAME_FIELDS = {"generator": 1, "variant": 2}  # how many fields of a file name they are, as in AGIQA-1k and AGIQA-3k

PartKey = tuple[str, str, str, str]  # target, epoch or baseline, subset, metric
Row = tuple[int, str, str, str, str, float]  # fold, then the key, then the value
Key = tuple[str, str, str]  # target, checkpoint, metric

_SPLIT_WORDS = {
    "reference": ": prompt-disjoint draws as in the reference code; folds overlap",
    "holdout": ": prompt-disjoint draws, exact share of the groups; folds overlap",
    "kfold": ": disjoint groups, every image is held out exactly once over all folds",
    "image_random": ": prompts leak between parts: do not compare with prompt-disjoint results",
}
_LEAK = "Prompts leak between the parts of this split: do not compare with prompt-disjoint results."


@dataclass(frozen=True)
class Breakdown:
    """A run in parts, `subsets`, by a column: the spread over folds of each metric, and of the number of images.

    `frame` is long, one row a value: run, fold, seeds (of training), target, epoch, subset, metric, value.
    """

    by: str
    subsets: tuple[str, ...]
    spreads: dict[PartKey, Spread]
    frame: pd.DataFrame


@dataclass(frozen=True)
class Summary:
    """A run, its values by fold number, their spreads over folds, and notes: warnings, and what is undefined.

    A metric that some folds of a run have is nan in its others.
    """

    run: RunResult
    values: dict[Key, dict[int, float]]
    spreads: dict[Key, Spread]
    notes: tuple[str, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return metric_names(metric for _, _, metric in self.values)

    @functools.cached_property
    def beside(self) -> Breakdown:
        """The run within prompts, and beside baselines that see no picture."""
        return beside_baselines(self.run)


def metric_names(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of metrics once each: the known ones in their order, then others as they come."""
    distinct = dict.fromkeys(names)
    return tuple([m for m in METRICS if m in distinct] + [m for m in distinct if m not in (*METRICS, "notes")])


def summarise(run: RunResult) -> Summary:
    """Returns mean, std, median and confidence interval over folds of every metric, for best and last epoch."""
    values: dict[Key, dict[int, float]] = {}
    notes = dict.fromkeys(warnings(run))  # a set that keeps order: best and last are often the same epoch
    measured = [(title, one) for title, result in titled(run) for one in result.checkpoints.values()]
    for target in run.targets:
        names = metric_names(itertools.chain(*(one.metrics[target] for _, one in measured)))
        for checkpoint, metric in itertools.product(run.checkpoints, names):
            values[target, checkpoint, metric] = over_seeds(_of_results(run, (target, checkpoint, metric)))
    for (title, one), target in itertools.product(measured, run.targets):
        epoch = "" if one.epoch is None else f", epoch {one.epoch}"
        if isinstance(reasons := one.metrics[target].get("notes"), list):
            notes |= {f"{title}{epoch}, {target}: {reason}": None for reason in reasons}
    held_out = HeldOut(run)
    parts = {pair: held_out.parts(*pair) for pair in itertools.product(run.targets, run.checkpoints)}
    spreads = {key: held_out.spread(key[2], parts[key[:2]], numbers) for key, numbers in values.items()}
    spreads = {key: replace(spread, seed_std=seed_std(run, key)) for key, spread in spreads.items()}
    return Summary(run, values, spreads, tuple(notes))


def titled(run: RunResult) -> list[tuple[str, FoldResult]]:
    """Returns every result with its title, "fold 0" or "fold 0, seed 1"."""
    pairs = ((fold, *pair) for fold in run.folds for pair in fold.seeds.items() or [(None, fold)])
    return [(f"fold {f.number}" + f", seed {seed}" * (seed is not None), result) for f, seed, result in pairs]


def _of_results(run: RunResult, key: Key) -> dict[Part, float]:
    """Returns a metric of every result; nan where it is undefined."""
    target, checkpoint, metric = key
    found = {part: one.checkpoints[checkpoint].metrics[target].get(metric) for part, one in run.results.items()}
    return {part: value if isinstance(value, float) else math.nan for part, value in found.items()}


def seed_std(run: RunResult, key: Key) -> float:
    """Returns the standard deviation of a metric over seeds (n - 1), its mean over folds; nan for less than 2 seeds."""
    values = _of_results(run, key)
    of_folds = ([values[fold.number, i] for i in range(len(fold.results))] for fold in run.folds)
    stds = [float(np.std(of_seeds, ddof=1)) for of_seeds in of_folds if len(of_seeds) > 1]
    return float(np.mean(stds)) if stds else math.nan


def warnings(run: RunResult) -> list[str]:
    """Returns what stands in every view of a run because its figures are not what they seem."""
    out = []
    if run.first.split.kind == "image_random":
        sure = "" if basis_of(run) is Basis.PROMPTS else " Without predictions, the intervals are too sure."
        out.append(_LEAK + sure)
    seen = {fold.number: fold.scores.seen_in_training or 0 for fold in run.folds}
    if any(seen.values()):
        total = sum(fold.scores.split.num_val for fold in run.folds)
        folds = fold_numbers([number for number, count in seen.items() if count])
        out.append(f"The checkpoint was trained on {sum(seen.values())} of the {total} held-out images (fold {folds}).")
    left = {fold.number: [seed for seed in run.seeds if seed not in fold.seeds] for fold in run.folds}
    out += [f"Fold {fold} is not finished with seed {fold_numbers(seeds)}." for fold, seeds in left.items() if seeds]
    unknown = [fold.number for fold in run.folds if fold.scores.settings is None]
    if unknown and len(run.folds) > 1:
        out.append(f"Fold {fold_numbers(unknown)} does not record its settings: they may differ.")
    return out


def facts(run: RunResult) -> list[tuple[str, str]]:
    """Returns what stands above every table: (label, words) for dataset, split, selection rule and folds."""
    split, dataset = run.first.split, run.first.dataset
    held_out = sorted({fold.scores.split.num_val for fold in run.folds})
    sizes = " to ".join(map(str, dict.fromkeys((held_out[0], held_out[-1]))))
    each = " per fold" if len(run.folds) > 1 else ""
    missing = f" of {run.num_folds}, missing: {fold_numbers(run.missing)}" if run.missing else ""
    pairs = [word for fold in run.folds if fold.pairs is not None for word in fold.pairs["preferred"]]
    compared = f"{len(pairs)} held out in all folds; {pairs.count('tie')} ties are left out"
    leaks = [fold.scores.leak for fold in run.folds if fold.scores.leak is not None]
    leak = [("leak", over_folds(leaks).describe())] if len(leaks) == len(run.folds) else []  # older runs do not say it
    return [
        ("dataset", f"{dataset.name}, {dataset.num_images} images, {sizes} held out{each}"),
        ("split", f"{split.kind}, seed {split.seed}{_SPLIT_WORDS.get(split.kind, '')}"),
        ("best" if run.trained else "weights", selection_rule(run)),
        ("folds", f"{len(run.folds)}{missing}"),
        *[("pairs", compared)] * bool(pairs),
        *[("seeds", _seeds_words(run))] * bool(run.seeds),
        *leak,
    ]


def _seeds_words(run: RunResult) -> str:
    """Returns which seeds a run has, and how far SRCC differs between them."""
    last = run.checkpoints[-1]
    stds = [f"{target} {seed_std(run, (target, last, run.main)):.4f}" for target in run.targets]
    main = "SRCC" if run.main == "srcc" else "pair accuracy"
    spread = f"std of {main} over seeds, mean over folds, {checkpoint_title(run, last)}: {', '.join(stds)}"
    return f"{fold_numbers(run.seeds)}, no folds of their own: a value of a fold is the mean over them; {spread}"


def checkpoint_title(run: RunResult, checkpoint: str) -> str:
    """Returns the heading of a checkpoint: a run that only evaluated has neither best nor last epoch."""
    return f"{checkpoint} epoch" if run.trained else "checkpoint"


def selection_rule(run: RunResult) -> str:
    """Returns in words how the epoch called best was chosen."""
    settings = run.first.settings or {}
    if "scorer" in settings:
        scale = f"put on the scale of the MOS by a {settings.get('scale')} map fitted to the training part"
        scale = "as they are, for want of a training part" if run.first.split.kind == "all" else scale
        return f"not trained here: {settings['scorer']}" + f", its scores {scale}" * bool(settings.get("scale"))
    if not run.trained and run.first.epochs is not None:
        return "the epoch that no reported image has chosen"
    if not run.trained:
        return "not trained here: the checkpoint given in run.checkpoint, evaluated on the held-out part"
    if run.first.selection == "reported part":
        return "best epoch on the reported part (optimistic: the reported images also choose the epoch)"
    fraction = settings.get("run.val_fraction")
    share = f" of {100 * fraction:g} %" if isinstance(fraction, float) else ""
    patience = settings.get("run.patience")
    ends = f", which also ends training (run.patience={patience})" if patience else ""
    return f"best epoch on a validation part{share} of the training groups{ends}"


def interval_words(run: RunResult) -> str:
    """Returns in words what the intervals and tests of a run allow for."""
    return basis_of(run).value


def common_folds(a: RunResult, b: RunResult, target: str) -> tuple[list[int], str]:
    """Returns the folds over which two runs can be compared in a target, and why they cannot be, "" where they can.

    Both must have held out the same images with the same scores of this target. Hashes of split and table do not
    decide it: a run that trains on one target has read a narrower table, and one with a validation part splits the
    others in another way. Only where predictions are missing, the hashes must be equal.
    """
    ours, theirs = ({fold.number: fold for fold in run.folds} for run in (a, b))
    common = [number for number in ours if number in theirs]
    if target not in a.targets or target not in b.targets:
        return [], f"no common target, {', '.join(a.targets)} against {', '.join(b.targets)}"
    if not common:
        return [], f"no common fold, {fold_numbers(list(ours))} against {fold_numbers(list(theirs))}"
    for number in common:
        pair = ours[number], theirs[number]
        (images, scores), others = ([f.scores.split.sha256, f.scores.dataset.sha256] for f in pair)
        tables = [frame for fold in pair if (frame := fold.measured) is not None]
        if len(tables) == 2:
            order = ["image", f"mos_{target}"]
            (images, scores), others = (table[order].sort_values(order).to_numpy().T for table in tables)
        if not np.array_equal(images, others[0]):
            return [], f"other images were held out in fold {number}"
        if not np.array_equal(np.array(scores, dtype=str), np.array(others[1], dtype=str)):  # nan: no score in either
            return [], f"the scores of {target} are others"
    return common, ""


def compare(a: Summary, b: Summary, keys: Sequence[Key], folds: Sequence[int]) -> list[PairedTest]:
    """Returns the paired tests of run a minus run b over common folds, one for each key."""
    runs = [replace(s.run, folds=tuple(fold for fold in s.run.folds if fold.number in folds)) for s in (a, b)]
    ours = HeldOut(runs[0])
    theirs, tests = HeldOut(runs[1], like=ours), []
    for target, checkpoint, metric in keys:
        first, second = ([s.values[target, checkpoint, metric][fold] for fold in folds] for s in (a, b))
        drawn = [held_out.resampled(metric, held_out.parts(target, checkpoint)) for held_out in (ours, theirs)]
        difference = drawn[0] - drawn[1] if drawn[0] and drawn[1] else None
        tests.append(paired_test(first, second, overlap=max(ours.overlap, theirs.overlap), resampled=difference))
    return tests


def beside_baselines(run: RunResult) -> Breakdown:
    """Returns agreement over all images and within prompts, of the run and of the baselines that see no picture.

    Baselines stand in the place of epochs, under their names. Folds of an earlier version have none.
    """
    held_out = HeldOut(run)
    if run.main == "accuracy":  # there is no MOS to agree with
        return Breakdown("", (ALL,), {}, _frame(run, []))
    spreads, rows = _measured(run, held_out, MEASURED, {ALL: None})
    names = dict.fromkeys(name for fold in run.folds for name in fold.scores.baselines or {})
    for name, target, metric in itertools.product(names, run.targets, MEASURED):
        of_folds = {fold.number: (fold.scores.baselines or {}).get(name, {}) for fold in run.folds}
        found = {fold: of_targets.get(target, {}).get(metric) for fold, of_targets in of_folds.items()}
        values = {fold: math.nan if value is None else value for fold, value in found.items()}
        spread = held_out.spread(metric, {}, values)
        if held_out.basis is Basis.PROMPTS:  # folds alone are too sure here, and there is nothing to draw again
            spread = replace(spread, low=math.nan, high=math.nan)
        spreads[target, name, ALL, metric] = spread
        rows += [(fold, target, name, ALL, metric, value) for fold, value in values.items()]
    return Breakdown("", (ALL,), spreads, _frame(run, rows))


def by_segment(run: RunResult, by: str) -> Breakdown:
    """Returns agreement, bias and calibration for all images and for each value of a column of the predictions.

    `by` may also be prompt_length, in quarters, and, where there is no such column, generator and variant: the first
    field and the first two fields of the file name. For all images there is the metric "order": do mean predictions
    order the segments as mean scores do? Raises ConfigError where the column is not there or has too many values.
    """
    if run.main == "accuracy":
        raise ConfigError(f"--by: {by!r}, but the pairs of {run.run_dir} have no MOS to break down. Leave it out.")
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
) -> tuple[dict[PartKey, Spread], list[Row]]:
    """Returns the spread of each metric, and its values by fold; the order of the subsets, where there are several."""
    spreads: dict[PartKey, Spread] = {}
    rows: list[Row] = []
    for target, checkpoint, (subset, segment) in itertools.product(run.targets, run.checkpoints, subsets.items()):
        parts = held_out.parts(target, checkpoint, segment)
        values = {IMAGES: over_seeds({part: float(len(images.mos)) for part, images in parts.items()})}
        for metric in (*metrics, *[ORDER] * (segment is None and len(subsets) > 1)):
            values[metric] = over_seeds({part: plain(DRAWN[metric], images) for part, images in parts.items()})
        for metric, by_fold in values.items():
            spreads[target, checkpoint, subset, metric] = held_out.spread(metric, parts, by_fold)
            rows += [(fold, target, checkpoint, subset, metric, value) for fold, value in by_fold.items()]
    return spreads, rows


def _frame(run: RunResult, rows: list[Row]) -> pd.DataFrame:
    """Returns the long frame of values by fold."""
    frame = pd.DataFrame(rows, columns=["fold", "target", "epoch", "subset", "metric", "value"])
    own = {fold.number: (fold.scores.settings or {}).get("run.seed") for fold in run.folds}
    seed = {fold.number: ", ".join(map(str, fold.seeds)) or own[fold.number] for fold in run.folds}
    frame.insert(0, "run", run.name)
    frame.insert(2, "seed", frame["fold"].map(seed))
    return frame
