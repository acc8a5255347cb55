"""Regression of mean opinion scores, and the losses for it by name.

Each loss takes predicted and true scores (B, T) and gives a scalar.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import ConfigError
from ipiqa.metrics import aggregate, measure
from ipiqa.registry import lookup, register

EPSILON = 1e-8

register("loss", "mse")(functional.mse_loss)  # paper, section 3.4
register("loss", "l1")(functional.l1_loss)
register("loss", "huber")(functional.huber_loss)  # squared up to an error of 1, linear beyond


@register("loss", "plcc")
def plcc(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns (1 - Pearson correlation over the batch) / 2, the mean over targets: from 0 to 1.

    It fixes neither level nor scale of the predictions: add a little mse where they must be in units of the MOS.
    """
    a, b = predictions - predictions.mean(dim=0), targets - targets.mean(dim=0)  # (B, T)
    correlation = (a * b).sum(dim=0) / (a.norm(dim=0) * b.norm(dim=0) + EPSILON)  # (T,)
    return ((1 - correlation) / 2).mean()


@register("loss", "rank")
def rank(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean of log(1 + exp(-d)), d by how much the better of two images of the batch is predicted higher.

    All pairs of images with different scores count, target by target (Burges et al. 2005, RankNet).
    """
    is_better = (targets[:, None] > targets[None]).to(predictions.dtype)  # (B, B, T)
    ahead = predictions[:, None] - predictions[None]  # (B, B, T)
    return (functional.softplus(-ahead) * is_better).sum() / is_better.sum().clamp(min=1)


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def of_known(loss: Loss, predictions: torch.Tensor, targets: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Returns a loss over the targets that are known (B, T): taken target by target, weighted by how many are.

    For a loss that is a mean over single scores, that is the mean over the known ones; 0 where none is.
    """
    total = predictions.sum() * 0  # keeps the graph of a batch without any score
    for t in range(targets.shape[1]):
        if count := int(known[:, t].sum()):
            total = total + count * loss(predictions[known[:, t], t : t + 1], targets[known[:, t], t : t + 1])
    return total / known.sum().clamp(min=1)


@register("task", "quality_regression")
class QualityRegression:
    """Predicts the MOS of every target with one head (paper, section 3.4: mean squared error)."""

    has_scores = True

    def __init__(self, *, loss: str | dict[str, float] = "mse") -> None:
        """Takes the loss by name, or several with the weights, above 0, that they are summed with."""
        weights = {loss: 1.0} if isinstance(loss, str) else loss
        if not weights:
            raise ConfigError("task.loss: empty. Give a name such as mse, or weights such as {mse: 1, plcc: 0.5}.")
        self._terms = [(lookup("loss", name, "task.loss"), float(weight)) for name, weight in weights.items()]
        for name, weight in weights.items():
            if not 0 < weight < math.inf:
                raise ConfigError(f"task.loss.{name}: {weight!r} is no weight. Give a number above 0.")

    def loss(self, predictions: torch.Tensor, targets: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the weighted sum of the losses of predictions (B, T) against MOS (B, T), or those that are known."""
        if known is None:
            return torch.stack([weight * term(predictions, targets) for term, weight in self._terms]).sum()
        terms = [weight * of_known(term, predictions, targets, known) for term, weight in self._terms]
        return torch.stack(terms).sum()

    def step(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.loss(model(batch["images"], batch["tokens"]), batch["targets"], batch.get("known"))

    def outputs(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns scores (B, T)."""
        return model(batch["images"], batch["tokens"])

    def measure(
        self, outputs: np.ndarray, table: AnnotationTable | None, rows: np.ndarray
    ) -> tuple[dict[str, Any], float]:
        assert table is not None
        metrics = measure(outputs, table.scores[rows], table.target_names)
        return metrics, aggregate(metrics)
