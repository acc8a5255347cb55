"""IP-IQA: an image and its prompt -> scores; its ablation without a prompt; what its pre-training trains."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ipiqa.errors import ConfigError
from ipiqa.models.fusion import check_comparable
from ipiqa.models.towers.image_tower import ImageTower
from ipiqa.models.towers.prompt_features import PromptFeatures, Prompts
from ipiqa.registry import register


@register("model", "ipiqa")
class IPIQA(nn.Module):
    """Scores images against their prompts (Qu, Li and Gao 2024, figure 2).

    The token map is pooled twice, by its own mean token and by the prompt feature; the head reads both.
    """

    takes_one_image = True

    def __init__(
        self, image_encoder: ImageTower, prompt_encoder: PromptFeatures, fusion: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        self.image_encoder, self.prompt_encoder, self.fusion, self.head = image_encoder, prompt_encoder, fusion, head
        self.reads_prompt = getattr(fusion, "reads_prompt", True)
        self.reads_token_map = getattr(fusion, "reads_token_map", True)
        if not self.reads_prompt:
            prompt_encoder.requires_grad_(False)  # what gets no gradient must not wait for one

    def forward(self, images: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """Returns scores (B, num_targets), fp32, in units of the MOS trained on, of normalised images (B, 3, S, S).

        One image may be given for all of B prompts: it is encoded once.
        """
        token_map, image_feature = self.image_encoder(images)  # (B, C, h, w), (B, D)
        if not self.reads_prompt:
            return self.head(self.fusion(token_map, image_feature, None))
        prompt_feature = self.prompt_encoder(prompts)  # (B, D)
        number = prompt_feature.shape[0]
        token_map, image_feature = token_map.expand(number, -1, -1, -1), image_feature.expand(number, -1)
        return self.head(self.fusion(token_map, image_feature, prompt_feature))

    def encode_prompts(self, prompts: Prompts) -> torch.Tensor:
        """Returns prompt features (B, D), not normalised; `forward` takes them in place of prompts."""
        return self.prompt_encoder(prompts)


@register("model", "image_only")
class ImageOnly(nn.Module):
    """The ablation without a prompt: CLIP's pooled image feature and the head."""

    reads_prompt = reads_token_map = False

    def __init__(self, image_encoder: ImageTower, head: nn.Module) -> None:
        super().__init__()
        self.image_encoder, self.head = image_encoder, head

    def forward(self, images: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """Returns scores (B, num_targets), fp32; the prompts are taken and not looked at."""
        return self.head(self.image_encoder(images)[1])


@register("model", "image2prompt")
class Image2Prompt(nn.Module):
    """Pooled image features and frozen prompt features of the same length (paper, section 3.1)."""

    has_scores = False
    reads_prompt = True

    def __init__(self, image_encoder: ImageTower, prompt_encoder: PromptFeatures) -> None:
        super().__init__()
        if not prompt_encoder.is_frozen:
            problem = "model.prompt_encoder: some of it would train, and prompts would move towards images"
            raise ConfigError(f"{problem}. Set freeze: all and qa_token: none, and leave out train_embeddings.")
        check_comparable(image_encoder, prompt_encoder)
        self.image_encoder, self.prompt_encoder = image_encoder, prompt_encoder

    def forward(self, images: torch.Tensor, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns image features (B, D) and prompt features (B, D), neither normalised."""
        return self.image_encoder(images)[1], self.prompt_encoder(prompts)


def parameter_depth(model: nn.Module) -> Callable[[str], int]:
    """Returns parameter name -> number of layers before it; both towers end at the same one, the rest is behind."""
    parts = ((f"{name}.", getattr(model, name, None)) for name in ("image_encoder", "prompt_encoder"))
    towers: dict[str, Any] = {prefix: tower for prefix, tower in parts if hasattr(tower, "depth")}
    deepest = max(tower.num_layers for tower in towers.values())

    def depth(name: str) -> int:
        prefix = next(filter(name.startswith, towers), None)
        if prefix is None:
            return deepest
        return deepest - towers[prefix].num_layers + towers[prefix].depth(name.removeprefix(prefix))

    return depth


def is_head(name: str) -> bool:
    """Returns whether a parameter trains at the head's learning rate."""
    return name.startswith("head.")
