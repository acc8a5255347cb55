"""What a run folder holds, read back and checked: folds, scores, predictions, learning curves."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ipiqa.datasets.splits import Split
from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import DataError
from ipiqa.files import write_json, write_text
from ipiqa.metrics import METRICS, Spread, describe

FORMAT = 1  # of scores.json
MOMENTS = ("best", "last")
_SPLIT_WORDS = {
    "reference": "prompt-disjoint draws as in the reference code; folds overlap",
    "holdout": "prompt-disjoint draws, exact share of the groups; folds overlap",
    "kfold": "disjoint groups, every image is held out exactly once over all folds",
    "image_random": "prompts leak between parts: do not compare with prompt-disjoint results",
}


@dataclass(frozen=True)
class Checkpoint:
    """Metrics of one epoch on the held-out part; `metrics` as `measure()` gives them, epoch None when not trained."""

    epoch: int | None
    metrics: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Predictions:
    """The held-out part of a fold: N images, their MOS (N, T), and the predictions (N, T) of each moment."""

    images: tuple[str, ...]
    prompts: tuple[str, ...]
    groups: tuple[str, ...]
    mos: np.ndarray
    found: dict[str, np.ndarray]


@dataclass(frozen=True)
class FoldResult:
    """One finished fold. `curve` has one entry an epoch; `predictions` is None when the file is not there."""

    number: int
    split: dict[str, Any]
    selection: str
    targets: tuple[str, ...]
    dataset: dict[str, Any]
    epochs: int | None
    moments: dict[str, Checkpoint]
    curve: tuple[dict[str, Any], ...]
    predictions: Predictions | None


@dataclass(frozen=True)
class RunResult:
    """The finished folds of a run, which all belong together, and what the run was started with."""

    run_dir: Path
    folds: tuple[FoldResult, ...]
    num_folds: int | None  # as configured; None when config.yaml does not say
    missing: tuple[int, ...]
    val_fraction: float | None
    config_text: str
    command: str
    environment: dict[str, Any]

    @property
    def name(self) -> str:
        """`project/name`, the last two parts of the run folder."""
        return "/".join(self.run_dir.resolve().parts[-2:])

    @property
    def targets(self) -> tuple[str, ...]:
        return self.folds[0].targets

    @property
    def moments(self) -> tuple[str, ...]:
        """`best` and `last`, or only `best` for a run that evaluated checkpoints without training."""
        return tuple(moment for moment in MOMENTS if moment in self.folds[0].moments)

    @property
    def trained(self) -> bool:
        return "last" in self.moments

    def values(self, target: str, moment: str, metric: str) -> list[float]:
        """Returns a metric of all folds, in order of fold."""
        return [fold.moments[moment].metrics[target][metric] for fold in self.folds]


@dataclass(frozen=True)
class Summary:
    """A run with the spread over folds of each metric: spreads[target][moment][metric]; notes say what is undefined."""

    run: RunResult
    spreads: dict[str, dict[str, dict[str, Spread]]]
    notes: tuple[str, ...]


# ------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class EpochResult:
    """What one epoch reached on the held-out part: metrics by target, predictions (N, T); epoch None when evaluated."""

    epoch: int | None
    metrics: dict[str, dict[str, Any]]
    predictions: np.ndarray


def write_fold(
    folder: Path,
    table: AnnotationTable,
    split: Split,
    results: Mapping[str, EpochResult],
    dataset: str,
    epochs: int | None,
    seen_in_training: int | None = None,
) -> None:
    """Writes predictions.csv and then scores.json, whose presence says that the fold is finished.

    Args:
        folder: of the fold.
        table: what was trained and measured on.
        split: its parts.
        results: by name, "best" and "last".
        dataset: name of the dataset.
        epochs: how many were trained; None where a checkpoint was evaluated.
        seen_in_training: how many held-out images the evaluated checkpoint was trained on, where that is known.
    """
    _write_predictions(folder / "predictions.csv", table, split, results)
    scores = {
        "format": 1,
        "fold": split.fold,
        "split": {
            "kind": split.kind, "seed": split.seed, "sha256": split.sha256, "num_train": len(split.train),
            "num_selection": len(split.selection), "num_val": len(split.val),
        },
        "selection": "validation part" if len(split.selection) else "reported part",
        "targets": list(table.target_names),
        "dataset": {"name": dataset, "sha256": table.sha256, "num_images": len(table)},
        "epochs": epochs,
        **{name: {"epoch": result.epoch, "metrics": result.metrics} for name, result in results.items()},
    }  # fmt: skip
    if seen_in_training is not None:
        scores["seen_in_training"] = seen_in_training
    write_json(folder / "scores.json", scores)


def _write_predictions(path: Path, table: AnnotationTable, split: Split, results: Mapping[str, EpochResult]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [f"{name}_{target}" for name in ("mos", *results) for target in table.target_names]
    writer.writerow(["image", "prompt", "group", *columns])
    for i, row in enumerate(split.val):
        values = [repr(float(v)) for v in table.scores[row]]
        values += [repr(float(v)) for result in results.values() for v in result.predictions[i]]
        writer.writerow([table.names[row], table.prompts[row], table.groups[row], *values])
    write_text(path, out.getvalue())


# ------------------------------------------------------------------------------------------------------------- reading


def load_run(run_dir: Path) -> RunResult:
    """Returns the finished folds of a run folder; folds that are not there yet are listed, not missed.

    Raises:
        DataError: no finished fold, a file that cannot be read, or folds of different runs in one folder.
    """
    run_dir = Path(run_dir)
    paths = sorted(run_dir.glob("fold_*/scores.json"))
    if not paths:
        state = "holds no finished fold (fold_*/scores.json)" if run_dir.is_dir() else "is not a folder"
        raise DataError(f"{run_dir}: {state}. Give the output folder of a run, or finish a fold with --resume.")
    folds = sorted((_load_fold(path) for path in paths), key=lambda fold: fold.number)
    _check_together(run_dir, folds)
    config_text = _read_text(run_dir / "config.yaml")
    num_folds, val_fraction = _read_config(config_text)
    have = {fold.number for fold in folds}
    environment = _read_json(run_dir / "environment.json") if (run_dir / "environment.json").is_file() else {}
    return RunResult(
        run_dir=run_dir,
        folds=tuple(folds),
        num_folds=num_folds,
        missing=tuple(fold for fold in range(num_folds or 0) if fold not in have),
        val_fraction=val_fraction,
        config_text=config_text,
        command=_read_text(run_dir / "command.txt").strip(),
        environment=environment if isinstance(environment, dict) else {"environment": environment},
    )


def summarise(run: RunResult) -> Summary:
    """Returns mean, std, median and confidence interval over folds of every metric, for best and last epoch."""
    spreads = {
        target: {
            moment: {metric: describe(run.values(target, moment, metric)) for metric in METRICS}
            for moment in run.moments
        }
        for target in run.targets
    }
    notes: dict[str, None] = {}  # a set that keeps order: best and last are often the same epoch
    for fold in run.folds:
        for checkpoint in fold.moments.values():
            for target, metrics in checkpoint.metrics.items():
                epoch = "" if checkpoint.epoch is None else f", epoch {checkpoint.epoch}"
                notes |= {f"fold {fold.number}{epoch}, {target}: {note}": None for note in metrics["notes"]}
    return Summary(run, spreads, tuple(notes))


def facts(run: RunResult) -> list[tuple[str, str]]:
    """Returns what stands above every table: (label, words) for dataset, split, selection rule and folds."""
    first = run.folds[0]
    held_out = [fold.split["num_val"] for fold in run.folds]
    sizes = f"{held_out[0]}" if len(set(held_out)) == 1 else f"{min(held_out)} to {max(held_out)}"
    kind = first.split["kind"]
    words = _SPLIT_WORDS.get(kind, "")
    each = " per fold" if len(run.folds) > 1 else ""
    return [
        ("dataset", f"{first.dataset['name']}, {first.dataset['num_images']} images, {sizes} held out{each}"),
        ("split", f"{kind}, seed {first.split['seed']}{': ' if words else ''}{words}"),
        ("best" if run.trained else "weights", selection_rule(run)),
        ("folds", _fold_count(run)),
    ]


def selection_rule(run: RunResult) -> str:
    """Returns in words how the epoch called best was chosen."""
    if not run.trained:
        return "not trained here: the checkpoint given in run.checkpoint, evaluated on the held-out part"
    if run.folds[0].selection == "reported part":
        return "best epoch on the reported part (optimistic: the reported images also choose the epoch)"
    if run.val_fraction:
        return f"best epoch on a validation part of {100 * run.val_fraction:g} % of the training groups"
    return "best epoch on a validation part of the training groups"


def fold_numbers(numbers: Sequence[int]) -> str:
    """Returns fold numbers in words.

    >>> fold_numbers([0, 2, 3, 4, 7])
    '0, 2 to 4, 7'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 2 else ", ".join(map(str, p)) for p in parts)


