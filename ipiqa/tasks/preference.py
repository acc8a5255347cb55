"""Pairwise preferences: of two images of one prompt, the one that people chose is to score higher."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ipiqa.datasets.table import AnnotationTable
from ipiqa.metrics import CHOSEN, Images, plain
from ipiqa.processors.views import over_views
from ipiqa.registry import register


@register("task", "preference")
class Preference:
    """Learns scores whose differences within a prompt are the log odds of the choice (Bradley & Terry 1952)."""

    has_scores = True
    compares = True  # batches are of pairs: the dataset has to say the same

    def loss(self, scores: torch.Tensor, pairs: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Returns the mean over pairs of -log sigmoid(chosen - other); a tie counts half as a choice of each.

        Scores are (B, 1), pairs (P, 2) are places in them, and `chosen` (P,) is the share of the first of each pair.
        """
        ahead = scores[pairs[:, 0], 0] - scores[pairs[:, 1], 0]  # (P,)
        return (chosen * functional.softplus(-ahead) + (1 - chosen) * functional.softplus(ahead)).mean()

    def step(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.loss(self.outputs(model, batch), batch["pairs"], batch["chosen"])

    def outputs(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns scores (B, 1)."""
        return over_views(model, batch["images"], batch["tokens"])

    def measure(
        self, outputs: np.ndarray, table: AnnotationTable | None, rows: np.ndarray
    ) -> tuple[dict[str, Any], float]:
        """Returns the metrics of the pairs among the rows, which ascend, ties left out.

        The pair accuracy chooses the epoch, of several with the same the one with the least log loss.
        """
        assert table is not None and table.comparisons is not None
        among = table.comparisons.within(rows)
        places, chosen = np.searchsorted(rows, table.comparisons.rows[among]), table.comparisons.chosen[among]
        scores, decided = outputs[:, 0].astype(np.float64), chosen != 0.5
        ahead = (scores[places[:, 0]] - scores[places[:, 1]])[decided]
        pairs = Images(ahead, 2 * chosen[decided] - 1, np.zeros(len(ahead), int))
        metrics = {name: plain(metric, pairs) for name, metric in CHOSEN.items()}
        notes, value = [], metrics["accuracy"] - 1e-9 * min(metrics["log_loss"], 100)  # far below one pair of a million
        if not math.isfinite(value):
            why = "scores are not finite" if len(ahead) else "of the held-out pairs none was decided"
            notes, value = [f"pair accuracy is undefined: {why}"], -math.inf
        return {table.target_names[0]: metrics | {"notes": notes}}, value
