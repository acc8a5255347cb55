"""Functions run in several processes at once, as torchrun would start them, but without importing torch anew."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ipiqa.config.loading import load_config
from ipiqa.engine.stop import Interrupted
from ipiqa.tasks.quality_regression import QualityRegression
from ipiqa.training.cross_validation import run

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ipiqa.training.cross_validation"])
TIMEOUT = 120  # seconds
INTERRUPTED = 7  # exit status of `train`


def _start(function: Callable[..., None], rank: int, count: int, port: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    function(*arguments)


def run_together(count: int, function: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Calls a function of a module in `count` processes and returns their exit statuses, by rank.

    A process that does not end in time is killed; its status is then negative.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    jobs = [CONTEXT.Process(target=_start, args=(function, rank, count, port, arguments)) for rank in range(count)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(TIMEOUT)
        if job.is_alive():
            job.kill()
            job.join()
    return [job.exitcode for job in jobs]


def train(cfg: Path, output_dir: str, resume: bool, stop_at: int | None, *overrides: str) -> None:
    """Trains fold 0 in one of several processes; where `stop_at` is given, process 1 gets a signal in that step."""
    plain_step, steps = QualityRegression.step, 0

    def step(self: QualityRegression, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == stop_at and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGTERM)
        return plain_step(self, model, batch)

    QualityRegression.step = step  # type: ignore[method-assign]
    config = load_config(cfg, "run.batch_size=4", f"run.output_dir={output_dir}", *overrides)
    try:
        run(config, folds=[0], resume=resume)
    except Interrupted:
        os._exit(INTERRUPTED)
