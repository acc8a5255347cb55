"""Regression of mean opinion scores."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import ConfigError
from ipiqa.metrics import aggregate, measure
from ipiqa.registry import lookup, register
from ipiqa.tasks import losses


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
        terms = [weight * losses.of_known(term, predictions, targets, known) for term, weight in self._terms]
        return torch.stack(terms).sum()

    def step(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        targets, known = batch["targets"], batch.get("known")
        if (observe := getattr(model, "observe", None)) is not None:  # solved, not descended: it must see the scores
            return self.loss(observe(batch["images"], targets, known), targets, known)
        return self.loss(model(batch["images"], batch["tokens"]), targets, known)

    def outputs(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns scores (B, T)."""
        return model(batch["images"], batch["tokens"])

    def measure(
        self, outputs: np.ndarray, table: AnnotationTable | None, rows: np.ndarray
    ) -> tuple[dict[str, Any], float]:
        assert table is not None
        metrics = measure(outputs, table.scores[rows], table.target_names)
        return metrics, aggregate(metrics)
