"""What Image2Prompt pre-training trains: an image tower beside a frozen text tower."""

from __future__ import annotations

import torch
from torch import nn

from ipiqa.errors import ConfigError
from ipiqa.models.fusion import check_comparable
from ipiqa.models.towers.image_tower import ImageTower
from ipiqa.models.towers.prompt_features import PromptFeatures, Prompts
from ipiqa.registry import register


@register("model", "image2prompt")
class Image2Prompt(nn.Module):
    """Pooled image features and frozen prompt features of the same length (paper, section 3.1)."""

    has_scores = False
    reads_prompt = True

    def __init__(self, image_encoder: ImageTower, prompt_encoder: PromptFeatures) -> None:
        super().__init__()
        if not prompt_encoder.is_frozen:
            raise ConfigError(
                "model.prompt_encoder: some of it would train, and prompts would move towards images. "
                "Set freeze: all and qa_token: none, and leave out train_embeddings."
            )
        check_comparable(image_encoder, prompt_encoder)
        self.image_encoder, self.prompt_encoder = image_encoder, prompt_encoder

    def forward(self, images: torch.Tensor, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns image features (B, D) and prompt features (B, D), neither normalised."""
        return self.image_encoder(images)[1], self.prompt_encoder(prompts)
