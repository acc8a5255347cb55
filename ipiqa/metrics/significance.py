"""How sure we may be: spread of a metric over folds, and paired comparison of two runs over the same folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ipiqa.errors import DataError

CONFIDENCE = 0.95
RESAMPLES = 10_000
FEW_FOLDS = 10  # below this a percentile bootstrap interval is visibly too narrow


@dataclass(frozen=True)
class Spread:
    """A metric over n folds; `low`, `high` bound the mean with `confidence`. `note` says what n does not support."""

    n: int
    mean: float
    std: float
    median: float
    low: float
    high: float
    confidence: float
    note: str | None


@dataclass(frozen=True)
class PairedTest:
    """Differences a - b over the folds of two runs, `low` to `high` their corrected confidence interval.

    `p_corrected` (Nadeau & Bengio) is the one to quote; `p_t` takes the folds for independent and is too small when
    their parts overlap; `p_wilcoxon` cannot get below `smallest_wilcoxon` however large the difference.
    """

    n: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    confidence: float
    p_corrected: float
    p_t: float
    p_wilcoxon: float
    smallest_wilcoxon: float
    notes: tuple[str, ...]


def describe(
    values: Sequence[float], *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Spread:
    """Returns mean, sample standard deviation (n - 1), median and bootstrap interval of the mean over folds.

    A nan among the values makes all of them nan, with a note: a mean over the folds that worked out would flatter.

    >>> spread = describe([0.5, 0.75])
    >>> spread.mean, round(spread.std, 4), spread.note
    (0.625, 0.1768, 'n = 2: the interval is too narrow, a bootstrap needs 10 folds or more')
    >>> describe([0.5]).note
    'n = 1: no spread from a single fold'
    """
    array = np.asarray(values, dtype=np.float64)
    bad = int((~np.isfinite(array)).sum())
    if len(array) == 0 or bad:
        reason = f"undefined in {bad} of {len(array)} folds" if len(array) else "no fold"
        return Spread(len(array), math.nan, math.nan, math.nan, math.nan, math.nan, confidence, reason)
    low, high = bootstrap_interval(values, confidence=confidence, resamples=resamples, seed=seed)
    note: str | None = None
    if len(array) == 1:
        note = "n = 1: no spread from a single fold"
    elif len(array) < FEW_FOLDS:
        note = f"n = {len(array)}: the interval is too narrow, a bootstrap needs {FEW_FOLDS} folds or more"
    std = float(array.std(ddof=1)) if len(array) > 1 else math.nan
    return Spread(len(array), float(array.mean()), std, float(np.median(array)), low, high, confidence, note)


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean: (low, high), both nan for fewer than two finite values.

    The folds are resampled with replacement, the same way for the same n and seed. It tells how the mean moves with
    the draw of folds; the folds share training images, so it does not tell how a new database would come out.

    Source: Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979).

    >>> low, high = bootstrap_interval([0.8, 0.9, 0.7, 0.8, 0.85])
    >>> 0.7 < low < 0.81 < high < 0.9
    True
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2 or not np.isfinite(array).all():
        return math.nan, math.nan
    draws = np.random.default_rng(seed).integers(0, len(array), size=(resamples, len(array)))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(array[draws].mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)


def paired_test(
    a: Sequence[float],
    b: Sequence[float],
    *,
    test_to_train: float,
    splits_a: Sequence[str],
    splits_b: Sequence[str],
    confidence: float = CONFIDENCE,
) -> PairedTest:
    """Returns whether run a and run b differ over the same folds.

    The test to quote is the corrected resampled t-test: t = mean(d) / sqrt((1/n + test/train) var(d)), n - 1 degrees of
    freedom. Repeated random splits share images, so the n differences are correlated and the usual variance var(d) / n
    is too small by far; the second term makes up for it. The confidence interval is the same test turned round. The
    plain paired t-test and the Wilcoxon signed-rank test (exact, ties at mean ranks, zero differences left out) stand
    beside it. All are two-sided.

    Source: Nadeau & Bengio, Inference for the generalization error, Machine Learning 52(3), 239-281 (2003);
    Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1 (1945).

    Args:
        a, b: n values, one for each fold, in the same order.
        test_to_train: images of the reported part for one training image, 0.25 for 80 % training.
        splits_a, splits_b: n split hashes; both runs must have been measured on the same parts.

    Raises:
        DataError: the folds do not pair: different numbers, or a fold with different parts.
        ValueError: `test_to_train` is not positive.
    """
    if not test_to_train > 0:
        raise ValueError(f"paired_test: test_to_train is {test_to_train}, it must be positive")
    _check_pairs(a, b, splits_a, splits_b)
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference = first - second
    n = len(difference)
    mean = float(difference.mean()) if n else math.nan
    means = (float(first.mean()) if n else math.nan, float(second.mean()) if n else math.nan)
    smallest = min(1.0, 2.0 ** (1 - n))
    nothing = dict.fromkeys(("low", "high", "p_corrected", "p_t", "p_wilcoxon"), math.nan)
    bad = int((~np.isfinite(difference)).sum())
    if bad or n < 2:
        note = f"undefined in {bad} of {n} folds" if bad else f"n = {n}: a paired test needs two folds or more"
        return PairedTest(n, *means, mean, **nothing, confidence=confidence, smallest_wilcoxon=smallest, notes=(note,))
    notes = []
    p_wilcoxon = _wilcoxon(difference)
    if smallest > 1 - confidence:
        notes.append(f"n = {n}: the Wilcoxon p cannot fall below {smallest:.3g}")
    # Equal differences leave no variance to test against; those of a rounding are no variance either.
    if np.ptp(difference) <= 1e-12:
        what = "zero" if abs(mean) <= 1e-12 else "the same"
        notes.append(f"all {n} differences are {what}: a t-test is undefined")
        values = {**nothing, "p_wilcoxon": p_wilcoxon}
    else:
        variance = float(difference.var(ddof=1))
        error = math.sqrt((1 / n + test_to_train) * variance)
        reach = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
        values = {
            "low": mean - reach,
            "high": mean + reach,
            "p_corrected": _two_sided(mean / error, n - 1),
            "p_t": _two_sided(mean / math.sqrt(variance / n), n - 1),
            "p_wilcoxon": p_wilcoxon,
        }
    return PairedTest(n, *means, mean, **values, confidence=confidence, smallest_wilcoxon=smallest, notes=tuple(notes))


def _check_pairs(a: Sequence[float], b: Sequence[float], splits_a: Sequence[str], splits_b: Sequence[str]) -> None:
    if not len(a) == len(b) == len(splits_a) == len(splits_b):
        counts = f"{len(a)} and {len(b)} values with {len(splits_a)} and {len(splits_b)} splits"
        raise DataError(f"paired test: {counts} do not pair. Give one value and one split hash for each common fold.")
    differ = [i for i, (one, other) in enumerate(zip(splits_a, splits_b, strict=True)) if one != other]
    if differ:
        i = differ[0]
        raise DataError(
            f"paired test: {len(differ)} of {len(a)} folds were measured on different parts, first number {i} (split "
            f"{splits_a[i][:12]} against {splits_b[i][:12]}). Only runs over the same splits can be compared in pairs. "
            "Train both with the same dataset, split.kind and split.seed."
        )


def _two_sided(t: float, freedom: int) -> float:
    return float(2 * stats.t.sf(abs(t), freedom))


def _wilcoxon(difference: np.ndarray) -> float:
    """Returns the exact two-sided p of the signed-rank test; 1 when no difference is left.

    Counts, by dynamic programming, how many of the 2^n sign patterns give each rank sum: exact with ties too, where
    scipy's tables fall back to the normal approximation.
    """
    # Differences equal but for rounding are ties.
    kept = np.round(difference[np.abs(difference) > 1e-12], 12)
    if not len(kept):
        return 1.0
    doubled = np.rint(2 * stats.rankdata(np.abs(kept))).astype(np.int64)  # mean ranks may end in one half
    share = np.zeros(int(doubled.sum()) + 1)
    share[0] = 1.0
    for rank in doubled:
        moved = np.zeros_like(share)
        moved[rank:] = share[:-rank]
        share = (share + moved) / 2
    rank_sum = int(doubled[kept > 0].sum())
    return float(min(1.0, 2 * min(share[: rank_sum + 1].sum(), share[rank_sum:].sum())))
