"""The share of the variance of scores between groups."""

from __future__ import annotations

import numpy as np
import pytest

from ipiqa.metrics.variance import share_between


def test_known_values() -> None:
    scores = np.array([1.0, 2.0, 5.0, 6.0])
    assert share_between(["a", "a", "b", "b"], scores) == pytest.approx(1 - (1 / 2) / (17 / 3))
    assert share_between(["a", "a", "b", "b"], np.array([1.0, 1.0, 2.0, 2.0])) == 1.0


def test_missing_scores_are_left_out() -> None:
    scores = np.array([1.0, 2.0, 5.0, 6.0, np.nan])
    assert share_between(["a", "a", "b", "b", "c"], scores) == share_between(["a", "a", "b", "b"], scores[:4])


def test_groups_by_lot_have_none_on_average() -> None:
    rng = np.random.default_rng(0)
    labels = [str(number) for number in np.arange(600) // 2]  # 300 groups of two: plain eta squared is 0.5
    shares = [share_between(labels, rng.standard_normal(600)) for _ in range(200)]
    assert abs(np.mean(shares)) < 0.02


@pytest.mark.parametrize(
    ("labels", "scores"), [(["a", "b"], [1.0, 2.0]), (["a", "a"], [1.0, 1.0]), ([], []), (["a"], [np.nan])]
)
def test_there_is_none(labels: list[str], scores: list[float]) -> None:
    assert share_between(labels, np.array(scores)) is None
