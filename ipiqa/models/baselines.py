"""What IP-IQA is compared with: CLIP as it is, and the least that can be learned from it."""

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


@register("model", "clip_cosine")
class CLIPCosine(nn.Module):
    """The cosine of CLIP's image and prompt feature: zero-shot alignment (Hessel et al. 2021, CLIPScore).

    Both towers are frozen; what training fits is a line from CLIP's score to each target.
    """

    is_zero_shot = True
    reads_prompt = True
    reads_token_map = False
    takes_one_image = True
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
        image_feature, prompt_feature = self.image_encoder(images)[1], self.prompt_encoder(prompts)
        with torch.autocast(image_feature.device.type, enabled=False):
            score = self._score(image_feature.float(), prompt_feature.float())
        return score[:, None] * self.slope + self.intercept

    def _score(self, image_feature: torch.Tensor, prompt_feature: torch.Tensor) -> torch.Tensor:
        """Returns CLIP's score (B,) of features (B, D) and (B, D)."""
        return functional.cosine_similarity(image_feature, prompt_feature, dim=1)


@register("model", "clip_antonyms")
class CLIPAntonyms(CLIPCosine):
    """How much nearer an image is to `good` than to `bad`: zero-shot quality, as CLIP-IQA has it.

    Source: Wang, Chan and Loy 2023, Exploring CLIP for assessing the look and feel of images, section 3.2; here with
    CLIP's positions left in the attention pool.
    """

    reads_prompt = False
    fixed_prompts: torch.Tensor  # tokens (2, context)

    def __init__(
        self, image_encoder: ImageTower, prompt_encoder: PromptFeatures, num_targets: int, *,
        good: str = "Good photo.", bad: str = "Bad photo.",
    ) -> None:  # fmt: skip
        super().__init__(image_encoder, prompt_encoder, num_targets)
        if not good.strip() or not bad.strip() or good == bad:
            raise ConfigError(f"model: good {good!r} and bad {bad!r} are no antonyms. Give two different prompts.")
        self.register_buffer("fixed_prompts", prompt_encoder.tokenize([good, bad]), persistent=False)

    def forward(self, images: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """Returns scores (B, T), fp32; prompts are not looked at, but for the antonyms' own features (2, D)."""
        has_features = isinstance(prompts, torch.Tensor) and prompts.is_floating_point()
        return super().forward(images, prompts if has_features else self.fixed_prompts)

    def _score(self, image_feature: torch.Tensor, prompt_feature: torch.Tensor) -> torch.Tensor:
        """Returns the probability (B,) of `good`, in (0, 1), for features (B, D) and (2, D)."""
        images, antonyms = functional.normalize(image_feature, dim=1), functional.normalize(prompt_feature, dim=1)
        return (TEMPERATURE * images @ antonyms.T).softmax(dim=1)[:, 0]


@register("model", "linear_probe")
class LinearProbe(nn.Module):
    """A linear layer on frozen features of the image, BatchNorm of the features before it."""

    reads_prompt = reads_token_map = False

    def __init__(self, image_encoder: ImageTower, num_targets: int) -> None:
        super().__init__()
        image_encoder.freeze()
        self.image_encoder = image_encoder
        self.norm = nn.BatchNorm1d(image_encoder.embed_dim, affine=False)
        self.head = ScoreLayer(image_encoder.embed_dim, num_targets)

    def forward(self, images: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """Returns scores (B, T), fp32; the prompts are taken and not looked at."""
        return self.head(self.norm(self.image_encoder(images)[1].float()))


@register("model", "clip_linear")
class CLIPLinear(nn.Module):
    """A linear layer on CLIP's image feature of length 1, as LAION's aesthetics predictor comes to."""

    reads_prompt = reads_token_map = False

    def __init__(self, image_encoder: ImageTower, num_targets: int) -> None:
        super().__init__()
        image_encoder.freeze()
        self.image_encoder = image_encoder
        self.layer = ScoreLayer(image_encoder.embed_dim, num_targets)

    def forward(self, images: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        """Returns scores (B, T), fp32; the prompts are taken and not looked at."""
        return self.layer(functional.normalize(self.image_encoder(images)[1].float(), dim=1))
