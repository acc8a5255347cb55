"""What one batch means, what is measured, which epoch is best. Importing the package registers its parts."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ipiqa.datasets.table import AnnotationTable
from ipiqa.tasks import distribution, image2prompt, losses, preference, quality_regression

__all__ = ["Task", "distribution", "image2prompt", "losses", "preference", "quality_regression"]

Batch = dict[str, torch.Tensor]  # images (B, 3, S, S) normalised, tokens (B, context), targets (B, T), rows (B,)


class Task(Protocol):
    """What a model is trained for."""

    has_scores: bool  # whether it needs the scores of a dataset, and so is cross-validated; otherwise it pre-trains

    def step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Returns the loss of a batch, a scalar."""

    def outputs(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Returns what is measured of a batch, (B, K) float32."""

    def measure(
        self, outputs: np.ndarray, table: AnnotationTable | None, rows: np.ndarray
    ) -> tuple[dict[str, Any], float]:
        """Returns (metrics of outputs (N, K), the value by which the best epoch is chosen, higher is better).

        The rows (N,) are row numbers of the table, which is None where samples are streamed.
        """
