"""What all image encoders have in common."""

from __future__ import annotations

import torch
from torch import nn


class ImageTower(nn.Module):
    """Images -> token map and pooled feature. It trains, or stays as it is, BatchNorm statistics included.

    Attributes:
        channels: C of the token map.
        embed_dim: length D of the pooled feature.
        num_features: the same, under the name that heads ask for.
        grid: (h, w) of the token map.
    """

    channels: int
    embed_dim: int
    num_features: int
    grid: tuple[int, int]

    def __init__(self) -> None:
        super().__init__()
        self.frozen = False

    def freeze(self) -> None:
        """Keeps the tower as it is, for good."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> ImageTower:
        """A frozen tower stays in evaluation mode, so that its BatchNorm statistics do not move either."""
        return super().train(mode and not self.frozen)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the token map (B, C, h, w) and the pooled feature (B, D) of normalised images (B, 3, S, S)."""
        raise NotImplementedError
