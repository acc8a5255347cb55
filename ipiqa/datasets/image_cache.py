"""Images by row number, decoded once and kept in one memory-mapped file for all epochs, folds and runs.

The file goes by the processor and the whole content of every image file, so that it is current wherever the images lie
(see `cache_files`). Its records are uint8 images (S, S, 3), one for each distinct content.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ipiqa.datasets.cache_files import RecordFile, Records
from ipiqa.datasets.checks import describe_unusable, num_threads
from ipiqa.datasets.table import AnnotationTable, json_sha256
from ipiqa.errors import DataError
from ipiqa.processors.image import SquashProcessor

logger = logging.getLogger(__name__)

CHUNK = 64  # images decoded between two writes: bounds the memory a build takes


class DecodedImages:
    """Images by row number, decoded each time from the file at `paths`, whose sha256 must be the one in `hashes`."""

    def __init__(self, paths: Sequence[Path], hashes: Sequence[str], processor: SquashProcessor) -> None:
        self.paths, self.hashes, self.processor = paths, hashes, processor

    def pixels(self, row: int) -> np.ndarray:
        """Returns the uint8 image (S, S, 3) of a row; raises DataError: unusable, or not the file that was hashed."""
        path = self.paths[row]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"'{path}' cannot be read: {error.strerror}.") from error
        if hashlib.sha256(content).hexdigest() != self.hashes[row]:
            raise DataError(f"'{path}' has changed since this run began. Leave the images alone while it lasts.")
        return self.processor.decode(content, str(path)).permute(1, 2, 0).contiguous().numpy()

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        """Returns uint8 (B, 3, S, S) in channels_last layout for B row numbers."""
        return torch.from_numpy(np.stack([self.pixels(row) for row in rows])).permute(0, 3, 1, 2)


class CachedImages:
    """Images copied out of a cache file: row -> image number `slots[row]`.

    An image that is damaged there is decoded again and written in its place.
    """

    def __init__(self, file: RecordFile, slots: np.ndarray, decoded: DecodedImages) -> None:
        self.path, self.slots, self.decoded, self.records = file.path, slots, decoded, Records(file)

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        """Returns uint8 (B, 3, S, S) in channels_last layout for B row numbers."""
        size = self.decoded.processor.image_size
        images = self.records.read(self.slots[rows], lambda i: self.decoded.pixels(int((self.slots == i).argmax())))
        return torch.from_numpy(images.reshape(-1, size, size, 3)).permute(0, 3, 1, 2)


class NoImages:
    """In the place of images whose features are stored."""

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        return torch.empty(len(rows), 0, dtype=torch.uint8)


ImageSource = DecodedImages | CachedImages | NoImages


def open_images(
    table: AnnotationTable, hashes: Sequence[str], processor: SquashProcessor, *, cache_dir: Path, limit_gb: float
) -> ImageSource:
    """Returns the images of a table, from its cache file, which is built if it is not there or not intact.

    Both ways of reading give the same bytes. Where the file would pass the limit, or cannot be written, a warning says
    so and the images are decoded each time. Raises DataError where an image cannot be used.

    Args:
        hashes: sha256 of each row's image file.
        limit_gb: most that the files in `cache_dir` take together, in 10**9 bytes; those used longest ago make room. 0
            builds none.
    """
    decoded = DecodedImages(table.image_paths, hashes, processor)
    if limit_gb <= 0:
        return decoded
    distinct, slots = np.unique(hashes, return_inverse=True)
    shape = (len(distinct), processor.image_size, processor.image_size, 3)
    key = json_sha256([2, processor.key, distinct.tolist()])
    layout = {"key": key, "dtype": "uint8", "shape": shape}
    file = RecordFile(cache_dir / f"{key[:32]}.images", layout, len(distinct), math.prod(shape[1:]))
    try:
        file.ensure(limit_gb, lambda: _build(decoded, slots), f"decoding {len(distinct)} images")
        return CachedImages(file, slots, decoded)
    except OSError as error:
        message = "image cache: cannot use '%s' (%s); decoding images in every epoch"
        logger.warning(message, file.path, error.strerror or error)
        return decoded


def _build(decoded: DecodedImages, slots: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the images by slot, decoded with threads, not processes: Pillow releases the interpreter lock meanwhile.

    Raises DataError, at the end, where some cannot be used.
    """
    rows = np.unique(slots, return_index=True)[1].tolist()  # one of each distinct image, by slot

    def decode(row: int) -> np.ndarray | str:
        try:
            return decoded.pixels(row)
        except DataError as error:
            return str(error)

    problems = {}
    with (
        ThreadPoolExecutor(num_threads()) as pool,
        tqdm(total=len(rows), desc="decoding", unit="image", disable=None, leave=False) as bar,
    ):
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            for row, image in zip(chunk, pool.map(decode, chunk), strict=True):
                if isinstance(image, str):
                    problems[row] = image
                else:
                    yield image[None]
                bar.update()
    if problems:
        raise DataError(describe_unusable([problems[row] for row in sorted(problems)], len(rows)))
