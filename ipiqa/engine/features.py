"""Outputs of a frozen image tower, computed once for every image and its mirror image, kept in a memory-mapped file.

The file goes by content: the tower's weights and sizes, the processor, the precision, the images and what is kept. It
knows of no fold and no head, so that all folds of a run and all rows of a grid share it.
"""

import hashlib
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ipiqa import __version__
from ipiqa.datasets.cache_files import RecordFile, Records
from ipiqa.datasets.image_cache import ImageSource
from ipiqa.datasets.table import json_sha256
from ipiqa.engine.log import progress_bar
from ipiqa.engine.predict import autocast
from ipiqa.engine.stop import Interrupted, StopSignals
from ipiqa.processors.image import SquashProcessor

logger = logging.getLogger("ipiqa")

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of which outputs are: no file is asked what it holds


@dataclass(eq=False, kw_only=True)
class FeatureStore:
    """Token maps and pooled features by row number; in the file, those of all images come before the mirrored ones."""

    tower: Any  # a frozen `ImageTower`, on the device
    images: ImageSource
    hashes: Sequence[str]  # sha256 of each row's image file
    processor: SquashProcessor
    device: torch.device
    amp: str  # see `autocast`
    batch_size: int
    keeps_map: bool  # a map that nobody reads is kept with 0 channels

    def open(self, cache_dir: Path, limit_gb: float, stop: StopSignals) -> bool:
        """Opens the file, which is built if it is not there or not intact; returns whether it could (a warning says).

        Several processes may do so at once: the first one builds, the others wait. The file shares folder and limit
        with those of `open_images`. Raises Interrupted where a signal came, DataError where an image cannot be used.
        """
        self.rows, self.slots = np.unique(self.hashes, return_index=True, return_inverse=True)[1:]
        key, copies = self._key(), 2 if self.processor.flip > 0 else 1
        self.shape = (*self.tower.grid, self.tower.channels * self.keeps_map)  # of a token map
        self.lengths = [math.prod(self.shape), self.tower.embed_dim]
        path, count, size = cache_dir / f"{key[:32]}.features", copies * len(self.rows), sum(self.lengths)
        files = {t: RecordFile(path, {"key": key, "dtype": str(t)}, count, size * t.itemsize) for t in _DTYPES}
        what = f"encoding {len(self.rows)} images{' and as many mirrored' * (copies - 1)} with the frozen tower"
        try:
            present = next((dtype for dtype, file in files.items() if file.is_intact()), None)
            self.dtype = present or self._outputs(self.rows[:1], False).dtype
            files[self.dtype].ensure(limit_gb, lambda: self._all(copies, stop), what)
            self.records = Records(files[self.dtype])
        except OSError as error:
            message = "feature cache: cannot use '%s' (%s); the frozen image tower runs in every epoch"
            logger.warning(message, path, error.strerror or error)
            return False
        return True

    def __call__(self, rows: torch.Tensor, flips: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns maps (B, C, h, w) and pooled features (B, D) of rows (B,), mirrored where `flips` (B,) is true."""
        n = len(self.rows)
        numbers = self.slots[rows.numpy()] + (0 if flips is None else n * flips.numpy())
        records = self.records.read(numbers, lambda i: self._outputs(self.rows[[i % n]], i >= n).view(torch.uint8))
        outputs = torch.from_numpy(records).view(self.dtype).to(self.device)
        maps, features = outputs.split(self.lengths, dim=1)
        return maps.unflatten(1, self.shape).permute(0, 3, 1, 2), features

    def _key(self) -> str:
        """Returns the hash of everything that decides the outputs."""
        weights = hashlib.sha256()
        for name, value in self.tower.state_dict().items():
            weights.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            weights.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        tower = [str(type(self.tower)), self.tower.section(), weights.hexdigest()]
        processor = [self.processor.key, self.processor.section() | {"flip": self.processor.flip > 0}]
        precision = [self.device.type, self.amp, torch.backends.cuda.matmul.allow_tf32]
        versions = [1, __version__, *map(version, ("torch", "torchvision", "open_clip_torch", "timm"))]
        return json_sha256([tower, processor, precision, versions, self.keeps_map, sorted(set(self.hashes))])

    def _all(self, copies: int, stop: StopSignals) -> Iterator[np.ndarray]:
        starts = range(0, len(self.rows), self.batch_size)
        with progress_bar("features", copies * len(starts)) as bar:
            for mirrored, start in itertools.product((False, True)[:copies], starts):
                if stop.signal_number is not None:
                    raise Interrupted("while features were computed", stop.signal_number)
                yield self._outputs(self.rows[start : start + self.batch_size], mirrored).view(torch.uint8).numpy()
                bar.update()

    @torch.inference_mode()
    def _outputs(self, rows: np.ndarray, mirrored: bool) -> torch.Tensor:
        """Returns maps (h, w, C) and pooled features side by side, of the wider of their types: (B, F) of B rows."""
        images = self.images.batch(rows).to(self.device)
        with autocast(self.device, self.amp):
            maps, features = self.tower(self.processor.normalise(images, torch.full((len(rows),), mirrored)))
        kept = maps.permute(0, 2, 3, 1).flatten(1)[:, : self.lengths[0]]
        return torch.cat([kept, features], dim=1).cpu()
