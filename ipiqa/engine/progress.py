"""How far a training has come, and how fast it goes."""

from __future__ import annotations

import datetime
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipiqa import dist
from ipiqa.engine.checkpoint import ANEW, UnusableError


@dataclass
class Progress:
    """How far training has come; `epoch` and `step` count what is finished."""

    epoch: int = 0
    step: int = 0  # within the epoch
    loss_sum: float = 0.0  # over the steps of the epoch
    best_epoch: int = 0
    best_value: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)


def read_progress(path: Path, state: dict[str, Any], max_epochs: int, num_steps: int) -> Progress:
    """Returns how far a saved training had come.

    Raises:
        UnusableError: it does not say, or says what cannot be.
    """
    try:
        progress = Progress(**state["progress"])
        numbers = (progress.epoch, progress.step, progress.best_epoch)
        fits = all(type(number) is int for number in numbers) and 0 <= progress.step < num_steps
        fits = fits and 0 <= progress.best_epoch <= progress.epoch <= max_epochs and not math.isnan(progress.best_value)
        fits = fits and [row["epoch"] for row in progress.history] == list(range(1, progress.epoch + 1))
        json.dumps([progress.history, progress.loss_sum])
        if fits and isinstance(state["identity"], dict) and "optimizer" in state:
            return progress
        reason = "its numbers cannot be"
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:60]}"
    raise UnusableError(f"{path}: not the state of a training ({reason}). {ANEW}")


@dataclass
class Clock:
    """How fast a training goes."""

    started: float = field(default_factory=time.monotonic)
    steps: int = 0  # since then
    epoch_started: float = 0.0
    images: int = 0  # of one process, in the epoch

    def start_epoch(self) -> None:
        self.epoch_started, self.images = time.monotonic(), 0

    def count(self, images: int) -> None:
        self.steps, self.images = self.steps + 1, self.images + images

    def in_words(self, steps_left: int) -> str:
        """Returns images per second in this epoch and the time left at the mean pace, evaluations included."""
        now = time.monotonic()
        speed = self.images * dist.world_size() / max(now - self.epoch_started, 1e-9)
        left = (now - self.started) / max(self.steps, 1) * steps_left
        return f"{speed:.1f} images/s, {datetime.timedelta(seconds=round(left))} left"
