"""Agreement among the images of one prompt, where neither the prompt nor the mean of its images can help."""

import numpy as np
import pandas as pd

from ipiqa.metrics.agreement import MIN_IMAGES


def within_srcc(predictions: np.ndarray, mos: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Returns the SRCC among the images of each prompt, (P,), nan where it has fewer than 3 or they all have one MOS.

    Ties take mean ranks. Predictions that are the same for all images of a prompt put none before another: 0.

    Args:
        predictions: (N,), finite.
        mos: (N,), finite.
        prompts: (N,) numbers 0 to P - 1: which images share a prompt.
    """
    by_prompt = pd.DataFrame({"a": predictions, "b": mos}).groupby(prompts)
    ranks = by_prompt.rank()
    centred = ranks - ranks.groupby(prompts).transform("mean")
    products = pd.DataFrame({"ab": centred["a"] * centred["b"], "aa": centred["a"] ** 2, "bb": centred["b"] ** 2})
    ab, aa, bb = products.groupby(prompts).sum().to_numpy().T
    defined = (by_prompt.size().to_numpy() >= MIN_IMAGES) & (bb > 0)
    flat = np.where(defined, 0.0, np.nan)
    return np.divide(ab, np.sqrt(aa * bb), out=flat, where=defined & (aa > 0))


def pair_accuracy(predictions: np.ndarray, mos: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Returns the share of the pairs of images of each prompt that are in the right order, (P,), nan where it has none.

    Pairs of one MOS are left out, pairs of one prediction count half. The arguments are as for `within_srcc`.
    """
    order = np.argsort(prompts, kind="stable")
    x, y, owner = predictions[order], mos[order], prompts[order]
    sizes = np.bincount(prompts)
    right, pairs = np.zeros(len(sizes)), np.zeros(len(sizes))
    for gap in range(1, int(sizes.max(initial=0))):  # all pairs that stand so far apart at once
        same = owner[gap:] == owner[:-gap]
        signs = np.sign(x[gap:] - x[:-gap])[same] * np.sign(y[gap:] - y[:-gap])[same]
        differ = (y[gap:] != y[:-gap])[same]
        pairs += np.bincount(owner[gap:][same], differ, len(sizes))
        right += np.bincount(owner[gap:][same], differ * (1 + signs) / 2, len(sizes))
    return np.divide(right, pairs, out=np.full(len(sizes), np.nan), where=pairs > 0)
