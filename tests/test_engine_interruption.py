"""Runs killed at any moment, and continued: nothing of the result may tell."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from toy import write_config

from ipiqa.config.loading import Config, load_config
from ipiqa.errors import DataError
from ipiqa.training.cross_validation import run

FILES = ("scores.json", "predictions.csv", "metrics.jsonl", "split.json")


def train(config: Config, resume: bool) -> None:
    torch.set_num_threads(1)
    run(config, resume=resume)


def killed_after(config: Config, seconds: float, resume: bool) -> bool:
    """Trains in a process that is killed after so many seconds; returns whether it had finished before."""
    # A forked process starts in milliseconds, so that kills fall anywhere in the run rather than into its imports.
    child = multiprocessing.get_context("fork").Process(target=train, args=(config, resume))
    child.start()
    child.join(seconds)
    if child.is_alive():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        return False
    assert child.exitcode == 0
    return True


def assert_same(a: Path, b: Path) -> None:
    for fold in (0, 1):
        for name in FILES:
            here, there = (p / f"fold_{fold:02d}" / name for p in (a, b))
            assert here.read_text() == there.read_text(), (fold, name)
        left, right = (torch.load(p / f"fold_{fold:02d}" / "last.pt", weights_only=True)["model"] for p in (a, b))
        assert all(torch.equal(value, right[name]) for name, value in left.items())


def kill_often(tmp_path: Path, kills: int, seed: int) -> None:
    cfg = write_config(tmp_path)
    whole = load_config(cfg, f"run.output_dir={tmp_path}/whole", "run.max_epochs=4", "dataset.image_cache=false")
    start = time.monotonic()
    assert killed_after(whole, 300, resume=False)
    length = time.monotonic() - start
    parts = load_config(cfg, f"run.output_dir={tmp_path}/parts", "run.max_epochs=4", "dataset.image_cache=false")
    rng = random.Random(seed)
    moments = []
    for _ in range(kills):
        resume = (tmp_path / "parts" / "config.yaml").exists()
        # short lives early and long ones later: the run gets on, and is hit in all its phases
        moments.append(rng.uniform(0.02, 0.5) * length)
        if killed_after(parts, moments[-1], resume):
            break
    assert killed_after(parts, 300, resume=(tmp_path / "parts" / "config.yaml").exists())
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert list((tmp_path / "parts").glob("fold_*/.*")) == []  # what was half written when the kill came is gone


def test_killed_at_three_moments_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    kill_often(tmp_path, kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_killed_at_many_moments_and_resumed_equals_uninterrupted(tmp_path: Path, seed: int) -> None:
    kill_often(tmp_path, kills=8, seed=seed)


def test_a_half_written_checkpoint_is_named_and_its_fold_can_be_started_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = write_config(tmp_path)
    whole = run(load_config(cfg, f"run.output_dir={tmp_path}/whole"))
    parts = run(load_config(cfg, f"run.output_dir={tmp_path}/parts"))
    for fold in (0, 1):
        folder = parts / f"fold_{fold:02d}"
        (folder / "scores.json").unlink()
        content = (folder / "last.pt").read_bytes()
        (folder / "last.pt").write_bytes(content[: len(content) // 2])
    with (
        caplog.at_level("WARNING", logger="ipiqa"),
        pytest.raises(DataError, match="Delete it to start this fold anew"),
    ):
        run(load_config(cfg, f"run.output_dir={tmp_path}/parts"), resume=True)
    assert "last.pt: damaged or cut off" in caplog.text
    for fold in (0, 1):
        for name in ("last.pt",):
            (parts / f"fold_{fold:02d}" / name).unlink()
    run(load_config(cfg, f"run.output_dir={tmp_path}/parts"), resume=True)  # from the start of each fold
    assert_same(whole, parts)
    assert json.loads((parts / "fold_00" / "scores.json").read_text())["last"]["epoch"] == 2
