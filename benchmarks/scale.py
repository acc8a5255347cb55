"""Times whole `ipiqa score` commands in one process and in several on Ray: what their start costs, and images/s.

    python benchmarks/scale.py              some five minutes on two quiet cores
    python benchmarks/scale.py --long       five turns of more rows, some half an hour

Every command runs over few and over many rows. The difference of the two is what more images cost; the rest is what it
costs to start. All ways of scoring take turns, and the medians over the turns are printed, as a table of Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from score import LARGE, make_images, make_spec, write_table

from ipiqa.datasets.checks import num_threads
from ipiqa.models.bundle import write_bundle

Size = tuple[int, dict[str, Any], dict[str, Any]]
DEMO: Size = (64, {"layers": [1, 1, 1, 1], "width": 16, "embed_dim": 64}, {"width": 64, "layers": 2, "heads": 4})
# what is scored -> model, side of the pictures, few and many rows
CASES: dict[str, tuple[Size, int, tuple[int, int]]] = {
    "the demo's model, pictures of 64 px": (DEMO, 64, (128, 4224)),
    "RN50's size at 224 px, pictures of 512 px": (LARGE, 512, (32, 160)),
}


def make_case(folder: Path, size: Size, side: int) -> list[Path]:
    """Writes a model with random weights and pictures, and returns these."""
    torch.manual_seed(0)
    spec = make_spec(*size)
    write_bundle(folder / "model", spec.build(), spec)
    (folder / "images").mkdir()
    make_images(folder / "images", 64, side)
    return sorted((folder / "images").iterdir())


def seconds_of(folder: Path, arguments: list[str], threads: int) -> float:
    """Returns how long a command takes from its start to its end."""
    command = [sys.executable, "-m", "ipiqa", "score", "model", "rows.csv", "--out", "scores.csv", "--overwrite"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    subprocess.run([*command, *arguments], cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Measures all and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="five turns instead of one, and four times the rows")
    turns, times = (5, 4) if parser.parse_args().long else (1, 1)
    cores = num_threads()
    ray = ["--engine", "ray", "--num-cpus"]
    ways: dict[str, tuple[list[str], int]] = {
        f"one process, {cores} threads": ([], cores),
        f"Ray, 1 process, {cores} threads": ([*ray, str(cores)], cores),
        f"Ray, {cores} processes, 1 thread": ([*ray, "1"], 1),
    }
    print("| what | how | start, s | images/s | core hours a million (computed) |\n| --- | --- | --- | --- | --- |")
    for name, (size, side, counts) in CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            images = make_case(folder, size, side)
            few, many = counts[0], counts[0] + (counts[1] - counts[0]) * times
            seconds: dict[tuple[str, int], list[float]] = {}
            for _ in range(turns):
                for count in (few, many):
                    write_table(folder / "rows.csv", images, count)
                    for way, (arguments, threads) in ways.items():
                        seconds.setdefault((way, count), []).append(seconds_of(folder, arguments, threads))
            for way in ways:
                short, long = (statistics.median(seconds[way, count]) for count in (few, many))
                speed = (many - few) / (long - short)
                hours = cores * 1e6 / speed / 3600
                print(f"| {name} | {way} | {short - few / speed:.1f} | {speed:.1f} | {hours:.1f} |", flush=True)


if __name__ == "__main__":
    main()
