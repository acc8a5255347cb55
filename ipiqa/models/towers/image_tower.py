"""What image encoders have in common, and torchvision's ResNets: towers that have never seen a prompt."""

from __future__ import annotations

import contextlib
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ipiqa.errors import ConfigError, DataError
from ipiqa.models.clip_weights import load_exactly
from ipiqa.models.pooling import resize_positions
from ipiqa.models.towers.transformers import merged_tensors
from ipiqa.models.weights import Tensors, one_line, read_tensors, renamed
from ipiqa.registry import FilePath, register

WHERE = "model.image_encoder"
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")  # of a ResNet, each of which halves the map
ImageFeatures = tuple[torch.Tensor, torch.Tensor]  # token map (B, C, h, w), pooled feature (B, D)
STRIDE = 32  # pixels a token of a ResNet's last stage stands for, in each direction


class ImageTower(nn.Module):
    """Images -> token map and pooled feature. It trains, or stays as it is, BatchNorm statistics included."""

    channels: int  # C of the token map
    embed_dim: int  # length D of the pooled feature
    grid: tuple[int, int]  # (h, w) of the token map
    num_layers: int = 1  # depth of everything behind the tower, see `depth`
    frozen: bool = False
    file_names: ClassVar[Mapping[str, str]] = {"": ""}  # prefixes of tensors' names, in a file -> here
    _section: dict[str, Any]  # builds the tower without any file
    _parts: tuple[int, ...] = ()

    @property
    def parts(self) -> tuple[int, ...]:
        """Lengths of the parts of the pooled feature that are of one kind each; of most towers there is one."""
        return self._parts or (self.embed_dim,)

    @property
    def num_features(self) -> int:
        """Length of the pooled feature, under the name that heads ask for."""
        return self.embed_dim

    def section(self) -> dict[str, Any]:
        """Returns the section that builds this tower without any file."""
        return {"freeze": "all" if self.frozen else "none"} | self._section

    def clip_tensors(self) -> Tensors:
        """Returns the tensors under the names that files of such towers have; `weights` takes them back."""
        return renamed(merged_tensors(self), {own: name for name, own in self.file_names.items()})

    def load_tensors(self, tensors: Tensors | None, weights: str | None) -> None:
        """Takes its part of the tensors in the file `weights`, positions resized to its map; None leaves all random."""
        if tensors is None:
            return
        own = {name: value for name, value in tensors.items() if name.startswith(tuple(self.file_names))}
        own = renamed(own, self.file_names)
        for name in own:
            if name.endswith("positional_embedding"):
                own[name] = resize_positions(own[name].float(), self.grid)
        load_exactly(self, own, f"{WHERE}.weights: '{weights}'")

    def freeze(self) -> None:
        """Keeps the tower as it is, for good."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ImageTower:
        """A frozen tower stays in evaluation mode, so that its BatchNorm statistics do not move either."""
        return super().train(mode and not self.frozen)

    def depth(self, name: str) -> int:
        """Returns how many layers lie before one of its parameters, for run.layer_decay: 0 to num_layers."""
        return 0

    def forward(self, images: torch.Tensor | ImageFeatures) -> ImageFeatures:
        """Returns what `encode` does; stored outputs, given in the place of images, pass through."""
        return images if isinstance(images, tuple) else self.encode(images)

    @abstractmethod
    def encode(self, images: torch.Tensor) -> ImageFeatures:
        """Returns the token map (B, C, h, w) and the pooled feature (B, D) of normalised images (B, 3, S, S)."""


class ResNetTower(ImageTower):
    """A ResNet in `tower`. With `grad_checkpointing`, stages run again for the backward pass: less memory."""

    num_layers = len(STAGES)

    def __init__(self, tower: Any, image_size: int, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.tower = tower.to(memory_format=torch.channels_last)
        self.channels, self.embed_dim = channels, embed_dim
        self.grid = (check_size(image_size, STRIDE, "a ResNet"),) * 2
        self.grad_checkpointing = False

    def token_map(self, images: torch.Tensor, stem: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Returns the map (B, C, S/32, S/32) of images (B, 3, S, S); the stem comes before the stages of blocks."""
        x = images.contiguous(memory_format=torch.channels_last)
        for stage in (stem, *(getattr(self.tower, name) for name in STAGES[1:])):
            if self.grad_checkpointing and torch.is_grad_enabled():
                contexts = lambda: (contextlib.nullcontext(), _same_norms(self.tower))  # noqa: E731
                x = checkpoint(stage, x, use_reentrant=False, context_fn=contexts)
            else:
                x = stage(x)
        return x

    @staticmethod
    def depth(name: str) -> int:
        stage = re.match(r"tower\.layer(\d)", name)
        return int(stage[1]) if stage else 0 if name.startswith("tower.") else len(STAGES)


def check_size(image_size: int, stride: int, what: str) -> int:
    """Returns the side of the token map; ConfigError where the image is not a whole number of tokens wide."""
    if image_size % stride:
        near = max(round(image_size / stride), 1) * stride
        problem = f"{image_size} is not a multiple of {stride} pixels, as {what} needs"
        raise ConfigError(f"image_size: {problem}. Give {near}.")
    return image_size // stride


@contextlib.contextmanager
def _same_norms(tower: nn.Module) -> Iterator[None]:
    """The second forward pass of a stage must not move the BatchNorm statistics a second time."""
    norms: list[Any] = [m for m in tower.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


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

    def encode(self, images: torch.Tensor) -> ImageFeatures:
        """Returns the token map (B, C, S/32, S/32) and its mean (B, C) of normalised images (B, 3, S, S)."""
        token_map = self.token_map(images, self._stem)
        return token_map, token_map.mean(dim=(2, 3))

    def _stem(self, images: torch.Tensor) -> torch.Tensor:
        return self.tower.maxpool(self.tower.relu(self.tower.bn1(self.tower.conv1(images))))
