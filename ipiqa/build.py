"""From a config to what a run is made of: device, dataset, processor, tokenizer, model, task, batches, trainer.

The only place that builds them: training, pre-training, ablation, scoring and the commands all come here.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ipiqa import __version__, dist, registry
from ipiqa.config.loading import Config, load_config
from ipiqa.datasets import Source
from ipiqa.datasets.image_cache import ImageSource
from ipiqa.datasets.loaders import BatchLoader, Loading, eval_loader, train_loader
from ipiqa.datasets.shards import ShardBatches
from ipiqa.datasets.splits import Split, make_split
from ipiqa.datasets.table import AnnotationTable, Target
from ipiqa.engine.features import FeatureStore
from ipiqa.engine.optim import Schedule, make_adamw, parameter_groups
from ipiqa.engine.predict import Batch, PromptCache
from ipiqa.engine.stop import StopSignals
from ipiqa.engine.trainer import Evaluation, Trainer
from ipiqa.errors import ConfigError
from ipiqa.models.bundle import HASH_DIGITS, ModelSpec, Training, load_model, own_section
from ipiqa.models.ipiqa import is_head, parameter_depth
from ipiqa.models.towers import tokenizer_of
from ipiqa.models.towers.image_tower import ImageTower
from ipiqa.processors.image import SquashProcessor
from ipiqa.tasks import Task

logger = logging.getLogger("ipiqa")

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of mallopt(3)


@dataclass(frozen=True)
class Data:
    """A table, its images and its prompts: what all folds of a run share."""

    table: AnnotationTable
    images: ImageSource
    image_hashes: tuple[str, ...]  # sha256 of each row's image file
    tokens: torch.Tensor  # (N, context) of each row's prompt


def choose_device(config: Config) -> torch.device:
    """Returns the device of this process and sets the memory and precision options that hold for all of it."""
    wanted = config.run.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device: 'cuda', but PyTorch sees no GPU. Set run.device=auto or run.device=cpu.")
    if wanted == "cpu" or not torch.cuda.is_available():
        if config.run.amp == "fp16":
            raise ConfigError("run.amp: 'fp16' needs a GPU. On the CPU take run.amp=bf16.")
        keep_freed_memory()
        return torch.device("cpu")
    device = torch.device("cuda", dist.local_rank())
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.run.tf32
    torch.backends.cudnn.deterministic = True
    return device


def keep_freed_memory() -> bool:
    """Lets this process keep the memory of freed tensors for the next ones; returns whether it could.

    glibc asks the system for every large tensor anew, which must then find and zero gigabytes of pages: a third of a
    step of RN50 in fp32 on two cores. Numbers do not change; the process keeps its peak for as long as it lives.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (TypeError, OSError, AttributeError):  # Windows, macOS, musl: no such allocator
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def make_dataset(config: Config) -> Source:
    """Returns the dataset of a config; no file is touched."""
    return registry.build("dataset", config.dataset, "dataset", {})


def make_processor(config: Config) -> SquashProcessor:
    """Returns the image processor of a config."""
    return registry.build("processor", config.processor, "processor", {"image_size": config.image_size})


def make_task(config: Config) -> Task:
    """Returns the task of a config."""
    return registry.build("task", config.task, "task", {})


