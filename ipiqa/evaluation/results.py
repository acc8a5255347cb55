"""The results of a run: one typed schema, its one writer and its one reader."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ipiqa.datasets.splits import Leak, Split
from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import DataError
from ipiqa.evaluation.baselines import measure_baselines
from ipiqa.evaluation.pairs import PAIRS, by_pair, read_pairs, write_pairs
from ipiqa.evaluation.typed import LARGEST, parse
from ipiqa.files import seed_folders, write_json, write_text

FORMAT = 1  # of scores.json; a newer number is refused
CHECKPOINTS = ("best", "last")
TEXTS = ("image", "prompt", "group")  # the first columns of predictions.csv
MAX_FOLDS = 100_000

# The metrics of one target, None where undefined, and "notes"; known ones may be missing, unknown ones be there.
Metrics = dict[str, float | list[str] | None]


@dataclass(frozen=True)
class SplitFacts:
    """How the held-out part was drawn, and how many images each part has."""

    kind: str
    seed: int
    sha256: str
    num_train: int
    num_val: int
    num_selection: int = 0


@dataclass(frozen=True)
class DatasetFacts:
    """What was trained and measured on; `sha256` is of the annotation table."""

    name: str
    sha256: str
    num_images: int


@dataclass(frozen=True)
class Measured:
    """Metrics of one epoch on the held-out part, by target; epoch None where a checkpoint was evaluated."""

    epoch: int | None
    metrics: dict[str, Metrics]


@dataclass(frozen=True)
class FoldScores:
    """What scores.json holds; what has a default is not in files of version 0.1.

    `settings` are those that decide the numbers, `num_folds` is what the run was asked for, `seen_in_training` counts
    held-out images that the evaluated checkpoint was trained on, and `baselines` has metrics by baseline and target.
    """

    format: int
    fold: int
    split: SplitFacts
    selection: str
    targets: tuple[str, ...]
    dataset: DatasetFacts
    epochs: int | None
    best: Measured
    last: Measured | None = None
    settings: dict[str, Any] | None = None
    num_folds: int | None = None
    seen_in_training: int | None = None
    baselines: dict[str, dict[str, dict[str, float | None]]] | None = None
    leak: Leak | None = None


@dataclass(frozen=True)
class EvaluatedEpoch:
    """One line of metrics.jsonl."""

    epoch: int
    loss: float | None = None
    metrics: dict[str, Metrics] | None = None


@dataclass(frozen=True)
class FoldResult:
    """One finished fold.

    `predictions` has columns image, prompt, group, mos_T, best_T, last_T for each target, and others as text: segments.
    Of a fold that was trained with several seeds, `seeds` are the results of each; what is said of it is of the first,
    and a value of it is the mean of theirs.
    """

    scores: FoldScores
    curve: tuple[EvaluatedEpoch, ...]
    predictions: pd.DataFrame | None  # None where the file is not there, that of any seed
    pairs: pd.DataFrame | None = None  # of a fold trained on preferences: image_a, image_b, preferred
    seeds: Mapping[int, "FoldResult"] = field(default_factory=dict)

    @property
    def results(self) -> tuple["FoldResult", ...]:
        """Its results: one for each seed, or itself."""
        return tuple(self.seeds.values()) or (self,)

    @property
    def measured(self) -> pd.DataFrame | None:
        """What metrics are means over: its predictions, of pairs where it has them (see `by_pair`)."""
        if self.predictions is None or self.pairs is None:
            return self.predictions
        return by_pair(self.predictions, self.pairs)

    @property
    def number(self) -> int:
        return self.scores.fold

    @property
    def checkpoints(self) -> dict[str, Measured]:
        """Its metrics by "best" and "last"."""
        return {"best": self.scores.best} | ({} if self.scores.last is None else {"last": self.scores.last})


@dataclass(frozen=True)
class RunResult:
    """The finished folds of a run, which all belong together, and what the run was started with."""

    run_dir: Path
    folds: tuple[FoldResult, ...]
    num_folds: int | None  # as configured; None where no file says it
    config_text: str
    command: str
    environment: dict[str, Any]
    seeds: tuple[int, ...] = ()  # as configured; () for a run of one

    @property
    def results(self) -> dict[tuple[int, int], FoldResult]:
        """The results of every fold with every seed, by number of the fold and which of its seeds it is: 0, 1, ..."""
        return {(fold.number, i): one for fold in self.folds for i, one in enumerate(fold.results)}

    @property
    def name(self) -> str:
        return short_name(self.run_dir)

    @property
    def first(self) -> FoldScores:
        """What is the same in all folds."""
        return self.folds[0].scores

    @property
    def targets(self) -> tuple[str, ...]:
        return self.first.targets

    @property
    def main(self) -> str:
        """The metric that stands first and in which runs are compared: SRCC, or the pair accuracy of preferences."""
        return "accuracy" if "accuracy" in self.first.best.metrics[self.targets[0]] else "srcc"

    @property
    def trained(self) -> bool:
        return self.first.last is not None

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """`best` and `last`, or only `best` for a run that evaluated checkpoints without training."""
        return CHECKPOINTS if self.trained else CHECKPOINTS[:1]

    @property
    def missing(self) -> tuple[int, ...]:
        """Folds that are configured and not finished."""
        return tuple(sorted(set(range(self.num_folds or 0)) - {fold.number for fold in self.folds}))

    @property
    def test_to_train(self) -> float:
        """Held-out images for one of the others, those of the selection part included (see `paired_test`)."""
        splits = [fold.scores.split for fold in self.folds]
        return float(np.mean([s.num_val / max(1, s.num_train + s.num_selection) for s in splits]))


def short_name(folder: Path) -> str:
    """Returns `project/name`, the last two parts of a folder, as text that a file can hold."""
    return "/".join(folder.resolve().parts[-2:]).encode(errors="replace").decode()


def write_fold(
    folder: Path, table: AnnotationTable, split: Split, measured: Mapping[str, Measured],
    predictions: Mapping[str, np.ndarray], *, dataset: str, epochs: int | None, num_folds: int,
    settings: Mapping[str, Any], seen_in_training: int | None = None, leak: Leak | None = None,
) -> None:  # fmt: skip
    """Writes predictions.csv, pairs.csv if any, and then scores.json, whose presence says that the fold is finished.

    `measured` and `predictions`, (N, T) of the held-out rows, are by "best" and "last"; the rest is as in `FoldScores`.
    """
    texts = dict(zip(TEXTS, (table.names, table.prompts, table.groups), strict=True))
    texts |= {f"segment_{n}" if n in texts else n: labels for n, labels in table.segments.items()}
    frame = pd.DataFrame(texts).iloc[split.val]
    for name, block in {"mos": table.scores[split.val], **predictions}.items():
        columns = zip(table.target_names, block.T.astype(np.float64), strict=True)
        frame = frame.assign(**{f"{name}_{target}": column for target, column in columns})
    write_text(folder / "predictions.csv", frame.to_csv(index=False, lineterminator="\n", na_rep="nan"))
    write_pairs(folder, table, split.val)
    sizes = {"num_train": len(split.train), "num_val": len(split.val), "num_selection": len(split.selection)}
    scores = FoldScores(
        format=FORMAT, fold=split.fold, split=SplitFacts(split.kind, split.seed, split.sha256, **sizes),
        selection="validation part" if len(split.selection) else "reported part", targets=tuple(table.target_names),
        dataset=DatasetFacts(dataset, table.sha256, len(table)), epochs=epochs, best=measured["best"],
        last=measured.get("last"), settings=dict(settings), num_folds=num_folds, seen_in_training=seen_in_training,
        baselines=measure_baselines(table, split),
        leak=leak,
    )  # fmt: skip
    content = dataclasses.asdict(scores)
    write_json(folder / "scores.json", {k: v for k, v in content.items() if v is not None or k == "epochs"})


def load_run(run_dir: Path) -> RunResult:
    """Returns the finished folds of a run folder; folds that are not there yet are listed, not missed.

    No finished fold, a file that cannot be read, and folds of different runs in one folder raise a DataError.
    """
    run_dir = Path(run_dir)
    of_seeds: dict[int, Path] = {}
    try:
        of_seeds = seed_folders(run_dir)
        paths = sorted(run_dir.glob("fold_*/scores.json"))
        problem = "holds no finished fold (fold_*/scores.json)" if run_dir.is_dir() else "is not a folder"
    except (OSError, ValueError) as error:  # a NUL in the path, a name too long
        paths, problem = [], f"cannot be read ({error})"
    if of_seeds:
        return _over_seeds(run_dir, of_seeds)
    if not paths:
        advice = "Give the output folder of a run, or finish a fold with --resume."
        raise DataError(f"{str(run_dir)!r}: {problem}. {advice}")
    folds = sorted(map(_load_fold, paths), key=lambda fold: fold.number)
    _check_together(run_dir, [fold.scores for fold in folds])
    config_text, command = (_read(run_dir / name, errors="replace") for name in ("config.yaml", "command.txt"))
    path = run_dir / "environment.json"
    environment = parse(dict[str, Any], _read(path) or "{}", path, "Remove it: a report does without.")
    num_folds = max(fold.scores.num_folds or 0 for fold in folds) or None
    return RunResult(run_dir, tuple(folds), num_folds, config_text, command.strip(), environment)


def _over_seeds(run_dir: Path, folders: Mapping[int, Path]) -> RunResult:
    """Returns the run whose folds have a result for each seed that has finished them."""
    runs = {seed: load_run(path) for seed, path in folders.items() if any(path.glob("fold_*/scores.json"))}
    first = next(iter(runs.values()), None) or load_run(next(iter(folders.values())))  # which says that there is none
    _check_together(run_dir, [one.first for one in runs.values()], list(runs))
    by_fold: dict[int, dict[int, FoldResult]] = {}
    for seed, fold in ((seed, fold) for seed, one in runs.items() for fold in one.folds):
        by_fold.setdefault(fold.number, {})[seed] = fold
    folds = []
    for _, seeds in sorted(by_fold.items()):
        one, frames = next(iter(seeds.values())), [result.predictions for result in seeds.values()]
        is_whole = all(frame is not None for frame in frames)
        folds.append(replace(one, seeds=seeds, predictions=frames[0] if is_whole else None))
    num_folds = max(one.num_folds or 0 for one in runs.values()) or None
    config = _read(run_dir / "config.yaml", errors="replace")
    own = replace(first, run_dir=run_dir, config_text=config, num_folds=num_folds)
    return replace(own, folds=tuple(folds), seeds=tuple(folders))


def _load_fold(path: Path) -> FoldResult:
    advice = "Run the fold again, or remove its folder."
    scores = parse(FoldScores, _read(path), path, advice)
    split, targets, home, count = scores.split, scores.targets, f"fold_{scores.fold:02d}", scores.num_folds or 0
    smallest = min(split.num_train, split.num_val, split.num_selection, scores.dataset.num_images)
    unmeasured = [t for t in targets if any(m is not None and t not in m.metrics for m in (scores.best, scores.last))]
    for wrong, problem in (
        (scores.format > FORMAT, f"format {scores.format}, this version reads up to {FORMAT}. Update ipiqa"),
        (path.parent.name != home, f"holds fold {scores.fold}. Was the folder renamed? It belongs in {home}"),
        (not targets or len(set(targets)) < len(targets), f"targets: {list(targets)} are not distinct names"),
        (smallest < 0, f"a part of {smallest} images"),
        (count > MAX_FOLDS, f"num_folds: {count} is more than {MAX_FOLDS}"),
        (unmeasured, f"metrics: {unmeasured} is not measured"),
    ):
        if wrong:
            raise DataError(f"{path}: {problem}. {advice}")
    curve, advice = path.with_name("metrics.jsonl"), "Remove the line, or the file: a report does without."
    lines = [(f"{curve}, line {i}", line) for i, line in enumerate(_read(curve).split("\n"), 1) if line.strip()]
    rows = tuple(parse(EvaluatedEpoch, line, where, advice) for where, line in lines)
    predictions = _read_predictions(path.with_name("predictions.csv"), scores)
    return FoldResult(scores, rows, predictions, read_pairs(path.with_name(PAIRS), predictions))


def _check_together(run_dir: Path, folds: Sequence[FoldScores], seeds: Sequence[int] = ()) -> None:
    """Raises when the folds, or the first ones of several seeds, are not of one run, naming each difference."""
    facts = [(number, fold, _facts(fold)) for number, fold in zip(seeds or [f.fold for f in folds], folds, strict=True)]
    what, problems = "seed" if seeds else "fold", []
    for key in dict.fromkeys(itertools.chain(*(words for _, _, words in facts))):
        holders: dict[str, list[int]] = {}
        for number, fold, words in facts:
            if key in words or fold.settings is not None:  # those of version 0.1 are not known
                holders.setdefault(words.get(key, "not set"), []).append(number)
        if len(holders) > 1 and not (seeds and key == "run.seed"):
            each = (f"{value:.60} in {what}{'s' * (len(n) > 1)} {fold_numbers(n)}" for value, n in holders.items())
            problems.append(f"{key}: {', '.join(each)}")
    if problems:
        advice = "A mean over them means nothing. Move the folds of each run to a folder of their own."
        raise DataError(f"{run_dir}: the {what}s are of different runs, {'; '.join(problems)}. {advice}")


def _facts(fold: FoldScores) -> dict[str, str]:
    """Returns in words what must be the same in all folds of a run."""
    dataset, epochs = f"{fold.dataset.name} ({fold.dataset.sha256[:12]})", str(fold.epochs or "none (evaluated only)")
    return {
        "targets": ", ".join(fold.targets), "dataset": dataset, "selection": fold.selection,
        "split kind": fold.split.kind, "split seed": str(fold.split.seed), "number of epochs": epochs,
        "epochs measured": "best" if fold.last is None else "best and last",
    } | {key: json.dumps(value) for key, value in (fold.settings or {}).items()}  # fmt: skip


def fold_numbers(numbers: Sequence[int]) -> str:
    """Returns fold numbers in words, such as "0, 2 to 4, 7"."""
    groups = itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])  # consecutive ones
    parts = [[number for _, number in group] for _, group in groups]
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 2 else ", ".join(map(str, p)) for p in parts)


def _read(path: Path, errors: str = "strict") -> str:
    """Returns the text of a file, "" where there is none."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a plain file")
        return path.read_text(encoding="utf-8", errors=errors) if path.exists() else ""
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Run the fold again, or remove it.") from None


def _read_predictions(path: Path, scores: FoldScores) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    names = ("mos", "best") if scores.last is None else ("mos", "best", "last")
    numbers = [f"{name}_{target}" for name in names for target in scores.targets]
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
        if not isinstance(frame.index, pd.RangeIndex):  # pandas takes what is too much for names of rows
            raise ValueError("more values than columns")
        frame = frame[[*dict.fromkeys((*TEXTS, *numbers, *frame))]].fillna("")
        values = frame[numbers].replace("", "nan").astype(np.float64)
        frame[numbers] = values.where(values.abs() <= LARGEST)
    except (OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        problem = " ".join(str(error).split())[:100]
        raise DataError(f"{path}: not the predictions of a fold ({problem}). Run the fold again.") from None
    return frame
