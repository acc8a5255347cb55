"""How the image and the prompt meet: token map (B, C, h, w), pooled and prompt feature (B, D) -> one joint feature."""

import torch
from torch import Tensor, nn

from ipiqa.errors import ConfigError
from ipiqa.models.pooling import AttentionPool
from ipiqa.models.towers.image_tower import ImageTower
from ipiqa.models.towers.prompt_features import PromptFeatures
from ipiqa.registry import register


@register("fusion", "cross_attention")
class CrossAttentionFusion(nn.Module):
    """The paper's fusion (section 3.3): the prompt feature asks the token map, the answer joins CLIP's own pool."""

    def __init__(self, image_encoder: ImageTower, prompt_encoder: PromptFeatures, *, heads: int | None = None) -> None:
        """Makes the cross-attention pool with `heads` heads; None for one per 64 channels (32 for RN50)."""
        super().__init__()
        channels, embed_dim = image_encoder.channels, image_encoder.embed_dim
        heads = max(channels // 64, 1) if heads is None else heads
        if heads < 1 or channels % heads:
            raise ConfigError(f"model.fusion.heads: {heads} does not divide the {channels} channels of the token map.")
        num_positions = image_encoder.grid[0] * image_encoder.grid[1] + 1
        self.pool = AttentionPool(channels, prompt_encoder.embed_dim, embed_dim, heads, num_positions)
        self.num_features = 2 * embed_dim

    def forward(self, token_map: Tensor, image_feature: Tensor, prompt_feature: Tensor) -> Tensor:
        """Returns the joint feature (B, 2 D): CLIP's image feature, then what the prompt found in the token map."""
        return torch.cat([image_feature, self.pool(token_map, prompt_feature)], dim=1)


@register("fusion", "cross_attention_cosine")
class CrossAttentionCosineFusion(CrossAttentionFusion):
    """The paper's fusion, and beside it how near CLIP itself holds image and prompt to be: one more feature."""

    def __init__(self, image_encoder: ImageTower, prompt_encoder: PromptFeatures, *, heads: int | None = None) -> None:
        super().__init__(image_encoder, prompt_encoder, heads=heads)
        check_comparable(image_encoder, prompt_encoder)
        self.num_features += 1

    def forward(self, token_map: Tensor, image_feature: Tensor, prompt_feature: Tensor) -> Tensor:
        """Returns the joint feature (B, 2 D + 1), fp32; the cosine comes last, in (-1, 1) times 10."""
        joint = super().forward(token_map, image_feature, prompt_feature)
        # CLIP's cosines differ by some hundredths from pair to pair; the other features are of order one.
        with torch.autocast(joint.device.type, enabled=False):
            cosine = 10 * nn.functional.cosine_similarity(image_feature.float(), prompt_feature.float(), dim=1)
        return torch.cat([joint.float(), cosine[:, None]], dim=1)


@register("fusion", "image_only")
class ImageOnlyFusion(nn.Module):
    """The prompt is not even encoded: the head sees CLIP's own pooled image feature."""

    reads_prompt = reads_token_map = False

    def __init__(self, image_encoder: ImageTower) -> None:
        super().__init__()
        self.num_features = image_encoder.embed_dim

    def forward(self, token_map: Tensor, image_feature: Tensor, prompt_feature: Tensor | None) -> Tensor:
        """Returns the image feature (B, D)."""
        return image_feature


@register("fusion", "concatenation")
class ConcatenationFusion(nn.Module):
    """No fusion at all: image feature and prompt feature side by side."""

    reads_token_map = False

    def __init__(self, image_encoder: ImageTower, prompt_encoder: PromptFeatures) -> None:
        super().__init__()
        self.num_features = image_encoder.embed_dim + prompt_encoder.embed_dim

    def forward(self, token_map: Tensor, image_feature: Tensor, prompt_feature: Tensor) -> Tensor:
        """Returns the joint feature (B, D_image + D_prompt)."""
        return torch.cat([image_feature, prompt_feature], dim=1)


def check_comparable(image_encoder: ImageTower, prompt_encoder: PromptFeatures) -> None:
    """Raises ConfigError where image and prompt features are of different lengths."""
    image, prompt = image_encoder.embed_dim, prompt_encoder.embed_dim
    if image != prompt:
        problem = f"image features have {image} numbers, prompt features {prompt}"
        raise ConfigError(f"model: {problem}. Take both encoders of one CLIP.")
