"""Agreement of predictions with mean opinion scores: SRCC, PLCC, KRCC, RMSE, and PLCC after a logistic fit."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special, stats

_INSIDE = (-1.0, 1.0)
# The least and the largest value of each metric, in the order of tables.
METRICS = {"srcc": _INSIDE, "plcc": _INSIDE, "krcc": _INSIDE, "rmse": (0.0, math.inf), "plcc_fitted": _INSIDE}
MIN_IMAGES = 3  # with two images every correlation is +1 or -1
MIN_IMAGES_FITTED = 5  # four parameters pass through any four points
_EVALUATIONS = 200  # from each start
_MORE_EVALUATIONS = 600  # from the best of them, when it has not settled
_TOLERANCE = 1e-6  # of the squared error and of the parameters: far below what PLCC shows
_STANDSTILL = 1e-4  # of the same share: a search that gains less has arrived, for the digits that PLCC shows
_NOTICEABLE = 5e-5  # loss of PLCC by a fit that shows in four digits
_WEAK = 0.5  # share of the variance: a fit that leaves more may have ended in a valley of its own
_EXACT = 1e-6  # share of the variance left by a fit that is as good as exact


@dataclass(frozen=True)
class LogisticFit:
    """The four-parameter logistic curve fitted to predictions and MOS, or the reason why there is none.

    `upper`, `lower` are the asymptotes at the high and the low end of the predictions (MOS units; `upper` is the
    smaller one when predictions fall while MOS rise), `centre` and `scale` > 0 are in prediction units.
    """

    upper: float = math.nan
    lower: float = math.nan
    centre: float = math.nan
    scale: float = math.nan
    plcc: float = math.nan
    reason: str | None = None

    def __call__(self, predictions: np.ndarray) -> np.ndarray:
        """Returns the curve at the predictions, in MOS units; same shape."""
        return self.lower + (self.upper - self.lower) * special.expit((predictions - self.centre) / self.scale)


def measure(
    predictions: np.ndarray, mos: np.ndarray, targets: Sequence[str], *, fitted: bool = True
) -> dict[str, dict[str, Any]]:
    """Returns {target: {"srcc", "plcc", "krcc", "rmse", "plcc_fitted": float, "notes": list of str}}.

    `predictions` and `mos` are (N, T), on the same scale for RMSE to mean something; other shapes are a ValueError.
    What cannot be computed is nan, and `notes` says why in words: fewer than 3 images, constant or non-finite values.
    RMSE needs no variation, so it is given for constant predictions too. KRCC is tau-b, SRCC uses mean ranks of ties.
    A MOS that is nan is missing: its image is left out for that target, and `notes` counts them.
    `fitted` False leaves `plcc_fitted` at nan without a note, which saves time.
    """
    predictions, mos = np.asarray(predictions, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    if predictions.ndim != 2 or predictions.shape != mos.shape or predictions.shape[1] != len(targets):
        shapes = f"predictions {predictions.shape} and mos {mos.shape}"
        raise ValueError(f"measure: {shapes} must both be (N, {len(targets)}), one column for each of {list(targets)}")
    return {target: _measure_one(predictions[:, t], mos[:, t], fitted) for t, target in enumerate(targets)}


def aggregate(measured: Mapping[str, Mapping[str, Any]]) -> float:
    """Returns SRCC + PLCC + KRCC summed over targets, or -inf when one of them is not finite (never a best epoch).

    # reference: this sum chooses the best epoch (REFERENCE (h)); PLCC is the one without fitting.
    """
    values = [float(metrics[name]) for metrics in measured.values() for name in ("srcc", "plcc", "krcc")]
    return sum(values) if values and all(map(math.isfinite, values)) else -math.inf


def fit_logistic(predictions: np.ndarray, mos: np.ndarray) -> LogisticFit:
    """Returns the least-squares logistic curve from predictions (N,) to MOS (N,), and the PLCC of fitted predictions.

    f(x) = (b1 - b2) / (1 + exp(-(x - b3) / |b4|)) + b2, from b1, b2 = extremes of the MOS, b3 = mean and b4 = a
    quarter of the standard deviation of the predictions. Predictions that rank the images backwards (SRCC < 0) start
    from a falling curve; `plcc` is then positive all the same, which is why it never stands without SRCC beside it.
    Where the curve leaves more than half of the variance, or follows the MOS less well than ranks or a straight line
    do, the search starts twice more: from the quartiles, and from a line. Some ten evaluations a start as a rule, 1,400
    in all at most: 3 ms for 600 images, 60 ms in the worst case.

    Source: VQEG, Final report on the validation of objective models of video quality assessment, phase II (2003);
    ITU-T P.1401 (mapping before Pearson correlation).
    """
    predictions, mos = np.asarray(predictions, dtype=np.float64), np.asarray(mos, dtype=np.float64)
    if reason := _undefined(predictions, mos):
        return LogisticFit(reason=reason)
    if len(mos) < MIN_IMAGES_FITTED:
        return LogisticFit(reason=f"a logistic fit needs at least {MIN_IMAGES_FITTED} images, here are {len(mos)}")
    # Standardised, both scales of the problem are 1 and the tolerances of the optimiser mean the same for every data.
    mean, deviation, mos_mean, mos_deviation = predictions.mean(), predictions.std(), mos.mean(), mos.std()
    x, y = (predictions - mean) / deviation, (mos - mos_mean) / mos_deviation
    rank_correlation, correlation = float(stats.spearmanr(x, y).statistic), _pearson(x, y)
    ends = (y.max(), y.min()) if rank_correlation >= 0 else (y.min(), y.max())
    # The published start, and a nearly straight line: a far outlier can hold the first one in a poor valley.
    best = _search(x, y, [np.array([*ends, 0.0, math.log(scale)]) for scale in (0.25, 2.0)])
    if not 1 - best.left >= max(1 - _WEAK, rank_correlation**2, correlation**2):
        # Far outliers, or a weak correlation: both starts may end in a valley that another curve or a line beats.
        better = _search(x, y, _robust_starts(x, y, correlation))
        best = better if best.left - better.left > _STANDSTILL else best
    if not best.settled:  # rare: weak correlation, where the best curve is close to a step between two images
        further = _least_squares(x, y, best.parameters, _MORE_EVALUATIONS)
        if not further.settled and not best.left - further.left < _STANDSTILL:
            count = 2 * _EVALUATIONS + _MORE_EVALUATIONS
            return LogisticFit(reason=f"the logistic fit did not converge within {count} evaluations")
        best = further
    upper, lower, centre, log_scale = best.parameters
    curve = lower + (upper - lower) * special.expit((x - centre) * math.exp(-log_scale))
    if _constant(curve):
        return LogisticFit(reason="the logistic fit is flat: no curve follows the MOS better than their mean")
    asymptotes = float(mos_mean + mos_deviation * upper), float(mos_mean + mos_deviation * lower)
    middle, scale = float(mean + deviation * centre), float(deviation * math.exp(log_scale))
    return LogisticFit(*asymptotes, middle, scale, _pearson(curve, y))


def _measure_one(predictions: np.ndarray, mos: np.ndarray, fitted: bool) -> dict[str, Any]:
    notes: list[str] = []
    result: dict[str, Any] = {**dict.fromkeys(METRICS, math.nan), "notes": notes}
    known = ~np.isnan(mos)
    if not known.all():
        notes.append(f"{len(mos) - known.sum()} of {len(mos)} images have no MOS and are left out")
        predictions, mos = predictions[known], mos[known]
    if len(mos) and np.isfinite(predictions).all() and np.isfinite(mos).all():
        result["rmse"] = float(np.sqrt(np.mean((predictions - mos) ** 2)))
    if reason := _undefined(predictions, mos):
        notes.append(f"correlations are undefined: {reason}")
        return result
    result["srcc"] = float(stats.spearmanr(predictions, mos).statistic)
    result["plcc"] = _pearson(predictions, mos)
    # The p-value is not used; asymptotic is the cheap way not to get it.
    result["krcc"] = float(stats.kendalltau(predictions, mos, method="asymptotic").statistic)
    if fitted:
        fit = fit_logistic(predictions, mos)
        result["plcc_fitted"] = fit.plcc
        if fit.reason is not None:
            notes.append(f"fitted PLCC is undefined: {fit.reason}")
        elif fit.plcc < abs(result["plcc"]) - _NOTICEABLE:
            notes.append(f"fitted PLCC {fit.plcc:.4f} is below PLCC {result['plcc']:.4f}: a poor fit")
    return result


def _undefined(predictions: np.ndarray, mos: np.ndarray) -> str | None:
    """Returns why no correlation can be computed, None when it can."""
    if len(mos) < MIN_IMAGES:
        return f"at least {MIN_IMAGES} images are needed, here {'is' if len(mos) == 1 else 'are'} {len(mos)}"
    for what, values in (("predictions", predictions), ("MOS", mos)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            return f"{len(bad)} of {len(values)} {what} are not finite, first {values[bad[0]]} in row {bad[0]}"
        if _constant(values):
            return f"all {len(values)} {what} are the same ({values[0]:g})"
    return None


def _constant(values: np.ndarray) -> bool:
    # Rounding of the mean alone makes a deviation of this size, and a correlation with it is noise.
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)  # decided above, in words
        return float(stats.pearsonr(a, b).statistic)


def _residuals(parameters: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    upper, lower, centre, log_scale = parameters
    return lower + (upper - lower) * special.expit((x - centre) * np.exp(-log_scale)) - y


def _jacobian(parameters: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    upper, lower, centre, log_scale = parameters
    z = (x - centre) * np.exp(-log_scale)
    gate = special.expit(z)
    slope = (upper - lower) * gate * (1 - gate)
    return np.stack([gate, 1 - gate, -slope * np.exp(-log_scale), -slope * z])


def _robust_starts(x: np.ndarray, y: np.ndarray, correlation: float) -> list[np.ndarray]:
    """Returns a curve from the mean MOS of the lowest quarter of predictions to that of the highest, and a line.

    The line is a curve so wide that it is straight over the predictions: the search that begins there ends no worse.
    """
    quarter, centre, three_quarters = np.quantile(x, (0.25, 0.5, 0.75))
    scale, wide = max((three_quarters - quarter) / 4, 1e-6), 2 * float(np.abs(x).max())
    curve = [y[x >= three_quarters].mean(), y[x <= quarter].mean(), centre, math.log(scale)]
    return [np.array(curve), np.array([2 * correlation * wide, -2 * correlation * wide, 0.0, math.log(wide)])]


class _Search(NamedTuple):
    parameters: np.ndarray  # upper, lower, centre, log of the scale
    left: float  # share of the variance of the MOS that the curve leaves, inf where it broke down
    settled: bool


def _search(x: np.ndarray, y: np.ndarray, starts: Sequence[np.ndarray]) -> _Search:
    return min((_least_squares(x, y, start, _EVALUATIONS) for start in starts), key=lambda search: search.left)


def _least_squares(x: np.ndarray, y: np.ndarray, start: np.ndarray, evaluations: int) -> _Search:
    options = {"ftol": _TOLERANCE, "xtol": _TOLERANCE, "maxfev": evaluations, "col_deriv": True, "full_output": True}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the outcome is in the return value
        parameters, *_, status = optimize.leastsq(_residuals, start, (x, y), Dfun=_jacobian, **options)
        left = float(np.mean(_residuals(parameters, x, y) ** 2))
    if not np.isfinite(parameters).all() or not math.isfinite(left):
        return _Search(start, math.inf, False)
    # A straight line and a step are limits of the curve that the search approaches for ever; exact is good enough.
    return _Search(parameters, left, status in (1, 2, 3, 4) or left < _EXACT)
