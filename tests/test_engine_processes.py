"""Training in two processes, stopped in the middle of an epoch and resumed: the uninterrupted run, bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_together
from toy import write_config

from ipiqa.config.loading import load_config
from ipiqa.engine import checkpoint
from ipiqa.engine.stop import Interrupted
from ipiqa.tasks.quality_regression import QualityRegression
from ipiqa.training.cross_validation import run

INTERRUPTED = 7  # exit status


def train(cfg: Path, output_dir: str, resume: bool, stop_at: int | None) -> None:
    """Trains fold 0; where `stop_at` is given, process 1 gets a signal in that step."""
    plain_step, steps = QualityRegression.step, 0

    def step(self: QualityRegression, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == stop_at and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGTERM)
        return plain_step(self, model, batch)

    QualityRegression.step = step  # type: ignore[method-assign]
    config = load_config(cfg, "run.batch_size=4", f"run.output_dir={output_dir}")
    try:
        run(config, folds=[0], resume=resume)
    except Interrupted:
        os._exit(INTERRUPTED)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in two processes that nobody stopped; its config stands beside it."""
    folder = tmp_path_factory.mktemp("toy")
    assert run_together(2, train, write_config(folder), f"{folder}/whole", False, None) == [0, 0]
    return folder / "whole" / "fold_00"


@pytest.mark.parametrize("stop_at", [2, 7])  # of four steps an epoch
def test_stopped_within_an_epoch_and_resumed_equals_uninterrupted(stop_at: int, whole: Path, tmp_path: Path) -> None:
    cfg, folder = whole.parent.parent / "toy.yaml", tmp_path / "parts"
    assert run_together(2, train, cfg, str(folder), False, stop_at) == [INTERRUPTED] * 2
    stopped = checkpoint.load(folder / "fold_00" / "last.pt")["progress"]
    assert (stopped["epoch"] * 4 + stopped["step"]) == stop_at
    assert run_together(2, train, cfg, str(folder), True, None) == [0, 0]
    left, right = (checkpoint.load(f / "last.pt")["model"] for f in (whole, folder / "fold_00"))
    assert all(torch.equal(value, right[name]) for name, value in left.items())
    for name in ("predictions.csv", "metrics.jsonl", "scores.json"):
        assert (folder / "fold_00" / name).read_text() == (whole / name).read_text(), name
