"""Spread over folds and paired comparison of two runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ipiqa.errors import DataError
from ipiqa.metrics import bootstrap_interval, describe, paired_test

A = [0.871, 0.863, 0.869, 0.866, 0.870, 0.864, 0.868, 0.867, 0.865, 0.872]
B = [0.861, 0.858, 0.860, 0.867, 0.859, 0.860, 0.864, 0.861, 0.855, 0.863]


def compare(a, b, ratio=0.25, **options):
    splits = [f"{i:064d}" for i in range(len(a))]
    return paired_test(a, b, test_to_train=ratio, **{"splits_a": splits, "splits_b": splits, **options})


def test_describe() -> None:
    spread = describe(A)
    assert (spread.n, spread.mean) == (10, pytest.approx(np.mean(A)))
    assert spread.std == pytest.approx(np.std(A, ddof=1))
    assert spread.median == pytest.approx(0.8675)
    assert spread.low < spread.mean < spread.high
    assert spread.note is None
    assert "n = 3" in str(describe(A[:3]).note)


def test_describe_one_fold_none_and_nan() -> None:
    single = describe([0.5])
    assert single.mean == 0.5 and math.isnan(single.std) and math.isnan(single.low)
    assert describe([]).note == "no fold"
    broken = describe([0.5, math.nan, 0.7])
    assert math.isnan(broken.mean) and broken.note == "undefined in 1 of 3 folds"


def test_bootstrap_is_seeded_and_has_the_right_width() -> None:
    assert bootstrap_interval(A) == bootstrap_interval(A)
    values = np.random.default_rng(0).normal(size=400)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    low, high = bootstrap_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    narrow = bootstrap_interval(values, confidence=0.5)
    assert narrow[1] - narrow[0] < 0.5 * (high - low)
    assert all(math.isnan(end) for end in bootstrap_interval([0.5]))


def test_paired_tests_against_scipy() -> None:
    test = compare(A, B)
    assert test.difference == pytest.approx(np.mean(A) - np.mean(B))
    assert test.p_t == pytest.approx(stats.ttest_rel(A, B).pvalue)
    # No ties: scipy's own exact table must give the same.
    a = [1.0, 2.3, 3.1, 4.7, 5.2, 6.9, 7.7]
    b = [1.1, 2.0, 3.7, 4.2, 4.5, 6.0, 6.7]
    assert compare(a, b).p_wilcoxon == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)


def test_wilcoxon_is_exact_with_ties_and_zeros() -> None:
    from itertools import product

    difference = np.array([0.0, 1, 1, -1, 2, 3, 3])
    kept = difference[difference != 0]
    ranks = stats.rankdata(abs(kept))
    sums = np.array([ranks @ np.array(signs) for signs in product([0, 1], repeat=len(kept))])
    observed = ranks[kept > 0].sum()
    expected = min(1, 2 * min((sums <= observed).mean(), (sums >= observed).mean()))
    assert compare(difference, np.zeros(7)).p_wilcoxon == pytest.approx(expected)


def test_corrected_test_by_formula_and_interval_turned_round() -> None:
    test = compare(A, B, ratio=0.25)
    d = np.subtract(A, B)
    t = d.mean() / math.sqrt((1 / 10 + 0.25) * d.var(ddof=1))
    assert test.p_corrected == pytest.approx(2 * stats.t.sf(t, 9))
    assert test.p_corrected > test.p_t
    edge = compare(A, np.add(B, test.low))  # moved by the end of the interval, the test stands at its level
    assert edge.p_corrected == pytest.approx(0.05)


def test_corrected_test_keeps_its_level_where_the_plain_one_does_not() -> None:
    # Overlapping parts: every fold shares half of its noise with the others, and there is no true difference.
    rng = np.random.default_rng(0)
    corrected = plain = 0
    for _ in range(300):
        d = rng.normal() * math.sqrt(0.2) + rng.normal(size=10) * math.sqrt(
            0.8
        )  # correlation 0.2 = ratio / (1 + ratio)
        test = compare(d, np.zeros(10), ratio=0.25)
        corrected += test.p_corrected < 0.05
        plain += test.p_t < 0.05
    assert corrected / 300 < 0.09
    assert plain / 300 > 0.15


def test_small_n_is_told() -> None:
    test = compare(A[:3], B[:3])
    assert test.smallest_wilcoxon == 0.25 and test.p_wilcoxon == pytest.approx(0.25)
    assert test.notes == ("n = 3: the Wilcoxon p cannot fall below 0.25",)
    single = compare(A[:1], B[:1])
    assert math.isnan(single.p_corrected)
    assert single.notes == ("n = 1: a paired test needs two folds or more",)
    assert math.isnan(compare([], []).difference)


def test_equal_and_undefined_differences() -> None:
    same = compare(A, A)
    assert same.p_wilcoxon == 1 and math.isnan(same.p_corrected)
    assert same.notes == ("all 10 differences are zero: a t-test is undefined",)
    assert compare(A, np.subtract(A, 0.125)).notes == ("all 10 differences are the same: a t-test is undefined",)
    assert compare([*A[:9], math.nan], B).notes == ("undefined in 1 of 10 folds",)


def test_refuses_what_does_not_pair() -> None:
    with pytest.raises(DataError) as caught:
        compare(A[:2], B[:2], splits_b=[f"{0:064d}", "f" * 64])
    assert str(caught.value) == (
        "paired test: 1 of 2 folds were measured on different parts, first number 1 (split 000000000000 against "
        "ffffffffffff). Only runs over the same splits can be compared in pairs. "
        "Train both with the same dataset, split.kind and split.seed."
    )
    with pytest.raises(DataError, match="2 and 3 values with 2 and 2 splits do not pair"):
        compare(A[:2], B[:3])
    with pytest.raises(ValueError, match="test_to_train is 0, it must be positive"):
        compare(A, B, ratio=0)