def check_kind(config: Config, *, folds: bool) -> None:
    """Raises ConfigError where parts are not for cross-validation (`folds`) or pre-training, or not for each other."""
    for section in ("model", "task", "dataset"):
        name = getattr(config, section)["name"]
        has_scores = getattr(registry.lookup(section, name, section), "has_scores", True)
        if folds and not has_scores:
            raise ConfigError(f"{section}.name: {name!r} is for pre-training. Start it with: ipiqa pretrain.")
        if not folds and has_scores and section != "dataset":  # the scores of a dataset need not be read
            advice = "Take image2prompt, as in ipiqa/projects/image2prompt, or start this config with: ipiqa train."
            raise ConfigError(f"{section}.name: {name!r} is not pre-trained. {advice}")
    head = config.model.get("head", {}).get("name")
    gives = head is not None and getattr(registry.lookup("head", head, "model.head"), "gives_distribution", False)
    if gives != getattr(registry.lookup("task", config.task["name"], "task"), "needs_distribution", False):
        wanted = "Take model.head.name=distribution and task.name=distribution, or none of both"
        raise ConfigError(f"task.name: {config.task['name']!r} does not fit the head {head!r}. {wanted}.")
    if folds and _compares(config, "task") != _compares(config, "dataset"):
        pair = f"task.name: {config.task['name']!r} does not go with dataset.name {config.dataset['name']!r}"
        raise ConfigError(f"{pair}. Task preference and dataset preferences go together, and others without them.")


def _compares(config: Config, section: str) -> bool:
    """Returns whether a task or dataset is of pairs of images: its attribute `compares`, which others need not have."""
    return bool(getattr(registry.lookup(section, getattr(config, section)["name"], section), "compares", False))


def load_data(config: Config, processor: SquashProcessor) -> Data:
    """Returns table, images and prompts, all checked; raises DataError for anything that cannot be trained on."""
    dataset = make_dataset(config)
    table = dataset.load()
    assert not dataset.streamed  # those have no table to load
    dataset.check_images(table, processor)
    hashes = dist.from_main(dist.on_main(lambda: dataset.image_hashes(table)))
    images = dist.on_main(lambda: dataset.open_images(table, hashes, processor))  # builds the cache, the others find it
    images = images or dataset.open_images(table, hashes, processor)
    counts = (len(table), len(set(table.prompts)), len(set(table.groups)))
    logger.info("%d images, %d prompts, %d groups; targets: %s", *counts, ", ".join(table.target_names))
    return Data(table, images, hashes, tokenizer_of(config.model.get("prompt_encoder"))(table.prompts))


def split_of(config: Config, table: AnnotationTable, fold: int) -> Split:
    """Returns the split of one fold."""
    split, run = config.split, config.run
    return make_split(
        table, kind=split.kind, seed=split.seed, fold=fold, num_folds=run.num_folds,
        train_fraction=split.train_fraction, val_fraction=run.val_fraction, file=split.file,
        train_groups=split.train_groups,
    )  # fmt: skip


def loading_of(config: Config, device: torch.device) -> Loading:
    """Returns how this process loads the batches of a config."""
    run = config.run
    return Loading(
        batch_size=run.batch_size, eval_batch_size=run.eval_batch_size, seed=run.seed, rank=dist.rank(),
        world_size=dist.world_size(), num_workers=run.num_workers, pin_memory=device.type == "cuda",
    )  # fmt: skip


def train_batches(config: Config, data: Data, split: Split, device: torch.device) -> BatchLoader:
    """Returns the batches of the rows to train on."""
    loading, fold, compares = loading_of(config, device), split.fold, _compares(config, "task")
    return train_loader(data.table, data.images, data.tokens, split.train, loading, fold=fold, compares=compares)


def held_out_batches(config: Config, data: Data, split: Split, device: torch.device) -> BatchLoader:
    """Returns the batches of the rows that do not train: in one pass the held-out ones and those that select."""
    rows = np.sort(np.concatenate([split.selection, split.val]))
    return eval_loader(data.table, data.images, data.tokens, rows, loading_of(config, device))


def make_model(config: Config, num_targets: int, targets: Sequence[Target] | None = None) -> nn.Module:
    """Returns the model of a config, on the CPU, its tower weights loaded; `targets` are by default the dataset's."""
    if targets is None and hasattr(dataset := make_dataset(config), "layout"):
        targets = tuple(dataset.layout().targets)
    context = {"image_size": config.image_size, "num_targets": num_targets, "targets": targets or ()}
    model: nn.Module = registry.build("model", config.model, "model", context)
    if config.run.grad_checkpointing:
        if not hasattr(getattr(model, "image_encoder", None), "grad_checkpointing"):
            raise ConfigError("run.grad_checkpointing: this image encoder does not offer it. Set it to false.")
        for module in model.modules():
            if hasattr(module, "grad_checkpointing"):
                module.grad_checkpointing = True  # type: ignore[assignment]
    return model


