"""The settings that belong to no registered part: how data is split and how a run goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ipiqa.errors import ConfigError

MAX_WORKERS = 256  # per process; each is a process of its own


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which images are held out."""

    kind: Literal["reference", "holdout", "kfold", "image_random"] = "reference"
    seed: int = 42
    train_fraction: float = 0.8  # of the groups; kfold takes it from run.num_folds instead

    def check(self) -> None:
        """Raises ConfigError when a value is out of range."""
        _check(
            "split.train_fraction", self.train_fraction, 0 < self.train_fraction < 1, "between 0 and 1, both excluded"
        )
        _check("split.seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 4294967295")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run goes."""

    output_dir: str  # folder of the run
    num_folds: int = 10
    seed: int = 42  # of everything random in training; splits have split.seed
    max_epochs: int = 100
    batch_size: int = 32  # images per process and step
    eval_batch_size: int = 32
    learning_rate: float = 1e-5
    head_learning_rate_scale: float = 10.0  # the head trains at learning_rate times this
    layer_decay: float = 1.0  # factor on the learning rate per image stage towards the input
    weight_decay: float = 0.0  # of matrices; norms and biases never decay
    beta2: float = 0.999  # of AdamW
    schedule: Literal[
        "constant_lr", "linear_warmup_cosine_lr", "linear_warmup_step_lr", "linear_warmup_cosine_lr_step-wise"
    ] = "constant_lr"
    warmup_learning_rate: float = -1.0  # where the warm-up starts; negative: at learning_rate
    warmup_steps: int = 0
    min_learning_rate: float = 0.0
    learning_rate_decay: float | None = None  # factor per epoch of linear_warmup_step_lr
    accumulate_steps: int = 1  # batches per optimizer step
    clip_grad_norm: float | None = None
    amp: Literal["none", "bf16", "fp16"] = "none"  # mixed precision
    tf32: bool = False  # on GPU: faster matrix products with 10-bit mantissas
    compile: bool = False  # torch.compile
    grad_checkpointing: bool = False  # less memory, more time: the forward pass is repeated
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_workers: int | None = None  # of the data loader; null chooses
    val_fraction: float = 0.0  # of the training groups: chooses the epoch instead of the reported part
    eval_every: int = 1  # epochs
    save_every: int = 1  # epochs between two last.pt
    log_every: int = 50  # steps
    evaluate: bool = False  # score run.checkpoint, or a zero-shot model, on every fold instead of training
    checkpoint: str | None = None  # whole-model weights to start from or to evaluate: a file, or a run folder

    def check(self) -> None:
        """Raises ConfigError when a value is out of range or two do not go together."""
        for name in ("num_folds", "max_epochs", "batch_size", "eval_batch_size", "accumulate_steps", "eval_every",
                     "save_every", "log_every"):  # fmt: skip
            _check(f"run.{name}", getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("learning_rate", "head_learning_rate_scale", "weight_decay", "warmup_steps", "min_learning_rate"):
            _check(f"run.{name}", getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name, value in (("output_dir", self.output_dir), ("checkpoint", self.checkpoint)):
            if value is not None and not value.strip():
                raise ConfigError(f"run.{name}: empty. Give a path{' or null' if name == 'checkpoint' else ''}.")
        _check("run.seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 4294967295")
        warmup = self.warmup_learning_rate
        _check(
            "run.warmup_learning_rate",
            warmup,
            not math.isnan(warmup),
            "0 or more, or below 0 to start at learning_rate",
        )
        _check("run.layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "above 0 and at most 1")
        _check("run.beta2", self.beta2, 0 <= self.beta2 < 1, "at least 0 and below 1")
        _check("run.val_fraction", self.val_fraction, 0 <= self.val_fraction < 1, "at least 0 and below 1")
        if self.num_workers is not None:
            _check(
                "run.num_workers", self.num_workers, 0 <= self.num_workers <= MAX_WORKERS, f"from 0 to {MAX_WORKERS}"
            )
        if self.clip_grad_norm is not None:
            _check("run.clip_grad_norm", self.clip_grad_norm, self.clip_grad_norm > 0, "above 0, or null")
        if self.learning_rate_decay is not None:
            decay = self.learning_rate_decay
            _check("run.learning_rate_decay", decay, 0 < decay <= 1, "above 0 and at most 1, or null")
        if self.schedule != "constant_lr" and self.min_learning_rate > self.learning_rate:
            raise ConfigError(
                f"run.min_learning_rate: {self.min_learning_rate!r} is above run.learning_rate, "
                f"{self.learning_rate!r}. Give at most that."
            )
        if self.schedule == "linear_warmup_step_lr" and self.learning_rate_decay is None:
            raise ConfigError(
                "run.learning_rate_decay: missing. linear_warmup_step_lr needs the factor per epoch, such as 0.9."
            )


def _check(where: str, value: float, fits: bool, expected: str) -> None:
    if not fits or math.isinf(value):  # nan never fits
        raise ConfigError(f"{where}: {value!r} is out of range. Give a number {expected}.")
