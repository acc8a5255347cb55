"""Images by row number, decoded once and kept in one memory-mapped file for all epochs, folds and runs.

The file is a header of 4,096 bytes and then one uint8 image (S, S, 3) after the other. Its name and header hold a hash
of everything that decides its content, so it is current when they match, and nothing in it is ever interpreted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from ipiqa.datasets.checks import ImageReader, num_threads, refuse_unusable
from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: several processes may then build the same file; each replaces it atomically
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

HEADER_BYTES = 4096
CHUNK = 64  # images decoded between two writes: bounds the memory a build takes


class ImageSource(Protocol):
    """Images by table row."""

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        """Returns uint8 (B, 3, S, S) in channels_last layout for B row numbers."""


class DecodedImages:
    """Images decoded each time they are asked for."""

    def __init__(self, paths: list[Path], reader: ImageReader) -> None:
        self.paths, self.reader = paths, reader

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        size = self.reader.image_size
        images = torch.empty((len(rows), size, size, 3), dtype=torch.uint8)
        for image, row in zip(images, rows, strict=True):
            image.copy_(self.reader.decode(self.paths[row]).permute(1, 2, 0))
        return images.permute(0, 3, 1, 2)


class CachedImages:
    """Images copied out of a cache file. Its pages belong to the system's file cache, shared by all processes."""

    def __init__(self, path: Path, shape: tuple[int, int, int, int], slots: np.ndarray) -> None:
        self.path, self.shape, self.slots = path, shape, slots
        self.images = np.memmap(path, dtype=np.uint8, mode="r", offset=HEADER_BYTES, shape=shape)

    def __reduce__(self) -> Any:  # a spawned worker maps the file again; pickling the map would copy every image
        return CachedImages, (self.path, self.shape, self.slots)

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        images = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8)
        for image, slot in zip(images.numpy(), self.slots[rows], strict=True):
            image[:] = self.images[slot]
        return images.permute(0, 3, 1, 2)


def open_images(table: AnnotationTable, reader: ImageReader, *, cache_dir: Path, limit_gb: float) -> ImageSource:
    """Returns the images of a table, from its cache file, which is built if it is not there or not intact.

    Both ways of reading give the same bytes. Where the file would pass the limit, or cannot be written, a warning says
    so and the images are decoded each time.

    Args:
        table: names and folder of the images.
        reader: decodes one file.
        cache_dir: folder of cache files, made if need be.
        limit_gb: largest file to build, in 10**9 bytes; 0 builds none.

    Raises:
        DataError: images are missing or cannot be decoded.
    """
    decoded = DecodedImages(table.image_paths, reader)
    if limit_gb <= 0:
        return decoded
    names = sorted(set(table.names))
    shape = (len(names), reader.image_size, reader.image_size, 3)
    size = HEADER_BYTES + int(np.prod(shape, dtype=np.int64))
    if size > limit_gb * 1e9:
        logger.warning(
            "image cache: %d images take %.1f GB, more than dataset.cache_limit_gb %g; decoding them in every epoch",
            *(len(names), size / 1e9, limit_gb),
        )
        return decoded
    key = _key(table.image_dir, names, reader.key)
    path, header = cache_dir / f"{key[:32]}.images", _header(key, shape)
    try:
        if not _intact(path, header, size):
            cache_dir.mkdir(parents=True, exist_ok=True)
            with _lock(path.with_suffix(".lock")) as locked:
                if not _intact(path, header, size):  # another process may have built it while this one waited
                    partial = path.with_suffix(".partial" if locked else f".{os.getpid()}.partial")
                    _build(path, partial, header, [table.image_dir / name for name in names], reader, size)
        slot_of = {name: slot for slot, name in enumerate(names)}
        return CachedImages(path, shape, np.array([slot_of[name] for name in table.names], dtype=np.int64))
    except OSError as error:
        reason = error.strerror or str(error)
        logger.warning("image cache: cannot use '%s' (%s); decoding images in every epoch", path, reason)
        return decoded


def _key(image_dir: Path, names: list[str], reader_key: str) -> str:
    """Returns a hash of the reader and of name, size and time of change of each file."""
    files = []
    for name in names:
        try:
            status = (image_dir / name).stat()
        except OSError as error:
            raise DataError(f"dataset.images: '{image_dir / name}' cannot be read: {error.strerror}.") from error
        files.append((name, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps([1, reader_key, str(image_dir.resolve()), files]).encode()).hexdigest()


def _header(key: str, shape: tuple[int, ...]) -> bytes:
    text = json.dumps({"content": "ipiqa image cache", "format": 1, "key": key, "dtype": "uint8", "shape": shape})
    return text.encode().ljust(HEADER_BYTES - 1) + b"\n"


def _intact(path: Path, header: bytes, size: int) -> bool:
    """Returns whether the file is the one the header describes; says so when something else has its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        intact = path.stat().st_size == size and file.read(HEADER_BYTES) == header
    if not intact:
        logger.warning("image cache: '%s' is damaged; building it again", path)
    return intact


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Holds a lock among processes, released when this one ends; gives False where files have no locks."""
    with path.open("a") as file:
        try:
            if fcntl is None:
                raise OSError(errno.ENOLCK, "no file locks here")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("image cache: another process is building it; waiting")
                fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            locked = False
        yield locked


def _build(path: Path, partial: Path, header: bytes, sources: list[Path], reader: ImageReader, size: int) -> None:
    """Writes the cache file: under another name first, so that it is never seen half-written.

    Threads, not processes: Pillow releases the interpreter lock while it decodes and resizes.
    """
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB do not fit on the disk")
    logger.info("image cache: decoding %d images once to '%s' (%.2f GB)", len(sources), path, size / 1e9)

    def decode(source: Path) -> np.ndarray | str:
        try:
            return reader.decode(source).permute(1, 2, 0).contiguous().numpy()
        except DataError as error:
            return str(error)

    problems: list[str] = []
    try:
        with (
            partial.open("wb") as file,
            ThreadPoolExecutor(num_threads()) as pool,
            tqdm(total=len(sources), desc="decoding", unit="image", disable=None, leave=False) as bar,
        ):
            file.write(header)
            for start in range(0, len(sources), CHUNK):
                for image in pool.map(decode, sources[start : start + CHUNK]):
                    if isinstance(image, str):
                        problems.append(image)
                    else:
                        file.write(image.data)
                    bar.update()
            file.flush()
            os.fsync(file.fileno())
        refuse_unusable(problems, len(sources))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