def build_model(cfg_path: str | Path, *overrides: str) -> nn.Module:
    """Returns the model of a config file, in evaluation mode on the CPU.

    `model(images, prompts)` takes images (B, 3, S, S), float and normalised, and B texts or their tokens, and returns
    scores (B, num_targets). The overrides are settings of the form "key=value"; `run.checkpoint=FILE` loads the weights
    of that file. What cannot be used is an IpiqaError.
    """
    config = load_config(cfg_path, *overrides)
    model = make_model(config, num_targets=make_dataset(config).num_targets)
    if config.run.checkpoint is not None:
        if folds := sorted(Path(config.run.checkpoint).expanduser().glob("fold_*/best.pt")):
            advice = f"Name one, such as {folds[0]}; ipiqa.load scores with all of them."
            raise ConfigError(f"run.checkpoint: '{config.run.checkpoint}' is a run of {len(folds)} folds. {advice}")
        load_model(model, config.run.checkpoint, "run.checkpoint")
    return model.eval()


def store_features(
    config: Config, data: Data, model: nn.Module, processor: SquashProcessor, device: torch.device, stop: StopSignals
) -> FeatureStore | None:
    """Returns stored features of a model's frozen image tower, computed now if need be; None where it has none."""
    tower: Any = getattr(model, "image_encoder", None)
    dataset = make_dataset(config)
    is_frozen = isinstance(tower, ImageTower) and tower.frozen and not any(p.requires_grad for p in tower.parameters())
    if not is_frozen or dataset.streamed or not dataset.feature_cache or dataset.cache_limit_gb == 0:
        return None
    if type(processor).flips is not SquashProcessor.flips or type(tower).forward is not ImageTower.forward:
        message = "feature cache: not used, %s draws more than flips, or %s has a forward pass of its own"
        logger.info(message, type(processor).__name__, type(tower).__name__)
        return None
    store = FeatureStore(
        tower=tower, images=data.images, hashes=data.image_hashes, processor=processor, device=device,
        amp=config.run.amp, batch_size=config.run.eval_batch_size, keeps_map=getattr(model, "reads_token_map", True),
    )  # fmt: skip
    return store if store.open(Path(dataset.cache_dir), dataset.cache_limit_gb, stop) else None


def describe_model(
    config: Config, model: nn.Module, targets: Sequence[Target] = (), data: Data | None = None,
    split: Split | None = None,
) -> ModelSpec:  # fmt: skip
    """Returns what rebuilds a model of a config from its checkpoint alone, and what it is trained on."""
    facts: dict[str, Any] = {}
    if data is not None and split is not None:
        facts["table_sha256"], facts["split_sha256"], facts["fold"] = data.table.sha256, split.sha256, split.fold
        facts["images"] = sorted({data.image_hashes[row][:HASH_DIGITS] for row in split.train})
        columns = zip(data.table.target_names, data.table.scores[split.train].T, strict=True)
        known = {target: scores for target, scores in columns if not np.isnan(scores).all()}
        levels = np.linspace(0, 1, 101)
        facts["quantiles"] = {t: np.nanquantile(scores, levels).round(6).tolist() for t, scores in known.items()}
        licence = "Before you pass it on, see the licences of that dataset and of the weights training began with."
        facts["licence"] = licence
    versions = {"ipiqa": __version__, "torch": str(torch.__version__)}
    return ModelSpec(
        model=own_section(model, config.model), image_size=config.image_size, processor=config.processor,
        targets=tuple(targets), training=Training(dataset=config.dataset["name"], versions=versions, **facts),
    )  # fmt: skip


