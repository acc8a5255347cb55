"""Losses between scores, by name and in sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import refused
from scipy import stats

from ipiqa.registry import list_registered
from ipiqa.tasks.losses import fidelity, margin_rank, plcc, rank, smooth_l1, srcc
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


def all_pairs(targets: torch.Tensor, known: torch.Tensor, *, ties: bool) -> list[tuple[int, int, int]]:
    """Returns (better or equal image, other image, target) of the pairs that a loss compares."""
    return [
        (i, j, t) for t in range(targets.shape[1]) for i in range(len(targets)) for j in range(len(targets))
        if known[i, t] and known[j, t]
        and (targets[i, t] > targets[j, t] or (ties and i < j and targets[i, t] == targets[j, t]))
    ]  # fmt: skip


def test_fidelity_is_the_lack_of_overlap_of_two_probabilities() -> None:
    lacks = []
    for i, j, t in all_pairs(TARGETS, TARGETS > 0, ties=True):
        found = stats.norm.cdf((PREDICTIONS[i, t] - PREDICTIONS[j, t]).item() / 2**0.5)
        true = 1.0 if TARGETS[i, t] > TARGETS[j, t] else 0.5
        lacks.append(1 - math.sqrt(true * found) - math.sqrt((1 - true) * (1 - found)))
    assert len(lacks) == 12
    assert fidelity(PREDICTIONS, TARGETS).item() == pytest.approx(np.mean(lacks), abs=2e-4)
    far = (50 * PREDICTIONS).requires_grad_()
    fidelity(far, TARGETS).backward()
    assert torch.isfinite(far.grad).all() and fidelity(PREDICTIONS[:1], TARGETS[:1]).item() == 0


def test_margin_rank_asks_for_the_true_difference() -> None:
    lacks = [
        max(0, (TARGETS[i, t] - TARGETS[j, t] - PREDICTIONS[i, t] + PREDICTIONS[j, t]).item())
        for i, j, t in all_pairs(TARGETS, TARGETS > 0, ties=False)
    ]
    assert margin_rank(PREDICTIONS, TARGETS).item() == pytest.approx(np.mean(lacks), rel=1e-6)
    assert margin_rank(TARGETS + 3, TARGETS).item() == 0 and margin_rank(PREDICTIONS, torch.ones(4, 2)).item() == 0


def test_srcc_is_nearly_that_of_ranks_and_has_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    predictions, targets = (torch.randn(40, 2, generator=generator) for _ in range(2))
    targets = (2 * targets + predictions).round()
    exact = np.mean([stats.spearmanr(predictions[:, t], targets[:, t]).statistic for t in (0, 1)])
    assert srcc(predictions, targets).item() == pytest.approx((1 - exact) / 2, abs=0.02)
    assert srcc(100 * predictions - 7, targets).item() == pytest.approx(srcc(predictions, targets).item(), abs=1e-5)
    for given in (predictions.clone().requires_grad_(), torch.ones(4, 2, requires_grad=True)):
        srcc(given, targets[: len(given)]).backward()
        assert torch.isfinite(given.grad).all()


def test_smooth_l1_is_l1_but_for_small_errors() -> None:
    errors = torch.tensor([[0.05], [2.0]])
    assert smooth_l1(errors, torch.zeros(2, 1)).item() == pytest.approx((5 * 0.05**2 + 1.95) / 2)


@pytest.mark.parametrize("name", ["fidelity", "margin_rank", "srcc", "smooth_l1"])
def test_losses_leave_out_what_is_not_known(name: str) -> None:
    targets = TARGETS.clone()
    targets[0, 0] = targets[2, 1] = math.nan
    predictions, task = PREDICTIONS.clone().requires_grad_(), QualityRegression(loss=name)
    value = task.loss(predictions, targets, ~targets.isnan())
    own = [(PREDICTIONS[1:, :1], TARGETS[1:, :1]), (PREDICTIONS[[0, 1, 3], 1:], TARGETS[[0, 1, 3], 1:])]
    assert value.item() == pytest.approx(np.mean([task.loss(*part).item() for part in own]), rel=1e-5)
    value.backward()
    assert torch.isfinite(predictions.grad).all() and predictions.grad[0, 0] == predictions.grad[2, 1] == 0


@pytest.mark.parametrize("name", ["fidelity", "margin_rank", "rank"])
@pytest.mark.parametrize("lacks", [False, True])
def test_pairs_are_those_of_one_prompt(name: str, lacks: bool) -> None:
    task, targets = QualityRegression(loss={name: 2.0, "mse": 1.0}, pairs="prompt"), TARGETS.clone()
    if lacks:
        targets[3, 0] = math.nan
    known = ~targets.isnan() if lacks else None
    tokens = torch.tensor([[1, 5], [1, 6], [1, 5], [1, 6]])  # images 0 and 2, 1 and 3
    value = task.loss(PREDICTIONS, targets, known, task.groups({"tokens": tokens}))
    mse, pair = (QualityRegression(loss=own).loss for own in ("mse", name))
    each, weights = [], []
    for rows in ([0, 2], [1, 3]):
        for t in (0, 1):
            is_alone = lacks and t == 0 and rows == [1, 3]  # one image is left, which counts as one without a pair
            part = PREDICTIONS[rows, t : t + 1], TARGETS[rows, t : t + 1]
            each.append(0.0 if is_alone else pair(*part).item())
            weights.append(1 if is_alone else 2)
    expected = np.average(each, weights=weights)
    assert value.item() == pytest.approx(2 * expected + mse(PREDICTIONS, targets, known).item(), rel=1e-5)
    alone = task.groups({"tokens": torch.tensor([[1.0], [2.0], [3.0], [4.0]])})  # features do as well
    assert task.loss(PREDICTIONS, targets, known, alone) == mse(PREDICTIONS, targets, known)
    assert QualityRegression().groups({"tokens": tokens}) is None


def test_pairs_of_a_prompt_need_a_loss_that_compares() -> None:
    message = (
        "task.pairs: 'prompt', but no loss compares pairs. Add fidelity, margin_rank or rank, or take pairs: batch."
    )
    assert refused(lambda: QualityRegression(pairs="prompt")) == message


def test_losses_are_summed_with_their_weights() -> None:
    def of(loss: str | dict[str, float]) -> float:
        return QualityRegression(loss=loss).loss(PREDICTIONS, TARGETS).item()

    assert of({"mse": 2, "plcc": 0.5}) == pytest.approx(2 * of("mse") + 0.5 * of("plcc"), rel=1e-6)
    assert of("mse") == torch.nn.functional.mse_loss(PREDICTIONS, TARGETS).item()
    assert list_registered("loss") == [
        "fidelity", "huber", "l1", "margin_rank", "mse", "plcc", "rank", "smooth_l1", "srcc",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("msee", "task.loss: no loss is called 'msee'. Did you mean 'mse'? There are: fidelity, huber,"),
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
