"""Losses between scores, by name and in sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import refused
from scipy import stats

from ipiqa.registry import list_registered
from ipiqa.tasks.quality_regression import QualityRegression, plcc, rank

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


@pytest.mark.parametrize("loss", ["mse", "l1", "huber", "plcc", "rank"])
def test_missing_scores_change_nothing_of_the_others(loss: str) -> None:
    """What stands in the place of a missing score, and what is predicted there, is not read."""
    task, known = QualityRegression(loss=loss), torch.ones(6, 2, dtype=torch.bool)
    known[4:, 0], known[5, 1] = False, False
    filled = torch.cat([TARGETS, torch.full((2, 2), math.nan)])
    filled[4, 1] = 2.0
    values = []
    for guess in (-7.0, 9.0):
        predictions = torch.cat([PREDICTIONS, torch.full((2, 2), guess)])
        predictions[4, 1] = 3.0
        predictions.requires_grad_()
        value = task.loss(predictions, filled, known)
        value.backward()
        assert predictions.grad is not None and not predictions.grad[~known].any()
        assert torch.isfinite(predictions.grad).all()
        values.append(value.item())
    assert values[0] == values[1]
    column = [task.loss(PREDICTIONS[:, :1], TARGETS[:, :1]).item()]
    longer = torch.cat([PREDICTIONS[:, 1:], torch.tensor([[3.0]])]), torch.cat([TARGETS[:, 1:], torch.tensor([[2.0]])])
    column.append(task.loss(*longer).item())
    assert values[0] == pytest.approx((4 * column[0] + 5 * column[1]) / 9, rel=1e-5)


def test_the_mean_of_known_scores_and_a_batch_without_any() -> None:
    task, known = QualityRegression(), torch.tensor([[True, False], [False, False], [True, True], [False, True]])
    expected = ((PREDICTIONS - TARGETS)[known] ** 2).mean().item()
    assert task.loss(PREDICTIONS, TARGETS, known).item() == pytest.approx(expected, rel=1e-6)
    predictions = PREDICTIONS.clone().requires_grad_()
    nothing = task.loss(predictions, TARGETS * math.nan, torch.zeros(4, 2, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0 and predictions.grad is not None and not predictions.grad.any()
