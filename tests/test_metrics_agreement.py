"""Metrics: right values, and words instead of silent nan or exceptions."""

from __future__ import annotations

import itertools
import math
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ipiqa.metrics import METRICS, aggregate, agreement, fit_logistic, measure


@pytest.fixture(autouse=True)
def _no_warning_leaks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def one(predictions, mos, **options):
    predictions, mos = np.asarray(predictions, dtype=float), np.asarray(mos, dtype=float)
    return measure(predictions[:, None], mos[:, None], ["quality"], **options)["quality"]


def test_values_by_hand() -> None:
    result = one([1, 2, 3, 4, 5], [1, 3, 2, 4, 5], fitted=False)
    assert result["srcc"] == pytest.approx(1 - 6 * 2 / (5 * 24))
    assert result["krcc"] == pytest.approx((9 - 1) / 10)
    assert result["plcc"] == pytest.approx(0.9)
    assert result["rmse"] == pytest.approx(math.sqrt(2 / 5))
    assert result["notes"] == []


def test_targets_are_measured_column_by_column() -> None:
    rng = np.random.default_rng(0)
    mos = rng.normal(size=(50, 2))
    result = measure(np.stack([mos[:, 0], -mos[:, 1]], axis=1), mos, ["quality", "alignment"])
    assert list(result) == ["quality", "alignment"]
    assert result["quality"]["srcc"] == pytest.approx(1)
    assert result["alignment"]["srcc"] == pytest.approx(-1)


def test_ties_use_mean_ranks_and_tau_b() -> None:
    predictions, mos = [1, 1, 2, 3], [1, 2, 2, 3]
    result = one(predictions, mos, fitted=False)
    assert result["srcc"] == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [1, 2.5, 2.5, 4])[0, 1])
    assert result["krcc"] == pytest.approx(4 / 5)  # 4 concordant pairs, one tie on either side


@pytest.mark.parametrize(
    ("predictions", "mos", "words", "rmse"),
    [
        ([2, 2, 2, 2], [1, 2, 3, 4], "all 4 predictions are the same (2)", True),
        ([1, 2, 3, 4], [3, 3, 3, 3], "all 4 MOS are the same (3)", True),
        ([1, math.nan, math.inf, 4], [1, 2, 3, 4], "2 of 4 predictions are not finite, first nan in row 1", False),
        ([1, 2, 3, 4], [1, 2, 3, -math.inf], "1 of 4 MOS are not finite, first -inf in row 3", False),
        ([1, 2], [2, 1], "at least 3 images are needed, here are 2", True),
        ([1], [2], "at least 3 images are needed, here is 1", True),
        ([], [], "at least 3 images are needed, here are 0", False),
    ],
)
def test_undefined_says_why(predictions, mos, words, rmse) -> None:
    result = one(predictions, mos)
    assert all(math.isnan(result[name]) for name in ("srcc", "plcc", "krcc", "plcc_fitted"))
    assert result["notes"] == [f"correlations are undefined: {words}"]
    assert math.isfinite(result["rmse"]) is rmse
    assert aggregate({"quality": result}) == -math.inf


def test_missing_mos_are_left_out_target_by_target_and_counted() -> None:
    rng = np.random.default_rng(3)
    predictions, mos = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    lacking = mos.copy()
    lacking[30:, 1] = np.nan
    whole, left = measure(predictions, mos, ["a", "b"]), measure(predictions, lacking, ["a", "b"])
    assert left["a"] == whole["a"]
    assert left["b"]["notes"] == ["10 of 40 images have no MOS and are left out"]
    fewer = measure(predictions[:30, 1:], mos[:30, 1:], ["b"])["b"]
    assert {**left["b"], "notes": []} == fewer
    assert "at least 3 images are needed" in one([1, 2, 3], [1, math.nan, math.nan])["notes"][1]


def test_constant_but_for_rounding_is_constant() -> None:
    predictions = np.full(100, 0.1) + np.arange(100) * 1e-17
    assert "are the same" in one(predictions, np.arange(100.0))["notes"][0]


def test_small_float32_differences_are_not_constant() -> None:
    predictions = (3 + np.arange(100) * 1e-6).astype(np.float32)
    assert one(predictions, np.arange(100.0))["srcc"] > 0.99


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"predictions \(3, 1\) and mos \(3, 2\) must both be \(N, 2\)"):
        measure(np.zeros((3, 1)), np.zeros((3, 2)), ["quality", "alignment"])
    with pytest.raises(ValueError, match=r"must both be \(N, 1\)"):
        measure(np.zeros(3), np.zeros(3), ["quality"])


