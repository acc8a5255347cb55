"""A table of a million rows, read, checked, split and looked through for leaks: seconds and memory of the process.

Seconds are of the processor, which on an idle machine are those of the clock: only one thread works.

    python benchmarks/tables.py [rows] [csv|jsonl|parquet]
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from ipiqa.datasets.databases.annotated import OwnTable
from ipiqa.datasets.splits import leak, make_split

WORDS = """red blue small old new painting photo render portrait of a the in with castle river cat dog house city
mountain sky light detailed anime baroque""".split()  # noqa: SIM905
IMAGES_PER_PROMPT = 4


def write_table(path: Path, count: int) -> None:
    """Writes rows with prompts of 5 to 60 words, four images each, two targets and a generator."""
    draws = random.Random(1)
    columns = ("image", "prompt", "quality", "alignment", "generator")

    def rows() -> list[tuple[str, ...]]:
        out: list[tuple[str, ...]] = []
        for number in range(count):
            if number % IMAGES_PER_PROMPT == 0:
                prompt = " ".join(draws.choices(WORDS, k=draws.randint(5, 60)))
            scores = (f"{draws.uniform(1, 5):.4f}" for _ in range(2))
            out.append((f"{number // 1000:04d}/{number:07d}.png", prompt, *scores, f"model{number % 7}"))
        return out

    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(dict(zip(columns, map(list, zip(*rows(), strict=True)), strict=True))), path)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows())
        else:
            csv.writer(file).writerows([columns, *rows()])


def measure(path: Path) -> dict[str, float]:
    """Returns the seconds of each step and the largest memory of this process, GiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dataset = OwnTable(
        annotations=str(path), images=str(path.parent), targets=["quality", "alignment"], mos_min=1.0, mos_max=5.0,
        segments=["generator"],
    )  # fmt: skip
    found: dict[str, float] = {}
    start = time.process_time()

    def lap(name: str) -> None:
        nonlocal start
        found[name] = round(time.process_time() - start, 1)
        start = time.process_time()

    table = dataset.load()
    lap("read and checked")
    dataset.summary(table)
    lap("summary of data check")
    split = make_split(table, kind="holdout", seed=42, fold=0, num_folds=1)
    lap("split")
    leak(table, split)
    lap("leak")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found | {
        "rows": len(table),
        "memory, GiB": round(peak / 2**20, 2),
        "at start, GiB": round(before / 2**20, 2),
    }


def main() -> None:
    """Makes the table, measures and prints."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"table.{sys.argv[2] if len(sys.argv) > 2 else 'csv'}"
        for work in (write_table, measure):  # each in a process of its own: the rows made are not the reader's memory
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(work, (path, count) if work is write_table else (path,))
        print(json.dumps(found))


if __name__ == "__main__":
    main()
