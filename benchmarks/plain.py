"""The plain path: what the reference code computes, written without any of the framework's shortcuts.

Every prompt in full context and for itself, every query of the attention pool, contiguous tensors, fp32, images decoded
anew for every epoch. It holds the same weights, so that its outputs can be compared as well.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ipiqa.models.ipiqa import IPIQA
from ipiqa.models.pooling import AttentionPool
from ipiqa.models.towers.image_tower import STAGES
from ipiqa.processors.image import CLIP_MEAN, CLIP_STD


def attend(pool: AttentionPool, query: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Returns multi-head attention (Q, B, D) of queries (Q, B, *) over tokens (N, B, C)."""
    out, _ = functional.multi_head_attention_forward(
        query=query, key=tokens, value=tokens, embed_dim_to_check=query.shape[-1], num_heads=pool.heads,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
        in_proj_weight=None, in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0, out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias, use_separate_proj_weight=True, need_weights=False,
    )  # fmt: skip
    return out


class PlainPath(nn.Module):
    """IP-IQA with the weights of a model, computed the plain way."""

    def __init__(self, model: IPIQA) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.contiguous()

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Returns scores (B, T) for images (B, 3, S, S) and tokens (B, 77)."""
        model = self.model
        x = images
        for stage in STAGES:
            x = getattr(model.image_encoder.tower, stage)(x)
        x = x.flatten(2).permute(2, 0, 1)  # (h*w, B, C)
        x = torch.cat([x.mean(dim=0, keepdim=True), x])
        pool = model.image_encoder.pool
        positioned = x + pool.positional_embedding[:, None]
        image_feature = attend(pool, positioned, positioned)[0]
        fusion = model.fusion.pool
        positioned = x + fusion.positional_embedding[:, None]
        found = self._cross_attention(fusion, self._prompts(tokens), positioned)
        return model.head(torch.cat([image_feature, found], dim=1))

    @staticmethod
    def _cross_attention(pool: AttentionPool, query: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        def split(t: torch.Tensor) -> torch.Tensor:
            return t.unflatten(2, (pool.heads, -1)).permute(1, 2, 0, 3)  # (B, H, N, d)

        q, k, v = split(pool.q_proj(query[None])), split(pool.k_proj(tokens)), split(pool.v_proj(tokens))
        out = functional.scaled_dot_product_attention(q, k, v)
        return pool.c_proj(out.permute(2, 0, 1, 3).flatten(2)[0])

    def _prompts(self, tokens: torch.Tensor) -> torch.Tensor:
        encoder = self.model.prompt_encoder
        x = encoder.token_embedding(tokens) + encoder.positional_embedding
        mask = torch.full((tokens.shape[1],) * 2, float("-inf"), device=x.device).triu_(1)
        x = encoder.ln_final(encoder.transformer(x, attn_mask=mask))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ encoder.text_projection


class PlainImages(Dataset[torch.Tensor]):
    """Images decoded, resized, flipped and normalised one by one."""

    def __init__(self, paths: list[Path], image_size: int) -> None:
        self.paths = paths
        self.transform = v2.Compose([
            v2.Resize((image_size, image_size), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CLIP_MEAN, CLIP_STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))
