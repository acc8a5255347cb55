"""Where a run is wrong: held-out images and groups by the distance of prediction and MOS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ipiqa.evaluation.results import RunResult


@dataclass(frozen=True)
class ImageResidual:
    """An image with its prediction, the mean over the folds that hold it out. Residual = prediction - MOS."""

    image: str
    prompt: str
    group: str
    mos: float
    prediction: float

    @property
    def residual(self) -> float:
        return self.prediction - self.mos


@dataclass(frozen=True)
class GroupResidual:
    """A group: how many of its images were held out, mean residual and mean absolute residual."""

    group: str
    prompt: str
    num_images: int
    mean: float
    mean_absolute: float


def pooled(run: RunResult, target: str, moment: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (predictions, MOS) of all held-out images of all folds; an image held out twice is there twice."""
    t = run.targets.index(target)
    parts = [fold.predictions for fold in run.folds if fold.predictions is not None]
    parts = [part for part in parts if moment in part.found and len(part.images)]
    if not parts:
        return np.empty(0), np.empty(0)
    return np.concatenate([part.found[moment][:, t] for part in parts]), np.concatenate(
        [part.mos[:, t] for part in parts]
    )


def image_residuals(run: RunResult, target: str, moment: str) -> list[ImageResidual]:
    """Returns every held-out image with a prediction once, from the most over-rated to the most under-rated."""
    t = run.targets.index(target)
    found: dict[tuple[str, float], list[float]] = {}
    words: dict[tuple[str, float], tuple[str, str]] = {}
    for fold in run.folds:
        part = fold.predictions
        if part is None or moment not in part.found:
            continue
        for i, image in enumerate(part.images):
            key = image, float(part.mos[i, t])  # a table may hold two rows of one name
            found.setdefault(key, []).append(float(part.found[moment][i, t]))
            words[key] = part.prompts[i], part.groups[i]
    rows = [
        ImageResidual(image, *words[image, mos], mos, float(np.mean(values))) for (image, mos), values in found.items()
    ]
    rows = [row for row in rows if math.isfinite(row.residual)]
    return sorted(rows, key=lambda row: (-row.residual, row.image))


def group_residuals(images: Sequence[ImageResidual]) -> list[GroupResidual]:
    """Returns the groups of two images and more, the one with the largest mean absolute residual first."""
    members: dict[str, list[ImageResidual]] = {}
    for row in images:
        members.setdefault(row.group, []).append(row)
    groups = [
        GroupResidual(
            group=name,
            prompt=min(row.prompt for row in rows),
            num_images=len(rows),
            mean=float(np.mean([row.residual for row in rows])),
            mean_absolute=float(np.mean([abs(row.residual) for row in rows])),
        )
        for name, rows in members.items()
        if len(rows) > 1
    ]
    return sorted(groups, key=lambda group: (-group.mean_absolute, group.group))