def _fold_count(run: RunResult) -> str:
    if run.missing:
        return f"{len(run.folds)} of {run.num_folds}, missing: {fold_numbers(run.missing)}"
    return f"{len(run.folds)}"


def _load_fold(path: Path) -> FoldResult:
    scores = _read_json(path)
    try:
        if scores["format"] > FORMAT:
            raise DataError(f"{path}: format {scores['format']}, this version reads up to {FORMAT}. Update ipiqa.")
        fold = FoldResult(
            number=int(scores["fold"]),
            split={key: scores["split"][key] for key in ("kind", "seed", "sha256", "num_train", "num_val")},
            selection=str(scores["selection"]),
            targets=tuple(scores["targets"]),
            dataset={key: scores["dataset"][key] for key in ("name", "sha256", "num_images")},
            epochs=scores["epochs"],
            moments={m: _checkpoint(scores[m], scores["targets"]) for m in MOMENTS if m == "best" or m in scores},
            curve=_read_curve(path.with_name("metrics.jsonl")),
            predictions=_read_predictions(path.with_name("predictions.csv"), scores["targets"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: not the scores of a fold ({type(error).__name__}: {error}). Run the fold again."
        ) from None
    if path.parent.name != f"fold_{fold.number:02d}":
        raise DataError(
            f"{path}: holds fold {fold.number}. Was the folder renamed? It belongs in fold_{fold.number:02d}."
        )
    return fold


def _checkpoint(found: dict[str, Any], targets: Sequence[str]) -> Checkpoint:
    metrics = {
        target: {
            **{name: _number(found["metrics"][target][name]) for name in METRICS},
            "notes": list(found["metrics"][target].get("notes", [])),
        }
        for target in targets
    }
    return Checkpoint(found["epoch"], metrics)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)  # json has no nan


def _check_together(run_dir: Path, folds: Sequence[FoldResult]) -> None:
    """Raises when the folds are not of one run, naming each thing in which they differ."""
    problems = []
    for what, of in (
        ("targets", lambda fold: ", ".join(fold.targets)),
        ("dataset", lambda fold: f"{fold.dataset['name']} ({str(fold.dataset['sha256'])[:12]})"),
        ("split kind", lambda fold: fold.split["kind"]),
        ("split seed", lambda fold: fold.split["seed"]),
        ("selection", lambda fold: fold.selection),
        ("number of epochs", lambda fold: "none (evaluated only)" if fold.epochs is None else fold.epochs),
        ("epochs measured", lambda fold: " and ".join(fold.moments)),
    ):
        holders: dict[Any, list[int]] = {}
        for fold in folds:
            holders.setdefault(of(fold), []).append(fold.number)
        if len(holders) > 1:
            each = ", ".join(
                f"{value} in fold{'s' if len(n) > 1 else ''} {fold_numbers(n)}" for value, n in holders.items()
            )
            problems.append(f"{what}: {each}")
    if problems:
        raise DataError(
            f"{run_dir}: the folds are of different runs, {'; '.join(problems)}. "
            "A mean over them means nothing. Move the folds of each run to a folder of their own."
        )


def _read_config(text: str) -> tuple[int | None, float | None]:
    """Returns number of folds and validation fraction, None where the text does not say: a report needs neither."""
    try:
        run = yaml.safe_load(text)["run"]
    except (yaml.YAMLError, TypeError, KeyError):
        return None, None
    if not isinstance(run, dict):
        return None, None
    num_folds, fraction = run.get("num_folds"), run.get("val_fraction")
    return (
        num_folds if isinstance(num_folds, int) else None,
        float(fraction) if isinstance(fraction, (int, float)) else None,
    )


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as json ({error}). Run the fold again, or remove its folder."
        ) from None


def _read_curve(path: Path) -> tuple[dict[str, Any], ...]:
    rows = []
    for line in _read_text(path).splitlines():
        try:
            row = json.loads(line)
            int(row["epoch"])
        except (ValueError, TypeError, KeyError):
            break  # the last line of a file that was cut off; a curve is shown as far as it goes
        rows.append(row)
    return tuple(rows)


def _read_predictions(path: Path, targets: Sequence[str]) -> Predictions | None:
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}

        def block(prefix: str) -> np.ndarray:
            return np.array([[float(v or "nan") for v in columns[f"{prefix}_{t}"]] for t in targets]).T

        found = {m: block(m) for m in MOMENTS if f"{m}_{targets[0]}" in columns}
        images, prompts, groups = (tuple(columns[name]) for name in ("image", "prompt", "group"))
        return Predictions(images, prompts, groups, block("mos"), found)
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        what = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: not the predictions of a fold ({what}). Run the fold again.") from None
