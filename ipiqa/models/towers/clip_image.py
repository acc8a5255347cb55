"""CLIP's convolutional image tower: images -> token map and pooled feature."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from ipiqa.errors import ConfigError, DataError
from ipiqa.models.clip_weights import architecture_settings, clip_tensors, load_exactly
from ipiqa.models.pooling import AttentionPool, resize_positions
from ipiqa.models.towers.image_tower import STAGES, WHERE, ImageTower, check_size, run_stage, stage_depth
from ipiqa.models.towers.open_clip_towers import OpenClipImageEncoder
from ipiqa.models.weights import Tensors, read_tensors
from ipiqa.registry import FilePath, register

STRIDE = 32  # pixels a token of the last stage stands for, in each direction


@dataclass(frozen=True)
class ResNetSizes:
    """Sizes of CLIP's ModifiedResNet."""

    layers: tuple[int, ...]  # residual blocks per stage
    width: int  # channels after the stem; the last stage has 32 times as many
    embed_dim: int  # length of the pooled feature
    heads: int  # of the attention pool

    def __post_init__(self) -> None:
        """Raises ConfigError where no tower has these sizes."""
        layers, width, embed_dim = self.layers, self.width, self.embed_dim
        if len(layers) != 4 or min(layers) < 1 or max(layers) > 256 or width < 2 or width % 2 or width > 512:
            raise ConfigError(
                f"{WHERE}: layers {list(layers)} and width {width} make no tower. "
                "Give four stages of 1 to 256 layers and an even width of 512 at most."
            )
        if not 1 <= embed_dim <= 2**13:
            raise ConfigError(f"{WHERE}.embed_dim: {embed_dim} is out of range. Give 1 to 8192.")
        if self.heads < 1 or width * 32 % self.heads:
            raise ConfigError(
                f"{WHERE}.heads: {self.heads} does not divide the {width * 32} channels of the token map."
            )

    @classmethod
    def of_tensors(cls, tensors: Tensors) -> ResNetSizes:
        """Returns the sizes of the tower whose tensors these are, named as in OpenAI's release."""
        stages = ({n.split(".")[2] for n in tensors if n.startswith(f"visual.layer{stage}.")} for stage in range(1, 5))
        width, embed_dim = (
            (*tensors[f"visual.{name}.weight"].shape, 0)[0] for name in ("layer1.0.conv1", "attnpool.c_proj")
        )
        return cls(tuple(map(len, stages)), width, embed_dim, heads=width * 32 // 64)

    @classmethod
    def of_architecture(cls, name: str) -> ResNetSizes:
        """Returns the sizes open_clip gives an architecture whose image tower is a ResNet.

        Raises:
            ConfigError: open_clip does not know the name.
        """
        settings = architecture_settings(name, WHERE)
        vision = settings["vision_cfg"]
        width = vision["width"]
        return cls(
            tuple(vision["layers"]), width, settings["embed_dim"], heads=width * 32 // vision.get("head_width", 64)
        )


class ImageEncoder(ImageTower):
    """CLIP's ResNet with its attention pool; the pool's single query is the mean token."""

    num_layers = len(STAGES)

    def __init__(self, sizes: ResNetSizes, image_size: int, *, freeze: bool = False) -> None:
        super().__init__()
        from open_clip.modified_resnet import ModifiedResNet

        # The tower's own pool would compute a query for every token: ours replaces it and bears the same names.
        tower = ModifiedResNet(list(sizes.layers), sizes.embed_dim, sizes.heads, image_size=STRIDE, width=sizes.width)
        del tower.attnpool
        self.tower = tower
        self.sizes = sizes
        self.channels = sizes.width * 32
        self.embed_dim = self.num_features = sizes.embed_dim
        self.grid = (check_size(image_size, STRIDE, "a ResNet"),) * 2
        num_positions = self.grid[0] * self.grid[1] + 1
        self.pool = AttentionPool(self.channels, self.channels, sizes.embed_dim, sizes.heads, num_positions)
        for projection in (self.pool.q_proj, self.pool.k_proj, self.pool.v_proj, self.pool.c_proj):
            nn.init.normal_(projection.weight, std=self.channels**-0.5)
        self.grad_checkpointing = False
        if freeze:
            self.freeze()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the token map (B, C, S/32, S/32) and the pooled feature (B, D).

        Args:
            images: (B, 3, S, S), normalised.
        """
        x = images.contiguous(memory_format=torch.channels_last)
        for name in STAGES:
            x = run_stage(self.tower, name, x, repeat=self.grad_checkpointing)
        return x, self.pool(x)

    def depth(self, name: str) -> int:
        return stage_depth(name)

    def section(self) -> dict[str, Any]:
        """Returns the section that builds this tower without any file."""
        sizes = asdict(self.sizes) | {"layers": list(self.sizes.layers)}
        return {"name": "clip_resnet", **sizes, "freeze": "all" if self.frozen else "none"}

    def load_clip(self, tensors: Tensors, where: str) -> None:
        """Takes the image tower out of a whole CLIP, resizing the positions to this image size.

        Raises:
            DataError: the tensors are of other sizes or some are missing.
        """
        own = {}
        for name, value in tensors.items():
            if name.startswith("visual.attnpool."):
                own["pool." + name.removeprefix("visual.attnpool.")] = value
            elif name.startswith("visual."):
                own["tower." + name.removeprefix("visual.")] = value
        if "pool.positional_embedding" in own:
            own["pool.positional_embedding"] = resize_positions(own["pool.positional_embedding"].float(), self.grid)
        load_exactly(self, own, where)

    def clip_tensors(self) -> Tensors:
        """Returns the tensors under the names of OpenAI's release; `load_clip` takes them back."""
        return {
            name.replace("pool.", "visual.attnpool.", 1)
            if name.startswith("pool.")
            else "visual." + name.removeprefix("tower."): value
            for name, value in self.state_dict().items()
        }


def _load(encoder: ImageEncoder, tensors: Tensors | None, weights: str | None) -> ImageEncoder:
    if tensors is not None:
        encoder.load_clip(tensors, f"{WHERE}.weights: '{weights}'")
    return encoder


@register("image_encoder", "clip")
def clip_image_encoder(
    image_size: int,
    *,
    architecture: str = "auto",
    weights: FilePath | None = None,
    sha256: str | None = None,
    freeze: Literal["none", "all"] = "none",
) -> ImageEncoder | OpenClipImageEncoder:
    """Returns the image tower of a published CLIP.

    Args:
        image_size: side of the square input in pixels, a multiple of 32 (a ResNet) or of the patch.
        architecture: name open_clip knows, such as "RN50-quickgelu" or "ViT-B-32-quickgelu"; "auto" reads the sizes of
            a ResNet from the weights.
        weights: file with OpenAI's tensor names (RN50.pt, state dict, safetensors), or a pretrained tag of open_clip
            such as "openai", which it downloads; None draws them at random.
        sha256: what the hash of the weights file must be.
        freeze: "all" keeps the tower as it is, BatchNorm statistics included.
    """
    has_gelu = architecture != "auto" and not _is_resnet(architecture)  # a ResNet has ReLU
    tensors = clip_tensors(architecture, weights, sha256, WHERE, has_gelu=has_gelu)
    if has_gelu:
        return OpenClipImageEncoder(image_size, architecture, tensors, str(weights), freeze=freeze == "all")
    sizes = _sizes(architecture, tensors, weights)
    return _load(ImageEncoder(sizes, image_size, freeze=freeze == "all"), tensors, weights)


def _is_resnet(architecture: str) -> bool:
    vision = architecture_settings(architecture, WHERE)["vision_cfg"]
    return isinstance(vision.get("layers"), (list, tuple))


def _sizes(architecture: str, tensors: Tensors | None, weights: str | None) -> ResNetSizes:
    if tensors is None:
        if architecture == "auto":
            raise ConfigError(
                f"{WHERE}: neither weights nor architecture is given. Set one, e.g. architecture=RN50-quickgelu."
            )
        return ResNetSizes.of_architecture(architecture)
    if not {"visual.layer1.0.conv1.weight", "visual.attnpool.c_proj.weight"} <= tensors.keys():
        is_vit = any(name.startswith(("visual.transformer.", "visual.proj")) for name in tensors)
        kind = "a vision transformer" if is_vit else "no CLIP image tower"
        remedy = (
            "Name it: architecture: ViT-B-32-quickgelu, for one."
            if is_vit
            else "The tower needed is a ResNet such as OpenAI's RN50.pt."
        )
        raise DataError(f"{WHERE}.weights: '{weights}' holds {kind}. {remedy}")
    found = ResNetSizes.of_tensors(tensors)
    if architecture != "auto" and found != (wanted := ResNetSizes.of_architecture(architecture)):
        raise DataError(
            f"{WHERE}.weights: '{weights}' holds {found}, but {architecture} is {wanted}. Set architecture: auto."
        )
    return found


@register("image_encoder", "clip_resnet")
def clip_resnet(
    image_size: int,
    *,
    layers: list[int],
    width: int,
    embed_dim: int,
    heads: int | None = None,
    weights: FilePath | None = None,
    freeze: Literal["none", "all"] = "none",
) -> ImageEncoder:
    """Returns an image tower of CLIP's ResNet kind in the sizes given: small ones train in minutes.

    Args:
        image_size: side of the square input in pixels, a multiple of 32 (a ResNet) or of the patch.
        layers: residual blocks of the four stages.
        width: channels after the stem; the token map has 32 times as many.
        embed_dim: length of the pooled feature.
        heads: of the attention pool; None for one per 64 channels.
        weights: file with OpenAI's tensor names, or None for random values.
        freeze: "all" keeps the tower as it is, BatchNorm statistics included.
    """
    heads = width * 32 // 64 if heads is None else heads
    tensors = None if weights is None else read_tensors(weights, f"{WHERE}.weights")
    sizes = ResNetSizes(tuple(layers), width, embed_dim, heads)
    return _load(ImageEncoder(sizes, image_size, freeze=freeze == "all"), tensors, weights)
