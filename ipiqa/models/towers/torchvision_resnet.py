"""torchvision's ResNets, trained on ImageNet or from scratch: an image tower that has never seen a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ipiqa.errors import DataError
from ipiqa.models.clip_weights import load_exactly
from ipiqa.models.towers.image_tower import STAGES, WHERE, ImageTower, check_size, run_stage, stage_depth
from ipiqa.models.weights import read_tensors
from ipiqa.registry import FilePath, register

STRIDE = 32  # pixels a token of the last stage stands for, in each direction


@register("image_encoder", "torchvision_resnet")
class TorchvisionResNet(ImageTower):
    """A ResNet with global average pooling."""

    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet
    num_layers = len(STAGES)

    def __init__(
        self,
        image_size: int,
        *,
        depth: Literal[18, 34, 50, 101, 152] = 50,
        weights: FilePath | None = None,
        freeze: Literal["none", "all"] = "none",
    ) -> None:
        """Builds the tower.

        Args:
            image_size: side of the square input in pixels, a multiple of 32.
            depth: number of layers.
            weights: file with torchvision's tensor names, or a tag such as "IMAGENET1K_V2", which torchvision
                downloads; None draws them at random.
            freeze: "all" keeps the tower as it is, BatchNorm statistics included.

        Raises:
            DataError: the weights cannot be read or downloaded, or are of another architecture.
        """
        super().__init__()
        from torchvision import models

        architecture = f"resnet{depth}"
        tags = [str(tag.name) for tag in models.get_model_weights(architecture)]
        tag = weights if weights in tags else None
        try:
            tower = models.get_model(architecture, weights=tag)
        except OSError as error:
            raise DataError(
                f"{WHERE}.weights: torchvision could not load {tag!r} of {architecture} ({error}). "
                "Without a network, download the file and give its path."
            ) from None
        if weights is not None and tag is None:
            if not Path(weights).exists():
                raise DataError(
                    f"{WHERE}.weights: '{weights}' does not exist. Give a file, or a tag of torchvision's: "
                    f"{', '.join(tags)}."
                )
            load_exactly(tower, read_tensors(weights, f"{WHERE}.weights"), f"{WHERE}.weights: '{weights}'")
        self.channels = self.embed_dim = self.num_features = tower.fc.in_features
        self.grid = (check_size(image_size, STRIDE, "a ResNet"),) * 2
        self.num_convolutions = depth
        self.grad_checkpointing = False
        tower.fc = nn.Identity()
        self.tower = tower
        if freeze == "all":
            self.freeze()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the token map (B, C, S/32, S/32) and its mean (B, C).

        Args:
            images: (B, 3, S, S), normalised.
        """
        tower = self.tower
        x = images.contiguous(memory_format=torch.channels_last)
        x = tower.maxpool(tower.relu(tower.bn1(tower.conv1(x))))
        for name in STAGES[1:]:
            x = run_stage(tower, name, x, repeat=self.grad_checkpointing)
        return x, x.mean(dim=(2, 3))

    def depth(self, name: str) -> int:
        return stage_depth(name)

    def section(self) -> dict[str, Any]:
        """Returns the section that builds this tower without any file."""
        freeze = "all" if self.frozen else "none"
        return {"name": "torchvision_resnet", "depth": self.num_convolutions, "freeze": freeze}
