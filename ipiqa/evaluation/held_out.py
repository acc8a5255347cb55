"""The held-out images of a run: any metric of them, and how sure it is, from the folds or from the prompts."""

import enum
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ipiqa.evaluation.results import RunResult
from ipiqa.metrics import DRAWN, Images, Resampled, Spread, describe
from ipiqa.metrics.resampling import LIMITS, clusters_of, draw, resampled
from ipiqa.prompts import clean

Label = Callable[[pd.DataFrame], Sequence[str]]  # the predictions of a fold -> the label of each image
Part = tuple[int, int]  # see `RunResult.results`


class Basis(enum.Enum):
    """What intervals and tests are computed from; the value says it in tables."""

    DISJOINT = "t over folds, which are disjoint"
    OVERLAPPING = "corrected resampled t over folds, which share images (Nadeau & Bengio 2003)"
    PROMPTS = "t over prompts, from 1,000 draws of prompts with all their images; the models are taken as trained"


def basis_of(run: RunResult) -> Basis:
    """Returns what tells best how sure the figures of a run are; docs/statistics.md has the simulation behind it.

    Folds tell where each holds out prompts of its own draw. They do not where there is only one, where all hold out the
    same images, and on `image_random`, whose folds share their prompts. Without predictions, folds must do.
    """
    kind, frames = run.first.split.kind, [fold.predictions for fold in run.folds]
    images = [set(frame["image"]) for frame in frames if frame is not None]
    if len(images) == len(frames):
        if kind == "image_random" or all(one == images[0] for one in images):  # a single fold is all of them
            return Basis.PROMPTS
        if kind == "file" and len(set().union(*images)) == sum(map(len, images)):
            return Basis.DISJOINT
    return Basis.DISJOINT if kind == "kfold" else Basis.OVERLAPPING


def over_seeds(values: Mapping[Part, Any]) -> dict[int, Any]:
    """Returns the value of each fold, number or array: the mean over its seeds, which are no folds of their own."""
    of_fold: dict[int, list[Any]] = {}
    for (fold, _), value in values.items():
        of_fold.setdefault(fold, []).append(value)
    return {fold: np.mean(of_seeds, axis=0) for fold, of_seeds in of_fold.items()}


class HeldOut:
    """The predictions of a run, in parts that can be measured.

    Prompts are drawn by their group: all that a split keeps together stays together. Images without a score in a target
    do not count in it. Of preferences, what is measured is pairs: they stand in the place of images, and ties do not
    count. `segments` are the distinct labels of the images, [""] where nothing labels them.
    """

    def __init__(self, run: RunResult, *, label: Label | None = None, like: "HeldOut | None" = None) -> None:
        """Takes a run, what labels its images, and the run it is compared with, whose groups and draws are used."""
        self.basis, self._like = basis_of(run), like
        self.overlap = run.test_to_train if self.basis is Basis.OVERLAPPING else 0.0  # see `paired_test`
        whole = {fold.number for fold in run.folds if fold.predictions is not None}  # with those of all its seeds
        found = {part: one.measured for part, one in run.results.items() if part[0] in whole}
        self._frames = {part: frame for part, frame in found.items() if frame is not None}
        labels = {n: [""] * len(frame) if label is None else label(frame) for n, frame in self._frames.items()}
        self.segments = sorted(set().union(*labels.values()), key=_natural)
        number = {text: i for i, text in enumerate(self.segments)}
        self._segment_of = {n: np.array([number[text] for text in texts], int) for n, texts in labels.items()}

    @functools.cached_property
    def _cluster_of(self) -> dict[str, int]:
        """The cluster of each image."""
        if self._like is not None:
            return self._like._cluster_of
        group_of: dict[str, str] = {}
        for frame in self._frames.values():
            group_of |= zip(frame["image"], frame["group"], strict=True)
        number = clusters_of(group_of.values())
        return {image: number[group] for image, group in group_of.items()}

    @functools.cached_property
    def _draws(self) -> np.ndarray:
        return self._like._draws if self._like is not None else draw(1 + max(self._cluster_of.values(), default=0))

    @functools.cached_property
    def _prompts(self) -> dict[Part, np.ndarray]:
        """The prompts of each part as numbers; those of one group that differ in case and white space are one."""
        keys = {n: frame["group"] + "\0" + frame["prompt"].map(clean) for n, frame in self._frames.items()}
        return {n: pd.factorize(key)[0] for n, key in keys.items()}

    def parts(self, target: str, checkpoint: str, segment: int | None = None) -> dict[Part, Images]:
        """Returns the images of each fold and seed, or of one segment, with a score; those without are left out."""
        out = {}
        for part, frame in self._frames.items():
            mos, predictions = (frame[f"{name}_{target}"].to_numpy() for name in ("mos", checkpoint))
            segments = self._segment_of[part]
            rows = np.flatnonzero(np.isfinite(mos) & (True if segment is None else segments == segment))
            names = frame["image"].to_numpy()[rows] if self.basis is Basis.PROMPTS else ()
            clusters = np.array([self._cluster_of[name] for name in names], dtype=np.int64)
            if len(rows):
                out[part] = Images(predictions[rows], mos[rows], self._prompts[part][rows], segments[rows], clusters)
        return out

    def resampled(self, metric: str, parts: Mapping[Part, Images]) -> Resampled | None:
        """Returns the mean of a metric over folds in each draw of prompts; None where it is the folds that tell."""
        if self.basis is not Basis.PROMPTS or metric not in DRAWN or not parts:
            return None
        values = {part: resampled(DRAWN[metric], images, self._draws) for part, images in parts.items()}
        drawn = np.unique(np.concatenate([images.clusters for images in parts.values()]))
        return Resampled(np.mean([*over_seeds(values).values()], axis=0), len(drawn) - 1)

    def spread(self, metric: str, parts: Mapping[Part, Images], values: Mapping[int, float]) -> Spread:
        """Returns the spread of a metric, whose values by fold these are."""
        limits, drawn = LIMITS.get(metric, (-math.inf, math.inf)), self.resampled(metric, parts)
        return describe(values.values(), overlap=self.overlap, limits=limits, resampled=drawn)


def _natural(label: str) -> list[str | int]:
    """Orders "9 to 12 words" before "13 to 40 words"."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]{1,9})", label))]
