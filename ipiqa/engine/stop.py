"""Answering SIGTERM and Ctrl-C between two steps instead of in the middle of one."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

logger = logging.getLogger("ipiqa")


class Interrupted(Exception):
    """Somebody asked the run to stop. The checkpoint is written; `--resume` goes on at the very step."""

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopSignals:
    """While open, the first signal becomes a request that the training loop answers; a second one is obeyed at once.

    In a thread other than the main one, where signals cannot be caught, no request ever comes.
    """

    signal_number: int | None = None  # of the signal that came

    def __enter__(self) -> StopSignals:
        caught = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._before: dict[int, Any] = {number: signal.signal(number, self._on_signal) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Returns whether a signal came."""
        return self.signal_number is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal_number = number
        logger.warning("Stopping after this step; the state will be saved. Once more stops at once.")
