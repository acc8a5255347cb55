"""How far a training has come, and how fast it goes."""

import datetime
import json
import math
import time
from dataclasses import dataclass, field
from typing import Any

from ipiqa import dist


@dataclass
class Progress:
    """How far training has come; `epoch` and `step` count what is finished."""

    epoch: int = 0
    step: int = 0  # within the epoch
    loss_sum: float = 0.0  # over the steps of the epoch
    best_epoch: int = 0
    best_value: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)


def read_progress(state: dict[str, Any], max_epochs: int, num_steps: int) -> Progress:
    """Returns how far a saved training had come; raises an exception of some sort where that cannot be."""
    progress = Progress(**state["progress"])
    epoch, step, best_epoch = progress.epoch, progress.step, progress.best_epoch
    fits = all(type(number) is int for number in (epoch, step, best_epoch)) and isinstance(state["identity"], dict)
    fits = fits and 0 <= step < num_steps and 0 <= best_epoch <= epoch <= max_epochs
    fits = fits and [row["epoch"] for row in progress.history] == list(range(1, epoch + 1))
    if not fits or math.isnan(progress.best_value):
        raise ValueError("its numbers cannot be")
    json.dumps([progress.history, progress.loss_sum])  # TypeError where it holds something else
    return progress


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
