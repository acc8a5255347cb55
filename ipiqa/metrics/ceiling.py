"""Noise ceiling: the correlation with the MOS that nothing but the raters' disagreement leaves within reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

MIN_IN_GROUP = 3  # images of a prompt whose order means something
_DRAWS, _MOST_RATED = 100, 10_000_000  # draws of simulated raters, fewer where these would be more simulated scores


@dataclass(frozen=True)
class Ceiling:
    """What a scorer would reach that knows the mean of infinitely many raters for each image.

    `within` is the mean SRCC over the images of one prompt; nan where no prompt has three.
    """

    srcc: float
    plcc: float
    within: float = math.nan


def noise_ceiling(
    mos: np.ndarray, std: np.ndarray, raters: np.ndarray | float, groups: Sequence[str] = (), *, seed: int = 0
) -> Ceiling | None:
    """Returns the noise ceiling of scores (N,), or None where fewer than three have a known std and number of raters.

    A MOS of n raters is a true score plus noise of variance std^2 / n. The true scores are taken for the MOS drawn
    together around their mean, so that true scores and noise have the variance of the MOS; what others would rate is
    simulated from them. PLCC has a formula, the square root of the reliability 1 - mean(std^2 / n) / variance(MOS).

    Args:
        mos: mean opinion scores.
        std: standard deviation over the raters of each image, in the unit of the MOS, nan where it is not known.
        raters: number of raters of each image, or of all.
        groups: prompt of each image, for the ceiling within prompts.
        seed: of the simulated raters.
    """
    noise = std / np.sqrt(raters)
    known = np.flatnonzero(np.isfinite(mos) & np.isfinite(noise))
    if len(known) < MIN_IN_GROUP or np.ptp(mos[known]) == 0:
        return None
    mos, noise = mos[known], noise[known]
    reliability = max(0.0, 1 - float(np.mean(noise**2)) / float(mos.var()))
    truth = mos.mean() + math.sqrt(reliability) * (mos - mos.mean())
    members: dict[str, list[int]] = {}
    for position, row in enumerate(known.tolist() if groups else ()):
        members.setdefault(groups[row], []).append(position)
    inside = [np.array(rows) for rows in members.values() if len(rows) >= MIN_IN_GROUP]
    shape = max(1, min(_DRAWS, _MOST_RATED // len(mos))), len(mos)
    rated = truth + noise * np.random.default_rng(seed).standard_normal(shape)
    within = np.concatenate([_srcc(truth[rows], rated[:, rows]) for rows in inside] or [np.array([math.nan])])
    within = within[~np.isnan(within)]
    return Ceiling(
        float(_srcc(truth, rated).mean()), math.sqrt(reliability), float(within.mean()) if len(within) else math.nan
    )


def _srcc(truth: np.ndarray, rated: np.ndarray) -> np.ndarray:
    """Returns (D,) of true scores (n,) and D times rated ones (D, n); nan where the true ones are all the same."""
    a, b = stats.rankdata(truth) - (len(truth) + 1) / 2, stats.rankdata(rated, axis=1) - (len(truth) + 1) / 2
    with np.errstate(invalid="ignore"):
        return (b @ a) / np.sqrt((a @ a) * (b * b).sum(axis=1))
