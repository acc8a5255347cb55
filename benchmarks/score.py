"""Compares a whole scoring job, from image files to a csv, with the bare model on tensors in memory; and its memory.

    python benchmarks/score.py                  about three minutes on two cores
    python benchmarks/score.py --long           about half an hour: more turns, ten times the rows
    python benchmarks/score.py --images DIR     the same with pictures of your own instead of generated ones

The model is of RN50's size, with random weights, at 224 px. Both ways of doing the work take turns in one process, so
that their ratio holds where the speed of the machine drifts. Memory is that of a process of its own that scores a small
picture over and over, with a tiny model: a small input would hide in a large model's memory what grows.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import make_texts
from PIL import Image

from ipiqa import registry
from ipiqa.build import keep_freed_memory
from ipiqa.datasets.checks import num_threads
from ipiqa.datasets.table import Target
from ipiqa.models.bundle import ModelSpec
from ipiqa.scoring.job import PartsFolder, Settings, score_columns, score_parts
from ipiqa.scoring.model_scorer import ModelScorer
from ipiqa.scoring.rows import Inputs, Rows
from ipiqa.scoring.sources import open_rows
from ipiqa.scoring.writers import Columns

TARGETS = (Target("quality", 0, 5), Target("alignment", 0, 5))
LARGE = (224, {"layers": [3, 4, 6, 3], "width": 64, "embed_dim": 1024}, {"width": 512, "layers": 12, "heads": 8})
TINY = (32, {"layers": [1, 1, 1, 1], "width": 4, "embed_dim": 8}, {"width": 8, "layers": 1, "heads": 1})
BATCH_SIZE = 32


def make_spec(image_size: int, image_tower: dict[str, Any], text_tower: dict[str, Any]) -> ModelSpec:
    """Returns what a model of these sizes is built from."""
    section = {
        "name": "ipiqa",
        "image_encoder": {"name": "clip_resnet", **image_tower},
        "prompt_encoder": {"name": "clip_text", "embed_dim": image_tower["embed_dim"], **text_tower},
        "fusion": "cross_attention",
        "head": "mlp",
    }
    processor = registry.resolve("processor", "squash", "processor")
    model = registry.resolve("model", section, "model")
    return ModelSpec(model=model, image_size=image_size, processor=processor, targets=TARGETS)


def make_scorer(image_size: int, image_tower: dict[str, Any], text_tower: dict[str, Any], amp: str) -> ModelScorer:
    """Returns a scorer with random weights."""
    torch.manual_seed(0)
    spec = make_spec(image_size, image_tower, text_tower)
    return ModelScorer([spec.build()], [spec], device="cpu", amp=amp)


def make_images(folder: Path, count: int, size: int = 512) -> None:
    """Writes JPEG pictures: smooth colours and some noise, as large as those of a photo."""
    random = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)) + random.normal(0, 6, (size, size, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.jpg", quality=92)


def write_table(path: Path, images: Sequence[Path], count: int) -> None:
    """Writes a table that names images over and over, each time with another prompt."""
    texts = make_texts(min(count, 5000))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prompt"])
        writer.writerows((images[i % len(images)], texts[i % len(texts)]) for i in range(count))


def run_job(
    scorer: ModelScorer, rows: Rows, out: Path, settings: Settings,
    after_batch: Callable[[int], None] = lambda count: None,
) -> None:  # fmt: skip
    """Scores rows as `ipiqa score --out` does."""
    folder = PartsFolder.of(out)
    with folder.claimed({}, overwrite=True):
        pending = folder.pending(rows.parts(settings.part_size), skipped=print)
        for scored in score_parts(scorer, pending, settings, after_batch):
            folder.write(scored)
        summary = folder.write_output(out, Columns.of(rows.columns, settings.columns))
    assert not summary.failed, summary.failures


def compare(folder: Path, images: list[Path], count: int, turns: int, amp: str, workers: int) -> None:
    """Prints the speed of both ways and what they cost the processor, with the ratios over the turns."""
    scorer = make_scorer(*LARGE, amp=amp)
    write_table(folder / "rows.csv", images, count)
    rows = open_rows(str(folder / "rows.csv"), Inputs(), needs_prompt=True)
    prepared = [scorer.prepare(path) for path in images]
    texts = make_texts(count)

    def bare() -> None:
        scorer.forget_prompts()
        for start in range(0, count, BATCH_SIZE):
            numbers = range(start, min(start + BATCH_SIZE, count))
            scorer.outputs([prepared[i % len(prepared)] for i in numbers], [texts[i] for i in numbers])

    settings = Settings(score_columns(scorer), BATCH_SIZE, workers)
    ways = {"bare model": bare, "whole job": lambda: run_job(scorer, rows, folder / "out.csv", settings)}
    wall: dict[str, list[float]] = {name: [] for name in ways}  # seconds of each turn
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name in sorted(ways, reverse=bool(turn % 2)):
            started, used = time.perf_counter(), time.process_time()
            ways[name]()
            if turn:  # the first one warms up
                wall[name].append(time.perf_counter() - started)
                processor[name].append(time.process_time() - used)
    speeds = ", ".join(f"{name} {count / statistics.median(times):.1f} images/s" for name, times in wall.items())
    print(f"{amp}: {speeds}, {ratio_of(wall)}")
    costs = ", ".join(f"{name} {1e3 * statistics.median(t) / count:.1f} ms" for name, t in processor.items())
    print(f"{amp}: of the processor for an image: {costs}, {ratio_of(processor)}", flush=True)


def ratio_of(seconds: dict[str, list[float]]) -> str:
    """Returns the ratio of the two ways, its median over the turns and its range."""
    ratios = sorted(bare / job for bare, job in zip(*seconds.values(), strict=True))
    return f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"


def resident() -> float:
    """Returns the memory this process holds, in 10**6 bytes."""
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) * 1.024e-3


def measure_memory(folder: Path, count: int) -> None:
    """Prints, as JSON, the memory after a tenth and nine tenths of a job."""
    keep_freed_memory()
    torch.set_num_threads(1)  # two would wait for each other longer than they compute
    scorer = make_scorer(*TINY, amp="none")
    Image.effect_noise((64, 64), 40).convert("RGB").save(folder / "small.png")
    write_table(folder / "many.csv", [folder / "small.png"], count)
    rows = open_rows(str(folder / "many.csv"), Inputs(), needs_prompt=True)
    figures, done, started = {}, 0, time.perf_counter()

    def after_batch(size: int) -> None:
        nonlocal done
        for tenths in (1, 9):
            if done < count * tenths // 10 <= done + size:
                figures[f"{tenths}/10"] = resident()
        done += size

    settings = Settings(score_columns(scorer), BATCH_SIZE, num_threads())
    run_job(scorer, rows, folder / "many.out.csv", settings, after_batch)
    figures |= {"end": resident(), "per_second": count / (time.perf_counter() - started)}
    print(json.dumps(figures))


def main() -> None:
    """Measures both, and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="more turns, and 200,000 rows")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of pictures")
    parser.add_argument("--num-workers", type=int, default=num_threads(), metavar="N", help="threads that decode")
    threads = "of the model; with 1 the processor's time tells the ratio on a busy machine, too"
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N", help=threads)
    parser.add_argument("--only", choices=["speed", "memory"], help="one of the two")
    parser.add_argument("--memory", nargs=2, metavar=("FOLDER", "ROWS"), help="measure memory in this process")
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(Path(arguments.memory[0]), int(arguments.memory[1]))
        return
    count, turns, many = (256, 9, 200_000) if arguments.long else (128, 4, 20_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.only != "memory":
            keep_freed_memory()
            torch.set_num_threads(arguments.threads)
            make_images(folder, 64)
            images = sorted(
                path for path in (arguments.images or folder).absolute().iterdir() if path.suffix in (".jpg", ".png")
            )
            print(f"{torch.get_num_threads()} threads, {len(images)} pictures, {count} rows, {turns} turns")
            for amp in ("none", "bf16"):
                compare(folder, images, count, turns, amp, arguments.num_workers)
        if arguments.only != "speed":
            command = [sys.executable, __file__, "--memory", name, str(many)]
            figures = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            shown = ", ".join(f"{figures[when]:.0f} MB at {when}" for when in ("1/10", "9/10"))
            growth = figures["9/10"] - figures["1/10"]
            print(f"{many:,} rows at {figures['per_second']:.0f} images/s: {shown}, {growth:+.0f} MB between")


if __name__ == "__main__":
    main()
