"""What a run says: on the screen from one process, in train.log the same with times."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ipiqa import dist

logger = logging.getLogger("ipiqa")


class _BarSafeHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def set_up(level: int = logging.INFO) -> None:
    """Sends the messages of this framework to standard error; processes other than rank 0 speak of errors only."""
    logger.handlers = [_BarSafeHandler()]
    logger.handlers[0].setFormatter(logging.Formatter("%(message)s"))
    logger.setLevel(level if dist.is_main() else logging.ERROR)
    logger.propagate = False


@contextlib.contextmanager
def recording(path: Path) -> Iterator[None]:
    """Appends every message within the block to a file; in processes other than rank 0, nothing happens."""
    if not dist.is_main():
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
