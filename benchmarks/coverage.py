"""Do 95 % intervals hold the truth for 95 % of all databases, and do tests at 5 % find 5 % that is not there?

Simulated databases are drawn from one population: prompts and images have effects on scores and on features, from which
two ridge regressions, each with features of its own, learn to predict the scores. The two are equally good in the long
run, so that whatever a test finds between them is a false alarm. Splits and statistics are those of the package.

    python benchmarks/coverage.py --databases 1000

prints the table of docs/statistics.md. On one core: 20 minutes.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from ipiqa.datasets.splits import make_split
from ipiqa.datasets.table import AnnotationTable, Target
from ipiqa.metrics import DRAWN, Images, Resampled, describe, paired_test
from ipiqa.metrics.resampling import draw, resampled

NUM_DRAWS = 300  # of the 1,000 that a report takes: enough here, and three times as fast
FRESH_PROMPTS = 2000  # of the sample that stands for the population
RIDGE = 10.0
METHODS = ("plain t", "Nadeau-Bengio", "prompts")
CHOSEN = {"reference": "Nadeau-Bengio", "holdout": "Nadeau-Bengio", "kfold": "plain t", "image_random": "prompts"}


@dataclass(frozen=True)
class Setting:
    """A kind of database; `shared_noise` is the share of a feature's deviation that all images of a prompt have."""

    name: str
    num_prompts: int
    images_per_prompt: int
    num_features: int
    shared_noise: float

    def sample(self, seed: int, num_prompts: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Returns prompts (N,), scores (N,), and the features (N, D) of both models."""
        generator = np.random.default_rng(seed)
        prompts = np.repeat(np.arange(num_prompts), self.images_per_prompt)
        makers = np.tile(np.linspace(-1, 1, self.images_per_prompt), num_prompts)  # one image by each generator
        scores = makers + 0.5 * generator.normal(size=num_prompts)[prompts] + generator.normal(size=len(prompts))
        features = []
        for _ in range(2):
            shared = generator.normal(size=(num_prompts, self.num_features))[prompts]
            own = generator.normal(size=shared.shape)
            noise = self.shared_noise * shared + np.sqrt(1 - self.shared_noise**2) * own
            features.append(0.35 * np.linspace(1, 0, self.num_features) * scores[:, None] + noise)
        return prompts, scores, features

    def table(self) -> AnnotationTable:
        """Returns a table of such a database, to be split."""
        prompts = tuple(f"{i // self.images_per_prompt}" for i in range(self.num_prompts * self.images_per_prompt))
        names = tuple(f"{i}.png" for i in range(len(prompts)))
        scores = np.zeros((len(prompts), 1))
        return AnnotationTable(names, prompts, scores, (Target("quality"),), prompts, Path(), "permutation")


SETTINGS = (
    Setting("300 prompts x 6 images", 300, 6, 20, 0.5),
    Setting("60 prompts x 5 images", 60, 5, 20, 0.5),
    Setting("60 prompts x 10 images, hard", 60, 10, 40, 0.8),  # models differ a lot by what they were trained on
)


@dataclass(frozen=True)
class Rates:
    """How often intervals hold the truth, and how often tests find what is not there."""

    coverage: float
    false_alarms: float


def simulate(setting: Setting, kind: str, num_folds: int, num_databases: int) -> dict[tuple[str, str], Rates]:
    """Returns rates by (question, method).

    Questions: "new database", what such models come to on average, and for one fold "these models": what the two
    models that were trained come to on new prompts.
    """
    table = setting.table()
    splits = [make_split(table, kind=kind, seed=42, fold=fold, num_folds=num_folds) for fold in range(num_folds)]
    held_out = np.unique(np.concatenate([split.val for split in splits]) // setting.images_per_prompt)
    draws = draw(len(held_out))[:NUM_DRAWS]
    _, new_scores, new_features = setting.sample(0, FRESH_PROMPTS)
    values, fresh = np.zeros((2, num_databases, 2, num_folds))
    drawn = np.zeros((num_databases, 2, NUM_DRAWS))
    for i in range(num_databases):
        prompts, scores, features = setting.sample(1 + i, setting.num_prompts)
        for (model, x), (fold, split) in itertools.product(enumerate(features), enumerate(splits)):
            known, centre = x[split.train], x[split.train].mean(axis=0)
            square = (known - centre).T @ (known - centre) + RIDGE * np.eye(setting.num_features)
            weights = np.linalg.solve(square, (known - centre).T @ scores[split.train])
            clusters = np.searchsorted(held_out, prompts[split.val])
            images = Images(x[split.val] @ weights, scores[split.val], prompts[split.val], clusters=clusters)
            values[i, model, fold] = stats.spearmanr(images.predictions, images.mos).statistic
            drawn[i, model] += resampled(DRAWN["srcc"], images, draws) / num_folds
            if num_folds == 1:
                fresh[i, model, fold] = stats.spearmanr(new_features[model] @ weights, new_scores).statistic
    overlap = float(np.mean([len(split.val) / len(split.train) for split in splits]))
    truths = {"new database": np.full((num_databases, 2), values.mean())}
    truths |= {"these models": fresh.mean(axis=2)} if num_folds == 1 else {}
    methods = METHODS if num_folds > 1 else METHODS[-1:]
    return {
        (question, method): _rates(values, drawn, truth, method, overlap, len(held_out) - 1)
        for question, truth in truths.items()
        for method in methods
    }


def _rates(
    values: np.ndarray, drawn: np.ndarray, truths: np.ndarray, method: str, overlap: float, degrees: int
) -> Rates:
    by_prompts, overlap = method == "prompts", overlap if method == "Nadeau-Bengio" else 0.0
    held, alarms = [], []
    for value, draws, truth in zip(values, drawn, truths, strict=True):
        for model in range(2):
            sampled = Resampled(draws[model], degrees) if by_prompts else None
            spread = describe(value[model], overlap=overlap, resampled=sampled)
            held.append(spread.low <= truth[model] <= spread.high)
        sampled = Resampled(draws[0] - draws[1], degrees) if by_prompts else None
        test = paired_test(value[0], value[1], overlap=overlap, resampled=sampled)
        alarms.append(not test.low <= truth[0] - truth[1] <= test.high)
    return Rates(float(np.mean(held)), float(np.mean(alarms)))


def main() -> None:
    """Prints the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--databases", type=int, default=1000, metavar="N", help="simulated databases of each row")
    count = parser.parse_args().databases
    print(f"| database | split | folds | {' | '.join(METHODS)} |\n| --- | --- | --- |{' --- |' * len(METHODS)}")
    cases = [(kind, folds) for kind in CHOSEN for folds in ((5, 10) if kind != "reference" else (10, 3))]
    for setting in SETTINGS:
        for kind, folds in [*cases, ("holdout", 1)]:
            found = simulate(setting, kind, folds, count)
            for question in dict.fromkeys(question for question, _ in found):
                cells = []
                for method in METHODS:
                    rates = found.get((question, method))
                    text = "" if rates is None else f"{100 * rates.coverage:.1f} / {100 * rates.false_alarms:.1f}"
                    is_chosen = method == (CHOSEN[kind] if folds > 1 else METHODS[-1])
                    cells.append(f"**{text}**" if text and is_chosen else text)
                name = kind if folds > 1 else f"one fold: {question}"
                print(f"| {setting.name} | {name} | {folds} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
