"""Regression of mean opinion scores."""

from __future__ import annotations

import math

import torch

from ipiqa.errors import ConfigError
from ipiqa.registry import lookup, register
from ipiqa.tasks import losses  # noqa: F401  (registers them)


@register("task", "quality_regression")
class QualityRegression:
    """Predicts the MOS of every target with one head (paper, section 3.4: mean squared error)."""

    def __init__(self, *, loss: str | dict[str, float] = "mse") -> None:
        """Takes the loss by name, or several with the weights they are summed with.

        Raises:
            ConfigError: no such loss, or a weight that is not above 0.
        """
        weights = {loss: 1.0} if isinstance(loss, str) else dict(loss)
        if not weights:
            raise ConfigError("task.loss: empty. Give a name such as mse, or weights such as {mse: 1, plcc: 0.5}.")
        self._terms = []
        for name, weight in weights.items():
            term = lookup("loss", name, "task.loss")
            is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not is_number or not 0 < weight < math.inf:
                raise ConfigError(f"task.loss.{name}: {weight!r} is no weight. Give a number above 0.")
            self._terms.append((term, float(weight)))

    def loss(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the weighted sum of the losses over a batch.

        Args:
            predictions: (B, T).
            targets: (B, T) MOS.
        """
        return torch.stack([weight * term(predictions, targets) for term, weight in self._terms]).sum()
