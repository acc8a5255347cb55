"""Times the plain path against this framework, in one process and in turns, and writes benchmarks/README.md and a plot.

    python benchmarks/run.py            everything, some ten minutes on two cores
    python benchmarks/run.py --quick    one repeat of the small cases, nothing written

The two are timed in turns because a shared machine drifts: only ratios taken side by side mean anything.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from page import ratios, write_page
from PIL import Image
from plain import PlainImages, PlainPath
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from ipiqa import registry
from ipiqa.config import list_registered
from ipiqa.datasets.agiqa import OwnTable
from ipiqa.datasets.loaders import train_loader
from ipiqa.datasets.splits import make_split
from ipiqa.engine.predict import autocast
from ipiqa.models.tokens import tokenize
from ipiqa.processors.image import SquashProcessor

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
WORDS = ["statue", "tray", "sushi", "man", "space", "universe", "lighting", "style", "painting", "cat", "bird", "city"]
VARIANTS = {"plain": "plain", "exact": "ours, exact fp32", "bf16": "ours, run.amp=bf16"}


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat, by variant, and the work of one."""

    name: str
    images: int
    seconds: dict[str, list[float]]
    flops: float = 0.0


def make_model(image_size: int) -> nn.Module:
    """Returns IP-IQA on RN50 with random weights."""
    list_registered("model")
    tower = {"name": "clip", "architecture": "RN50-quickgelu"}
    section = {
        "name": "ipiqa",
        "image_encoder": tower,
        "prompt_encoder": tower,
        "fusion": "cross_attention",
        "head": "mlp",
    }
    torch.manual_seed(0)
    context = {"image_size": image_size, "num_targets": 2}
    return registry.build("model", registry.resolve("model", section, "model"), "model", context)


def steps(image_size: int, batch_size: int, train: bool, variants: list[str]) -> dict[str, Callable[[], float]]:
    """Returns, by variant, a function that runs one step and returns its seconds."""
    ours = make_model(image_size).train(train)
    images = torch.randn(batch_size, 3, image_size, image_size)
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, rng.integers(4, 16))) for _ in range(batch_size)]  # few repeat within a batch
    tokens, targets = tokenize(texts), torch.rand(batch_size, 2)
    out: dict[str, Callable[[], float]] = {}
    optimizers = {}
    for variant in variants:
        model = PlainPath(ours).train(train) if variant == "plain" else ours
        if train and id(model) not in optimizers:
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizers[id(model)] = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0, fused=variant != "plain")

        def step(model: nn.Module = model, amp: str = "bf16" if variant == "bf16" else "none") -> float:
            start = time.perf_counter()
            if not train:
                with torch.inference_mode(), autocast(CPU, amp):
                    model(images, tokens)
                return time.perf_counter() - start
            with autocast(CPU, amp):
                loss = mse_loss(model(images, tokens), targets)
            loss.backward()
            optimizers[id(model)].step()
            optimizers[id(model)].zero_grad(set_to_none=True)
            return time.perf_counter() - start

        out[variant] = step
    return out


def time_steps(name: str, image_size: int, batch_size: int, train: bool, repeats: int) -> Timing:
    """Times a step of all variants in turns, after one untimed round."""
    functions = steps(image_size, batch_size, train, list(VARIANTS))
    with FlopCounterMode(display=False) as counter:
        functions["exact"]()
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for repeat in range(repeats + 1):
        for variant, function in functions.items():
            spent = function()
            if repeat:
                seconds[variant].append(spent)
    timing = Timing(name, batch_size, seconds, float(counter.get_total_flops()))
    report(timing)
    return timing


def report(timing: Timing) -> None:
    """Prints a timing as it comes."""
    parts = [f"{v} {timing.images / statistics.median(s):.1f} images/s" for v, s in timing.seconds.items()]
    shown = [f"{v} x{statistics.median(ratios(timing.seconds, v)):.2f}" for v in timing.seconds if v != "plain"]
    print(f"{timing.name}: {', '.join(parts)}; {', '.join(shown)}", flush=True)


