"""Joint feature -> one score per target."""

from __future__ import annotations

import torch
from torch import nn

from ipiqa.errors import ConfigError
from ipiqa.registry import register


@register("head", "mlp")
class MLPHead(nn.Module):
    """Dropout, linear, tanh, dropout, linear; the hidden layer is as wide as the feature (# reference)."""

    def __init__(self, num_features: int, num_targets: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = _dropout(dropout)
        self.dense = nn.Linear(num_features, num_features)
        self.out_proj = nn.Linear(num_features, num_targets)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns scores (B, num_targets) in fp32 for features (B, F)."""
        x = torch.tanh(self.dense(self.dropout(features)))
        return self.out_proj(self.dropout(x)).float()


@register("head", "linear")
class LinearHead(nn.Module):
    """Dropout and one linear layer."""

    def __init__(self, num_features: int, num_targets: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = _dropout(dropout)
        self.out_proj = nn.Linear(num_features, num_targets)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns scores (B, num_targets) in fp32 for features (B, F)."""
        return self.out_proj(self.dropout(features)).float()


def _dropout(probability: float) -> nn.Dropout:
    if not 0 <= probability <= 1:
        raise ConfigError(f"model.head.dropout: {probability!r} is out of range. Give a number from 0 to 1.")
    return nn.Dropout(probability)
