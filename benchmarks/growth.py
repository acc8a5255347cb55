"""How time and memory grow with the number of rows and of folds, each size in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cases import make_dataset, write_images

from ipiqa.config.loading import load_config
from ipiqa.datasets.splits import make_split
from ipiqa.processors.image import SquashProcessor
from ipiqa.prompts import tokenize
from ipiqa.training.cross_validation import run


def peak_gib() -> float:
    """Returns the largest memory this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def seconds_of(function: Callable[[], object]) -> float:
    """Returns how long a function takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _alone(function: Callable[[int], dict[str, float]], sizes: list[int]) -> list[dict[str, float]]:
    rows = []
    for size in sizes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(function, (size,)))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_rows(count: int) -> dict[str, float]:
    """Returns seconds of each part of what a run does before its first step, and memory, for 64 px images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_images(folder, count, 64)
        processor, dataset = SquashProcessor(64), make_dataset(folder, paths)
        before = peak_gib()
        table_seconds = seconds_of(dataset.load)
        table = dataset.load()
        found: dict[str, Any] = {
            "rows": count,
            "table": table_seconds,
            "image headers": seconds_of(lambda: dataset.check_images(table, processor)),
            "cache, first time": seconds_of(lambda: dataset.open_images(table, dataset.image_hashes(table), processor)),
            "cache, later": seconds_of(lambda: dataset.open_images(table, dataset.image_hashes(table), processor)),
            "tokens": seconds_of(lambda: tokenize(table.prompts)),
            "splits of 10 folds": seconds_of(
                lambda: [make_split(table, kind="holdout", seed=42, fold=f, num_folds=10) for f in range(10)]
            ),
        }
        return found | {"memory added, GiB": peak_gib() - before}


def measure_folds(folds: int) -> dict[str, float]:
    """Returns seconds and peak memory of a run of some folds, three epochs of 300 images with tiny encoders."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder, write_images(folder, 300, 64))
        config = load_config(
            "ipiqa/projects/demo/image_only.yaml", "dataset.name=table", f"dataset.annotations={folder}/table.tsv",
            f"dataset.images={folder}", "dataset.targets=[quality]", f"dataset.cache_dir={folder}/cache",
            "model.image_encoder.weights=null", "split.kind=holdout", f"run.num_folds={folds}", "run.max_epochs=3",
            f"run.output_dir={folder}/output",
        )  # fmt: skip
        return {"folds": folds, "seconds": seconds_of(lambda: run(config)), "peak memory, GiB": peak_gib()}


def by_rows(counts: list[int]) -> list[dict[str, float]]:
    """Returns what a run costs before its first step, by number of rows."""
    return _alone(measure_rows, counts)


def by_folds(counts: list[int]) -> list[dict[str, float]]:
    """Returns what a small run costs, by number of folds."""
    return _alone(measure_folds, counts)
