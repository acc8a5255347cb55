"""How sure a metric is over prompts: all images of a prompt are drawn again together (clustered bootstrap).

A metric of drawn images is a function of `Images` and of weights (B, N): how often each of B draws holds each image,
the same number for all images of a prompt. It returns (B,), nan where a draw leaves it undefined. With weights of one
it is the plain metric.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from ipiqa.metrics.agreement import METRICS, MIN_IMAGES, fit_logistic

DRAWS = 1000
MAX_CLUSTERS = 1000  # more prompts are drawn several together
_MAX_CELLS = 2_000_000  # of one array; bounds memory
_MAX_PAIRED = 4000  # images whose pairs are all looked at, for KRCC
_NOISE = 1e-20  # of the mean square: a variance that rounding alone makes


class Images(NamedTuple):
    """N images that have a score; prompts, segments and clusters, which are drawn together, are numbers from 0.

    A prediction that is not finite makes every metric nan.
    """

    predictions: np.ndarray
    mos: np.ndarray
    prompts: np.ndarray
    segments: np.ndarray = np.zeros(0, dtype=np.int64)
    clusters: np.ndarray = np.zeros(0, dtype=np.int64)


Drawn = Callable[[Images, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Resampled:
    """A figure in each of B draws, and the degrees of freedom of its error: clusters - 1."""

    values: np.ndarray
    degrees: int

    @property
    def error(self) -> float:
        """Standard error of the figure; nan where more than a tenth of the draws leave it undefined."""
        finite = self.values[np.isfinite(self.values)]
        enough = self.degrees > 0 and len(finite) >= 0.9 * len(self.values)
        return float(finite.std(ddof=1)) if enough else np.nan

    def __sub__(self, other: "Resampled") -> "Resampled":
        return Resampled(self.values - other.values, self.degrees)


def clusters_of(labels: Iterable[str]) -> dict[str, int]:
    """Returns the number, from 0, of the cluster that each label is drawn in: its own, up to 1,000 labels."""
    distinct = np.array(sorted(set(labels)), dtype=object)
    if len(distinct) > MAX_CLUSTERS:
        np.random.default_rng(0).shuffle(distinct)
    return {label: i % MAX_CLUSTERS for i, label in enumerate(distinct)}


def draw(num_clusters: int) -> np.ndarray:
    """Returns (DRAWS, clusters): how often each draw, with replacement, holds each cluster; the same at every call."""
    chances = np.full(num_clusters, 1 / num_clusters)
    return np.random.default_rng(0).multinomial(num_clusters, chances, size=DRAWS).astype(np.float64)


def resampled(metric: Drawn, images: Images, draws: np.ndarray) -> np.ndarray:
    """Returns a metric in each of the draws (B, clusters), as (B,)."""
    if not len(images.mos) or not np.isfinite(images.predictions).all():
        return np.full(len(draws), np.nan)
    step = max(1, _MAX_CELLS // len(images.mos))
    chunks = (draws[start : start + step] for start in range(0, len(draws), step))
    with np.errstate(invalid="ignore", divide="ignore"):  # draws without an image, or with equal scores, are nan
        return np.concatenate([metric(images, chunk[:, images.clusters]) for chunk in chunks])


def plain(metric: Drawn, images: Images) -> float:
    """Returns a metric of the images as they are; nan where it is undefined."""
    together = images._replace(clusters=np.zeros(len(images.mos), dtype=np.int64))
    return float(resampled(metric, together, np.ones((1, 1)))[0])


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    sums = weights @ values if values.ndim == 1 else np.einsum("bn,bn->b", weights, values)
    return np.asarray(sums / weights.sum(axis=1))


def _covariance(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns (B,) for x and y of (N,) or (B, N); 0 where rounding alone would make it something else."""
    means = [_mean(values, weights)[:, None] for values in (x, y)]
    covariance = _mean((x - means[0]) * (y - means[1]), weights)
    noise = _NOISE * np.sqrt(_mean(np.square(x), weights) * _mean(np.square(y), weights))
    return np.where(np.abs(covariance) > noise, covariance, 0.0)


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if weights.shape[1] < MIN_IMAGES:
        return np.full(len(weights), np.nan)
    return _covariance(x, y, weights) / np.sqrt(_covariance(x, x, weights) * _covariance(y, y, weights))


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the ranks (B, N) that the images have in each draw, means for ties, but for a constant."""
    distinct, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    held = np.add.reduceat(weights[:, order], np.searchsorted(place[order], np.arange(len(distinct))), axis=1)
    return (np.cumsum(held, axis=1) - held / 2)[:, place]


def _krcc(images: Images, weights: np.ndarray) -> np.ndarray:
    """Returns tau-b, from the pairs that two prompts have in order, and those that are not tied."""
    if not MIN_IMAGES <= len(images.mos) <= _MAX_PAIRED:
        return np.full(len(weights), np.nan)
    order = np.argsort(images.prompts, kind="stable")
    _, starts = np.unique(images.prompts[order], return_index=True)
    x, y = (np.sign(values[order, None] - values[order]) for values in (images.predictions, images.mos))
    of_prompts, sums = weights[:, order[starts]], []
    for signs in (x * y, x * x, y * y):
        pairs = np.add.reduceat(np.add.reduceat(signs, starts, axis=0), starts, axis=1)
        sums.append(((of_prompts @ pairs) * of_prompts).sum(axis=1))
    return sums[0] / np.sqrt(sums[1] * sums[2])


def _plcc_fitted(images: Images, weights: np.ndarray) -> np.ndarray:
    """The curve is that of the images as they are: fitted anew in every draw it would take minutes."""
    curve = fit_logistic(images.predictions, images.mos)
    return _correlation(curve(images.predictions), images.mos, weights)


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


def _over_prompts(values_of: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Drawn:
    """Returns the mean over prompts of what has a value for each prompt."""

    def metric(images: Images, weights: np.ndarray) -> np.ndarray:
        _, first, place = np.unique(images.prompts, return_index=True, return_inverse=True)
        values = values_of(images.predictions, images.mos, place)
        return _mean(values[np.isfinite(values)], weights[:, first[np.isfinite(values)]])

    return metric


def _slope(images: Images, weights: np.ndarray) -> np.ndarray:
    if len(images.mos) < MIN_IMAGES:
        return np.full(len(weights), np.nan)
    x, y = images.predictions, images.mos
    return _covariance(x, y, weights) / _covariance(x, x, weights)


def _intercept(images: Images, weights: np.ndarray) -> np.ndarray:
    return _mean(images.mos, weights) - _slope(images, weights) * _mean(images.predictions, weights)


def _order(images: Images, weights: np.ndarray) -> np.ndarray:
    """Returns the SRCC of mean prediction and mean MOS over segments; nan for fewer than 3, or one without an image."""
    distinct, place = np.unique(images.segments, return_inverse=True)
    if len(distinct) < MIN_IMAGES:
        return np.full(len(weights), np.nan)
    members = np.eye(len(distinct))[place]  # (N, S)
    number = weights @ members
    means = (((weights * values) @ members) / number for values in (images.predictions, images.mos))
    x, y = (stats.rankdata(of_segments, axis=1, nan_policy="propagate") for of_segments in means)
    return _correlation(x, y, np.ones_like(x))


# Of pairs, not images: predictions are by how much the first scores higher, mos is 1 where it was chosen, else -1.
CHOSEN: dict[str, Drawn] = {
    "accuracy": lambda pairs, weights: _mean((1 + np.sign(pairs.predictions) * pairs.mos) / 2, weights),
    "log_loss": lambda pairs, weights: _mean(np.logaddexp(0, -pairs.predictions * pairs.mos), weights),
}
DRAWN: dict[str, Drawn] = {
    "srcc": lambda images, weights: _correlation(
        _ranks(images.predictions, weights), _ranks(images.mos, weights), weights
    ),
    "krcc": _krcc, "plcc_fitted": _plcc_fitted, "slope": _slope, "intercept": _intercept,
    "plcc": lambda images, weights: _correlation(images.predictions, images.mos, weights),
    "rmse": lambda images, weights: np.sqrt(_mean(np.square(images.predictions - images.mos), weights)),
    "bias": lambda images, weights: _mean(images.predictions - images.mos, weights),
    "srcc_within": _over_prompts(within_srcc), "pair_accuracy": _over_prompts(pair_accuracy),
    "order": _order, **CHOSEN,
}  # fmt: skip
# The least and the largest value of each metric that has any.
LIMITS = {**METRICS, "srcc_within": (-1.0, 1.0), "pair_accuracy": (0.0, 1.0), "order": (-1.0, 1.0)}
LIMITS |= {"accuracy": (0.0, 1.0), "log_loss": (0.0, math.inf)}
