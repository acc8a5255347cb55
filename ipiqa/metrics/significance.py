"""How sure we may be: spread of a metric, and paired comparison of two runs, over folds or over prompts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from ipiqa.metrics.resampling import Resampled

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """A metric over n folds; `low`, `high` bound the mean with `confidence`. `note` says what n does not support.

    `seed_std` is the standard deviation over training seeds, its mean over folds; nan where each fold has one.
    """

    n: int
    mean: float = math.nan
    std: float = math.nan
    median: float = math.nan
    low: float = math.nan
    high: float = math.nan
    confidence: float = CONFIDENCE
    note: str | None = None
    seed_std: float = math.nan


@dataclass(frozen=True)
class PairedTest:
    """Differences a - b over n common folds: their mean, its interval, and p of the same two-sided t-test.

    `p_holm` is p corrected for the tests that stand in one table, nan where there is no p or nothing was corrected.
    """

    n: int
    mean_a: float
    mean_b: float
    difference: float
    low: float = math.nan
    high: float = math.nan
    confidence: float = CONFIDENCE
    p: float = math.nan
    note: str | None = None
    p_holm: float = math.nan


def describe(
    values: Iterable[float], *, overlap: float, limits: tuple[float, float] = (-math.inf, math.inf),
    resampled: Resampled | None = None,
) -> Spread:  # fmt: skip
    """Returns mean, sample standard deviation (n - 1), median and interval of the mean over folds.

    A nan among the values makes all of them nan, with a note: a mean over the folds that worked out would flatter.
    The interval is cut at `limits`, beyond which no value can be. `overlap` and `resampled`, this same mean in each
    draw, are as for `paired_test`.
    """
    array = np.array([*values], dtype=np.float64)
    n, bad = len(array), int((~np.isfinite(array)).sum())
    if not n or bad:
        return Spread(n, note=f"undefined in {bad} of {n} fold{'s' * (n > 1)}" if n else "no fold")
    mean, median = float(array.mean()), float(np.median(array))
    std = float(array.std(ddof=1)) if n > 1 else math.nan
    _, reach, _ = _error(array, overlap, resampled)
    low, high = np.clip((mean - reach, mean + reach), *limits).tolist()
    note = "n = 1: no spread from a single fold" if math.isnan(reach) and n == 1 else None
    return Spread(n, mean, std, median, low, high, note=note)


def paired_test(
    a: Sequence[float], b: Sequence[float], *, overlap: float, resampled: Resampled | None = None
) -> PairedTest:
    """Returns whether run a and run b differ over the same folds.

    `a` and `b` are n values, one for each fold, in the same order. `overlap` is, for folds drawn anew from the same
    images, the number of held-out images for one of the others (0.25 where a fifth is held out), and 0 for disjoint
    folds. Repeated random draws share images, so the n differences are correlated and var(d) / n is too small by far:
    the corrected resampled t-test takes (1/n + overlap) var(d) instead, with n - 1 degrees of freedom. With `overlap` 0
    it is the plain paired t-test.

    With `resampled`, the mean difference in each of many draws of prompts, the error is theirs and folds do not count:
    for a single fold, and for folds that share their prompts.

    Source: Nadeau & Bengio, Inference for the generalization error, Machine Learning 52(3), 239-281 (2003).
    """
    first, second = np.array([a, b], dtype=np.float64)
    difference = first - second
    n, bad = len(difference), int((~np.isfinite(difference)).sum())
    mean_a, mean_b, mean = (float(values.mean()) if n else math.nan for values in (first, second, difference))
    error, reach, degrees = _error(difference, overlap, resampled)
    note = None
    if bad:
        note = f"undefined in {bad} of {n} folds"
    elif resampled is None and n < 2:
        note = f"n = {n}: a paired test needs two folds or more"
    elif error <= 1e-12:  # equal differences leave no variance, and those of a rounding are none either
        note = f"all {n} differences are {'zero' if abs(mean) <= 1e-12 else 'the same'}: a t-test is undefined"
    elif math.isnan(error):
        note = "undefined in too many draws of prompts"
    if note is not None:
        return PairedTest(n, mean_a, mean_b, mean, note=note)
    p = float(2 * stats.t.sf(abs(mean / error), degrees))
    return PairedTest(n, mean_a, mean_b, mean, mean - reach, mean + reach, p=p)


def holm(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Returns tests with `p_holm`: the chance that any of them falls below a level by luck stays under the level.

    A test without p does not count.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted((i for i, test in enumerate(tests) if not math.isnan(test.p)), key=lambda i: tests[i].p)
    out, highest = list(tests), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * tests[i].p))
        out[i] = replace(tests[i], p_holm=highest)
    return out


def _error(values: np.ndarray, overlap: float, resampled: Resampled | None) -> tuple[float, float, int]:
    """Returns the standard error of a mean, how far its interval reaches to either side, and degrees of freedom."""
    n = len(values)
    error, degrees = math.nan, n - 1
    if resampled is not None:
        error, degrees = resampled.error, resampled.degrees
    elif n > 1:
        error = math.sqrt((1 / n + overlap) * float(values.var(ddof=1)))
    return error, float(stats.t.ppf(0.5 + CONFIDENCE / 2, max(1, degrees))) * error, degrees
