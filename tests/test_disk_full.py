"""A disk that fills up: one line, and what was written before is whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from toy import write_config

from ipiqa.engine.checkpoint import load

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
FILES = ("scores.json", "predictions.csv", "metrics.jsonl", "split.json")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB in memory; skips where this user may mount none."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here: a full disk cannot be tried")
    if done.returncode != 0:
        pytest.skip(f"this user may not mount a file system, so a full disk cannot be tried: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def train(cfg: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train_agiqa3k.py", "--cfg-path", str(cfg), "--folds", "0", *words]
    return subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_space(small_disk: Path, tmp_path: Path) -> None:
    cfg = write_config(tmp_path / "toy")
    whole = tmp_path / "whole"
    assert train(cfg, f"run.output_dir={whole}").returncode == 0
    size = (whole / "fold_00/last.pt").stat().st_size
    run_dir = small_disk / "run"
    # Room for the first epoch's best.pt and last.pt, not for a second last.pt beside them.
    (small_disk / "ballast").write_bytes(b"x" * (24 * 2**20 - int(2.1 * size) - 2**17))
    stopped = train(cfg, f"run.output_dir={run_dir}")
    assert stopped.returncode == 2, stopped.stderr
    last_line = stopped.stderr.splitlines()[-1]
    assert last_line.startswith("ipiqa: ") and "could not be written" in last_line and "--resume" in last_line
    assert "Traceback" not in stopped.stderr
    kept = load(run_dir / "fold_00/last.pt")
    assert kept["progress"]["epoch"] == 1 and all(torch.isfinite(t).all() for t in kept["model"].values())
    assert not list(run_dir.glob("**/.*.tmp"))
    (small_disk / "ballast").unlink()
    assert train(cfg, "--resume", f"run.output_dir={run_dir}").returncode == 0
    for name in FILES:
        assert (run_dir / "fold_00" / name).read_text() == (whole / "fold_00" / name).read_text(), name
