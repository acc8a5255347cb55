"""The training loop. It knows tensors, loaders and callables; what is trained, and on what, is the caller's."""

import contextlib
import copy
import dataclasses
import datetime
import inspect
import itertools
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ipiqa import dist
from ipiqa.engine import checkpoint, log
from ipiqa.engine.predict import Batch, autocast
from ipiqa.engine.stop import Interrupted, StopSignals
from ipiqa.files import without_nan, write_text

logger = logging.getLogger("ipiqa")


class NonFiniteLossError(Exception):
    """The loss of a step is infinite or not a number."""

    def __init__(self, epoch: int, step: int, rows: list[int]) -> None:
        super().__init__(f"epoch {epoch}, step {step}: the loss is not finite")
        self.epoch, self.step, self.rows = epoch, step, rows


class TrainLoader(Protocol):
    """Batches of one epoch after the other."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...


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


@dataclass
class Evaluation:
    """What one evaluation found: the value that selects the best epoch, and what goes into the log and the files."""

    value: float
    metrics: dict[str, Any]
    predictions: torch.Tensor  # (N, T)


@dataclass(kw_only=True)
class Trainer:
    """Trains one model, evaluates it, keeps the last and the best state.

    Every random draw is a function of (seed, epoch, step, rank), so no generator state is kept, and a resumed run
    repeats the uninterrupted one bit for bit on the CPU.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Callable[[torch.optim.Optimizer, int, int], float]  # (optimizer, epoch, step): sets the rate, returns it
    train_loader: TrainLoader
    start_epoch: Callable[[int, int], None]  # (epoch, first step): tells the loader which draw comes next
    compute_loss: Callable[[nn.Module, Batch, int], torch.Tensor]  # (model, batch, epoch) -> scalar
    evaluate: Callable[[nn.Module], Evaluation]
    folder: Path
    identity: dict[str, Any]  # what must be the same for a checkpoint to be continued
    spec: dict[str, Any]  # how to rebuild the model from its checkpoint alone: see models.bundle
    seed: tuple[int, ...]
    device: torch.device
    max_epochs: int
    eval_every: int = 1
    patience: int | None = None  # evaluations without a better one after which training ends
    save_every: int = 1
    log_every: int = 50
    accumulate_steps: int = 1
    clip_grad_norm: float | None = None
    ema: float | None = None  # decay of the moving average of the weights, which is then evaluated and saved
    amp: str = "none"
    stop: StopSignals = field(default_factory=StopSignals)
    label: str = ""
    forward_module: nn.Module | None = None  # the model as compiled, where it is
    progress: Progress = field(default_factory=Progress)
    evaluation: Evaluation | None = None  # the newest one
    _rate: float = field(default=0.0, init=False)
    _saved_best: int = field(default=0, init=False)  # the best epoch that last.pt refers to
    _clock: Clock = field(default_factory=Clock, init=False)

    def __post_init__(self) -> None:
        self.last_path, self.best_path = self.folder / "last.pt", self.folder / "best.pt"
        # The state before last.pt, and the best weights that it or last.pt refers to where best.pt is newer.
        self._previous, self._previous_best = self.folder / "previous.pt", self.folder / "previous_best.pt"
        self._average = None if self.ema is None else copy.deepcopy(self.model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")
        self.parallel: nn.Module = self.model if self.forward_module is None else self.forward_module
        if dist.world_size() > 1:
            # Buffers are broadcast before each evaluation, not each step: BatchNorm does not read them while it trains.
            names = inspect.signature(DistributedDataParallel).parameters
            setting = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # PyTorch 2.14
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.parallel, device_ids=ids, **{setting: False})  # type: ignore[arg-type]

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and saved: the one that trains, or with `ema` the moving average of it."""
        return self.model if self._average is None else self._average

    @property
    def ended(self) -> bool:
        """Whether training has come to its end: the last epoch, or `patience` evaluations without a better one."""
        since_best = sum("value" in row for row in self.progress.history[self.progress.best_epoch :])
        return self.progress.epoch == self.max_epochs or (self.patience is not None and since_best >= self.patience)

    def fit(self) -> None:
        """Trains to the last epoch, or out of `patience`, from wherever `progress` stands.

        Raises Interrupted where a signal asked for it, the state saved; NonFiniteLossError where training has gone
        wrong, nothing of that step kept; DataError where a checkpoint could not be written.
        """
        self._clock = Clock()
        while not self.ended:
            self._train_epoch()
            epoch = self.progress.epoch
            if epoch == self.max_epochs or epoch % self.eval_every == 0:
                self._evaluate_epoch()
            if self.ended or epoch % self.save_every == 0:
                self.save()
            if not self.ended:
                self._stop_if_requested()
        if self.progress.epoch < self.max_epochs:
            reason = f"no better value, patience {self.patience}"
            logger.info("%sends after epoch %d of %d: %s", self.label, self.progress.epoch, self.max_epochs, reason)
        if dist.is_main():
            self._previous.unlink(missing_ok=True)
            self._previous_best.unlink(missing_ok=True)

    def _train_epoch(self) -> None:
        progress, total = self.progress, len(self.train_loader)
        self.model.train()
        self.start_epoch(progress.epoch, progress.step)
        self._clock.start_epoch()
        name = f"{self.label}epoch {progress.epoch + 1}/{self.max_epochs}"
        with log.progress_bar(name, total, progress.step) as bar:
            for step, batch in enumerate(self.train_loader, start=progress.step):
                ends_epoch = step + 1 == total
                updates = ends_epoch or (step + 1) % self.accumulate_steps == 0  # the last group may be a short one
                loss = self._train_step(batch, step, updates)
                progress.step, progress.loss_sum = step + 1, progress.loss_sum + loss
                self._clock.count(len(batch["rows"]))
                bar.update()
                if progress.step % self.log_every == 0:
                    bar.set_postfix_str(f"loss {progress.loss_sum / progress.step:.4f}")
                    if not ends_epoch:
                        self._log_step(logging.DEBUG, loss)
                if updates and not ends_epoch:
                    self._stop_if_requested()
        mean_loss = sum(losses := dist.gather(progress.loss_sum / max(total, 1))) / len(losses)
        self._log_step(logging.INFO, mean_loss)
        progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
        progress.history.append(
            {"epoch": progress.epoch, "step": progress.epoch * total, "loss": mean_loss, "learning_rate": self._rate}
        )
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters() if p.requires_grad):
            raise NonFiniteLossError(progress.epoch, total, [])

    def _train_step(self, batch: Batch, step: int, updates: bool) -> float:
        """Runs one batch forward and backward, and the optimizer where it `updates`; returns the loss."""
        epoch, parallel = self.progress.epoch, self.parallel
        self._rate = self.schedule(self.optimizer, epoch, step)
        draw = np.random.SeedSequence((*self.seed, epoch, step, dist.rank())).generate_state(1)[0]
        torch.manual_seed(int(draw))
        group_start = step // self.accumulate_steps * self.accumulate_steps
        group_size = min(self.accumulate_steps, len(self.train_loader) - group_start)
        waits = isinstance(parallel, DistributedDataParallel) and not updates  # gradients are averaged once per group
        with parallel.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with autocast(self.device, self.amp):
                loss = self.compute_loss(parallel, batch, epoch)
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteLossError(epoch + 1, step + 1, batch["rows"].tolist())
            self.scaler.scale(loss / group_size).backward()
        if updates:
            if self.clip_grad_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            self._move_average(step)
        return value

    @torch.no_grad()
    def _move_average(self, step: int) -> None:
        """Moves the average towards the weights, by more in the first steps: else it would keep those it began with.

        BatchNorm statistics are averaged as well, for they belong to weights: those of the newest ones alone would not
        be those of the mean over many. Each process averages its own; the ones of rank 0 are evaluated and saved.
        """
        if self.ema is None:
            return
        per_epoch = -(-len(self.train_loader) // self.accumulate_steps)
        done = self.progress.epoch * per_epoch + step // self.accumulate_steps  # optimizer steps before this one
        weight = 1 - min(self.ema, (1 + done) / (10 + done))
        both = (itertools.chain(model.parameters(), model.buffers()) for model in (self.evaluated, self.model))
        for own, newest in zip(*both, strict=True):
            own.lerp_(newest, weight) if own.is_floating_point() else own.copy_(newest)

    def _log_step(self, level: int, loss: float) -> None:
        """Logs where training stands, how fast it goes and how long it will take."""
        progress, total = self.progress, len(self.train_loader)
        pace = self._clock.in_words((self.max_epochs - progress.epoch) * total - progress.step)
        step = f"{self.label}epoch {progress.epoch + 1}/{self.max_epochs} step {progress.step}/{total}"
        step += ": mean" if level == logging.INFO else ":"  # of the epoch, or of the step alone
        logger.log(level, "%s loss %.5f, learning rate %.3g, %s", step, loss, self._rate, pace)

    def _evaluate_epoch(self) -> None:
        progress = self.progress
        self.evaluation = self.evaluate(self.evaluated)
        progress.history[-1] |= {"metrics": self.evaluation.metrics, "value": self.evaluation.value}
        is_best = self.evaluation.value > progress.best_value
        # A run that is continued from last.pt needs the best weights of then: they are kept until last.pt is newer.
        kept = self._previous_best if 0 < progress.best_epoch == self._saved_best else None
        if is_best:
            progress.best_epoch, progress.best_value = progress.epoch, self.evaluation.value
        if dist.is_main():
            lines = (json.dumps(without_nan(row)) for row in progress.history)
            write_text(self.folder / "metrics.jsonl", "".join(line + "\n" for line in lines))
            if is_best:
                checkpoint.save(self.best_path, self.model_state(), previous=kept)

    def _stop_if_requested(self) -> None:
        if dist.any_process(self.stop.requested(), self.device):
            self.save()
            where = f"{self.label}after epoch {self.progress.epoch}, step {self.progress.step}"
            raise Interrupted(where, self.stop.signal_number or signal.SIGTERM)

    def model_state(self) -> dict[str, Any]:
        """Returns the weights with what they scored: the content of `best.pt`."""
        return {
            "model": self.evaluated.state_dict(),
            "epoch": self.progress.epoch,
            "identity": self.identity,
            "spec": self.spec,
            "evaluation": None if self.evaluation is None else dataclasses.asdict(self.evaluation),
        }

    def best_evaluation(self) -> Evaluation:
        """Returns what the best epoch had in its evaluation, from best.pt; DataError where that cannot be used."""
        with checkpoint.refusing(self.best_path, "holds no evaluation"):
            return Evaluation(**checkpoint.load(self.best_path)["evaluation"])

    def save(self) -> None:
        """Writes `last.pt`: everything that training needs to go on. Rank 0 writes, the others wait."""
        dist.broadcast_buffers(self.model)
        loss_sums = dist.gather(self.progress.loss_sum)  # each process has its own
        if dist.is_main():
            state = self.model_state() | {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "progress": dataclasses.asdict(self.progress),
                "loss_sums": loss_sums,
            }
            state |= {} if self.ema is None else {"newest": self.model.state_dict()}
            checkpoint.save(self.last_path, state, previous=self._previous)
        self._saved_best = self.progress.best_epoch
        dist.barrier()

    def restore(self, check: Callable[[dict[str, Any]], None]) -> bool:
        """Takes up the newest whole state in the folder; returns whether there was one.

        `check` raises where the state's identity is not the one wanted. DataError: files are there, none can be used.
        """
        path = dist.from_main(dist.on_main(lambda: self._newest(check)))
        if path is None:
            return False
        state = checkpoint.load(path)
        with checkpoint.refusing(path, "not the state of this training"):
            self.evaluated.load_state_dict(state["model"])
            if self.ema is not None:
                self.model.load_state_dict(state["newest"])
            fixed = _hyperparameters(self.optimizer)
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            shapes = ((p.shape, m.shape) for p, moments in self.optimizer.state.items() for m in moments.values())
            if _hyperparameters(self.optimizer) != fixed or any(len(own) and own != shape for shape, own in shapes):
                raise ValueError("its optimizer is another one")
            self.progress = Progress(**state["progress"])
            if "loss_sums" in state:
                self.progress.loss_sum = float(state["loss_sums"][dist.rank()])
            self._saved_best = self.progress.best_epoch
            self.evaluation = None if state["evaluation"] is None else Evaluation(**state["evaluation"])
            if self.evaluation is None and self.ended:
                raise ValueError("its last epoch was not evaluated")
        return True

    def _newest(self, check: Callable[[dict[str, Any]], None]) -> Path | None:
        """Returns the file of the newest whole state, its best weights in best.pt, or None where no file is there."""
        errors = []
        for path in filter(Path.exists, (self.last_path, self._previous)):
            try:
                state = checkpoint.load(path)
                with checkpoint.refusing(path, "not the state of a training"):
                    best_epoch = read_progress(state, self.max_epochs, len(self.train_loader)).best_epoch
                    check(state)
                self._restore_best(path, best_epoch)
                return path
            except checkpoint.UnusableError as error:
                logger.warning("%s", error)
                errors.append(error)
        if errors:
            raise errors[0]
        self.best_path.unlink(missing_ok=True)  # of a job that was killed before its first last.pt
        return None

    def _restore_best(self, path: Path, epoch: int) -> None:
        """Puts the weights of the best epoch into best.pt, where a job that was killed may have left later ones."""
        if epoch == 0:
            return self.best_path.unlink(missing_ok=True)
        for best in filter(Path.exists, (self.best_path, self._previous_best)):
            with contextlib.suppress(checkpoint.UnusableError):
                if checkpoint.load(best).get("epoch") == epoch:
                    return os.replace(best, self.best_path)
        raise checkpoint.UnusableError(f"{path}: the weights of its best epoch, {epoch}, are gone. {checkpoint.ANEW}")


def _hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
