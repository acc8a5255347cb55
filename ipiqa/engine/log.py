"""What a run says: on the screen from one process, in train.log the same with times."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ipiqa import dist
from ipiqa.engine.stop import Interrupted
from ipiqa.errors import IpiqaError

logger = logging.getLogger("ipiqa")


class _Screen:
    """Standard error, written to as long as anybody reads it: training outlives its terminal."""

    def _call(self, name: str, *arguments: str) -> Any:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return getattr(sys.stderr, name)(*arguments)

    def write(self, text: str) -> None:
        self._call("write", text)

    def flush(self) -> None:
        self._call("flush")

    def isatty(self) -> bool:
        return bool(self._call("isatty"))


_SCREEN = _Screen()


def progress_bar(description: str, total: int | None = None, first: int = 0, unit: str = "it") -> tqdm[Any]:
    """Returns a bar that rank 0 shows on a terminal, `first` of `total` steps done, called `unit` in its speed."""
    shown = None if dist.is_main() else True  # None: where there is a terminal
    return tqdm(desc=description, total=total, initial=first, unit=unit, leave=False, disable=shown, file=_SCREEN)


class _BarSafeHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=_SCREEN)


def set_up() -> None:
    """Sends messages to standard error: all of rank 0, single steps where no progress bar is; errors of the others."""
    logging.raiseExceptions = False  # a log that cannot be written ends no training
    handler = _BarSafeHandler(logging.INFO if _SCREEN.isatty() else logging.DEBUG)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if dist.is_main() else logging.ERROR)
    logger.propagate = False


@contextlib.contextmanager
def recording(path: Path) -> Iterator[None]:
    """Appends every message of rank 0 within the block to a file, and the error that ends the block on any rank."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace", delay=not dist.is_main())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    if dist.is_main():
        logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        trace = None if isinstance(error, (IpiqaError, Interrupted)) else (type(error), error, error.__traceback__)
        where = f"process {dist.rank()}: " if dist.world_size() > 1 else ""
        line = f"{where}{'stopped ' * isinstance(error, Interrupted)}{error or type(error).__name__}"
        handler.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, "%s", (line,), trace))
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
