"""Tar shards whose images tell where they stand."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from ipiqa.datasets.shards import Shards

Members = list[tuple[str, bytes]]


def png(shard: int, sample: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shard, sample, 0)).save(file, "png")
    return file.getvalue()


def pair(shard: int, sample: int) -> Members:
    return [(f"{sample:04d}.png", png(shard, sample)), (f"{sample:04d}.txt", f"{shard} {sample}".encode())]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def write_shards(folder: Path, num_shards: int, num_samples: int) -> str:
    """Writes shards whose image tells its shard in red and its number in green, and returns their pattern."""
    for shard in range(num_shards):
        members = itertools.chain.from_iterable(pair(shard, sample) for sample in range(num_samples))
        write_tar(folder / f"{shard:03d}.tar", members)
    return f"{folder}/{{000..{num_shards - 1:03d}}}.tar"


def make(pattern: str, samples_per_epoch: int = 8, **settings: Any) -> Shards:
    return Shards(**({"shards": pattern, "val_shards": pattern, "samples_per_epoch": samples_per_epoch} | settings))
