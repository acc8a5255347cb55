"""Training in two processes, stopped in the middle of an epoch and resumed: the uninterrupted run, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import INTERRUPTED, run_together, train
from toy import write_config

from ipiqa.engine import checkpoint


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
