"""Where in an image a model looks: the attention of its pools, or how scores change with the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ipiqa.models.pooling import AttentionPool
from ipiqa.scoring.images import batch_of
from ipiqa.scoring.model_scorer import ModelScorer

GRID = (8, 8)  # cells of the map of a model that has no token map


@dataclass(frozen=True, eq=False)
class HeatMap:
    """How much each cell of an image counts, the mean over the folds of a scorer.

    Attributes:
        kind: the attention of the pool that the prompt asks, of the pool that the image itself asks, or how strongly a
            score changes with the pixels.
        target: whose score that is; "" for attention, which all targets share.
        weights: (h, w) float32 of sum 1: equal cells from the top left to the bottom right of the upright image.
        mean_token: the share, 0 to 1, of the attention that goes to no cell but to the mean of all; 0 for a gradient.
    """

    kind: Literal["prompt attention", "image attention", "gradient"]
    target: str
    weights: np.ndarray
    mean_token: float


def heat_maps(scorer: ModelScorer, prepared: torch.Tensor, prompt: str) -> list[HeatMap]:
    """Returns the maps of an image as `scorer.prepare` returns it.

    They are the attention of the fusion's pool and of the image tower's, and where a model lacks one of the two, a
    gradient map for each target.
    """
    inputs = batch_of([prepared], scorer.processor, scorer.device)
    tokens = scorer.tokenize([prompt]) if scorer.needs_prompt else torch.zeros(1, 1).long()
    attention = [_attention(model, inputs, tokens) for model in scorer.models]  # of each fold
    maps = [_attention_map(kind, [fold[kind] for fold in attention]) for kind in attention[0]]
    if len(maps) < 2:
        maps += _gradient_maps(scorer, inputs, tokens)
    return maps


@torch.no_grad()
def _attention(model: Any, inputs: torch.Tensor, tokens: torch.Tensor) -> dict[Any, np.ndarray]:
    """Returns the attention (1 + h, w)... of each pool that a model has."""
    tower = getattr(model, "image_encoder", None)
    pools = {
        "prompt attention": getattr(getattr(model, "fusion", None), "pool", None),
        "image attention": getattr(tower, "pool", None),
    }
    pools = {kind: pool for kind, pool in pools.items() if isinstance(pool, AttentionPool)}
    if tower is None or not pools:
        return {}
    token_map = tower(inputs)[0]
    queries = {"prompt attention": model.encode_prompts(tokens) if "prompt attention" in pools else None}
    return {
        kind: _split(pool.attention(token_map, queries.get(kind)), token_map.shape[2:]) for kind, pool in pools.items()
    }


def _split(weights: torch.Tensor, grid: torch.Size) -> tuple[float, np.ndarray]:
    """Returns the share of the mean token and the weights (h, w) of the cells, the mean over heads of (1, H, N)."""
    mean = weights.double().mean(dim=1)[0].cpu()
    return float(mean[0]), mean[1:].reshape(grid).numpy()


def _attention_map(kind: Any, folds: list[Any]) -> HeatMap:
    """Returns the mean over folds of (share of the mean token, weights (h, w))."""
    weights = np.mean([cells for _, cells in folds], axis=0)
    return HeatMap(kind, "", _of_sum_one(weights), float(np.mean([share for share, _ in folds])))


def _gradient_maps(scorer: ModelScorer, inputs: torch.Tensor, tokens: torch.Tensor) -> list[HeatMap]:
    """Returns a map for each target: the length of the gradient to a pixel, its mean over the pixels of a cell."""
    totals: list[Any] = [0.0] * len(scorer.targets)
    for model in scorer.models:
        pixels = inputs.clone().requires_grad_()
        scores = model(pixels, tokens)[0]
        for i in range(len(totals)):
            (gradient,) = torch.autograd.grad(scores[i], pixels, retain_graph=True)
            length = gradient.double().norm(dim=1, keepdim=True)  # (1, 1, S, S)
            cells = functional.adaptive_avg_pool2d(length, _grid(model))[0, 0].cpu().numpy()
            totals[i] = totals[i] + _of_sum_one(cells)
    return [HeatMap("gradient", t.name, _of_sum_one(w), 0.0) for t, w in zip(scorer.targets, totals, strict=True)]


def _grid(model: nn.Module) -> tuple[int, int]:
    grid: tuple[int, int] = getattr(getattr(model, "image_encoder", None), "grid", GRID)
    return grid


def _of_sum_one(weights: np.ndarray) -> np.ndarray:
    """Returns weights (h, w) divided by their sum; all alike where all are zero."""
    total = weights.sum()
    shares = weights / total if total > 0 else np.full(weights.shape, 1 / weights.size)
    return shares.astype(np.float32)
