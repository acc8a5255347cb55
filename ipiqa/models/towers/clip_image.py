"""CLIP's convolutional image tower: images -> token map and pooled feature."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from ipiqa.errors import ConfigError, DataError
from ipiqa.models.clip_weights import architecture_settings, clip_tensors
from ipiqa.models.pooling import AttentionPool
from ipiqa.models.towers import transformers
from ipiqa.models.towers.image_tower import STRIDE, WHERE, ImageFeatures, ResNetTower
from ipiqa.models.towers.open_clip_towers import OpenClipImageEncoder
from ipiqa.models.weights import Tensors, read_tensors
from ipiqa.registry import FilePath, register


@dataclass(frozen=True)
class ResNetSizes:
    """Sizes of CLIP's ModifiedResNet; ConfigError where no tower has them."""

    layers: tuple[int, ...]  # residual blocks of each of four stages
    width: int  # channels after the stem; the last stage has 32 times as many
    embed_dim: int  # length of the pooled feature
    heads: int  # of the attention pool

    def __post_init__(self) -> None:
        has_stages = len(self.layers) == 4 and {*self.layers} <= {*range(1, 257)} and self.width in range(2, 513, 2)
        if not has_stages or not 1 <= self.embed_dim <= 2**13 or self.heads < 1 or self.width * 32 % self.heads:
            sizes = ", ".join(f"{name} {value}" for name, value in asdict(self).items())
            right = "four stages of 1 to 256 layers, even width to 512, embed_dim to 8192, heads that divide width * 32"
            raise ConfigError(f"{WHERE}: {sizes} make no tower. Give {right}.")

    @classmethod
    def of_tensors(cls, tensors: Tensors, weights: str | None) -> ResNetSizes:
        """Returns the sizes of the tower in the file `weights`; DataError where that has none, named as OpenAI does."""
        names = ["visual.layer1.0.conv1.weight", "visual.attnpool.c_proj.weight"]
        if not {*names} <= tensors.keys():
            problem = f"'{weights}' holds no ResNet of CLIP, such as OpenAI's RN50.pt"
            remedy = "A vision transformer must be named, e.g. architecture=ViT-B-32-quickgelu."
            raise DataError(f"{WHERE}.weights: {problem}. {remedy}")
        width, embed_dim = ((*tensors[name].shape, 0)[0] for name in names)
        stages = ({n.split(".")[2] for n in tensors if n.startswith(f"visual.layer{stage}.")} for stage in range(1, 5))
        return cls(tuple(map(len, stages)), width, embed_dim, heads=width * 32 // 64)

    @classmethod
    def of_architecture(cls, name: str) -> ResNetSizes:
        """Returns the sizes open_clip gives an architecture whose image tower is a ResNet."""
        settings = architecture_settings(name, WHERE)
        vision = settings["vision_cfg"]
        heads = vision["width"] * 32 // vision.get("head_width", 64)
        return cls(tuple(vision["layers"]), vision["width"], settings["embed_dim"], heads)


class ImageEncoder(ResNetTower):
    """CLIP's ResNet with its attention pool; the pool's single query is the mean token."""

    file_names: ClassVar = {"visual.attnpool.": "pool.", "visual.": "tower."}

    def __init__(
        self, sizes: ResNetSizes, image_size: int, tensors: Tensors | None = None, weights: str | None = None, *,
        freeze: bool = False,
    ) -> None:  # fmt: skip
        """Builds the tower with the tensors of a whole CLIP, which come from `weights`; None for random values."""
        from open_clip.modified_resnet import ModifiedResNet

        # The tower's own pool would compute a query for every token: ours replaces it and bears the same names.
        tower = ModifiedResNet(list(sizes.layers), sizes.embed_dim, sizes.heads, image_size=STRIDE, width=sizes.width)
        del tower.attnpool
        channels = sizes.width * 32
        super().__init__(tower, image_size, channels, sizes.embed_dim)
        self._section = {"name": "clip_resnet", **asdict(sizes)}
        self.pool = AttentionPool(channels, channels, sizes.embed_dim, sizes.heads, self.grid[0] * self.grid[1] + 1)
        for projection in (self.pool.q_proj, self.pool.k_proj, self.pool.v_proj, self.pool.c_proj):
            nn.init.normal_(projection.weight, std=channels**-0.5)
        self.load_tensors(tensors, weights)
        if freeze:
            self.freeze()

    def encode(self, images: torch.Tensor) -> ImageFeatures:
        """Returns the token map (B, C, S/32, S/32) and the pooled feature (B, D) of normalised images (B, 3, S, S)."""
        token_map = self.token_map(images, self.tower.stem)
        return token_map, self.pool(token_map)


@register("image_encoder", "clip")
def clip_image_encoder(
    image_size: int, *, architecture: str = "auto", weights: FilePath | None = None, sha256: str | None = None,
    freeze: Literal["none", "all"] = "none", lora_rank: int | None = None, lora_alpha: float = 16.0,
) -> ImageEncoder | OpenClipImageEncoder:  # fmt: skip
    """Returns the image tower of a published CLIP.

    Args:
        image_size: side of the square input in pixels, a multiple of 32 (a ResNet) or of the patch.
        architecture: name open_clip knows, such as "ViT-B-32-quickgelu"; "auto" reads a ResNet's sizes off the weights.
        weights: file with OpenAI's tensor names (RN50.pt, state dict, safetensors), or a pretrained tag of open_clip
            such as "openai", which it downloads; None draws them at random.
        sha256: what the hash of the weights file must be.
        freeze: "all" keeps the tower as it is, BatchNorm statistics included.
        lora_rank: of a vision transformer with `freeze` "all": the attention and MLP layers of its blocks train by a
            change of this rank (LoRA), 1 to the width; None for no change.
        lora_alpha: the change is scaled by this number over the rank.
    """
    is_auto = architecture == "auto"
    is_resnet = is_auto or isinstance(architecture_settings(architecture, WHERE)["vision_cfg"].get("layers"), list)
    tensors = clip_tensors(architecture, weights, sha256, WHERE, has_gelu=not is_resnet)  # a ResNet has ReLU
    if not is_resnet:
        vit = OpenClipImageEncoder(image_size, architecture, tensors, str(weights), freeze=freeze == "all")
        return transformers.adapted(vit, lora_rank, lora_alpha, WHERE)
    sizes = ResNetSizes.of_tensors(tensors or {}, weights) if is_auto else ResNetSizes.of_architecture(architecture)
    resnet = ImageEncoder(sizes, image_size, tensors, weights, freeze=freeze == "all")
    return transformers.adapted(resnet, lora_rank, lora_alpha, WHERE)


@register("image_encoder", "clip_resnet")
def clip_resnet(
    image_size: int, *, layers: list[int], width: int, embed_dim: int, heads: int | None = None,
    weights: FilePath | None = None, freeze: Literal["none", "all"] = "none",
) -> ImageEncoder:  # fmt: skip
    """Returns an image tower of CLIP's ResNet kind in the sizes given (see `ResNetSizes`): small ones train in minutes.

    No `heads` stands for one per 64 channels of the token map; the rest is as for `clip`.
    """
    sizes = ResNetSizes(tuple(layers), width, embed_dim, heads=width * 32 // 64 if heads is None else heads)
    tensors = None if weights is None else read_tensors(weights, f"{WHERE}.weights")
    return ImageEncoder(sizes, image_size, tensors, weights, freeze=freeze == "all")