@dataclass
class Inputs:
    """Batches as a loader gives them -> batches as a task takes them: on the device, normalised, flipped to train."""

    processor: SquashProcessor
    device: torch.device
    num_rows: int | None
    seed: int
    fold: int
    prompts: PromptCache | None = None  # of a frozen prompt encoder, whose features hold for all epochs
    features: FeatureStore | None = None  # of a frozen image tower

    def __call__(self, batch: Batch, epoch: int | None = None) -> Batch:
        """Returns the batch with images float32 (B, 3, S, S), or (B, V, 3, S, S), or their features; some mirrored."""
        flips = None
        if epoch is not None:
            rows, draw = batch["rows"], {"seed": self.seed, "fold": self.fold, "epoch": epoch}
            flips = self.processor.flips(rows, num_rows=self.num_rows, **draw)
            if self.prompts is not None:
                batch = batch | {"tokens": self.prompts(batch["tokens"])}
        names = ("images", "targets", "known", "spread", "pairs", "chosen")
        moved = {n: batch[n].to(self.device, non_blocking=True) for n in names if n in batch}
        stored: Any = self.features and self.features(batch["rows"], flips)
        return batch | moved | {"images": stored or self.processor.normalise(moved["images"], flips)}


def make_trainer(
    config: Config, model: nn.Module, train: BatchLoader | ShardBatches, *, task: Task, inputs: Inputs,
    evaluate: Callable[[nn.Module], Evaluation], folder: Path, identity: dict[str, Any], spec: ModelSpec,
    stop: StopSignals, label: str = "",
) -> Trainer:  # fmt: skip
    """Returns the trainer of a model with the optimizer, the schedule and the precision of a config."""
    run = config.run
    if run.layer_decay < 1 and not isinstance(getattr(model, "image_encoder", None), ImageTower):
        raise ConfigError(f"run.layer_decay: {config.model['name']!r} does not say its layers. Set run.layer_decay=1.")
    if run.ema is not None and hasattr(model, "observe"):  # what it keeps are images, and they have no average
        raise ConfigError(f"run.ema: {config.model['name']!r} is solved and not trained by steps. Set run.ema=null.")
    prompts = PromptCache.of(model)
    inputs.prompts = prompts if prompts is not None and prompts.is_frozen else None
    depth = parameter_depth(model) if run.layer_decay < 1 else lambda name: 0
    groups = parameter_groups(
        model.named_parameters(), weight_decay=run.weight_decay, head_scale=run.head_learning_rate_scale,
        layer_decay=run.layer_decay, is_head=is_head, depth=depth,
    )  # fmt: skip
    schedule = Schedule(
        kind=run.schedule, learning_rate=run.learning_rate, max_epochs=run.max_epochs,
        steps_per_epoch=len(train), warmup_learning_rate=run.warmup_learning_rate,
        warmup_steps=run.warmup_steps, min_learning_rate=run.min_learning_rate, decay=run.learning_rate_decay,
    )  # fmt: skip
    return Trainer(
        model=model, optimizer=make_adamw(groups, learning_rate=run.learning_rate, beta2=run.beta2), schedule=schedule,
        train_loader=train, start_epoch=train.set_epoch,
        compute_loss=lambda module, batch, epoch: task.step(module, inputs(batch, epoch)), evaluate=evaluate,
        folder=folder, identity=identity, spec=spec.to_dict(), seed=(run.seed, inputs.fold), device=inputs.device,
        max_epochs=run.max_epochs, eval_every=run.eval_every, patience=run.patience, save_every=run.save_every,
        log_every=run.log_every,
        accumulate_steps=run.accumulate_steps, clip_grad_norm=run.clip_grad_norm, ema=run.ema, amp=run.amp, stop=stop,
        label=label, forward_module=torch.compile(model) if run.compile else None,  # type: ignore[arg-type]
    )  # fmt: skip
