"""Losses between scores, by name and in sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import refused
from scipy import stats

from ipiqa.registry import list_registered
from ipiqa.tasks.losses import plcc, rank
from ipiqa.tasks.quality_regression import QualityRegression

PREDICTIONS = torch.tensor([[1.0, 4.0], [2.0, 3.0], [4.0, 1.0], [3.0, 2.5]])
TARGETS = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [5.0, 3.0]])


def test_plcc_is_half_of_one_minus_pearson_over_the_targets() -> None:
    correlations = [stats.pearsonr(PREDICTIONS[:, i], TARGETS[:, i]).statistic for i in (0, 1)]
    assert plcc(PREDICTIONS, TARGETS).item() == pytest.approx(np.mean([(1 - r) / 2 for r in correlations]), rel=1e-5)
    assert plcc(7 * TARGETS - 3, TARGETS).item() == pytest.approx(0, abs=1e-6)
    constant = torch.ones(4, 2, requires_grad=True)
    plcc(constant, TARGETS).backward()
    assert torch.isfinite(constant.grad).all()


def test_rank_counts_every_pair_with_different_scores() -> None:
    pairs = [(i, j, t) for t in (0, 1) for i in range(4) for j in range(4) if TARGETS[i, t] > TARGETS[j, t]]
    assert len(pairs) == 11  # 6 of the first target; the second has one tie
    expected = np.mean([math.log1p(math.exp(-(PREDICTIONS[i, t] - PREDICTIONS[j, t]))) for i, j, t in pairs])
    assert rank(PREDICTIONS, TARGETS).item() == pytest.approx(expected, rel=1e-5)
    assert rank(PREDICTIONS, torch.ones(4, 2)).item() == 0  # nothing to order


def test_losses_are_summed_with_their_weights() -> None:
    def of(loss: str | dict[str, float]) -> float:
        return QualityRegression(loss=loss).loss(PREDICTIONS, TARGETS).item()

    assert of({"mse": 2, "plcc": 0.5}) == pytest.approx(2 * of("mse") + 0.5 * of("plcc"), rel=1e-6)
    assert of("mse") == torch.nn.functional.mse_loss(PREDICTIONS, TARGETS).item()
    assert list_registered("loss") == ["huber", "l1", "mse", "plcc", "rank"]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("msee", "task.loss: no loss is called 'msee'. Did you mean 'mse'? There are: huber, l1, mse, plcc, rank."),
        ({"mse": 1, "plc": 1}, "task.loss: no loss is called 'plc'. Did you mean 'plcc'?"),
        ({"mse": 0}, "task.loss.mse: 0 is no weight. Give a number above 0."),
        ({"mse": math.nan}, "task.loss.mse: nan is no weight."),
        ({}, "task.loss: empty. Give a name such as mse"),
    ],
)
def test_what_is_no_loss_is_refused(loss: str | dict[str, float], message: str) -> None:
    assert message in refused(lambda: QualityRegression(loss=loss))
