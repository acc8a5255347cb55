"""The head that spreads probability over a scale, and the task that trains it on the raters' spread."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refused
from scipy import stats
from small_models import PARTS
from toy import write_config

import ipiqa
from ipiqa import registry
from ipiqa.config.loading import load_config
from ipiqa.datasets.table import Target
from ipiqa.models.distribution import DistributionHead
from ipiqa.tasks.distribution import Distribution
from ipiqa.training.cross_validation import run

TARGETS = (Target("quality", 1.0, 5.0), Target("alignment", 0.0, 100.0))


def head_of(bins: int = 5) -> DistributionHead:
    torch.manual_seed(0)
    return DistributionHead(8, TARGETS, bins=bins, dropout=0.0)


def test_a_score_is_the_mean_of_the_probabilities() -> None:
    head, features = head_of(), torch.randn(3, 8)
    log_p, scores = head(features).unbind(2)
    assert scores[0].tolist() == [[1, 2, 3, 4, 5], [0, 25, 50, 75, 100]]
    torch.testing.assert_close(log_p.exp().sum(dim=2), torch.ones(3, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(features).dtype == torch.float32
    torch.testing.assert_close(head.eval()(features), (log_p.exp() * scores).sum(dim=2))


class Given(torch.nn.Module):
    """Gives the images it is given: outputs of a head."""

    def forward(self, images: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        return images


def step(task: Distribution, log_p: torch.Tensor, mos: list[list[float]], **more: Any) -> torch.Tensor:
    scores = torch.tensor([[1.0, 2, 3, 4, 5], [0, 25, 50, 75, 100]]).expand_as(log_p)
    batch = {"images": torch.stack([log_p, scores], dim=2), "tokens": torch.zeros(len(log_p), 1)}
    return task.step(Given(), batch | {"targets": torch.tensor(mos)} | more)


@pytest.mark.parametrize("divergence", ["kl", "emd"])
@pytest.mark.parametrize("known", ["all", "some"])
def test_probabilities_are_compared_with_the_raters(divergence: Any, known: str) -> None:
    torch.manual_seed(1)
    log_p = torch.randn(2, 2, 5).log_softmax(dim=2).requires_grad_()
    mos, std = [[2.2, 40.0], [3.0, 70.0]], [[0.8, 20.0], [0.1, math.nan]]
    deviations = [[0.8, 20.0], [0.5, 30.0]]  # at least half a step; where it is not known, the share of the scale
    more: dict[str, Any] = {"spread": torch.tensor(std)}
    if known == "some":
        mos[0][1] = math.nan
        more["known"] = torch.tensor([[True, False], [True, True]])
    expected, errors = [], []
    for row, t in ((0, 0), (0, 1), (1, 0), (1, 1)):
        if math.isnan(mos[row][t]):
            continue
        scores = np.array([[1, 2, 3, 4, 5], [0, 25, 50, 75, 100]][t])
        raters = stats.norm.pdf(scores, mos[row][t], deviations[row][t])
        raters, found = raters / raters.sum(), log_p[row, t].exp().detach().numpy()
        kl = (raters * np.log(raters / found)).sum()
        expected.append(kl if divergence == "kl" else ((raters.cumsum() - found.cumsum()) ** 2).mean())
        errors.append(((found * scores).sum() - mos[row][t]) ** 2)
    value = step(Distribution(divergence=divergence, spread=0.3), log_p, mos, **more)
    assert value.item() == pytest.approx(np.mean(expected) + np.mean(errors), rel=1e-4)
    value.backward()
    assert torch.isfinite(log_p.grad).all() and (log_p.grad[0, 1].abs().sum() == 0) == (known == "some")


def test_the_spread_of_raters_counts() -> None:
    log_p = torch.zeros(1, 2, 5).log_softmax(dim=2)
    values = [step(Distribution(), log_p, [[3.0, 50.0]], spread=torch.tensor([[s, 25 * s]])).item() for s in (0.6, 2.0)]
    assert values[0] > values[1]
    assert step(Distribution(spread=0.5), log_p, [[3.0, 50.0]]).item() == pytest.approx(values[1], rel=1e-5)


def write_spread(cfg: Path) -> None:
    """Puts the spread of the raters into a toy table."""
    path = cfg.parent / "data.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "std_quality", "std_align"])
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"std_quality": "0.7", "std_align": "0.9"})


@pytest.mark.parametrize("views", [False, True])
def test_a_run_learns_from_the_spread_and_scores_from_its_checkpoint(tmp_path: Path, views: bool) -> None:
    cfg = write_config(tmp_path)
    changes = ["model.head.name=distribution", "task.name=distribution", "run.num_folds=1", "run.max_epochs=1"]
    changes += ["processor={name: views, stored_size: 48, crops: 1, grid: 1}"] * views
    plain = run(load_config(cfg, *changes, f"run.output_dir={tmp_path}/plain"))
    write_spread(cfg)
    folder = run(load_config(cfg, *changes)) / "fold_00"
    assert (folder / "metrics.jsonl").read_text() != (plain / "fold_00" / "metrics.jsonl").read_text()
    rows = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    scorer = ipiqa.load(folder, "cpu")
    images = [cfg.parent / "images" / row["image"] for row in rows]
    found = scorer.score(images, [row["prompt"] for row in rows])
    expected = [[float(row["best_quality"]), float(row["best_alignment"])] for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert found.min() > 0 and found.max() < 5
    one = run(load_config(
        cfg, *changes, "dataset.targets=[alignment]", f"run.checkpoint={folder}/best.pt", "run.evaluate=true",
        f"run.output_dir={tmp_path}/one",
    ))  # fmt: skip
    (row, *_) = csv.DictReader((one / "fold_00" / "predictions.csv").read_text().splitlines())
    again = next(r for r in rows if r["image"] == row["image"])
    assert float(row["best_alignment"]) == pytest.approx(float(again["best_alignment"]), abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.head.name=distribution"], "task.name: 'quality_regression' does not fit the head 'distribution'."),
        (["task.name=distribution"], "task.name: 'distribution' does not fit the head 'mlp'."),
        (["task.name=distribution", "model.name=clip_cosine"], "task.name: 'distribution' does not fit the head None."),
    ],
)
def test_head_and_task_belong_together(changes: list[str], message: str, tmp_path: Path) -> None:
    cfg = write_config(tmp_path)
    assert refused(lambda: run(load_config(cfg, *changes))).startswith(message)


def test_settings_that_make_no_distribution_are_refused() -> None:
    assert refused(lambda: head_of(1)) == "model.head.bins: 1 is out of range. Give 2 to 1000."
    assert refused(lambda: Distribution(spread=0.0)).startswith("task.spread: 0 is out of range.")
    section = registry.resolve("model", {"name": "ipiqa"} | PARTS | {"head": "distribution"}, "model")
    context = {"image_size": 64, "num_targets": 1, "targets": (Target("alignment"),)}
    message = refused(lambda: registry.build("model", section, "model", context))
    assert message.startswith("model: the scale of the target 'alignment' is not known")