def write_images(folder: Path, count: int, size: int) -> list[Path]:
    """Writes smooth random JPEGs and returns their paths."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        paths.append(folder / f"{i:05d}.jpg")
        small.resize((size, size), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def make_dataset(folder: Path, paths: list[Path]) -> OwnTable:
    """Writes a table over the images, with ten rows a prompt, and returns the dataset."""
    rng = np.random.default_rng(0)
    lines = ["image\tprompt\tquality"]
    texts = [f"{' '.join(rng.choice(WORDS, 8))} {i // 10}" for i in range(len(paths))]
    lines += [f"{p.name}\t{t}\t{s:.3f}" for p, t, s in zip(paths, texts, rng.uniform(0, 5, len(paths)), strict=True)]
    (folder / "table.tsv").write_text("\n".join(lines) + "\n")
    return OwnTable(
        annotations=str(folder / "table.tsv"), images=str(folder), targets=["quality"], cache_dir=str(folder / "cache")
    )


def time_loading(count: int, repeats: int) -> Timing:
    """Times an epoch of 224 px batches from 512 px files: decoded by two workers, and from the cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_images(folder, count, 512)
        processor = SquashProcessor(224)
        dataset = make_dataset(folder, paths)
        table = dataset.load()
        images = dataset.open_images(table, processor)
        plain = DataLoader(PlainImages(paths, 224), batch_size=32, shuffle=True, num_workers=2, persistent_workers=True)
        ours = train_loader(
            table, images, tokenize(table.prompts), np.arange(count), batch_size=32, seed=0, fold=0, rank=0,
            world_size=1, num_workers=None, pin_memory=False,
        )  # fmt: skip

        def epoch_plain() -> float:
            start = time.perf_counter()
            for _ in plain:
                pass
            return time.perf_counter() - start

        def epoch_ours() -> float:
            start = time.perf_counter()
            for batch in ours:
                processor.normalise(
                    batch["images"], processor.flips(batch["rows"], num_rows=count, seed=0, fold=0, epoch=0)
                )
            return time.perf_counter() - start

        seconds: dict[str, list[float]] = {"plain": [], "exact": []}
        for repeat in range(repeats + 1):
            for variant, function in (("plain", epoch_plain), ("exact", epoch_ours)):
                spent = function()
                if repeat:
                    seconds[variant].append(spent)
        timing = Timing("input pipeline, epoch after the first, 512 px files at 224 px", count, seconds)
        report(timing)
        return timing


def ceilings() -> dict[str, float]:
    """Returns the machine's matrix products in GFLOP/s, fp32 and bf16: the best of several."""
    out = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        best = min(_seconds(lambda a=a, b=b: a @ b) for _ in range(12))
        out[name] = 2 * 2048**3 / best / 1e9
    return out


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_memory(variant: str) -> float:
    """Returns the peak resident memory in GiB of two training steps at 224 px, batch 32, in a process of their own."""
    command = [sys.executable, __file__, "--memory", variant]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure_memory(variant: str) -> None:
    """Prints the peak of this process after two training steps of a variant."""
    step = steps(224, 32, True, [variant])[variant]
    step()
    step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def growth(counts: list[int]) -> list[dict[str, float]]:
    """Returns what a run costs before its first step, by number of rows: seconds of each part."""
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            paths = write_images(folder, count, 64)
            processor, dataset = SquashProcessor(64), make_dataset(folder, paths)
            table_seconds = _seconds(dataset.load)
            table = dataset.load()
            check_seconds = _seconds(lambda d=dataset, t=table, p=processor: d.check_images(t, p))
            build_seconds = _seconds(lambda d=dataset, t=table, p=processor: d.open_images(t, p))
            open_seconds = _seconds(lambda d=dataset, t=table, p=processor: d.open_images(t, p))
            token_seconds = _seconds(lambda t=table: tokenize(t.prompts))
            split_seconds = _seconds(
                lambda t=table: [make_split(t, kind="holdout", seed=42, fold=f, num_folds=10) for f in range(10)]
            )
            rows.append({
                "rows": count, "table": table_seconds, "image headers": check_seconds,
                "cache, first time": build_seconds, "cache, later": open_seconds,
                "tokens": token_seconds, "splits of 10 folds": split_seconds,
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat of the small cases, nothing written")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.memory)
        return
    repeats = 1 if arguments.quick else arguments.repeats
    timings = [
        time_steps("train step, 224 px, batch 32", 224, 32, True, repeats),
        time_steps("evaluation, 224 px, batch 32", 224, 32, False, repeats),
        time_loading(64 if arguments.quick else 320, repeats),
    ]
    if arguments.quick:
        return
    timings += [
        time_steps("train step, 512 px, batch 8", 512, 8, True, repeats),
        time_steps("evaluation, 512 px, batch 8", 512, 8, False, repeats),
    ]
    memory = {variant: peak_memory(variant) for variant in VARIANTS}
    found = {
        "date": datetime.date.today().isoformat(),  # noqa: DTZ011 (the day where the machine is)
        "machine": f"{torch.get_num_threads()} threads of {_processor()}, PyTorch {torch.__version__}",
        "ceilings": ceilings(),
        "timings": [vars(t) for t in timings],
        "memory": memory,
        "growth": growth([1000, 3000, 20000]),
    }
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    write_page(HERE, found)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
