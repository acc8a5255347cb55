"""Losses between predicted and true scores, by name. Each takes (B, T) predictions and targets and gives a scalar."""

from collections.abc import Callable

import torch
from torch.nn import functional

from ipiqa.registry import register

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
