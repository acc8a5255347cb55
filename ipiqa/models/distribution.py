"""A head that spreads probability over the scale of each target instead of naming one score."""

from collections.abc import Sequence

import torch
from torch import nn

from ipiqa.datasets.table import Target
from ipiqa.errors import ConfigError
from ipiqa.models.heads import make_dropout
from ipiqa.registry import register


@register("head", "distribution")
class DistributionHead(nn.Module):
    """Probabilities of scores over the scale of each target, and as prediction their mean; for task `distribution`."""

    gives_distribution = True
    per_target = ("weight", "bias")
    centres: torch.Tensor  # (T, K) the scores that have a probability

    def __init__(self, num_features: int, targets: Sequence[Target], *, bins: int = 10, dropout: float = 0.5) -> None:
        """Makes layers for K `bins`, evenly from end to end of each target's scale."""
        super().__init__()
        if not 2 <= bins <= 1000:
            raise ConfigError(f"model.head.bins: {bins} is out of range. Give 2 to 1000.")
        self.dropout, self.dense = make_dropout(dropout), nn.Linear(num_features, num_features)
        bound = num_features**-0.5  # as PyTorch draws a linear layer
        self.weight = nn.Parameter(torch.empty(len(targets), bins, num_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(len(targets), bins).uniform_(-bound, bound))
        self.register_buffer("centres", torch.stack([levels(target, bins) for target in targets]), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns scores (B, T), fp32, for features (B, F).

        In training, (B, T, 2, K): the logarithms of the probabilities, and the scores they belong to.
        """
        x = self.dropout(torch.tanh(self.dense(self.dropout(features))))
        with torch.autocast(features.device.type, enabled=False):
            logits = torch.einsum("bf,tkf->btk", x.float(), self.weight) + self.bias
            if self.training:
                return torch.stack([logits.log_softmax(dim=2), self.centres.expand_as(logits)], dim=2)
            return (logits.softmax(dim=2) * self.centres).sum(dim=2)


def levels(target: Target, count: int) -> torch.Tensor:
    """Returns scores (count,) evenly over the scale of a target; ConfigError where the scale is not known."""
    if target.low is None or target.high is None:
        problem = f"the scale of the target {target.name!r} is not known, over which its levels are laid"
        raise ConfigError(f"model: {problem}. Give its lowest and highest score with the dataset.")
    return torch.linspace(target.low, target.high, count)
