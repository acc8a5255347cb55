"""What all image encoders have in common."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ipiqa.errors import ConfigError
from ipiqa.processors.image import CLIP_MEAN, CLIP_STD

WHERE = "model.image_encoder"
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")  # of a ResNet, each of which halves the map


class ImageTower(nn.Module):
    """Images -> token map and pooled feature. It trains, or stays as it is, BatchNorm statistics included.

    Attributes:
        channels: C of the token map.
        embed_dim: length D of the pooled feature.
        num_features: the same, under the name that heads ask for.
        grid: (h, w) of the token map.
        mean: of each colour channel over the images it was trained on, on the scale 0 to 1.
        std: likewise.
        num_layers: depth of everything behind the tower, see `depth`.
    """

    channels: int
    embed_dim: int
    num_features: int
    grid: tuple[int, int]
    mean: list[float] = CLIP_MEAN
    std: list[float] = CLIP_STD
    num_layers: int = 1

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

    def depth(self, name: str) -> int:
        """Returns how many layers lie before one of its parameters, for run.layer_decay: 0 to num_layers."""
        del name
        return 0

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the token map (B, C, h, w) and the pooled feature (B, D) of normalised images (B, 3, S, S)."""
        raise NotImplementedError


def check_size(image_size: int, stride: int, what: str) -> int:
    """Returns the side of the token map.

    Raises:
        ConfigError: the image is not a whole number of tokens wide.
    """
    if image_size % stride:
        near = max(round(image_size / stride), 1) * stride
        raise ConfigError(
            f"image_size: {image_size} is not a multiple of {stride} pixels, as {what} needs. Give {near}."
        )
    return image_size // stride


def stage_depth(name: str) -> int:
    """Returns the depth of a parameter of a ResNet in `tower`: 0 in the stem, 5 behind the last stage.

    >>> [stage_depth(name) for name in ("tower.conv1.weight", "tower.layer3.0.conv1.weight", "pool.q_proj.weight")]
    [0, 3, 5]
    """
    part, _, rest = name.partition(".")
    stage = rest.split(".")[0]
    return (STAGES.index(stage) if stage in STAGES else 0) if part == "tower" else len(STAGES)


def run_stage(tower: nn.Module, name: str, x: torch.Tensor, *, repeat: bool) -> torch.Tensor:
    """Returns what a stage of a tower makes of x; with `repeat`, it is run again for the backward pass: less memory."""
    stage: Any = getattr(tower, name)
    if repeat and torch.is_grad_enabled():
        stage = functools.partial(
            checkpoint, stage, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _same_norms(tower))
        )
    return stage(x)


@contextlib.contextmanager
def _same_norms(tower: nn.Module) -> Iterator[None]:
    """The second forward pass of a stage must not move the BatchNorm statistics a second time."""
    norms: list[Any] = [m for m in tower.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
