"""The 134 rated images of the AVT-AI-Image-Dataset: what is learnt from them, beside what needs no picture or training.

    python benchmarks/first_result.py --peers cache/data/avt_ai_images/iqa_metrics.csv

SRCC of all held-out images together, each predicted by a model that has seen neither its prompt (`new prompts`, five
folds, as many partitions as --seeds) nor its generator (`new generator`, five folds). `within generator` is the mean
over generators of the SRCC among images of one, in the first of these. Intervals of 95 % are t over prompts, from 1,000
draws of prompts with all their images; the models are taken as trained.

Three models: the recipe of the config; one whose recipe is chosen anew for each fold among `RECIPES`, by folds of the
same kind within the training part; the mean of all of them. Towers are frozen, so the features of every image are
computed once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from ipiqa import build
from ipiqa.config.loading import Config, load_config
from ipiqa.datasets.splits import Split, make_split
from ipiqa.datasets.table import AnnotationTable
from ipiqa.evaluation.baselines import no_pixel
from ipiqa.metrics import DRAWN, Images, describe
from ipiqa.metrics.resampling import Resampled, clusters_of, draw, plain, resampled
from ipiqa.models.kernel_ridge import KernelRidge
from ipiqa.models.towers.image_tower import ImageTower
from ipiqa.models.towers.timm_tower import TimmTower
from ipiqa.report.render import markdown_table
from ipiqa.scorers.table import read_scores

BLOCKS = [f"blocks.{i}" for i in range(7)]
FEATURES = {  # layers and statistics of the tower
    "products of blocks 4, 5": (BLOCKS[4:6], "gram"),
    "products of blocks 1 to 5": (BLOCKS[1:6], "gram"),
    "means of all blocks": (BLOCKS, "mean"),
}
CONFIGS = {"prompt": "ipiqa/projects/avt/new_prompts.yaml", "generator": "ipiqa/projects/avt/new_generator.yaml"}
CHOSEN_BY = (0, 1)  # a recipe is chosen by the mean SRCC of these targets


class Recipe(NamedTuple):
    """What a model is made of."""

    features: str
    kernel: str
    penalty: float


RECIPES = [Recipe(*parts) for parts in product(FEATURES, ("linear", "gaussian"), (0.01, 0.1, 1.0))]


class Known(ImageTower):
    """A tower whose images are features already."""

    def __init__(self, parts: tuple[int, ...]) -> None:
        super().__init__()
        self._parts, self.embed_dim = parts, sum(parts)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, images


@dataclass(frozen=True)
class Material:
    """A table and the features (N, D) of its images, with their parts, by name."""

    table: AnnotationTable
    features: dict[str, tuple[torch.Tensor, tuple[int, ...]]]

    def predict(self, recipe: Recipe, train: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Returns scores (A, T) of the rows asked for, by what the rows to train on teach."""
        features, parts = self.features[recipe.features]
        scores = torch.from_numpy(self.table.scores).float()
        model = KernelRidge(
            Known(parts), scores.shape[1], kernel=recipe.kernel, penalty=recipe.penalty, most_images=len(train)
        )
        model.observe(features[train], scores[train])
        with torch.no_grad():
            return model.eval()(features[asked], [""] * len(asked)).numpy()


def measure_towers(config: Config, table: AnnotationTable) -> Material:
    """Returns the features of all images by each of FEATURES."""
    processor, section = build.make_processor(config), config.model["image_encoder"]
    features = {}
    for name, (layers, statistics) in FEATURES.items():
        tower = TimmTower(
            config.image_size, architecture=section["architecture"], weights=section["weights"], freeze="all",
            pool_layers=layers, statistics=statistics,
        )  # fmt: skip
        with torch.no_grad():
            batches = (processor.normalise(processor.decode(path)[None]) for path in table.image_paths)
            features[name] = torch.cat([tower(image)[1] for image in batches]), tower.parts
    return Material(table, features)


def srcc(predictions: np.ndarray, scores: np.ndarray) -> float:
    """Returns the SRCC of predictions (N,) and scores (N,); nan where one of them is constant."""
    return plain(DRAWN["srcc"], Images(predictions, scores, np.zeros(len(scores), dtype=np.int64)))


def choose(material: Material, split: Split, groups: np.ndarray, num_folds: int) -> Recipe:
    """Returns the recipe that does best on folds of the training part, none of which cuts a group."""
    names = sorted(set(groups[split.train]))
    np.random.RandomState([split.seed, split.fold]).shuffle(names)
    parts = [np.isin(groups[split.train], names[fold::num_folds]) for fold in range(num_folds)]
    values = []
    for recipe in RECIPES:
        predicted = np.zeros((len(split.train), material.table.scores.shape[1]))
        for part in parts:
            predicted[part] = material.predict(recipe, split.train[~part], split.train[part])
        scores = material.table.scores[split.train]
        values.append(np.mean([srcc(predicted[:, t], scores[:, t]) for t in CHOSEN_BY]))
    return RECIPES[int(np.argmax(values))]


