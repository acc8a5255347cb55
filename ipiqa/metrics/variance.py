"""How much of the variance of scores lies between groups, such as generators or prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def share_between(labels: Sequence[str], scores: np.ndarray) -> float | None:
    """Returns the share of the variance of scores (N,) that the means of their groups explain, or None.

    This is epsilon squared (Kelley 1935), eta squared corrected for the number of groups: groups that were drawn by
    lot have 0 on average, so that small negative values occur. Missing scores are left out. There is no such share
    where scores are all equal, or where no two images are in one group.
    """
    known = np.isfinite(scores)
    values = scores[known]
    codes, names = pd.factorize(np.array(labels, dtype=object)[known])
    if len(names) >= len(values) or not np.ptp(values):
        return None
    means = np.bincount(codes, values) / np.bincount(codes)
    inside = np.sum((values - means[codes]) ** 2) / (len(values) - len(names))
    return float(1 - inside / np.var(values, ddof=1))
