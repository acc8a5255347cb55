"""A disk that fills up: one line, and what was written before is whole."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy import write_config

from ipiqa.cli.train import script
from ipiqa.engine.checkpoint import load

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


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_space(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, whole, run_dir = write_config(tmp_path / "toy"), tmp_path / "whole", small_disk / "run"

    def train(*words: str) -> int:
        return script("agiqa_3k", ["--cfg-path", str(cfg), "--folds", "0", *words])

    assert train(f"run.output_dir={whole}") == 0
    size = (whole / "fold_00/last.pt").stat().st_size
    # Room for the first epoch's best.pt and last.pt, not for a second last.pt beside them.
    (small_disk / "ballast").write_bytes(b"x" * (24 * 2**20 - int(2.1 * size) - 2**17))
    assert train(f"run.output_dir={run_dir}") == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("ipiqa: ") and "could not be written" in last_line and "--resume" in last_line
    kept = load(run_dir / "fold_00/last.pt")
    assert kept["progress"]["epoch"] == 1 and all(torch.isfinite(t).all() for t in kept["model"].values())
    assert not list(run_dir.glob("**/.*.tmp"))
    (small_disk / "ballast").unlink()
    assert train("--resume", f"run.output_dir={run_dir}") == 0
    for name in FILES:
        assert (run_dir / "fold_00" / name).read_text() == (whole / "fold_00" / name).read_text(), name