def test_aggregate_sums_three_metrics_over_targets() -> None:
    metrics = {"srcc": 0.5, "plcc": 0.6, "krcc": 0.4, "rmse": 9.0, "plcc_fitted": math.nan}
    assert aggregate({"quality": metrics, "alignment": metrics}) == pytest.approx(3.0)
    assert aggregate({"quality": metrics, "alignment": {**metrics, "krcc": math.inf}}) == -math.inf
    assert aggregate({}) == -math.inf


def logistic(x, upper=4.5, lower=0.5, centre=0.2, scale=0.7):
    return (upper - lower) / (1 + np.exp(-(x - centre) / scale)) + lower


def test_fit_recovers_the_curve() -> None:
    x = np.random.default_rng(1).normal(size=600)
    fit = fit_logistic(x, logistic(x))
    assert (fit.upper, fit.lower, fit.centre, fit.scale) == pytest.approx((4.5, 0.5, 0.2, 0.7), abs=1e-3)
    assert fit.plcc == pytest.approx(1)
    np.testing.assert_allclose(fit(x), logistic(x), atol=1e-3)


def test_fit_agrees_with_an_independent_optimiser() -> None:
    from scipy.optimize import curve_fit

    rng = np.random.default_rng(2)
    x = rng.normal(50, 12, size=400)
    y = logistic(x, 90, 10, 55, 6) + rng.normal(0, 5, size=400)
    parameters, _ = curve_fit(logistic, x, y, p0=[y.max(), y.min(), x.mean(), x.std() / 4], maxfev=20000)
    expected = np.corrcoef(logistic(x, *parameters), y)[0, 1]
    assert fit_logistic(x, y).plcc == pytest.approx(expected, abs=1e-5)


def test_backward_predictions_start_from_a_falling_curve() -> None:
    x = np.random.default_rng(3).normal(size=300)
    result, fit = one(-x, logistic(x)), fit_logistic(-x, logistic(x))
    assert result["srcc"] == pytest.approx(-1)
    assert fit.upper < fit.lower
    assert result["plcc_fitted"] == pytest.approx(1)


@pytest.mark.parametrize("sign", [1, -1])
def test_fit_starts_from_the_side_of_srcc_and_from_two_slopes(monkeypatch, sign) -> None:
    starts = []

    def spy(x, y, start, evaluations, search=agreement._least_squares):
        starts.append(start)
        return search(x, y, start, evaluations)

    monkeypatch.setattr(agreement, "_least_squares", spy)
    x = np.random.default_rng(3).normal(size=300)
    fit_logistic(sign * x, logistic(x))
    assert [np.sign(start[0] - start[1]) for start in starts] == [sign, sign]
    assert [np.exp(start[3]) for start in starts] == pytest.approx([0.25, 2.0])  # the published quarter, nearly a line


@pytest.mark.parametrize("shape", ["line", "step", "outlier"])
def test_limits_of_the_curve_are_fitted(shape) -> None:
    x = np.random.default_rng(4).normal(size=600)
    y = {"line": 2 * x + 1, "step": (x > 0).astype(float), "outlier": logistic(x)}[shape]
    if shape == "outlier":
        x, y = np.append(x, 1e6), np.append(y, 3.0)
    assert fit_logistic(x, y).plcc > 0.98


def test_fit_is_never_worse_than_the_straight_line_by_much() -> None:
    rng = np.random.default_rng(5)
    for noise in (0.1, 1.0, 5.0):
        x = rng.normal(size=600)
        result = one(x, x + noise * rng.normal(size=600))
        assert result["plcc_fitted"] > result["plcc"] - 1e-3


def test_far_outliers_do_not_hold_the_fit() -> None:
    for seed in range(40):  # from the usual starts alone, some of these end at PLCC* 0.05
        rng = np.random.default_rng(seed)
        x = np.exp(4 * rng.normal(size=400))
        y = 0.3 * (stats.rankdata(x) / 400 * 3.4 - 1.7) + rng.normal(size=400)
        result = one(x, y)
        assert result["plcc_fitted"] > max(0.8 * abs(result["srcc"]), abs(result["plcc"]) - 1e-4), seed


@pytest.mark.parametrize(("seed", "two_starts"), [(86, 0.202), (246, 0.251)])
def test_a_weak_predictor_is_fitted_from_its_quartiles_too(monkeypatch, seed, two_starts) -> None:
    rng = np.random.default_rng(seed)
    mos = rng.normal(size=134)
    predictions = rng.standard_t(2, size=134) + 0.6 * mos
    plcc = fit_logistic(predictions, mos).plcc
    monkeypatch.setattr(agreement, "_WEAK", 1.0)
    assert plcc > fit_logistic(predictions, mos).plcc + 0.02 == pytest.approx(two_starts + 0.02, abs=1e-3)


