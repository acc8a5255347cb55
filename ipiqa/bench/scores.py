"""Scores of every row of a database, whoever gives them, and how they are put on the scale of its MOS."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from ipiqa import build
from ipiqa.config.loading import Config
from ipiqa.datasets.splits import Split
from ipiqa.datasets.table import AnnotationTable, Target
from ipiqa.errors import DataError
from ipiqa.evaluation.baselines import linear
from ipiqa.files import replacing
from ipiqa.metrics import fit_logistic
from ipiqa.scorers import FACTS
from ipiqa.scoring.loading import TableScorer, load, model_sha256

Curve = Literal["linear", "logistic"]
UNKNOWN = "not known"


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
