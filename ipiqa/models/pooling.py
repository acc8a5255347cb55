"""Attention pooling of an image's token map by a single query."""

import torch
from torch import nn

from ipiqa.errors import DataError


class AttentionPool(nn.Module):
    """Pools a token map with multi-head attention and one query.

    With the mean token as the query it is CLIP's own pool, with a prompt feature the paper's cross-attention fusion
    (section 3.3). Keys and values are the mean token and the h*w tokens, each with its position.

    There is one query only, so it is carried through the key projection (q.(Wx) = (W'q).x), and the value projection is
    applied to the weighted sum of tokens: the same up to rounding, at a tenth of the multiplications.
    """

    def __init__(self, channels: int, query_dim: int, embed_dim: int, heads: int, num_positions: int) -> None:
        """Makes the parameters: `heads` divides the C `channels`, there are h * w + 1 positions."""
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(num_positions, channels) / channels**0.5)
        self.q_proj = nn.Linear(query_dim, channels)
        self.k_proj, self.v_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embed_dim)

    def forward(self, token_map: torch.Tensor, query: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the pooled feature (B, embed_dim) of a map (B, C, h, w); the query is (B, query_dim)."""
        tokens = self._tokens(token_map)
        heads, depth = self.heads, self.v_proj.out_features // self.heads
        value_weight = self.v_proj.weight.unflatten(0, (heads, depth))  # (H, d, C)
        mixed = torch.matmul(self._weights(tokens, query), tokens).transpose(0, 1)  # (H, B, C)
        values = torch.matmul(mixed, value_weight.to(mixed.dtype).transpose(1, 2))  # (H, B, d)
        pooled = values.transpose(0, 1).flatten(1) + self.v_proj.bias.to(values.dtype)  # (B, C)
        return self.c_proj(pooled)

    def attention(self, token_map: torch.Tensor, query: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the weights (B, H, 1 + h*w), of sum 1, by which `forward` mixes tokens, the mean token first."""
        return self._weights(self._tokens(token_map), query)

    def _tokens(self, token_map: torch.Tensor) -> torch.Tensor:
        """Returns the mean token and those of the map with their positions, (B, N, C), N = 1 + h*w."""
        tokens = token_map.flatten(2).transpose(1, 2)  # (B, h*w, C), no copy when the map is channels_last
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        return tokens + self.positional_embedding.to(tokens.dtype)

    def _weights(self, tokens: torch.Tensor, query: torch.Tensor | None) -> torch.Tensor:
        """Returns the weights (B, H, N) of tokens (B, N, C)."""
        heads, depth = self.heads, self.k_proj.out_features // self.heads
        q = self.q_proj(tokens[:, 0] if query is None else query) * depth**-0.5
        q = q.unflatten(1, (heads, depth)).transpose(0, 1)  # (H, B, d)
        key_weight = self.k_proj.weight.unflatten(0, (heads, depth))  # (H, d, C)
        # The key bias shifts all logits of a head alike and softmax forgets it. It is added all the same: a parameter
        # that never receives a gradient stops DistributedDataParallel.
        bias = torch.matmul(q, self.k_proj.bias.to(q.dtype).view(heads, depth, 1))  # (H, B, 1)
        carried = torch.matmul(q, key_weight.to(q.dtype)).transpose(0, 1)  # (B, H, C)
        logits = torch.matmul(carried, tokens.transpose(1, 2)) + bias.transpose(0, 1)  # (B, H, N)
        return logits.float().softmax(dim=-1).to(tokens.dtype)


def resize_positions(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Returns positions (1 + h*w, C) for a grid (h, w), of those for a square one (DataError for any other).

    The mean token's row is kept, the others are resized bicubically. # reference: as the reference code does
    """
    old = round((max(positions.shape[0], 1) - 1) ** 0.5) if positions.ndim == 2 else 0
    if old < 1 or 1 + old * old != positions.shape[0]:
        shape = tuple(positions.shape)
        raise DataError(f"positional_embedding: {shape} is no table of a square grid. Take other weights.")
    if (old, old) == grid:
        return positions
    table = positions[1:].T.reshape(1, -1, old, old).float()
    table = nn.functional.interpolate(table, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], table.flatten(2)[0].T.to(positions.dtype)])
