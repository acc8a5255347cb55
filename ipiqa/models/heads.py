"""Joint feature -> one score per target."""

import torch
from torch import nn

from ipiqa.errors import ConfigError
from ipiqa.registry import register


class ScoreLayer(nn.Linear):
    """The last linear layer, one output per target, in fp32 whatever autocast says: bf16 has 8 bits, MOS need more."""

    per_target = ("weight", "bias")  # parameters whose rows are the targets, in order

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns scores (B, num_targets) for features (B, F)."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.to(self.weight.dtype))


@register("head", "mlp")
class MLPHead(nn.Module):
    """Dropout, linear, tanh, dropout, linear; the hidden layer is as wide as the feature (# reference)."""

    def __init__(self, num_features: int, num_targets: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout, self.dense = make_dropout(dropout), nn.Linear(num_features, num_features)
        self.out_proj = ScoreLayer(num_features, num_targets)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns scores (B, num_targets) in fp32 for features (B, F)."""
        x = torch.tanh(self.dense(self.dropout(features)))
        return self.out_proj(self.dropout(x))


@register("head", "linear")
class LinearHead(nn.Module):
    """Dropout and one linear layer."""

    def __init__(self, num_features: int, num_targets: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = make_dropout(dropout)
        self.out_proj = ScoreLayer(num_features, num_targets)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns scores (B, num_targets) in fp32 for features (B, F)."""
        return self.out_proj(self.dropout(features))


def make_dropout(probability: float) -> nn.Dropout:
    """Returns the layer of `model.head.dropout`; ConfigError where that is no probability."""
    if not 0 <= probability <= 1:
        raise ConfigError(f"model.head.dropout: {probability!r} is out of range. Give a number from 0 to 1.")
    return nn.Dropout(probability)
