"""torchvision's ResNets, trained on ImageNet or from scratch: an image tower that has never seen a prompt."""

from typing import ClassVar, Literal

import torch
from torch import nn

from ipiqa.errors import DataError
from ipiqa.models.towers.image_tower import WHERE, ResNetTower
from ipiqa.models.weights import one_line, read_tensors
from ipiqa.registry import FilePath, register


@register("image_encoder", "torchvision_resnet")
class TorchvisionResNet(ResNetTower):
    """A ResNet with global average pooling."""

    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet
    file_names: ClassVar = {"": "tower."}

    def __init__(
        self, image_size: int, *, depth: Literal[18, 34, 50, 101, 152] = 50, weights: FilePath | None = None,
        freeze: Literal["none", "all"] = "none",
    ) -> None:  # fmt: skip
        """Builds the tower; DataError where the weights cannot be read or downloaded, or do not fit.

        Args:
            image_size: side of the square input in pixels, a multiple of 32.
            depth: number of layers.
            weights: file with torchvision's tensor names, or a tag such as "IMAGENET1K_V2", which torchvision
                downloads; None draws them at random.
            freeze: "all" keeps the tower as it is, BatchNorm statistics included.
        """
        from torchvision import models

        architecture = f"resnet{depth}"
        tags = [str(tag.name) for tag in models.get_model_weights(architecture)]
        is_tag = weights in tags
        try:
            tower = models.get_model(architecture, weights=weights if is_tag else None)
        except OSError as error:
            problem = f"torchvision could not load {weights!r} of {architecture} ({one_line(error)})"
            remedy = "Without a network, download the file and give its path."
            raise DataError(f"{WHERE}.weights: {problem}. {remedy}") from None
        channels, tower.fc = tower.fc.in_features, nn.Identity()
        super().__init__(tower, image_size, channels, channels)
        if weights is not None and not is_tag:
            hint = f"Give a file, or a tag of torchvision's: {', '.join(tags)}."
            tensors = read_tensors(weights, f"{WHERE}.weights", hint=hint)
            self.load_tensors({n: v for n, v in tensors.items() if not n.startswith("fc.")}, weights)
        self._section = {"name": "torchvision_resnet", "depth": depth}
        if freeze == "all":
            self.freeze()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the token map (B, C, S/32, S/32) and its mean (B, C) of normalised images (B, 3, S, S)."""
        token_map = self.token_map(images, self._stem)
        return token_map, token_map.mean(dim=(2, 3))

    def _stem(self, images: torch.Tensor) -> torch.Tensor:
        return self.tower.maxpool(self.tower.relu(self.tower.bn1(self.tower.conv1(images))))
