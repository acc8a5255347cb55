"""Spread over folds and paired comparison of two runs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from ipiqa.metrics import METRICS, Resampled, describe, holm, paired_test

A = [0.871, 0.863, 0.869, 0.866, 0.870, 0.864, 0.868, 0.867, 0.865, 0.872]
B = [0.861, 0.858, 0.860, 0.867, 0.859, 0.860, 0.864, 0.861, 0.855, 0.863]


def test_describe() -> None:
    spread = describe(A, overlap=0)
    assert (spread.n, spread.mean, spread.std) == (10, pytest.approx(np.mean(A)), pytest.approx(np.std(A, ddof=1)))
    assert spread.median == pytest.approx(0.8675) and spread.note is None
    plain = stats.t.interval(0.95, 9, np.mean(A), stats.sem(A))
    assert (spread.low, spread.high) == pytest.approx(plain)
    corrected = describe(A, overlap=0.25)
    wider = math.sqrt((1 / 10 + 0.25) / (1 / 10))
    assert corrected.high - corrected.mean == pytest.approx(wider * (spread.high - spread.mean))


def test_no_interval_leaves_the_range_of_its_metric() -> None:
    """Over two or three folds, t reaches far beyond what a correlation can be."""
    free, cut = (describe([0.2, 0.9], overlap=0.25, **limits) for limits in ({}, {"limits": METRICS["srcc"]}))
    assert free.low < -1 < 1 < free.high
    assert cut == dataclasses.replace(free, low=-1, high=1)
    assert describe([0.1, 0.9], overlap=0, limits=METRICS["rmse"]).low == 0
    assert describe([0.1, 0.9], overlap=0, limits=METRICS["rmse"]).high > 1


def test_describe_one_fold_none_and_nan() -> None:
    single = describe([0.5], overlap=0.25)
    assert single.mean == 0.5 and math.isnan(single.std) and math.isnan(single.low)
    assert describe([], overlap=0.25).note == "no fold"
    broken = describe([0.5, math.nan, 0.7], overlap=0.25)
    assert math.isnan(broken.mean) and broken.note == "undefined in 1 of 3 folds"


def test_plain_test_is_that_of_scipy() -> None:
    test = paired_test(A, B, overlap=0)
    assert test.difference == pytest.approx(np.mean(A) - np.mean(B))
    assert test.p == pytest.approx(stats.ttest_rel(A, B).pvalue)


def test_corrected_test_by_formula_and_interval_turned_round() -> None:
    test = paired_test(A, B, overlap=0.25)
    d = np.subtract(A, B)
    t = d.mean() / math.sqrt((1 / 10 + 0.25) * d.var(ddof=1))
    assert test.p == pytest.approx(2 * stats.t.sf(t, 9))
    # moved by the end of the interval, the test stands at its level
    assert paired_test(A, np.add(B, test.low), overlap=0.25).p == pytest.approx(0.05)


def test_corrected_test_keeps_its_level_where_the_plain_one_does_not() -> None:
    # Overlapping parts: every fold shares some of its noise with the others, and there is no true difference.
    rng = np.random.default_rng(0)
    corrected = plain = 0
    for _ in range(300):
        d = rng.normal() * math.sqrt(0.2) + rng.normal(size=10) * math.sqrt(0.8)  # correlation 0.2 = 0.25 / 1.25
        corrected += paired_test(d, np.zeros(10), overlap=0.25).p < 0.05
        plain += paired_test(d, np.zeros(10), overlap=0).p < 0.05
    assert corrected / 300 < 0.09
    assert plain / 300 > 0.15


@pytest.mark.parametrize(
    ("a", "b", "note"),
    [
        (A[:1], B[:1], "n = 1: a paired test needs two folds or more"),
        (A, A, "all 10 differences are zero: a t-test is undefined"),
        (A, np.subtract(A, 0.125), "all 10 differences are the same: a t-test is undefined"),
        ([*A[:9], math.nan], B, "undefined in 1 of 10 folds"),
        ([], [], "n = 0: a paired test needs two folds or more"),
    ],
)
def test_without_a_test_the_note_says_why(a, b, note) -> None:
    test = paired_test(a, b, overlap=0.25)
    assert math.isnan(test.p) and math.isnan(test.low) and test.note == note


def test_holm_by_hand() -> None:
    def corrected(*p_values):
        tests = [dataclasses.replace(paired_test(A, B, overlap=0), p=p) for p in p_values]
        return [test.p_holm for test in holm(tests)]

    assert corrected(0.01, 0.04, 0.03, 0.005) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert corrected(0.6, 0.9) == pytest.approx([1.0, 1.0]) and corrected() == []
    assert corrected(0.02, math.nan)[0] == 0.02 and math.isnan(corrected(math.nan)[0])


def test_draws_of_prompts_take_the_place_of_folds() -> None:
    """The error is theirs, whatever the folds say, and a single fold has an interval and a test."""
    drawn = Resampled(np.random.default_rng(0).normal(0.9, 0.02, size=1000), 29)
    reach = stats.t.ppf(0.975, 29) * drawn.values.std(ddof=1)
    for values in (A, A[:1]):
        spread = describe(values, overlap=0.25, resampled=drawn)
        assert spread.mean == pytest.approx(np.mean(values)) and spread.note is None
        assert (spread.low, spread.high) == pytest.approx((spread.mean - reach, spread.mean + reach))
    difference = Resampled(drawn.values - 0.9, 29)
    test = paired_test([0.93], [0.9], overlap=0.25, resampled=difference)
    assert test.p == pytest.approx(2 * stats.t.sf(0.03 / difference.error, 29)) and test.n == 1
    assert (test.low, test.high) == pytest.approx((0.03 - reach, 0.03 + reach))
    assert (drawn - drawn).error == 0


@pytest.mark.parametrize(
    ("values", "degrees", "note"),
    [
        (np.zeros(100), 29, "all 1 differences are zero: a t-test is undefined"),
        (np.full(100, math.nan), 29, "undefined in too many draws of prompts"),
        (np.arange(100.0), 0, "undefined in too many draws of prompts"),
    ],
)
def test_draws_that_tell_nothing(values, degrees, note) -> None:
    b = 0.5 if values[0] == 0 and degrees else 0.4
    test = paired_test([0.5], [b], overlap=0, resampled=Resampled(values, degrees))
    assert math.isnan(test.p) and test.note == note
    if math.isnan(Resampled(values, degrees).error):
        assert describe([0.5], overlap=0, resampled=Resampled(values, degrees)).note.startswith("n = 1")
