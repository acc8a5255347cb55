"""Checkpoints with the tensor names of the reference code, and the images its numbers were measured on."""

from __future__ import annotations

import torch
from torch.nn import functional

from reference.standin import FULL, Sizes, draw, state_dict

# How the reference code names CLIP's tensors; the rest of a name follows.
RENAMED = {
    "visual.attnpool.": "attnpool.",
    "visual.": "resnet50.",
    "token_embedding.weight": "wte.weight",
    "positional_embedding": "txt_pos",
    "text_projection": "text_projection",
}


def _resized(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Returns positions (1 + n * n, C) of an attention pool as (1 + side * side, C); the mean token's stays."""
    old = round((len(positions) - 1) ** 0.5)
    if old == side:
        return positions
    grid = positions[1:].T.reshape(1, -1, old, old)
    grid = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], grid[0].flatten(1).T])


def reference_state_dict(seed: int, resolution: int, num_outputs: int, sizes: Sizes = FULL) -> dict[str, torch.Tensor]:
    """Returns the tensors of a checkpoint of the reference code, which leaves out what does not train.

    CLIP's tensors are those of `standin.state_dict` with the same seed, in float32.
    """
    tensors = {}
    for name, tensor in state_dict(sizes, seed).items():
        prefix = next((prefix for prefix in RENAMED if name.startswith(prefix)), None)
        if prefix is not None:
            value = tensor.float() if tensor.is_floating_point() else tensor
            if name == "visual.attnpool.positional_embedding":
                value = _resized(value, resolution // 32)
            tensors[RENAMED[prefix] + name.removeprefix(prefix)] = value
    channels, embed_dim = 32 * sizes.width, sizes.embed_dim
    layers = {
        "txt_attnpool.cross_attn.q_proj": (channels, embed_dim),
        "txt_attnpool.cross_attn.k_proj": (channels, channels),
        "txt_attnpool.cross_attn.v_proj": (channels, channels),
        "txt_attnpool.cross_attn.out_proj": (embed_dim, channels),
        "head.dense": (2 * embed_dim, 2 * embed_dim),
        "head.out_proj": (num_outputs, 2 * embed_dim),
    }
    for name, shape in layers.items():
        tensors[f"{name}.weight"] = draw(f"{name}.weight", shape, "linear", seed)
        tensors[f"{name}.bias"] = draw(f"{name}.bias", shape[:1], "small", seed)
    name = "txt_attnpool.positional_embedding"
    tensors[name] = draw(name, ((resolution // 32) ** 2 + 1, channels), "embedding", seed)
    return tensors


def parity_batch(num: int, size: int, seed: int) -> torch.Tensor:
    """Returns normalised images (num, 3, size, size): smooth noise, a function of the arguments alone."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, 8, 8, generator=generator)
    smooth = functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    pixels = (smooth + 0.1 * torch.randn(num, 3, size, size, generator=generator)).clamp(0, 1)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    return (pixels - mean) / std
