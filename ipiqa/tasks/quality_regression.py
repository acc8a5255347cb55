"""Regression of mean opinion scores."""

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import ConfigError
from ipiqa.metrics import aggregate, measure
from ipiqa.processors.views import over_views
from ipiqa.registry import lookup, register
from ipiqa.tasks import losses

Pairs = Literal["batch", "prompt"]


@register("task", "quality_regression")
class QualityRegression:
    """Predicts the MOS of every target with one head (paper, section 3.4: mean squared error)."""

    has_scores = True

    def __init__(self, *, loss: str | dict[str, float] = "mse", pairs: Pairs = "batch") -> None:
        """Takes the loss by name, or several with the weights, above 0, that they are summed with.

        `pairs`: whether losses that compare two images take all of a batch, or those of one prompt.
        """
        weights = {loss: 1.0} if isinstance(loss, str) else loss
        if not weights:
            raise ConfigError("task.loss: empty. Give a name such as mse, or weights such as {mse: 1, plcc: 0.5}.")
        self._terms = [(name, lookup("loss", name, "task.loss"), float(weight)) for name, weight in weights.items()]
        for name, weight in weights.items():
            if not 0 < weight < math.inf:
                raise ConfigError(f"task.loss.{name}: {weight!r} is no weight. Give a number above 0.")
        self.pairs = pairs
        if pairs == "prompt" and not {*weights} & {*losses.PAIRWISE}:
            wanted = f"{', '.join(losses.PAIRWISE[:-1])} or {losses.PAIRWISE[-1]}"
            raise ConfigError(f"task.pairs: 'prompt', but no loss compares pairs. Add {wanted}, or take pairs: batch.")

    def loss(
        self, predictions: torch.Tensor, targets: torch.Tensor, known: torch.Tensor | None = None,
        groups: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Returns the weighted sum of the losses of predictions (B, T) against MOS (B, T), or those that are known.

        With `groups` (B,), those that compare two images compare images of one group alone.
        """
        values = []
        for name, term, weight in self._terms:
            scores = predictions, targets, known
            if groups is not None and name in losses.PAIRWISE:
                scores = losses.by_group(predictions, targets, groups)
            values.append(weight * losses.of_known(term, *scores))
        return torch.stack(values).sum()

    def groups(self, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """Returns numbers (B,) that are the same for images of one prompt, None where all images are compared."""
        if self.pairs == "batch":
            return None
        return torch.unique(batch["tokens"].flatten(1), dim=0, return_inverse=True)[1]  # tokens, or features of them

    def step(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        targets, known = batch["targets"], batch.get("known")
        if (observe := getattr(model, "observe", None)) is not None:  # solved, not descended: it must see the scores
            return self.loss(observe(batch["images"], targets, known), targets, known)
        predictions = over_views(model, batch["images"], batch["tokens"])
        return self.loss(predictions, targets, known, self.groups(batch))

    def outputs(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns scores (B, T)."""
        return over_views(model, batch["images"], batch["tokens"])

    def measure(
        self, outputs: np.ndarray, table: AnnotationTable | None, rows: np.ndarray
    ) -> tuple[dict[str, Any], float]:
        assert table is not None
        metrics = measure(outputs, table.scores[rows], table.target_names)
        return metrics, aggregate(metrics)
