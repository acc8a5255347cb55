"""From names on the command line to contestants: each a point that leaves a run folder, whatever it is."""

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from ipiqa import build
from ipiqa.ablation import Point, check_distinct, folder_name, rows_of
from ipiqa.config.loading import Config, load_config
from ipiqa.config.settings import check
from ipiqa.datasets.splits import Split, leak
from ipiqa.datasets.table import AnnotationTable, Target
from ipiqa.errors import ConfigError, DataError, located
from ipiqa.evaluation.baselines import OTHER_TARGETS, PROMPT_LENGTH, linear, no_pixel, possible
from ipiqa.evaluation.results import Measured, load_run, short_name, write_fold
from ipiqa.files import replacing, write_json, write_text
from ipiqa.metrics import fit_logistic, measure
from ipiqa.models.bundle import HASH_DIGITS
from ipiqa.registry import list_registered
from ipiqa.report import AblationRow
from ipiqa.scorers import FACTS
from ipiqa.scorers.table import read_scores
from ipiqa.scoring.loading import TableScorer, load, model_sha256
from ipiqa.training.run_folder import check_identity, fold_dir, identity_of, is_finished, record_job

Curve = Literal["linear", "logistic"]
UNKNOWN = "not known"
MEAN = "mean of "  # how the baselines begin that everybody is compared with
NOTES = ("scores as they are: PLCC is theirs", "higher or lower is better as seen on the reported images: |SRCC|")


@dataclass(frozen=True, eq=False)
class Database:
    """A table with its images, and the config that splits it, in full and as it was `given`."""

    label: str
    given: str
    config: Config
    table: AnnotationTable

    @functools.cached_property
    def image_hashes(self) -> tuple[str, ...]:
        """The sha256 of each row's image file; DataError where one cannot be used."""
        dataset = build.make_dataset(self.config)
        assert not dataset.streamed  # those have no table to load
        dataset.check_images(self.table, build.make_processor(self.config))
        return dataset.image_hashes(self.table)


class Scores(NamedTuple):
    """Scores (N, T) of every row, for the T targets with these numbers, and what is known of who gave them."""

    values: np.ndarray
    targets: list[int]
    trained_on: str = UNKNOWN
    licence: str = UNKNOWN
    seen: frozenset[str] = frozenset()  # first digits of the sha256 of images it was trained on
    says_direction: bool = False  # more is better; else it is not known whether more or less is
    hashes: tuple[str, ...] | None = None  # of the image files, where they were read


def score_rows(what: str, database: Database, store: Path) -> Scores:
    """Returns the scores of what `ipiqa.load` takes; what a model gives is kept in a folder, by content."""
    scorer, table = load(what), database.table
    trained, facts = scorer.trained_on, FACTS.get(what.partition(" ")[0])
    pairs = matched(scorer.targets, database, trained=bool(trained.dataset))
    if isinstance(scorer, TableScorer):
        return Scores(scorer.table.of(table.names, table.prompts)[:, [*pairs.values()]], [*pairs])
    key = [model_sha256(what), database.image_hashes, table.prompts if scorer.needs_prompt else ()]
    path = store / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npy"
    if not path.is_file():
        with replacing(path, "wb") as file:
            np.save(file, scorer.score(table.image_paths, table.prompts))
    values = np.load(path, allow_pickle=False).astype(np.float64)[:, [*pairs.values()]]
    known = (f"{trained.dataset} (table {trained.table_sha256[:8]})", trained.licence)
    if not trained.dataset:  # weights that were given need not be those that were published
        known = (UNKNOWN, UNKNOWN) if facts is None or "weights=" in what else (facts["trained on"], facts["licence"])
    return Scores(values, [*pairs], *known, frozenset(trained.images), True, database.image_hashes)


def matched(outputs: Sequence[Target], database: Database, *, trained: bool) -> dict[int, int]:
    """Returns target number -> number of the output of that name, or whose meaning begins with the same words.

    Where none is, a single output that was not trained on scores stands for every target. Else a DataError.
    """
    targets, words = database.table.targets, [one.meaning.partition(":")[0].casefold() for one in outputs]
    pairs = {
        number: output for number, target in enumerate(targets) for output, one in enumerate(outputs)
        if one.name == target.name or words[output] == target.meaning.partition(":")[0].casefold() != ""
    }  # fmt: skip
    if not pairs and (len(outputs) > 1 or trained):
        ours, theirs = (", ".join(target.name for target in some) for some in (outputs, targets))
        advice = "Targets are matched by name and meaning: take a database that has one of these."
        raise DataError(f"predicts {ours}, but {database.label} has {theirs}. {advice}")
    return pairs or dict.fromkeys(range(len(targets)), 0)


