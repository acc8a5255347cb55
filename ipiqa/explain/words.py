"""Which words of a prompt a score hangs on: what is lost when each is left out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ipiqa.scoring.model_scorer import ModelScorer
from ipiqa.scoring.scorer import BATCH_SIZE, Scorer


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


def leave_one_out(scorer: Scorer, prepared: Any, prompt: str) -> tuple[np.ndarray, Words]:
    """Returns the scores (F, T) of an image with the prompt, and what each of its words brings.

    `prepared` is an image as `scorer.prepare` returns it. There are no words where the scorer reads none, or where the
    prompt is of one word: without it there would be no prompt.
    """
    words = prompt.split() if scorer.needs_prompt else []
    words = words if len(words) > 1 else []
    num_read = _num_read(scorer, words) if isinstance(scorer, ModelScorer) else len(words)
    texts = [prompt, *(" ".join(words[:i] + words[i + 1 :]) for i in range(num_read))]
    scores = _scores(scorer, prepared, texts)  # (F, 1 + W, T)
    differences = np.zeros((len(scores), len(words), len(scorer.targets)), np.float32)
    differences[:, :num_read] = scores[:, :1] - scores[:, 1:]
    return scores[:, 0], Words(tuple(words), differences, num_read)


def _num_read(scorer: ModelScorer, words: Sequence[str]) -> int:
    """Returns after how many words further ones change nothing."""
    whole = scorer.tokenize([" ".join(words)])
    is_whole = lambda number: torch.equal(scorer.tokenize([" ".join(words[:number])]), whole)  # noqa: E731
    return bisect_left(range(len(words)), True, key=is_whole)


def _scores(scorer: Scorer, prepared: Any, prompts: Sequence[str]) -> np.ndarray:
    """Returns (F, P, T) scores of one image with P prompts."""
    is_shared = isinstance(scorer, ModelScorer) and all(getattr(m, "takes_one_image", False) for m in scorer.models)
    out = []
    for start in range(0, len(prompts), BATCH_SIZE):
        part = prompts[start : start + BATCH_SIZE]
        out.append(scorer.outputs([prepared] * (1 if is_shared else len(part)), part))
    return np.concatenate(out, axis=1)
