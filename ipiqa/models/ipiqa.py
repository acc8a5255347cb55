"""IP-IQA: an image and its prompt -> scores; and its ablation that never sees the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ipiqa.models.towers.clip_image import STAGES
from ipiqa.models.towers.image_tower import ImageTower
from ipiqa.models.towers.prompt_features import PromptFeatures, Prompts
from ipiqa.prompts import tokenize
from ipiqa.registry import register


@register("model", "ipiqa")
class IPIQA(nn.Module):
    """Scores images against their prompts (Qu, Li and Gao 2024, figure 2).

    The image tower's token map is pooled twice: once by its own mean token, once by the prompt feature. The head reads
    both (or whatever another fusion makes of them).
    """

    def __init__(
        self, image_encoder: ImageTower, prompt_encoder: PromptFeatures, fusion: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.fusion = fusion
        self.head = head
        self.reads_prompt = getattr(fusion, "reads_prompt", True)
        if not self.reads_prompt:
            prompt_encoder.requires_grad_(False)  # what gets no gradient must not wait for one

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """Returns what `forward` takes in place of prompts: tokens (B, context)."""
        return self.prompt_encoder.tokenize(prompts)

    def forward(self, images: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """Returns scores (B, num_targets), fp32, in units of the MOS trained on.

        Args:
            images: (B, 3, S, S), normalised as the processor does.
            prompts: B texts, their tokens (B, context), or their features (B, D).
        """
        token_map, image_feature = self.image_encoder(images)  # (B, C, h, w), (B, D)
        prompt_feature = self.prompt_encoder(prompts) if self.reads_prompt else None  # (B, D)
        return self.head(self.fusion(token_map, image_feature, prompt_feature))

    def encode_prompts(self, prompts: Prompts) -> torch.Tensor:
        """Returns prompt features (B, D), not normalised; `forward` takes them in place of prompts."""
        return self.prompt_encoder(prompts)


@register("model", "image_only")
class ImageOnly(nn.Module):
    """The ablation without a prompt: CLIP's pooled image feature and the head."""

    reads_prompt = False

    def __init__(self, image_encoder: ImageTower, head: nn.Module) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.head = head

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """Returns tokens (B, context), which are taken and not looked at."""
        return tokenize(prompts)

    def forward(self, images: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """Returns scores (B, num_targets), fp32; the prompts are taken and not looked at."""
        del prompts
        return self.head(self.image_encoder(images)[1])


def parameter_depth(name: str) -> int:
    """Returns how many layers lie before a parameter: 0 for the stem, 4 for the last stage, 5 for all behind it.

    Only the image tower is decayed by stage; pools, fusion, head and the whole text tower lie behind it.

    >>> names = "image_encoder.tower.conv1.weight", "image_encoder.tower.layer3.0.conv1.weight", "head.dense.weight"
    >>> [parameter_depth(name) for name in names]
    [0, 3, 5]
    """
    prefix = "image_encoder.tower."
    if not name.startswith(prefix):
        return len(STAGES)
    stage = name.removeprefix(prefix).split(".")[0]
    return STAGES.index(stage) if stage in STAGES else 0


def is_head(name: str) -> bool:
    """Returns whether a parameter trains at the head's learning rate."""
    return name.startswith("head.")
