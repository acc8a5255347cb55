"""The settings that belong to no registered part: how data is split and how a run goes."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ipiqa.errors import ConfigError
from ipiqa.registry import FilePath

MAX_FOLDS = 1000
MAX_SEED = 2**32 - 1


def within(default: Any, allowed: str) -> Any:
    """Returns the field of a setting with a default and the range of numbers it may have, such as "(0, 1]"."""
    return dataclasses.field(default=default, metadata={"range": allowed})


def _is_within(value: float, allowed: str) -> bool:
    low, high = map(float, allowed[1:-1].split(","))
    is_low_enough = value <= high if allowed[-1] == "]" else value < high
    return is_low_enough and (value >= low if allowed[0] == "[" else value > low)


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which images are held out."""

    kind: Literal["reference", "holdout", "kfold", "image_random", "file", "official", "all"] = "reference"
    file: FilePath | None = None  # of a published split, for kind `file`
    seed: int = within(42, f"[0, {MAX_SEED}]")
    # of the groups; kfold takes it from run.num_folds instead
    train_fraction: float = within(0.8, "(0, 1)")
    train_groups: int | None = within(None, "[1, inf)")  # so many train, for a learning curve; null: all


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run goes."""

    output_dir: FilePath  # folder of the run
    num_folds: int = within(10, f"[1, {MAX_FOLDS}]")
    seed: int = within(42, f"[0, {MAX_SEED}]")  # of everything random in training; splits have split.seed
    seeds: list[int] | None = None  # train every fold with each of these instead, in seed_<n>/; null: run.seed alone
    max_epochs: int = within(100, "[1, 100000]")
    batch_size: int = within(32, "[1, 65536]")  # images per process and step
    eval_batch_size: int = within(32, "[1, 65536]")
    learning_rate: float = within(1e-5, "[0, inf)")
    head_learning_rate_scale: float = within(10.0, "[0, inf)")  # the head trains at learning_rate times this
    layer_decay: float = within(1.0, "(0, 1]")  # of the learning rate per layer of a tower towards its input
    weight_decay: float = within(0.0, "[0, inf)")  # of matrices; norms and biases never decay
    beta2: float = within(0.999, "[0, 1)")  # of AdamW
    schedule: Literal[
        "constant_lr", "linear_warmup_cosine_lr", "linear_warmup_step_lr", "linear_warmup_cosine_lr_step-wise"
    ] = "constant_lr"
    warmup_learning_rate: float = within(-1.0, "[-1, inf)")  # where the warm-up starts; negative: at learning_rate
    warmup_steps: int = within(0, "[0, 1000000000]")
    min_learning_rate: float = within(0.0, "[0, inf)")
    learning_rate_decay: float | None = within(None, "(0, 1]")  # per epoch of linear_warmup_step_lr
    accumulate_steps: int = within(1, "[1, 65536]")  # batches per optimizer step
    clip_grad_norm: float | None = within(None, "(0, inf)")
    ema: float | None = within(None, "(0, 1)")  # decay, each step, of a moving average of the weights; it is evaluated
    amp: Literal["none", "bf16", "fp16"] = "none"  # mixed precision
    tf32: bool = False  # on GPU: faster matrix products with 10-bit mantissas
    compile: bool = False  # torch.compile
    grad_checkpointing: bool = False  # less memory, more time: the forward pass is repeated
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_workers: int | None = within(None, "[0, 256]")  # of the data loader, per process; null chooses
    val_fraction: float = within(0.0, "[0, 1)")  # of the training groups, to choose the epoch on
    eval_every: int = within(1, "[1, 100000]")  # epochs
    patience: int | None = within(None, "[1, 100000]")  # evaluations without a better one that end training; null: none
    save_every: int = within(1, "[1, 100000]")  # epochs between two last.pt
    log_every: int = within(50, "[1, 1000000000]")  # steps
    evaluate: bool = False  # score run.checkpoint, or a zero-shot model, on every fold instead of training
    checkpoint: FilePath | None = None  # whole-model weights to start from or to evaluate: a file, or a run folder


def check(split: SplitConfig, run: RunConfig) -> None:
    """Raises ConfigError when a value is out of range or two do not go together."""
    for section, settings in (("split", split), ("run", run)):
        for field in dataclasses.fields(settings):
            allowed, value = field.metadata.get("range"), getattr(settings, field.name)
            if allowed is not None and value is not None and not _is_within(value, allowed):
                raise ConfigError(f"{section}.{field.name}: {value!r} is out of range. Give a number in {allowed}.")
    rate, low, seeds = run.learning_rate, run.min_learning_rate, run.seeds
    problems = {
        "run.output_dir: empty. Give a path.": not run.output_dir.strip(),
        f"run.seeds: {seeds!r} are not distinct numbers from 0 to {MAX_SEED}. Give some, such as [1, 2, 3], or null.": (
            seeds is not None
            and not (seeds and len({*seeds}) == len(seeds) and 0 <= min(seeds) <= max(seeds) <= MAX_SEED)
        ),
        "run.checkpoint: empty. Give a path or null.": run.checkpoint is not None and not run.checkpoint.strip(),
        f"run.min_learning_rate: {low!r} is above run.learning_rate, {rate!r}. Give at most that.": (
            run.schedule != "constant_lr" and low > rate
        ),
        "run.learning_rate_decay: missing. linear_warmup_step_lr needs the factor per epoch, such as 0.9.": (
            run.schedule == "linear_warmup_step_lr" and run.learning_rate_decay is None
        ),
        "run.num_folds: 1 is out of range. split.kind kfold cuts the groups into 2 or more folds.": (
            split.kind == "kfold" and run.num_folds < 2
        ),
        f"run.num_folds: {run.num_folds} is out of range. split.kind {split.kind} is one split: set run.num_folds=1.": (
            split.kind in ("official", "all") and run.num_folds != 1
        ),
        "split.kind: all holds out every image and trains on none. Set run.evaluate=true, or take another kind.": (
            split.kind == "all" and not run.evaluate
        ),
        f"split.file: {split.file!r}, but split.kind is {split.kind!r}. Give a file for kind file, and for it alone.": (
            (split.kind == "file") != (split.file is not None)
        ),
    }
    for message in filter(problems.get, problems):
        raise ConfigError(message)