def on_scale(known: Scores, mos: np.ndarray, split: Split, curve: Curve) -> np.ndarray:
    """Returns predictions (V, T) for the held-out rows; `mos` is (N, T), as the scores are.

    Direction and scale are read off the training part alone. Where there is none, scores stay as they are, but for
    those that do not say their direction: they are turned so that they rise with the MOS.
    """
    columns = []
    for scores, y in zip(known.values.T, mos.T, strict=True):
        train, val = (rows[np.isfinite(y[rows])] for rows in (split.train, split.val))
        if not len(split.train):
            falls = not known.says_direction and stats.spearmanr(scores[val], y[val]).statistic < 0
            columns.append(-scores[split.val] if falls else scores[split.val])
        elif curve == "logistic" and (fit := fit_logistic(scores[train], y[train])).reason is None:
            columns.append(fit(scores[split.val]))
        else:
            columns.append(linear(scores[:, None], y, train, split.val))
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Bench:
    """Where run folders go, and for all databases settings, kind of split and folds (None: what each config says)."""

    out: Path
    overrides: tuple[str, ...] = ()
    split: str | None = None
    folds: int | None = None
    curve: Curve = "linear"

    def contestants(self, databases: Sequence[str], names: Sequence[str]) -> list["BenchPoint"]:
        """Returns every contestant on every database; ConfigError or DataError where one is named wrongly.

        Args:
            databases: "[LABEL=]CONFIG [KEY=VALUE ...]"; without a label, that is the name of the config's folder.
            names: "train [KEY=VALUE ...]", "no-pixel", "table:FILE[:COLUMN]", or what `ipiqa.load` takes. A table that
                has none of a database's images stays out of it.
        """
        points: list[BenchPoint] = []
        for text in databases:
            label, equals, path = text.partition(" ")[0].rpartition("=")
            with located(f"--databases: {label + equals + path}"):
                given = text[len(label + equals) :]
                config = self._load(given)
                check(config.split, replace(config.run, evaluate=True))  # scorers train nothing
                build.check_kind(config, folds=True)
                table = build.make_dataset(config).load()
                if table.comparisons is not None:
                    raise ConfigError("dataset.name: pairs have no MOS to agree with. Use ipiqa train.")
            database = Database(label or Path(path).resolve().parent.name, given, config, table)
            for name in names:
                with located(f"--scorers: {name}"):
                    points += self._of(database, name)
        check_distinct(points)
        return points

    def _load(self, given: str, *more: str) -> Config:
        """Returns the config that a text "CONFIG [KEY=VALUE ...]" describes, changed by what holds for all."""
        path, *changes = given.split() or [""]
        config = load_config(path, *changes, *self.overrides, *more)
        split, run = config.split, config.run
        if self.split is not None:
            file = split.file if self.split == "file" else None
            split = replace(split, kind=self.split, file=file)  # type: ignore[arg-type]
        count = 1 if split.kind in ("official", "all") else self.folds or run.num_folds
        return replace(config, split=split, run=replace(run, num_folds=count))

    def _of(self, database: Database, name: str) -> Iterator["BenchPoint"]:
        first, *changes = name.split() or [""]
        if "=" in first:
            raise ConfigError("a setting is no contestant. Give settings for all behind --options.")
        if first == "train":
            config = self._load(database.given, *changes)
            shown = [config.model["name"], *(w for w in changes if not w.startswith(("model.name=", "run.evaluate=")))]
            yield BenchPoint(*self._named(database, " ".join(shown), config), database)
        elif first == "no-pixel":
            for by in possible(database.table, build.split_of(database.config, database.table, 0)):
                title = MEAN * (by not in ((PROMPT_LENGTH,), (OTHER_TARGETS,))) + " + ".join(by)
                yield self._scored(database, title, f"{first} {title}", by)
        elif first.startswith("table:"):
            path, column = name.removeprefix("table:"), None
            if not Path(path).is_file() and Path(path.rpartition(":")[0]).is_file():
                path, _, column = path.rpartition(":")
            table = read_scores(scores=path, column=column)
            named = set(table.columns) & set(database.table.target_names)  # predictions of these targets
            contestants = {one: f" column={one}" for one in table.columns if one not in named}
            contestants |= {table.path.stem: ""} if named else {}
            for title, setting in contestants.items() if max(table.find(database.table.names)) >= 0 else ():
                yield self._scored(database, title, f"table scores={path}{setting}")
        else:
            is_file = first not in list_registered("scorer") and Path(name).exists()
            yield self._scored(database, short_name(Path(name)) if is_file else name, name)

    def _scored(self, database: Database, title: str, what: str, by: tuple[str, ...] = ()) -> "ScoredPoint":
        run = replace(
            database.config.run, seeds=None
        )  # nothing is drawn here, and the model of the database not trained
        config = replace(database.config, model={"name": what}, run=run)
        return ScoredPoint(*self._named(database, title, config), database, what, self, by)

    def _named(self, database: Database, title: str, config: Config) -> tuple[str, tuple[str, ...], Config]:
        title = re.sub(r"=\S*/", "=", title)  # of a path, the last part is enough
        folder = self.out / folder_name(database.label) / folder_name(title)
        return f"{database.label}: {title}", (), replace(config, run=replace(config.run, output_dir=str(folder)))


