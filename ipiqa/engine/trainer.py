"""The training loop. It knows tensors, loaders and callables; what is trained, and on what, is the caller's."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import logging
import math
import os
import signal
from collections.abc import Callable
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
from ipiqa.engine.progress import Clock, Progress, read_progress
from ipiqa.engine.stop import Interrupted, StopSignals
from ipiqa.errors import DataError
from ipiqa.files import without_nan, write_text

logger = logging.getLogger("ipiqa")


class NonFiniteLossError(Exception):
    """The loss of a step is infinite or not a number."""

    def __init__(self, epoch: int, step: int, rows: list[int]) -> None:
        super().__init__(f"epoch {epoch}, step {step}: the loss is not finite")
        self.epoch, self.step, self.rows = epoch, step, rows


class TrainLoader(Protocol):
    """Batches of one epoch after the other."""

    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...


class LearningRate(Protocol):
    """The learning rate of every step."""

    def apply(self, optimizer: torch.optim.Optimizer, epoch: int, step: int) -> float:
        """Sets the rate of a step, counted from 0 within its epoch, and returns it."""


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
    schedule: LearningRate
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
    save_every: int = 1
    log_every: int = 50
    accumulate_steps: int = 1
    clip_grad_norm: float | None = None
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
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")
        module = self.model if self.forward_module is None else self.forward_module
        self.parallel: nn.Module = module
        if dist.world_size() > 1:
            # Buffers are broadcast before each evaluation instead of before each step: BatchNorm does not read them
            # while it trains.
            ids = [self.device.index] if self.device.type == "cuda" else None
            names = inspect.signature(DistributedDataParallel).parameters
            setting = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # PyTorch 2.14
            self.parallel = DistributedDataParallel(module, device_ids=ids, **{setting: False})  # type: ignore[arg-type]

    @property
    def last_path(self) -> Path:
        """The newest whole state of training."""
        return self.folder / "last.pt"

    @property
    def best_path(self) -> Path:
        """The weights of the best epoch so far."""
        return self.folder / "best.pt"

    @property
    def _previous(self) -> tuple[Path, Path]:
        """The state before last.pt, and the best weights that it or last.pt refers to where best.pt is newer."""
        return self.folder / "previous.pt", self.folder / "previous_best.pt"

    def fit(self) -> None:
        """Trains to the last epoch from wherever `progress` stands.

        Raises:
            Interrupted: a signal asked for it; the state is saved.
            NonFiniteLossError: training has gone wrong; nothing of that step is kept.
            DataError: a checkpoint could not be written.
        """
        self._clock = Clock()
        while self.progress.epoch < self.max_epochs:
            self._train_epoch()
            epoch = self.progress.epoch
            if epoch % self.eval_every == 0 or epoch == self.max_epochs:
                self._evaluate_epoch()
            if epoch % self.save_every == 0 or epoch == self.max_epochs:
                self.save()
            if epoch < self.max_epochs:
                self._stop_if_requested()
        if dist.is_main():
            for path in self._previous:
                path.unlink(missing_ok=True)

    def _train_epoch(self) -> None:
        progress, total = self.progress, len(self.train_loader)
        epoch, first = progress.epoch, progress.step
        self.model.train()
        self.start_epoch(epoch, first)
        self._clock.start_epoch()
        with log.progress_bar(f"{self.label}epoch {epoch + 1}/{self.max_epochs}", total, first) as bar:
            for step, batch in enumerate(self.train_loader, start=first):
                loss = self._train_step(batch, epoch, step, total)
                progress.step, progress.loss_sum = step + 1, progress.loss_sum + loss
                self._clock.count(len(batch["rows"]))
                bar.update()
                if progress.step % self.log_every == 0:
                    bar.set_postfix_str(f"loss {progress.loss_sum / progress.step:.4f}")
                if progress.step % self.log_every == 0 and progress.step < total:
                    logger.debug("%s", self._state_in_words(epoch, progress.step, total, loss))
                if self._updates_at(step, total) and progress.step < total:
                    self._stop_if_requested()
        self._close_epoch(total)

    def _state_in_words(self, epoch: int, step: int, total: int, loss: float) -> str:
        """Returns a whole line on a step: where it stands, how fast it goes and how long it will take."""
        left = (self.max_epochs - epoch) * total - step
        return (
            f"{self.label}epoch {epoch + 1}/{self.max_epochs} step {step}/{total}: loss {loss:.5f}, "
            f"learning rate {self._rate:.3g}, {self._clock.in_words(left)}"
        )

    def _train_step(self, batch: Batch, epoch: int, step: int, total: int) -> float:
        """Runs one batch forward and backward, and the optimizer where an accumulation group ends; returns the loss."""
        self._rate = self.schedule.apply(self.optimizer, epoch, step)
        draw = np.random.SeedSequence((*self.seed, epoch, step, dist.rank())).generate_state(1)[0]
        torch.manual_seed(int(draw))
        updates = self._updates_at(step, total)
        group_start = step // self.accumulate_steps * self.accumulate_steps
        group_size = min(self.accumulate_steps, total - group_start)
        parallel = self.parallel
        waits = isinstance(parallel, DistributedDataParallel) and not updates  # gradients are averaged once per group
        with parallel.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with autocast(self.device, self.amp):
                loss = self.compute_loss(self.parallel, batch, epoch)
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
        return value

    def _updates_at(self, step: int, total: int) -> bool:
        """Whether an optimizer step follows this batch: at the end of each group, however short the epoch's last."""
        return (step + 1) % self.accumulate_steps == 0 or step + 1 == total

    def _close_epoch(self, total: int) -> None:
        progress = self.progress
        losses = dist.gather(progress.loss_sum / max(total, 1))
        mean_loss = sum(losses) / len(losses)
        logger.info("%s", self._state_in_words(progress.epoch, total, total, mean_loss))
        progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
        progress.history.append(
            {"epoch": progress.epoch, "step": progress.epoch * total, "loss": mean_loss, "learning_rate": self._rate}
        )
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters() if p.requires_grad):
            raise NonFiniteLossError(progress.epoch, total, [])

    def _evaluate_epoch(self) -> None:
        progress = self.progress
        self.evaluation = self.evaluate(self.model)
        progress.history[-1] |= {"metrics": self.evaluation.metrics, "value": self.evaluation.value}
        is_best = self.evaluation.value > progress.best_value
        # A run that is continued from last.pt needs the best weights of then: they are kept until last.pt is newer.
        kept = self._previous[1] if 0 < progress.best_epoch == self._saved_best else None
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
        found = None if self.evaluation is None else dataclasses.asdict(self.evaluation)
        return {
            "model": self.model.state_dict(),
            "epoch": self.progress.epoch,
            "identity": self.identity,
            "spec": self.spec,
            "evaluation": found,
        }

    def best_evaluation(self) -> Evaluation:
        """Returns what the best epoch had in its evaluation, from best.pt.

        Raises:
            DataError: the file is damaged or holds something else.
        """
        state = checkpoint.load(self.best_path)
        try:
            return Evaluation(**state["evaluation"])
        except (KeyError, TypeError):
            raise DataError(f"{self.best_path}: holds no evaluation. {checkpoint.ANEW}") from None

    def save(self) -> None:
        """Writes `last.pt`: everything that training needs to go on. Rank 0 writes, the others wait."""
        dist.broadcast_buffers(self.model)
        loss_sums = dist.gather(self.progress.loss_sum)  # each process has its own
        if dist.is_main():
            state = {
                **self.model_state(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "progress": dataclasses.asdict(self.progress),
                "loss_sums": loss_sums,
            }
            checkpoint.save(self.last_path, state, previous=self._previous[0])
        self._saved_best = self.progress.best_epoch
        dist.barrier()

    def restore(self, check: Callable[[dict[str, Any]], None]) -> bool:
        """Takes up the newest whole state in the folder; returns whether there was one.

        Args:
            check: raises when the checkpoint's identity is not the one wanted.

        Raises:
            DataError: checkpoints are there but none can be read.
        """
        path = dist.on_main(lambda: self._newest(check))
        path = dist.from_main(path)
        if path is None:
            return False
        self._take_up(path, checkpoint.load(path))
        return True

    def _newest(self, check: Callable[[dict[str, Any]], None]) -> Path | None:
        """Returns the file of the newest whole state, its best weights in best.pt, or None where no file is there.

        Raises:
            DataError: files are there and none can be continued.
        """
        error = None
        for path in (self.last_path, self._previous[0]):
            if not path.exists():
                continue
            try:
                state = checkpoint.load(path)
                saved = read_progress(path, state, self.max_epochs, len(self.train_loader))
                check(state)
                self._restore_best(path, saved.best_epoch)
            except checkpoint.UnusableError as unusable:
                logger.warning("%s", unusable)
                error = error or unusable
                continue
            return path
        if error is not None:
            raise error
        self.best_path.unlink(missing_ok=True)  # of a job that was killed before its first last.pt
        return None

    def _restore_best(self, path: Path, epoch: int) -> None:
        """Puts the weights of a state's best epoch into best.pt, where a job that was killed may have left later ones.

        Raises:
            UnusableError: they are gone.
        """
        if epoch == 0:
            self.best_path.unlink(missing_ok=True)
            return
        for best in (self.best_path, self._previous[1]):
            with contextlib.suppress(checkpoint.UnusableError):
                if best.exists() and checkpoint.load(best).get("epoch") == epoch:
                    os.replace(best, self.best_path)
                    return
        raise checkpoint.UnusableError(f"{path}: the weights of its best epoch, {epoch}, are gone. {checkpoint.ANEW}")

    def _take_up(self, path: Path, state: dict[str, Any]) -> None:
        """Fills model, optimizer and progress from a state.

        Raises:
            DataError: it is of another training.
        """
        try:
            self.model.load_state_dict(state["model"])
            fixed = _hyperparameters(self.optimizer)
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            shapes = ((p.shape, m.shape) for p, moments in self.optimizer.state.items() for m in moments.values())
            if _hyperparameters(self.optimizer) != fixed or any(len(own) and own != shape for shape, own in shapes):
                raise ValueError("its optimizer is another one")
            self.progress = read_progress(path, state, self.max_epochs, len(self.train_loader))
            if "loss_sums" in state:
                self.progress.loss_sum = float(state["loss_sums"][dist.rank()])
            self._saved_best = self.progress.best_epoch
            self.evaluation = None if state["evaluation"] is None else Evaluation(**state["evaluation"])
            if self.evaluation is None and self.progress.epoch == self.max_epochs:
                raise ValueError("its last epoch was not evaluated")
        except Exception as error:  # torch has exceptions of all sorts for what does not fit
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise DataError(f"{path}: not the state of this training ({reason}). {checkpoint.ANEW}") from None


def _hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
