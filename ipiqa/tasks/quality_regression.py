"""Regression of mean opinion scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional

from ipiqa.registry import register

LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": functional.huber_loss,
}


@register("task", "quality_regression")
class QualityRegression:
    """Predicts the MOS of every target with one head and one loss (paper, section 3.4: mean squared error)."""

    def __init__(self, *, loss: Literal["mse", "l1", "huber"] = "mse") -> None:
        self._loss = LOSSES[loss]

    def loss(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss over a batch and its targets.

        Args:
            predictions: (B, T).
            targets: (B, T) MOS.
        """
        return self._loss(predictions, targets)
