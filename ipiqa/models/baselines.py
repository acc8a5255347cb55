"""What IP-IQA is compared with: CLIP as it is, and the least that can be learned from it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ipiqa.errors import ConfigError
from ipiqa.models.fusion import check_comparable
from ipiqa.models.heads import ScoreLayer
from ipiqa.models.towers.image_tower import ImageTower
from ipiqa.models.towers.prompt_features import PromptFeatures, Prompts
from ipiqa.registry import register

TEMPERATURE = 100.0  # CLIP's own at the end of its training


class _ZeroShot(nn.Module):
    """A score that CLIP gives without any training, and a line from it to each target that training fits."""

    is_zero_shot = True
    reads_prompt = True
    per_target = ("slope", "intercept")

    def __init__(self, image_encoder: ImageTower, prompt_encoder: PromptFeatures, num_targets: int) -> None:
        super().__init__()
        check_comparable(image_encoder, prompt_encoder)
        image_encoder.freeze()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder.requires_grad_(False)
        self.slope = nn.Parameter(torch.ones(num_targets))
        self.intercept = nn.Parameter(torch.zeros(num_targets))

    def forward(self, images: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """Returns scores (B, T), fp32: a line of CLIP's score, which is what they are before training."""
        with torch.no_grad():
            image_feature = self.image_encoder(images)[1]  # (B, D)
            prompt_feature = self.prompt_encoder(prompts if self.reads_prompt else self.antonyms)  # (B, D) or (2, D)
            with torch.autocast(images.device.type, enabled=False):
                score = self._score(image_feature.float(), prompt_feature.float())  # (B,)
        return score[:, None] * self.slope + self.intercept

    def _score(self, image_feature: torch.Tensor, prompt_feature: torch.Tensor) -> torch.Tensor:
        """Returns CLIP's score (B,) of features."""
        raise NotImplementedError


@register("model", "clip_cosine")
class CLIPCosine(_ZeroShot):
    """The cosine of CLIP's image and prompt feature: zero-shot alignment (Hessel et al. 2021, CLIPScore)."""

    def _score(self, image_feature: torch.Tensor, prompt_feature: torch.Tensor) -> torch.Tensor:
        """Returns the cosine of each image with its prompt."""
        return functional.cosine_similarity(image_feature, prompt_feature, dim=1)


@register("model", "clip_antonyms")
class CLIPAntonyms(_ZeroShot):
    """How much nearer an image is to "Good photo." than to "Bad photo.": zero-shot quality, as CLIP-IQA has it.

    Source: Wang, Chan and Loy 2023, Exploring CLIP for assessing the look and feel of images, section 3.2; here with
    CLIP's positions left in the attention pool.
    """

    reads_prompt = False

    def __init__(
        self,
        image_encoder: ImageTower,
        prompt_encoder: PromptFeatures,
        num_targets: int,
        *,
        good: str = "Good photo.",
        bad: str = "Bad photo.",
    ) -> None:
        """Takes the towers and the two prompts.

        Args:
            image_encoder: CLIP's.
            prompt_encoder: CLIP's.
            num_targets: T.
            good: what the best image is.
            bad: what the worst image is.
        """
        super().__init__(image_encoder, prompt_encoder, num_targets)
        if not good.strip() or not bad.strip() or good == bad:
            raise ConfigError(f"model: good {good!r} and bad {bad!r} are no antonyms. Give two different prompts.")
        self.register_buffer("antonyms", prompt_encoder.tokenize([good, bad]), persistent=False)

    def _score(self, image_feature: torch.Tensor, prompt_feature: torch.Tensor) -> torch.Tensor:
        """Returns the probability of `good`, in (0, 1); the features are those of the two antonyms."""
        images, antonyms = functional.normalize(image_feature, dim=1), functional.normalize(prompt_feature, dim=1)
        return (TEMPERATURE * images @ antonyms.T).softmax(dim=1)[:, 0]


@register("model", "linear_probe")
class LinearProbe(nn.Module):
    """A linear layer on frozen features of the image, BatchNorm of the features before it."""

    reads_prompt = False

    def __init__(self, image_encoder: ImageTower, num_targets: int) -> None:
        super().__init__()
        image_encoder.freeze()
        self.image_encoder = image_encoder
        self.norm = nn.BatchNorm1d(image_encoder.embed_dim, affine=False)
        self.head = ScoreLayer(image_encoder.embed_dim, num_targets)

    def forward(self, images: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """Returns scores (B, T), fp32; the prompts are taken and not looked at."""
        del prompts
        with torch.no_grad():
            feature = self.image_encoder(images)[1].float()
        return self.head(self.norm(feature))
