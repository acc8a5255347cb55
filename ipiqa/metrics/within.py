"""Agreement among the images of one prompt, where neither the prompt nor the mean of its images can help."""

import numpy as np
from scipy import stats

from ipiqa.metrics.agreement import MIN_IMAGES


def within_srcc(predictions: np.ndarray, mos: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Returns the SRCC among the images of each prompt, (P,), nan where it has fewer than 3 or they all have one MOS.

    Ties take mean ranks. Predictions that are the same for all images of a prompt put none before another: 0.

    Args:
        predictions: (N,), finite.
        mos: (N,), finite.
        prompts: (N,) numbers 0 to P - 1: which images share a prompt.
    """
    number = np.bincount(prompts)
    ranks = [_ranks_within(values, prompts) for values in (predictions, mos)]
    x, y = (r - (np.bincount(prompts, r) / np.maximum(number, 1))[prompts] for r in ranks)
    xx, yy, xy = (np.bincount(prompts, products) for products in (x * x, y * y, x * y))
    defined = (number >= MIN_IMAGES) & (yy > 0)
    return np.divide(xy, np.sqrt(xx * yy), out=np.where(defined, 0.0, np.nan), where=defined & (xx > 0))


def _ranks_within(values: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Returns ranks that order the images of each prompt, means for ties; those of a prompt begin anywhere."""
    _, place = np.unique(np.stack([prompts, values]), axis=1, return_inverse=True)
    return np.asarray(stats.rankdata(place.ravel()))


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