@dataclass(frozen=True)
class BenchPoint(Point):
    """A contestant on a database; this one is trained there."""

    database: Database


@dataclass(frozen=True)
class ScoredPoint(BenchPoint):
    """A contestant whose scores are put on the scale of the database fold by fold, or that goes `by` no picture."""

    what: str
    bench: Bench
    by: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """Returns what decides its numbers, apart from table and images."""
        kept = {name: v for name, v in identity_of(self.config).items() if name.startswith(("dataset.", "split."))}
        kept |= {"scorer": self.what, "run.num_folds": self.config.run.num_folds}
        if self.by:
            return kept | {"scorer.kind": "no picture"}
        kind = "table of scores" if self.what.startswith("table ") else "scorer"
        return kept | {"scorer.kind": kind, "scale": self.bench.curve, "scorer.sha256": model_sha256(self.what)}

    def check_folder(self) -> None:
        if any(is_finished(self.run_dir, fold) for fold in range(self.config.run.num_folds)):
            now, first = self.settings() | {"annotations": self.database.table.sha256}, load_run(self.run_dir).first
            before = (first.settings or {}) | {"annotations": first.dataset.sha256}
            check_identity({name: before.get(name) for name in now}, now, self.run_dir)

    def check(self) -> None:
        """Finds nothing: a scorer is loaded when its turn comes."""

    def run(self, *, resume: bool) -> None:
        whole, folds = self.database.table, range(self.config.run.num_folds)
        known = Scores(whole.scores, [*range(len(whole.targets))], "scores of the training part", "")
        if not self.by:
            known = score_rows(self.what, self.database, self.bench.out / "scores")
        hashes, mos, targets = known.hashes, whole.scores[:, known.targets], [whole.targets[t] for t in known.targets]
        table = replace(whole, targets=tuple(targets), scores=mos, rater_std=None, num_raters=None)
        settings = self.settings() | {"scorer.trained_on": known.trained_on, "scorer.licence": known.licence}
        write_text(self.run_dir / "config.yaml", "".join(f"{k}: {json.dumps(v)}\n" for k, v in settings.items()))
        record_job(self.run_dir, [*folds], resume)
        for fold in (fold for fold in folds if not is_finished(self.run_dir, fold)):
            split, folder = build.split_of(self.config, whole, fold), fold_dir(self.run_dir, fold)
            predictions = no_pixel(whole, split, self.by) if self.by else on_scale(known, mos, split, self.bench.curve)
            metrics = measure(predictions, mos[split.val], table.target_names)
            for of_target in metrics.values() if not len(split.train) else ():
                of_target["notes"] += NOTES[: 2 - known.says_direction]
                del of_target["rmse"]  # in units that are not those of the MOS
            write_json(folder / "split.json", split.to_json(table))
            write_fold(
                folder, table, split, {"best": Measured(None, metrics)}, {"best": predictions}, epochs=None,
                dataset=self.config.dataset["name"], num_folds=len(folds), settings=settings,
                seen_in_training=sum(hashes[row][:HASH_DIGITS] in known.seen for row in split.val) if hashes else 0,
                leak=leak(table, split, hashes) if len(split.train) else None,
            )  # fmt: skip


def boards_of(points: Sequence[BenchPoint], failures: Mapping[str, str]) -> dict[str, list[AblationRow]]:
    """Returns the rows of each database with their results or errors, in front the mean of the generator or another."""
    boards: dict[str, list[AblationRow]] = {}
    for point, row in zip(points, rows_of(points, failures), strict=True):
        named = replace(row, name=point.name.removeprefix(f"{point.database.label}: "))
        boards.setdefault(point.database.label, []).append(named)
    for rows in boards.values():
        ranks = [(row.run is None, row.name != f"{MEAN}generator", not row.name.startswith(MEAN)) for row in rows]
        rows.insert(0, rows.pop(ranks.index(min(ranks))))
    return boards
