"""Images by row number, decoded once and kept in one memory-mapped file for all epochs, folds and runs.

The file is a header of 4,096 bytes, one uint8 image (S, S, 3) after the other, and the CRC-32 of each. Its name and
header hold a hash of everything that decides its content: the processor, and the whole content of every image file. So
it is current when they match, wherever the images lie, and nothing in it is ever interpreted. Whoever reads it holds a
shared lock on it, and only a file that nobody reads is removed to make room for another.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ipiqa.datasets.checks import describe_unusable, num_threads
from ipiqa.datasets.table import AnnotationTable, json_sha256
from ipiqa.errors import DataError
from ipiqa.files import replacing, try_lock
from ipiqa.processors.image import SquashProcessor

logger = logging.getLogger(__name__)

HEADER_BYTES = 4096
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
    """Images copied out of a cache file: row -> image number `slots[row]`. All processes share its pages in memory.

    Each image is compared with its checksum when this process first reads it. One that does not match is decoded again
    and written in its place.
    """

    def __init__(self, path: Path, slots: np.ndarray, decoded: DecodedImages) -> None:
        self.path, self.slots, self.decoded = path, slots, decoded
        size, count = decoded.processor.image_size, int(slots.max()) + 1
        with path.open("rb") as file:  # the maps keep the open file, and its lock, as long as the images are in use
            try_lock(file, shared=True)
            self.images = np.memmap(file, np.uint8, "r", offset=HEADER_BYTES, shape=(count, size, size, 3))
            self.checksums = np.memmap(file, "<u4", "r", offset=HEADER_BYTES + self.images.size, shape=(count,))
        self.checked, self.is_repaired = np.zeros(count, dtype=bool), False

    def __reduce__(self) -> Any:  # a spawned worker maps the file again; pickling the map would copy every image
        return CachedImages, (self.path, self.slots, self.decoded)

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        """Returns uint8 (B, 3, S, S) in channels_last layout for B row numbers."""
        images = np.empty((len(rows), *self.images.shape[1:]), dtype=np.uint8)
        for image, row in zip(images, rows, strict=True):
            slot = int(self.slots[row])
            image[:] = self.images[slot]
            if not self.checked[slot] and zlib.crc32(image) != self.checksums[slot]:
                image[:] = self.decoded.pixels(row)
                self._repair(slot, image, self.decoded.paths[row])
            self.checked[slot] = True
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def _repair(self, slot: int, pixels: np.ndarray, source: Path) -> None:
        """Writes an image to the file; whoever else does so writes the same bytes."""
        if not self.is_repaired:  # one line a process, however much is damaged
            message = "image cache: '%s' is damaged, first at the pixels of '%s'; decoding what is damaged again"
            logger.warning(message, self.path, source)
        self.is_repaired = True
        with contextlib.suppress(OSError), self.path.open("r+b") as file:
            file.seek(HEADER_BYTES + slot * pixels.size)
            file.write(pixels.data)
            file.seek(HEADER_BYTES + self.images.size + 4 * slot)
            file.write(np.array(zlib.crc32(pixels.data), "<u4").tobytes())


ImageSource = DecodedImages | CachedImages


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
    size = HEADER_BYTES + math.prod(shape) + 4 * len(distinct)
    key = json_sha256([2, processor.key, distinct.tolist()])
    content = {"content": "ipiqa image cache", "format": 2, "key": key, "dtype": "uint8", "shape": shape}
    header = json.dumps(content).encode().ljust(HEADER_BYTES - 1) + b"\n"
    path = cache_dir / f"{key[:32]}.images"
    try:
        if size > limit_gb * 1e9:
            raise OSError(f"its {size / 1e9:.1f} GB are more than dataset.cache_limit_gb {limit_gb:g}")
        if not _intact(path, header, size):
            cache_dir.mkdir(parents=True, exist_ok=True)
            with _lock(cache_dir / "build.lock") as locked:
                if not _intact(path, header, size):  # another process may have built it while this one waited
                    if path.is_file():
                        logger.warning("image cache: '%s' is damaged; building it again", path)
                    _make_room(cache_dir, size, limit_gb * 1e9, locked)
                    _build(path, header, decoded, slots, size)
        images = CachedImages(path, slots, decoded)
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
        return images
    except OSError as error:
        message = "image cache: cannot use '%s' (%s); decoding images in every epoch"
        logger.warning(message, path, error.strerror or error)
        return decoded


def _intact(path: Path, header: bytes, size: int) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return file.read(HEADER_BYTES) == header


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Holds the lock of those who build; gives False where files have no locks."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # links are not followed
    with os.fdopen(os.open(path, flags, 0o666)) as file:
        locked = try_lock(file)
        if locked is False:
            logger.info("image cache: another process is building; waiting")
            locked = try_lock(file, wait=True)
        yield bool(locked)


def _make_room(folder: Path, size: int, limit: float, locked: bool) -> None:
    """Removes what killed builds left, and files not used for longest; raises OSError where the rest leaves no room."""
    if locked:  # nobody else builds
        for path in folder.glob(".*.images.*.tmp"):
            path.unlink(missing_ok=True)
    files = {path: path.stat() for path in folder.glob("*.images")}
    surplus, removed = sum(status.st_size for status in files.values()) + size - limit, []
    for path in sorted(files, key=lambda path: files[path].st_mtime_ns):
        with contextlib.suppress(OSError), path.open("r+b") as file:  # of somebody else's
            if surplus > 0 and try_lock(file) is not False:
                path.unlink()
                surplus -= files[path].st_size
                removed.append(files[path].st_size)
    if removed:
        message = "image cache: removed %d unused files (%.2f GB) under '%s' to stay within dataset.cache_limit_gb"
        logger.info(message, len(removed), sum(removed) / 1e9, folder)
    if surplus > 0:
        raise OSError("the files in use fill dataset.cache_limit_gb")


def _build(path: Path, header: bytes, decoded: DecodedImages, slots: np.ndarray, size: int) -> None:
    """Writes the cache file, with threads, not processes: Pillow releases the interpreter lock while it works."""
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(f"{size / 1e9:.1f} GB do not fit on the disk")
    rows = np.unique(slots, return_index=True)[1].tolist()  # one of each distinct image, by slot
    logger.info("image cache: decoding %d images once to '%s' (%.2f GB)", len(rows), path, size / 1e9)

    def decode(row: int) -> np.ndarray | str:
        try:
            return decoded.pixels(row)
        except DataError as error:
            return str(error)

    checksums, problems = [], {}
    with (
        replacing(path, "wb") as file,
        ThreadPoolExecutor(num_threads()) as pool,
        tqdm(total=len(rows), desc="decoding", unit="image", disable=None, leave=False) as bar,
    ):
        file.write(header)
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            for row, image in zip(chunk, pool.map(decode, chunk), strict=True):
                if isinstance(image, str):
                    problems[row] = image
                else:
                    file.write(image.data)
                    checksums.append(zlib.crc32(image.data))
                bar.update()
        file.write(np.array(checksums, "<u4").tobytes())
        if problems:
            raise DataError(describe_unusable([problems[row] for row in sorted(problems)], len(rows)))
