"""Fusions that compare image and prompt beside the paper's, which only sets one beside the other."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ipiqa.errors import ConfigError
from ipiqa.models.fusion import CrossAttentionFusion
from ipiqa.models.pooling import AttentionPool
from ipiqa.models.towers.clip_text import PromptEncoder
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


@register("fusion", "token_similarity")
class TokenSimilarityFusion(CrossAttentionFusion):
    """The paper's fusion, and beside it how well each word of the prompt is found in the image.

    A word is found as well as its nearest patch is near, by cosine (Yao et al. 2022, FILIP); learned poolings weigh the
    words. Patches of CLIP's ResNets start where the value path of CLIP's pool puts them (Zhou et al. 2022, MaskCLIP).
    """

    def __init__(
        self, image_encoder: ImageTower, prompt_encoder: PromptFeatures, *, heads: int | None = None, poolings: int = 8
    ) -> None:
        """Makes the pool as the paper's fusion does, and `poolings` weightings of words: as many further features."""
        super().__init__(image_encoder, prompt_encoder, heads=heads)
        if not isinstance(prompt_encoder, PromptEncoder):
            problem = "'token_similarity' needs the features of words, which this prompt encoder does not give"
            raise ConfigError(f"model.fusion.name: {problem}. Take a CLIP whose text tower is OpenAI's, or product.")
        if not 1 <= poolings <= 1024:
            raise ConfigError(f"model.fusion.poolings: {poolings} is out of range. Give 1 to 1024.")
        prompt_encoder.gives_words = True
        size = prompt_encoder.embed_dim
        self.patch_proj = nn.Linear(image_encoder.channels, size)
        if isinstance(pool := getattr(image_encoder, "pool", None), AttentionPool) and image_encoder.embed_dim == size:
            with torch.no_grad():
                self.patch_proj.weight.copy_(pool.c_proj.weight @ pool.v_proj.weight)
                self.patch_proj.bias.copy_(pool.c_proj(pool.v_proj.bias))
        self.word_proj = _projection(size, size)
        self.word_weight = nn.Linear(size, poolings, bias=False)
        self.num_features += poolings

    def forward(self, token_map: Tensor, image_feature: Tensor, prompt_feature: Tensor) -> Tensor:
        """Returns the joint feature (B, 2 D + poolings), fp32; similarities come last, in (-1, 1) times 10.

        The prompt feature is (B, L, D): that of the prompt, those of its words, and zeros. Without words they are 0.
        """
        joint = super().forward(token_map, image_feature, prompt_feature[:, 0])
        with torch.autocast(joint.device.type, enabled=False):
            words = prompt_feature[:, 1:].float()
            is_word = words.ne(0).any(dim=2, keepdim=True)  # (B, L - 1, 1)
            patches = functional.normalize(self.patch_proj(token_map.float().flatten(2).transpose(1, 2)), dim=2)
            found = functional.normalize(self.word_proj(words), dim=2) @ patches.transpose(1, 2)
            found = found.amax(dim=2, keepdim=True) * is_word
            weights = self.word_weight(words).masked_fill(~is_word, -1e4).softmax(dim=1)  # (B, L - 1, poolings)
            pooled = 10 * (weights * found).sum(dim=1)
        return torch.cat([joint.float(), pooled], dim=1)


def _projection(length: int, size: int) -> nn.Linear:
    """Returns a projection of features without bias: the identity to begin with where it keeps their length."""
    projection = nn.Linear(length, size, bias=False)
    if length == size:
        nn.init.eye_(projection.weight)
    return projection
