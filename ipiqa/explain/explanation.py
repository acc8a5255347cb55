"""One image and one prompt -> scores, heat maps and words, as numbers that a page, a picture or a server shows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from ipiqa.datasets.table import Target
from ipiqa.errors import ConfigError
from ipiqa.models.pooling import AttentionPool
from ipiqa.scoring.images import OneImage, batch_of
from ipiqa.scoring.model_scorer import ModelScorer
from ipiqa.scoring.scorer import BATCH_SIZE, Scorer

Kind = Literal["prompt attention", "image attention", "gradient"]

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

    kind: Kind
    target: str
    weights: np.ndarray
    mean_token: float


@dataclass(frozen=True, eq=False)
class Words:
    """The words of a prompt and what each brings.

    Attributes:
        words: W texts, as white space separates them.
        differences: (F, W, T) float32, by each of F folds: score of the whole prompt less that without the word. Above
            zero the word raises the score, below zero it lowers it. Those of words that are not read are zero.
        num_read: how many of the words, from the first on, the model reads; a longer prompt is cut.
    """

    words: tuple[str, ...]
    differences: np.ndarray
    num_read: int


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where a model looks and which words count; every number is of the scorer's F folds or their mean.

    Attributes:
        prompt: as given; "" where there is none.
        targets: what the T scores mean.
        scores: (F, T) float32, in units of the MOS trained on.
        maps: none for a scorer that is no model of this framework.
        words: none where the scorer reads no prompt.
    """

    prompt: str
    targets: tuple[Target, ...]
    scores: np.ndarray
    maps: tuple[HeatMap, ...]
    words: Words


def explain(scorer: Scorer, image: OneImage, prompt: str | None = None) -> Explanation:
    """Returns what the scores of an image are made of; the scorer stays as it is, and threads may call this at once.

    Args:
        scorer: from `ipiqa.load`.
        image: a path, the content of a file, a PIL image or a tensor (3, H, W).
        prompt: None where `scorer.needs_prompt` is false.

    An image that cannot be used and a prompt that is missing or empty are a DataError.
    """
    (text,) = scorer.texts(prompt, 1)
    prepared = scorer.prepare(image)
    scores, words = leave_one_out(scorer, prepared, text)
    maps = heat_maps(scorer, prepared, text) if isinstance(scorer, ModelScorer) else []
    return Explanation(text, scorer.targets, scores, tuple(maps), words)


def leave_one_out(scorer: Scorer, prepared: Any, prompt: str) -> tuple[np.ndarray, Words]:
    """Returns the scores (F, T) of an image with the prompt, and what each of its words brings.

    `prepared` is an image as `scorer.prepare` returns it. There are no words where the scorer reads none, or where the
    prompt is of one word: without it there would be no prompt.
    """
    words = prompt.split() if scorer.needs_prompt else []
    words = words if len(words) > 1 else []
    num_read, copies = len(words), BATCH_SIZE  # of the image, for a batch of prompts
    if isinstance(scorer, ModelScorer):
        num_read = _num_read(scorer, words)
        copies = 1 if all(getattr(model, "takes_one_image", False) for model in scorer.models) else BATCH_SIZE
    texts = [prompt, *(" ".join(words[:i] + words[i + 1 :]) for i in range(num_read))]
    parts = [texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE)]
    scores = np.concatenate([scorer.outputs([prepared] * min(copies, len(part)), part) for part in parts], axis=1)
    differences = np.zeros((len(scores), len(words), len(scorer.targets)), np.float32)
    differences[:, :num_read] = scores[:, :1] - scores[:, 1:]
    return scores[:, 0], Words(tuple(words), differences, num_read)


def _num_read(scorer: ModelScorer, words: Sequence[str]) -> int:
    """Returns after how many words further ones change nothing."""
    whole = scorer.tokenize([" ".join(words)])
    is_whole = lambda number: torch.equal(scorer.tokenize([" ".join(words[:number])]), whole)  # noqa: E731
    return bisect_left(range(len(words)), True, key=is_whole)


def heat_maps(scorer: ModelScorer, prepared: torch.Tensor, prompt: str) -> list[HeatMap]:
    """Returns the maps of an image, given as `scorer.prepare` returns it.

    They are the attention of the fusion's pool and of the image tower's, and where a model lacks one of the two, a
    gradient map for each target.
    """
    if scorer.processor.gives_views:
        raise ConfigError("ipiqa explain: a model of several views has no one map. Take a model of processor squash.")
    inputs = batch_of([prepared], scorer.processor, scorer.device)
    tokens = scorer.tokenize([prompt]) if scorer.needs_prompt else torch.zeros(1, 1).long()
    folds = [_attention(model, inputs, tokens) for model in scorer.models]
    maps = []
    for kind in folds[0]:  # the folds are of one kind of model
        mean_token, *cells = np.mean([fold[kind] for fold in folds], axis=0)
        maps.append(HeatMap(kind, "", _shares(np.reshape(cells, _grid(scorer.models[0]))), float(mean_token)))
    return maps if len(maps) == 2 else maps + gradient_maps(scorer, inputs, tokens)


@torch.no_grad()
def _attention(model: Any, inputs: torch.Tensor, tokens: torch.Tensor) -> dict[Kind, np.ndarray]:
    """Returns the weights (1 + h * w,) of each pool that a model has, the mean over its heads."""
    tower = getattr(model, "image_encoder", None)
    fusion_pool, image_pool = getattr(getattr(model, "fusion", None), "pool", None), getattr(tower, "pool", None)
    out: dict[Kind, torch.Tensor] = {}
    if tower is not None and (fusion_pool is not None or image_pool is not None):
        token_map = tower(inputs)[0]
        if isinstance(fusion_pool, AttentionPool):
            features = model.prompt_encoder(tokens)
            query = features[:, 0] if features.ndim == 3 else features  # (1, D); the others are words
            out["prompt attention"] = fusion_pool.attention(token_map, query)
        if isinstance(image_pool, AttentionPool):
            out["image attention"] = image_pool.attention(token_map)
    return {kind: weights.double().mean(dim=1)[0].cpu().numpy() for kind, weights in out.items()}


def gradient_maps(scorer: ModelScorer, inputs: torch.Tensor, tokens: torch.Tensor) -> list[HeatMap]:
    """Returns a map for each target: the length of the gradient to a pixel, its mean over the pixels of a cell."""
    of_target: list[list[np.ndarray]] = [[] for _ in scorer.targets]
    for model in scorer.models:
        pixels = inputs.clone().requires_grad_()
        scores = model(pixels, tokens)[0]  # (T,)
        for score, cells in zip(scores, of_target, strict=True):
            (gradient,) = torch.autograd.grad(score, pixels, retain_graph=True)
            length = gradient.double().norm(dim=1)  # (1, S, S)
            cells.append(_shares(functional.adaptive_avg_pool2d(length, _grid(model))[0].cpu().numpy()))
    both = zip(scorer.targets, of_target, strict=True)
    return [HeatMap("gradient", target.name, _shares(np.mean(cells, axis=0)), 0.0) for target, cells in both]


def _grid(model: Any) -> tuple[int, int]:
    return getattr(getattr(model, "image_encoder", None), "grid", GRID)


def _shares(weights: np.ndarray) -> np.ndarray:
    """Returns weights (h, w) divided by their sum, float32; all alike where all are zero."""
    total = weights.sum()
    shares = weights / total if total > 0 else np.full(weights.shape, 1 / weights.size)
    return shares.astype(np.float32)
