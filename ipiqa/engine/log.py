"""What a run says: on the screen from one process, in train.log the same with times."""

from __future__ import annotations

import logging
import sys
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


def add_file(path: Path) -> logging.Handler:
    """Returns a handler that appends every message to a file; close it with `remove_file`."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    return handler


def remove_file(handler: logging.Handler) -> None:
    """Takes back what `add_file` added."""
    logger.removeHandler(handler)
    handler.close()
