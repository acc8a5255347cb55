"""One image and one prompt -> scores, heat maps and words, as numbers that a page, a picture or a server shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ipiqa.datasets.table import Target
from ipiqa.explain.maps import HeatMap, heat_maps
from ipiqa.explain.words import Words, leave_one_out
from ipiqa.scoring.images import OneImage
from ipiqa.scoring.model_scorer import ModelScorer
from ipiqa.scoring.scorer import Scorer


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
