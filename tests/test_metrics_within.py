"""Agreement among the images of one prompt: ties, prompts that say nothing, and the same numbers as the slow way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ipiqa.metrics import pair_accuracy, within_srcc


def data(ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, 40, 200)
    predictions, mos = rng.normal(size=200) + prompts, rng.normal(size=200) - prompts
    return (np.round(predictions), np.round(mos), prompts) if ties else (predictions, mos, prompts)


@pytest.mark.parametrize("ties", [False, True])
def test_the_same_as_prompt_by_prompt(ties) -> None:
    predictions, mos, prompts = data(ties)
    srcc, accuracy = within_srcc(predictions, mos, prompts), pair_accuracy(predictions, mos, prompts)
    for prompt in range(40):
        x, y = predictions[prompts == prompt], mos[prompts == prompt]
        pairs = [(x[j] - x[i], y[j] - y[i]) for i, j in itertools.combinations(range(len(x)), 2) if y[i] != y[j]]
        right = [0.5 if dx == 0 else float(dx * dy > 0) for dx, dy in pairs]
        assert accuracy[prompt] == pytest.approx(np.mean(right) if right else math.nan, nan_ok=True)
        if len(x) > 2 and np.ptp(x) and np.ptp(y):
            assert srcc[prompt] == pytest.approx(stats.spearmanr(x, y).statistic)


def test_what_a_prompt_adds_does_not_count() -> None:
    predictions, mos, prompts = data(False)
    moved = predictions + 100 * np.random.default_rng(1).normal(size=40)[prompts]
    np.testing.assert_allclose(within_srcc(moved, mos, prompts), within_srcc(predictions, mos, prompts))
    np.testing.assert_allclose(pair_accuracy(moved, mos, prompts), pair_accuracy(predictions, mos, prompts))


@pytest.mark.parametrize(
    ("predictions", "mos", "srcc", "accuracy"),
    [
        ([1, 1, 1], [1, 2, 3], 0.0, 0.5),  # no order at all
        ([1, 2, 3], [2, 2, 2], math.nan, math.nan),  # nothing to be ordered
        ([1, 2], [1, 2], math.nan, 1.0),  # two images always correlate by +1 or -1
        ([1], [1], math.nan, math.nan),
        ([1, 1, 2], [1, 2, 3], math.sqrt(0.75), 2.5 / 3),
        ([1, 2, 3], [1, 1, 3], math.sqrt(0.75), 1.0),  # a tie in MOS is no pair
    ],
)
def test_ties_and_few_images(predictions, mos, srcc, accuracy) -> None:
    x, y, prompts = np.array(predictions, float), np.array(mos, float), np.zeros(len(mos), int)
    assert within_srcc(x, y, prompts) == pytest.approx([srcc], nan_ok=True)
    assert pair_accuracy(x, y, prompts) == pytest.approx([accuracy], nan_ok=True)


def test_numbers_of_prompts_may_have_gaps_and_there_may_be_none() -> None:
    prompts = np.array([3, 3, 3])
    assert np.isnan(within_srcc(np.arange(3.0), np.arange(3.0), prompts)).tolist() == [True, True, True, False]
    assert np.isnan(pair_accuracy(np.arange(3.0), np.arange(3.0), prompts)).tolist() == [True, True, True, False]
    assert len(within_srcc(np.zeros(0), np.zeros(0), np.zeros(0, int))) == 0
