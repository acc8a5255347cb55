"""Losses between predicted and true scores, by name. Each takes (B, T) predictions and targets and gives a scalar."""

from collections.abc import Callable

import torch
from torch.nn import functional

from ipiqa.registry import register

EPSILON = 1e-8

register("loss", "mse")(functional.mse_loss)  # paper, section 3.4
register("loss", "l1")(functional.l1_loss)
register("loss", "huber")(functional.huber_loss)  # squared up to an error of 1, linear beyond


@register("loss", "smooth_l1")
def smooth_l1(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean of errors less 0.05, of those up to 0.1 their square times 5: `l1` with a smooth middle."""
    return functional.smooth_l1_loss(predictions, targets, beta=0.1)


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


@register("loss", "fidelity")
def fidelity(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean over pairs of 1 less the overlap of two probabilities that one image is better: from 0 to 1.

    The predicted one is that of Thurstone's model with a standard deviation of 1 in units of the score; the true one is
    0, 1, or 0.5 for equal scores (Tsai et al. 2007, FRank; as in Zhang et al. 2023, LIQE).
    """
    i, j = torch.triu_indices(len(targets), len(targets), 1, device=targets.device)
    true = (1 + torch.sign(targets[i] - targets[j])) / 2  # (P, T)
    found = torch.special.ndtr((predictions[i] - predictions[j]) / 2**0.5)
    overlap = (true * found + EPSILON).sqrt() + ((1 - true) * (1 - found) + EPSILON).sqrt()
    return (1 - overlap).sum() / max(overlap.numel(), 1)


@register("loss", "margin_rank")
def margin_rank(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean over pairs with different scores of what the better one's lead lacks of the true difference."""
    margin = targets[:, None] - targets[None]  # (B, B, T)
    lack = functional.relu(margin - (predictions[:, None] - predictions[None])) * (margin > 0)
    return lack.sum() / (margin > 0).sum().clamp(min=1)


@register("loss", "srcc")
def srcc(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns (1 - Spearman correlation over the batch) / 2, the mean over targets, with soft ranks of predictions.

    A soft rank sums sigmoids of differences, in units of a tenth of the predictions' standard deviation.
    """
    width = 0.1 * predictions.detach().std(dim=0, correction=0) + EPSILON  # (T,)
    soft = torch.sigmoid((predictions[:, None] - predictions[None]) / width).sum(dim=1)  # (B, T)
    return plcc(soft, torch.sign(targets[:, None] - targets[None]).sum(dim=1))


PAIRWISE = ("fidelity", "margin_rank", "rank")  # losses that compare two images, which may be of one prompt

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def of_known(loss: Loss, predictions: torch.Tensor, targets: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
    """Returns a loss over the targets that are known (B, T), None for all: target by target, weighted by how many are.

    For a loss that is a mean over single scores, that is the mean over the known ones; 0 where none is.
    """
    if known is None:
        return loss(predictions, targets)
    total = predictions.sum() * 0  # keeps the graph of a batch without any score
    for t in range(targets.shape[1]):
        if count := int(known[:, t].sum()):
            total = total + count * loss(predictions[known[:, t], t : t + 1], targets[known[:, t], t : t + 1])
    return total / known.sum().clamp(min=1)


def by_group(
    predictions: torch.Tensor, targets: torch.Tensor, groups: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns scores (B, T), and which are known, as (B, T * G): a column for each target and group of images (B,)."""
    is_in = groups[:, None] == groups.unique()  # (B, G)
    is_in = is_in & (is_in.sum(dim=0) > 1)  # an image alone has no pair
    known = ~targets.isnan()[:, :, None] & is_in[:, None]
    wide = [scores[:, :, None].expand_as(known).flatten(1) for scores in (predictions, targets)]
    return wide[0], wide[1], known.flatten(1)
