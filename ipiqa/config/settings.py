"""The settings that belong to no registered part: how data is split and how a run goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ipiqa.errors import ConfigError
from ipiqa.registry import FilePath

MAX_FOLDS = 1000
MAX_SEED = 2**32 - 1


class Range(NamedTuple):
    """The numbers a setting may have; `high` None: any finite one."""

    low: float
    high: float | None = None
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        is_high = self.high is not None and (value > self.high or (self.without_high and value == self.high))
        return not is_high and (value > self.low if self.without_low else value >= self.low)

    def __str__(self) -> str:
        if self.high is None:
            return f"above {self.low}" if self.without_low else f"{self.low} or more"
        if not self.without_low and not self.without_high:
            return f"from {self.low} to {self.high}"
        low = f"above {self.low}" if self.without_low else f"at least {self.low}"
        return f"{low} and {'below' if self.without_high else 'at most'} {self.high}"


RANGES = {
    "split.seed": Range(0, MAX_SEED),
    "split.train_fraction": Range(0, 1, without_low=True, without_high=True),
    "run.num_folds": Range(1, MAX_FOLDS),
    "run.seed": Range(0, MAX_SEED),
    "run.max_epochs": Range(1, 100_000),
    "run.batch_size": Range(1, 65_536),
    "run.eval_batch_size": Range(1, 65_536),
    "run.learning_rate": Range(0),
    "run.head_learning_rate_scale": Range(0),
    "run.layer_decay": Range(0, 1, without_low=True),
    "run.weight_decay": Range(0),
    "run.beta2": Range(0, 1, without_high=True),
    "run.warmup_learning_rate": Range(-1),
    "run.warmup_steps": Range(0, 10**9),
    "run.min_learning_rate": Range(0),
    "run.learning_rate_decay": Range(0, 1, without_low=True),
    "run.accumulate_steps": Range(1, 65_536),
    "run.clip_grad_norm": Range(0, without_low=True),
    "run.num_workers": Range(0, 256),  # per process; each is a process of its own
    "run.val_fraction": Range(0, 1, without_high=True),
    "run.eval_every": Range(1, 100_000),
    "run.save_every": Range(1, 100_000),
    "run.log_every": Range(1, 10**9),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which images are held out."""

    kind: Literal["reference", "holdout", "kfold", "image_random"] = "reference"
    seed: int = 42
    train_fraction: float = 0.8  # of the groups; kfold takes it from run.num_folds instead

    def check(self) -> None:
        """Raises ConfigError when a value is out of range."""
        _check_ranges(self, "split")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run goes."""

    output_dir: FilePath  # folder of the run
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
    checkpoint: FilePath | None = None  # whole-model weights to start from or to evaluate: a file, or a run folder

    def check(self) -> None:
        """Raises ConfigError when a value is out of range or two do not go together."""
        _check_ranges(self, "run")
        for name, value in (("output_dir", self.output_dir), ("checkpoint", self.checkpoint)):
            if value is not None and not value.strip():
                raise ConfigError(f"run.{name}: empty. Give a path{' or null' if name == 'checkpoint' else ''}.")
        if self.schedule != "constant_lr" and self.min_learning_rate > self.learning_rate:
            raise ConfigError(
                f"run.min_learning_rate: {self.min_learning_rate!r} is above run.learning_rate, "
                f"{self.learning_rate!r}. Give at most that."
            )
        if self.schedule == "linear_warmup_step_lr" and self.learning_rate_decay is None:
            raise ConfigError(
                "run.learning_rate_decay: missing. linear_warmup_step_lr needs the factor per epoch, such as 0.9."
            )


def _check_ranges(settings: Any, section: str) -> None:
    for name, value in vars(settings).items():
        allowed = RANGES.get(f"{section}.{name}")
        if allowed is not None and value is not None and value not in allowed:
            raise ConfigError(f"{section}.{name}: {value!r} is out of range. Give a number {allowed}.")
