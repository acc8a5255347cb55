"""Fusions that compare image and prompt beside the paper's, which only sets one beside the other."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ipiqa.errors import ConfigError
from ipiqa.models.fusion import CrossAttentionFusion
from ipiqa.models.towers.image_tower import ImageTower
from ipiqa.models.towers.prompt_features import PromptFeatures
from ipiqa.registry import register


@register("fusion", "product")
class ProductFusion(CrossAttentionFusion):
    """The paper's fusion, and beside it the product, number by number, of image and prompt feature.

    Both are projected to one length and normalised first. Between towers of one CLIP the projections start as the
    identity, so that the products of a pair sum to a multiple of CLIP's cosine before anything is trained.
    """

    def __init__(
        self, image_encoder: ImageTower, prompt_encoder: PromptFeatures, *, heads: int | None = None,
        size: int | None = None,
    ) -> None:  # fmt: skip
        """Makes the pool as the paper's fusion does, and products of `size` numbers; None for the prompt's length."""
        super().__init__(image_encoder, prompt_encoder, heads=heads)
        size = prompt_encoder.embed_dim if size is None else size
        if not 1 <= size <= 2**13:
            raise ConfigError(f"model.fusion.size: {size} is out of range. Give 1 to 8192, or null.")
        self.image_proj = _projection(image_encoder.embed_dim, size)
        self.prompt_proj = _projection(prompt_encoder.embed_dim, size)
        self.num_features += size

    def forward(self, token_map: Tensor, image_feature: Tensor, prompt_feature: Tensor) -> Tensor:
        """Returns the joint feature (B, 2 D + size), fp32; the products come last and are of order one."""
        joint = super().forward(token_map, image_feature, prompt_feature)
        with torch.autocast(joint.device.type, enabled=False):
            image = functional.normalize(self.image_proj(image_feature.float()), dim=1)
            prompt = functional.normalize(self.prompt_proj(prompt_feature.float()), dim=1)
            product = image.shape[1] * image * prompt  # the numbers of a normalised feature are of order size ** -0.5
        return torch.cat([joint.float(), product], dim=1)


def _projection(length: int, size: int) -> nn.Linear:
    """Returns a projection of features without bias: the identity to begin with where it keeps their length."""
    projection = nn.Linear(length, size, bias=False)
    if length == size:
        nn.init.eye_(projection.weight)
    return projection