def held_out(material: Material, config: Config, seed: int) -> tuple[dict[str, np.ndarray], list[Recipe]]:
    """Returns predictions (N, T), each by the fold that holds the image out, by name, and the recipes chosen."""
    model = config.model
    layers = (model["image_encoder"]["pool_layers"], model["image_encoder"]["statistics"])
    of_config = Recipe(next(n for n, f in FEATURES.items() if f == layers), model["kernel"], model["penalty"])
    table, chosen = material.table, []
    names = ("recipe of the config", "chosen in each fold", "mean of all recipes", "mean of generator (no picture)")
    out = {name: np.zeros(table.scores.shape) for name in names}
    groups, num_folds = np.array(table.groups, dtype=object), config.run.num_folds
    for fold in range(num_folds):
        split = make_split(table, kind="kfold", seed=seed, fold=fold, num_folds=num_folds)
        inner = min(num_folds, len(set(groups[split.train])))
        chosen.append(choose(material, split, groups, inner))
        out[names[0]][split.val] = material.predict(of_config, split.train, split.val)
        out[names[1]][split.val] = material.predict(chosen[-1], split.train, split.val)
        of_all = [material.predict(recipe, split.train, split.val) for recipe in RECIPES]
        out[names[2]][split.val] = np.mean(of_all, axis=0)
        out[names[3]][split.val] = no_pixel(table, split, ["generator"])
    return out, chosen


def shown(predictions: Sequence[np.ndarray], table: AnnotationTable, target: int, within: bool) -> str:
    """Returns the SRCC of predictions (N, T), its mean over partitions, with an interval; within generators or not."""
    clusters = clusters_of(table.prompts_read)
    numbers = np.array([clusters[prompt] for prompt in table.prompts_read])
    draws, generators = draw(max(numbers) + 1), np.array(table.segments["generator"], dtype=object)
    parts = [generators == name for name in sorted(set(generators))] if within else [np.ones(len(table), dtype=bool)]
    values, drawn = [], []
    for of_partition in predictions:
        for part in parts:
            mos, prompts = table.scores[part, target], numbers[part]
            images = Images(of_partition[part, target], mos, prompts, clusters=prompts)
            values.append(plain(DRAWN["srcc"], images))
            drawn.append(resampled(DRAWN["srcc"], images, draws))
    if np.isnan(values).any():
        return "-"  # predictions that are all equal put nothing in order
    spread = describe(values, overlap=0.0, limits=(-1, 1), resampled=Resampled(np.mean(drawn, axis=0), max(numbers)))
    return f"{spread.mean:.3f} ({spread.low:.2f} to {spread.high:.2f})"


def peers_of(path: str, table: AnnotationTable) -> dict[str, np.ndarray]:
    """Returns the scores (N, T) of each tool in a table, turned to where the SRCC over all images is positive."""
    peers = read_scores(scores=path)
    of_tools = peers.of([str(path) for path in table.image_paths], table.prompts).T
    out = {}
    for name, scores in zip(peers.columns, of_tools, strict=True):
        signs = [np.sign(srcc(scores, mos)) for mos in table.scores.T]
        out[f"{name} (not trained here)"] = np.stack([sign * scores for sign in signs], axis=1)
    return out


def main() -> None:
    """Prints a table for each protocol, and the recipes chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="table of other tools' scores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="partitions of the prompts")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="settings of both configs")
    arguments = parser.parse_args()
    material = None
    for group, path in CONFIGS.items():
        config = load_config(path, *arguments.options)
        table = build.make_dataset(config).load()
        material = measure_towers(config, table) if material is None else Material(table, material.features)
        seeds = arguments.seeds if group == "prompt" else arguments.seeds[:1]  # generators can be parted in one way
        partitions, chosen = zip(*(held_out(material, config, seed) for seed in seeds), strict=True)
        rows = {name: [of[name] for of in partitions] for name in partitions[0]}
        if arguments.peers:
            rows |= {name: [scores] for name, scores in peers_of(arguments.peers, table).items()}
        header = [f"new {group}", *table.target_names]
        header += [f"{name}, within generator" for name in table.target_names[:2] if group == "prompt"]
        cells = []
        for name, predictions in rows.items():
            values = [shown(predictions, table, t, within=False) for t in range(len(table.targets))]
            values += [shown(predictions, table, t, within=True) for t in range(len(header) - 1 - len(table.targets))]
            cells.append([name, *values])
        print(markdown_table(header, cells), flush=True)
        print(
            f"\n{len(RECIPES)} recipes; partitions by split.seed {', '.join(map(str, seeds))}; chosen in their folds:"
        )
        for seed, recipes in zip(seeds, chosen, strict=True):
            print(f"- {seed}: {'; '.join(f'{r.features}, {r.kernel}, {r.penalty:g}' for r in recipes)}")
        print(flush=True)


if __name__ == "__main__":
    main()
