"""Shows that streaming tar shards takes no more memory for ten times the images: an epoch of 100 and of 1,000 shards.

    python benchmarks/shards.py         about a minute on two cores; needs pip install -e '.[shards]'

Each epoch runs in a fresh process with two workers; the larger is shown. After a tenth of the epoch the shuffle
buffers are full; from then on memory should not grow.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ipiqa.datasets.loaders import Loading
from ipiqa.datasets.shards import Shards
from ipiqa.processors.image import SquashProcessor

NUM_SHARDS = (100, 1000)
SAMPLES_PER_SHARD = 24
IMAGE_SIZE = 64  # of the files, in pixels; noise, some 12 kB each
BATCH_SIZE = 32
NUM_WORKERS = 2


def write_shard(path: Path, seed: int) -> None:
    """Writes one shard of noise images and their prompts."""
    random = np.random.RandomState(seed)
    with tarfile.open(path, "w") as archive:
        for number in range(SAMPLES_PER_SHARD):
            image = io.BytesIO()
            pixels = random.randint(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(image, "png", compress_level=1)
            for ending, content in (("png", image.getvalue()), ("txt", f"noise {seed} {number}".encode())):
                entry = tarfile.TarInfo(f"{number:06d}.{ending}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def lengths(prompts: Sequence[str]) -> torch.Tensor:
    """Returns int64 (B, 1), in place of tokens: the tokeniser's own memory is not what is measured."""
    return torch.tensor([[len(prompt)] for prompt in prompts])


def peak(pid: int | str) -> float:
    """Returns the peak resident memory of a running process, in 10**6 bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1.024e-3


def measure(folder: Path, num_shards: int) -> dict[str, float]:
    """Returns what an epoch over the first shards of a folder takes, in this process."""
    torch.set_num_threads(1)
    dataset = Shards(
        shards=f"{folder}/{{0000..{num_shards - 1:04d}}}.tar",
        val_shards=[],
        samples_per_epoch=num_shards * SAMPLES_PER_SHARD,
    )
    loading = Loading(batch_size=BATCH_SIZE, eval_batch_size=BATCH_SIZE, seed=0, num_workers=NUM_WORKERS)
    batches = dataset.train_batches(SquashProcessor(32), lengths, loading)
    batches.set_epoch(0)
    tenth = len(batches) // 10
    figures: dict[str, float] = {}
    images, started = 0, time.perf_counter()
    for step, batch in enumerate(batches, start=1):
        images += len(batch["rows"])
        if step in (tenth, 9 * tenth):
            when = "early" if step == tenth else "late"
            workers = [peak(child.pid) for child in multiprocessing.active_children() if child.pid]
            figures |= {f"{when}_process": peak("self"), f"{when}_worker": max(workers)}
    seconds = time.perf_counter() - started
    # In kB, of this process and of its largest child, whose memory while it ends counts too.
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return figures | {"images": images, "per_second": images / seconds, "largest": largest * 1.024e-3}


def main() -> None:
    """Writes the shards, measures both epochs in processes of their own and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "NUMBER"), help="measure one epoch; print JSON")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), int(arguments.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(max(NUM_SHARDS)):
            write_shard(Path(folder) / f"{seed:04d}.tar", seed)
        print(
            "Peak memory in MB after 1/10 and 9/10 of the epoch, and of the largest of the processes over all of it:\n"
        )
        print("| shards | images | images/s | process 1/10 | 9/10 | worker 1/10 | 9/10 | largest |")
        print("| ------ | ------ | -------- | ------------ | ---- | ----------- | ---- | ------- |")
        for number in NUM_SHARDS:
            command = [sys.executable, __file__, "--measure", folder, str(number)]
            taken = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            print(
                f"| {number:6} | {taken['images']:6} | {taken['per_second']:8.0f} | {taken['early_process']:12.0f} | "
                f"{taken['late_process']:4.0f} | {taken['early_worker']:11.0f} | {taken['late_worker']:4.0f} | "
                f"{taken['largest']:7.0f} |"
            )


if __name__ == "__main__":
    main()
