"""Files of a cache folder: records of equal size by number, mapped into memory, built once for all epochs and runs.

A file is a header of 4,096 bytes, one record after the other, and the CRC-32 of each. Its name and header hold a hash
of everything that decides its content. So it is current when they match, and nothing in it is ever interpreted. Whoever
reads it holds a shared lock on it, and only a file that nobody reads is removed to make room for another.
"""

import contextlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ipiqa.files import replacing, try_lock

logger = logging.getLogger(__name__)

HEADER_BYTES = 4096
ENDINGS = ("images", "features")  # of the files that share a folder and its limit


@dataclass(frozen=True)
class RecordFile:
    """A file of `count` records of `size` bytes, of the image cache (KEY.images) or feature cache (KEY.features)."""

    path: Path
    layout: dict[str, Any]  # what the header says, the key within
    count: int
    size: int

    @property
    def title(self) -> str:
        return f"{self.path.suffix[1:-1]} cache"

    @property
    def header(self) -> bytes:
        content = {"content": f"ipiqa {self.title}", "format": 2} | self.layout
        return json.dumps(content).encode().ljust(HEADER_BYTES - 1) + b"\n"

    @property
    def total_bytes(self) -> int:
        return HEADER_BYTES + self.count * (self.size + 4)

    def is_intact(self) -> bool:
        """Returns whether the file is there, as long as it should be, with the header it should have."""
        if not self.path.is_file() or self.path.stat().st_size != self.total_bytes:
            return False
        with self.path.open("rb") as file:
            return file.read(HEADER_BYTES) == self.header

    def ensure(self, limit_gb: float, records: Callable[[], Iterable[np.ndarray]], what: str) -> None:
        """Builds the file where it is not there, or waits for who builds it, and marks it as used now.

        `records` gives the records in order, uint8, any number of them at a time; `what` says of what, for the log.
        Raises OSError where the files of the folder would pass the limit, in 10**9 bytes, or cannot be written.
        """
        if self.total_bytes > limit_gb * 1e9:
            raise OSError(f"its {self.total_bytes / 1e9:.1f} GB are more than dataset.cache_limit_gb {limit_gb:g}")
        if not self.is_intact():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock() as locked:
                if not self.is_intact():  # another process may have built it while this one waited
                    if self.path.is_file():
                        logger.warning("%s: '%s' is damaged; building it again", self.title, self.path)
                    self._make_room(limit_gb * 1e9, locked)
                    self._build(records, what)
        with contextlib.suppress(OSError):
            os.utime(self.path)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[bool]:
        """Holds the lock of those who build; gives False where files have no locks."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # links are not followed
        with os.fdopen(os.open(self.path.with_name("build.lock"), flags, 0o666)) as file:
            locked = try_lock(file)
            if locked is False:
                logger.info("%s: another process is building; waiting for '%s'", self.title, self.path)
                locked = try_lock(file, wait=True)
            yield bool(locked)

    def _make_room(self, limit: float, locked: bool) -> None:
        """Removes what killed builds left, and files not used for longest; OSError where the rest leaves no room."""
        folder = self.path.parent
        for path in [path for ending in ENDINGS for path in folder.glob(f".*.{ending}.*.tmp") if locked]:
            path.unlink(missing_ok=True)  # nobody else builds
        files = {path: path.stat() for ending in ENDINGS for path in folder.glob(f"*.{ending}")}
        surplus, removed = sum(status.st_size for status in files.values()) + self.total_bytes - limit, []
        for path in sorted(files, key=lambda path: files[path].st_mtime_ns):
            with contextlib.suppress(OSError), path.open("r+b") as file:  # of somebody else's
                if surplus > 0 and try_lock(file) is not False:
                    path.unlink()
                    surplus -= files[path].st_size
                    removed.append(files[path].st_size)
        if removed:
            message = "%s: removed %d unused files (%.2f GB) under '%s' to stay within dataset.cache_limit_gb"
            logger.info(message, self.title, len(removed), sum(removed) / 1e9, folder)
        if surplus > 0:
            raise OSError("the files in use fill dataset.cache_limit_gb")

    def _build(self, records: Callable[[], Iterable[np.ndarray]], what: str) -> None:
        if shutil.disk_usage(self.path.parent).free < self.total_bytes:
            raise OSError(f"{self.total_bytes / 1e9:.1f} GB do not fit on the disk")
        logger.info("%s: %s once to '%s' (%.2f GB)", self.title, what, self.path, self.total_bytes / 1e9)
        checksums: list[int] = []
        with replacing(self.path, "wb") as file:
            file.write(self.header)
            for part in records():
                for record in part:
                    file.write(record.data)
                    checksums.append(zlib.crc32(record.data))
            file.write(np.array(checksums, "<u4").tobytes())


class Records:
    """The records of a file that is there. All processes share its pages in memory.

    Each record is compared with its checksum when this process first reads it. One that does not match is made anew and
    written in its place.
    """

    def __init__(self, file: RecordFile) -> None:
        self.file = file
        with file.path.open("rb") as opened:  # the maps keep the open file, and its lock, as long as they are in use
            try_lock(opened, shared=True)
            self.data = np.memmap(opened, np.uint8, "r", offset=HEADER_BYTES, shape=(file.count, file.size))
            end = HEADER_BYTES + file.count * file.size
            self.checksums = np.memmap(opened, "<u4", "r", offset=end, shape=(file.count,))
        self.checked, self.is_repaired = np.zeros(file.count, dtype=bool), False

    def __reduce__(self) -> Any:  # a spawned worker maps the file again; pickling the map would copy every record
        return Records, (self.file,)

    def read(self, numbers: np.ndarray, make: Callable[[int], Any]) -> np.ndarray:
        """Returns copies of records, uint8 (B, size); `make` gives a damaged one anew, an array of any shape."""
        records: Any = np.empty((len(numbers), self.file.size), dtype=np.uint8)
        for record, number in zip(records, numbers.tolist(), strict=True):
            record[:] = self.data[number]
            if not self.checked[number] and zlib.crc32(record) != self.checksums[number]:
                record[:] = make(number).ravel()
                if not self.is_repaired:  # one line a process, however much is damaged
                    logger.warning("%s: '%s' is damaged; making what is damaged again", self.file.title, self.file.path)
                self.is_repaired = True
                with contextlib.suppress(OSError), self.file.path.open("r+b") as file:
                    file.seek(HEADER_BYTES + number * self.file.size)
                    file.write(record)  # whoever else does so writes the same
                    file.seek(HEADER_BYTES + self.file.count * self.file.size + 4 * number)
                    file.write(np.array(zlib.crc32(record), "<u4").tobytes())
            self.checked[number] = True
        return records
