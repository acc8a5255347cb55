"""The loss and the metrics of pairwise preferences."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ipiqa.datasets.comparisons import Comparisons
from ipiqa.datasets.preferences import PREFERENCE
from ipiqa.datasets.table import AnnotationTable
from ipiqa.metrics.resampling import CHOSEN, Images, clusters_of, draw, resampled
from ipiqa.tasks.preference import Preference

PAIRS = torch.tensor([[0, 1], [2, 1], [0, 2]])
CHOSEN_SHARES = torch.tensor([1.0, 0.0, 0.5])


def table(rows: list[list[int]], chosen: list[float], count: int = 4) -> AnnotationTable:
    names = tuple(f"{i}.png" for i in range(count))
    scores = np.full((count, 1), np.nan)
    words = tuple({1: "a", 0: "b", 0.5: "tie"}[share] for share in chosen)
    compared = Comparisons(np.array(rows, dtype=np.int64).reshape(-1, 2), words)
    groups = ("a",) * count
    return AnnotationTable(names, groups, scores, (PREFERENCE,), groups, Path(), comparisons=compared)


def test_the_loss_is_that_of_bradley_and_terry() -> None:
    scores = torch.tensor([[1.0], [-0.5], [2.0]], requires_grad=True)
    loss = Preference().loss(scores, PAIRS, CHOSEN_SHARES)
    sigmoid = [1 / (1 + math.exp(-x)) for x in (1.5, -2.5, -1.0)]
    expected = -(math.log(sigmoid[0]) + math.log(sigmoid[1]) + math.log(sigmoid[2] * (1 - sigmoid[2])) / 2) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert scores.grad is not None and scores.grad.sum().abs() < 1e-6, "the level of the scores is free"


def test_the_loss_does_not_depend_on_which_image_is_called_a() -> None:
    scores, task = torch.randn(3, 1, generator=torch.Generator().manual_seed(0)) * 3, Preference()
    assert torch.equal(task.loss(scores, PAIRS, CHOSEN_SHARES), task.loss(scores, PAIRS.flip(1), 1 - CHOSEN_SHARES))
    lead = torch.tensor([[0.0], [9.0]])
    tie, win = (task.loss(lead, torch.tensor([[1, 0]]), torch.tensor([share])) for share in (0.5, 1.0))
    assert tie > 4 and win < 1e-3, "a tie draws both scores together"
    assert task.loss(torch.tensor([[0.0], [1e4]]), torch.tensor([[0, 1]]), torch.ones(1)) == 1e4, "no overflow"


def test_accuracy_is_over_decided_pairs_of_the_rows() -> None:
    pairs = table([[0, 1], [1, 2], [2, 3], [0, 3], [1, 3]], [1, 1, 0, 0.5, 1])
    outputs = np.array([[0.3], [0.2], [0.2], [0.9]], dtype=np.float32)
    metrics, value = Preference().measure(outputs, pairs, np.arange(4))
    of_target = metrics["preference"]
    assert of_target["accuracy"] == (1 + 0.5 + 1 + 0) / 4, "equal scores count half, a tie not at all"
    assert of_target["notes"] == [] and value == pytest.approx(of_target["accuracy"], abs=1e-6)
    ahead = np.array([0.1, 0.0, 0.7, -0.7])
    assert of_target["log_loss"] == pytest.approx(np.log1p(np.exp(-ahead)).mean(), rel=1e-6)
    rows = np.array([1, 2, 3])
    assert Preference().measure(outputs[rows], pairs, rows)[0]["preference"]["accuracy"] == (0.5 + 1 + 0) / 3


def test_of_equal_accuracy_the_lower_log_loss_is_better() -> None:
    pairs, rows = table([[0, 1], [2, 3]], [1, 1]), np.arange(4)
    outputs = np.array([[0.1], [0], [0.1], [0]])
    weak, strong, wrong = (Preference().measure(o, pairs, rows)[1] for o in (outputs, 20 * outputs, -outputs))
    assert wrong < weak < strong


@pytest.mark.parametrize(
    ("chosen", "scores", "reason"),
    [
        ([0.5, 0.5], [[0], [1], [2], [3]], "of the held-out pairs none was decided"),
        ([], [[0], [1], [2], [3]], "of the held-out pairs none was decided"),
        ([1, 0], [[0], [math.nan], [2], [3]], "scores are not finite"),
    ],
)
def test_what_cannot_be_measured_says_why(chosen: list[float], scores: list[list[float]], reason: str) -> None:
    pairs = table([[0, 1], [2, 3]][: len(chosen)], chosen)
    metrics, value = Preference().measure(np.array(scores, dtype=np.float32), pairs, np.arange(4))
    assert value == -math.inf and all(math.isnan(metrics["preference"][name]) for name in CHOSEN)
    assert metrics["preference"]["notes"] == [f"pair accuracy is undefined: {reason}"]


def test_draws_of_prompts_spread_as_pairs_of_prompts_do() -> None:
    generator = np.random.default_rng(0)
    prompts = np.repeat(np.arange(200), 5)
    right = generator.uniform(size=200) < 0.7  # all pairs of a prompt are right, or all are wrong
    choice = generator.choice([-1.0, 1.0], len(prompts))
    order = list(clusters_of(map(str, prompts)).values())
    images = Images(np.where(right[prompts], choice, -choice), choice, prompts, clusters=np.array(order)[prompts])
    values = resampled(CHOSEN["accuracy"], images, draw(200))
    assert values.mean() == pytest.approx(right.mean(), abs=0.01)
    assert values.std() == pytest.approx(math.sqrt(0.7 * 0.3 / 200), rel=0.15), "200 prompts, not 1,000 pairs"