def test_a_real_weak_predictor(shared) -> None:
    """DBCNN and alignment of 134 real images: with two starts the fit ended at 0.2153."""
    tables = [pd.read_csv(shared / "data/avt_ai_images" / f"{name}.csv") for name in ("ratings", "iqa_metrics")]
    images = tables[0].merge(tables[1], on="image")
    assert fit_logistic(images["dbcnn"], images["mos_align"]).plcc == pytest.approx(0.2766, abs=1e-3)


def test_a_strong_predictor_keeps_its_fit(monkeypatch) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=400)
    y = logistic(x) + 0.05 * rng.normal(size=400)
    fit = fit_logistic(x, y)
    monkeypatch.setattr(agreement, "_robust_starts", lambda *_: pytest.fail("two starts are enough"))
    assert fit_logistic(x, y) == fit


def test_a_fit_below_plcc_is_noted(monkeypatch) -> None:
    monkeypatch.setattr(agreement, "fit_logistic", lambda *_: agreement.LogisticFit(plcc=0.5))
    assert one([1, 2, 3, 4, 5], [1, 3, 2, 4, 5])["notes"] == ["fitted PLCC 0.5000 is below PLCC 0.9000: a poor fit"]
    monkeypatch.setattr(agreement, "fit_logistic", lambda *_: agreement.LogisticFit(plcc=0.8999))
    assert "below" in one([1, 2, 3, 4, 5], [1, 3, 2, 4, 5])["notes"][0]  # as soon as four digits show it


def test_weak_correlation_is_fitted_all_the_same() -> None:
    for seed in (100, 172):  # the best curve is nearly a step: slow to settle
        rng = np.random.default_rng(seed)
        x = rng.normal(size=120)
        fit = fit_logistic(x, [0.3, 0.6, 1.0][seed // 3 % 3] * x + rng.normal(size=120))
        assert 0.22 < fit.plcc < 0.32, fit.reason


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_fit_does_not_depend_on_the_unit(scale) -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=200)
    y = logistic(x) + 0.2 * rng.normal(size=200)
    assert fit_logistic(scale * x + 3 * scale, scale * y).plcc == pytest.approx(fit_logistic(x, y).plcc, abs=1e-5)


def test_fit_says_why_not(monkeypatch) -> None:
    assert fit_logistic(np.arange(4.0), np.arange(4.0)).reason == "a logistic fit needs at least 5 images, here are 4"
    result = one([1, 2, 3, 5], [1, 3, 2, 4])
    assert math.isfinite(result["srcc"]) and math.isnan(result["plcc_fitted"])
    assert result["notes"] == ["fitted PLCC is undefined: a logistic fit needs at least 5 images, here are 4"]
    assert "predictions are the same" in fit_logistic(np.ones(9), np.arange(9.0)).reason
    searches = itertools.count(1)

    def unsettled(x, y, start, evaluations):
        return agreement._Search(start, 1 / next(searches), False)

    monkeypatch.setattr(agreement, "_least_squares", unsettled)
    fit = fit_logistic(np.arange(9.0), np.arange(9.0) ** 2)
    assert math.isnan(fit.plcc)
    assert fit.reason == "the logistic fit did not converge within 1000 evaluations"


def test_fit_can_be_skipped_quietly() -> None:
    result = one(np.arange(9.0), np.arange(9.0) ** 2, fitted=False)
    assert math.isnan(result["plcc_fitted"]) and result["notes"] == []


def test_same_numbers_every_time_and_quick() -> None:
    rng = np.random.default_rng(8)
    mos = rng.normal(size=(600, 2))
    predictions = mos + rng.normal(size=mos.shape)
    first = measure(predictions, mos, ["quality", "alignment"])
    start = time.perf_counter()
    rounds = [measure(predictions, mos, ["quality", "alignment"]) for _ in range(5)]
    seconds = (time.perf_counter() - start) / 5
    assert all(again == first for again in rounds)
    assert seconds < 0.2, f"{seconds:.3f} s for 600 images, normally a hundredth of a second"
    assert set(first["quality"]) == {*METRICS, "notes"}
    assert first["quality"]["krcc"] == pytest.approx(stats.kendalltau(predictions[:, 0], mos[:, 0]).statistic)
