"""Image2Prompt pre-training: from a config to an image tower that knows prompts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as serialise
from torch import nn

from ipiqa import dist, registry
from ipiqa.config import Config
from ipiqa.cross_validation import choose_device, load_data, make_dataset, make_processor, on_main, tokens_of
from ipiqa.datasets.loaders import eval_loader, train_loader
from ipiqa.datasets.shards import Shards, find_shards
from ipiqa.datasets.splits import make_split
from ipiqa.engine import checkpoint
from ipiqa.engine.log import recording
from ipiqa.engine.predict import Batch, predict
from ipiqa.engine.stop import StopSignals
from ipiqa.engine.trainer import Evaluation, NonFiniteLossError, Trainer
from ipiqa.errors import ConfigError
from ipiqa.fold import EpochLoader, build_model, make_trainer, not_finite
from ipiqa.metrics import retrieval
from ipiqa.models.checkpoints import load_model
from ipiqa.processors.image import SquashProcessor
from ipiqa.run_folder import check_identity, claim, identity_of, is_restarted

logger = logging.getLogger("ipiqa")

SUMMARY, ENCODER = "summary.json", "image_encoder.safetensors"


@dataclass(frozen=True)
class PairBatches:
    """Batches of images and tokens to train on and to validate on, and what they come from."""

    train: EpochLoader
    held_out: Iterable[Batch]
    num_rows: int  # of an epoch: rows are counted below it
    identity: dict[str, Any]


def pretrain(config: Config, *, resume: bool = False) -> Path:
    """Trains the image tower of a config and returns the run folder.

    The folder holds what a fold holds, summary.json and, for `model.image_encoder.weights`, the image tower of the best
    epoch: the one with the highest sum of recall at 1, recall at 5 and mean cosine on held-out pairs.

    Args:
        config: model and task `image2prompt`, and a dataset of pairs (or of scored images, whose scores are not read).
        resume: go on with a run that was interrupted.

    Raises:
        ConfigError: settings that cannot be run, or a run folder that belongs to another run.
        DataError: table, images, shards, weights or checkpoints that cannot be used.
        Interrupted: stopped by a signal; the state is saved.
    """
    _check(config)
    device = choose_device(config)
    run_dir = Path(config.run.output_dir)
    resume = resume or is_restarted(run_dir)
    with dist.process_group(device):
        torch.manual_seed(config.run.seed)
        model = build_model(config, num_targets=0)
        if config.run.checkpoint is not None:
            load_model(model, config.run.checkpoint, "run.checkpoint")
        processor = make_processor(config)
        batches = _batches(config, model, processor, device)
        on_main(lambda: claim(config, [], resume=resume))
        if (run_dir / SUMMARY).is_file():
            logger.info("%s is finished", run_dir)
            return run_dir
        with recording(run_dir / "train.log"), StopSignals() as stop:
            trainer = _trainer(config, model.to(device), batches, processor, device, stop)
            _fit(trainer, resume)
            _finish(trainer, config)
    return run_dir


def _check(config: Config) -> None:
    """Raises ConfigError where the config describes another kind of run."""
    for section in ("model", "task"):
        name = getattr(config, section)["name"]
        if name != "image2prompt":
            raise ConfigError(
                f"{section}.name: {name!r} is not pre-trained. Take image2prompt, as in ipiqa/projects/image2prompt, "
                "or start this config with: ipiqa train."
            )
    if config.run.evaluate:
        raise ConfigError("run.evaluate: pre-training has no evaluation by itself. Leave it out.")
    if config.split.kind in ("reference", "kfold"):
        raise ConfigError(f"split.kind: {config.split.kind!r} is for folds. Take holdout.")


def _batches(config: Config, model: nn.Module, processor: SquashProcessor, device: torch.device) -> PairBatches:
    dataset = make_dataset(config)
    if isinstance(dataset, Shards):
        return _from_shards(config, dataset, model, processor, device)
    return _from_table(config, model, device)


def _from_table(config: Config, model: nn.Module, device: torch.device) -> PairBatches:
    """Returns batches of a table; no prompt stands on both sides of its split."""
    data, run = load_data(config), config.run
    table = data.table
    split = make_split(
        table, kind=config.split.kind, seed=config.split.seed, fold=0, num_folds=1,
        train_fraction=config.split.train_fraction, val_fraction=0.0,
    )  # fmt: skip
    tokens, pin = tokens_of(model, table.prompts), device.type == "cuda"
    rank, world_size = dist.rank(), dist.world_size()
    train = train_loader(
        table, data.images, tokens, split.train, batch_size=run.batch_size, seed=run.seed, fold=0, rank=rank,
        world_size=world_size, num_workers=run.num_workers, pin_memory=pin,
    )  # fmt: skip
    held_out = eval_loader(
        table, data.images, tokens, split.val, batch_size=run.eval_batch_size, rank=rank, world_size=world_size,
        num_workers=run.num_workers, pin_memory=pin,
    )  # fmt: skip
    logger.info("%d pairs to train on, %d held out", len(split.train), len(split.val))
    identity = {
        "the split (sha256)": split.sha256,
        "the table of pairs (sha256)": table.sha256,
        "the image files (sha256)": data.images_sha256,
    }
    return PairBatches(train, held_out, len(table), identity)


def _from_shards(
    config: Config, dataset: Shards, model: nn.Module, processor: SquashProcessor, device: torch.device
) -> PairBatches:
    """Returns batches of streamed shards; the held-out ones are shards of their own."""
    dataset.check()
    run = config.run

    tokenize: Any = model.tokenize
    rank, world_size, pin = dist.rank(), dist.world_size(), device.type == "cuda"
    train = dataset.train_batches(
        processor, tokenize, batch_size=run.batch_size, seed=run.seed, rank=rank, world_size=world_size,
        num_workers=run.num_workers, pin_memory=pin,
    )  # fmt: skip
    held_out = dataset.val_batches(
        processor, tokenize, batch_size=run.eval_batch_size, rank=rank, world_size=world_size,
        num_workers=run.num_workers, pin_memory=pin,
    )  # fmt: skip
    files = [
        (path.name, path.stat().st_size)
        for setting in ("shards", "val_shards")
        for path in find_shards(getattr(dataset, setting), f"dataset.{setting}")
    ]
    identity = {
        "the shards (sha256)": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
        "run.num_workers, which decides the order of streamed pairs": train.num_workers,
    }
    return PairBatches(train, held_out, dataset.samples_per_epoch, identity)


def _trainer(
    config: Config,
    model: nn.Module,
    batches: PairBatches,
    processor: SquashProcessor,
    device: torch.device,
    stop: StopSignals,
) -> Trainer:
    run = config.run
    task = registry.build("task", config.task, "task", {})

    def compute_loss(module: nn.Module, batch: Batch, epoch: int) -> torch.Tensor:
        flips = processor.flips(batch["rows"], num_rows=batches.num_rows, seed=run.seed, fold=0, epoch=epoch)
        images = processor.normalise(batch["images"].to(device, non_blocking=True), flips)
        return task.loss(*module(images, batch["tokens"]))

    def features(module: nn.Module, batch: Batch) -> torch.Tensor:
        found = module(processor.normalise(batch["images"].to(device, non_blocking=True)), batch["tokens"])
        return torch.cat([feature.float() for feature in found], dim=1)  # (B, 2 D)

    def evaluate(module: nn.Module) -> Evaluation:
        _, found = predict(module, batches.held_out, features, device=device, amp=run.amp, description="held-out pairs")
        images, prompts = np.split(found, 2, axis=1)  # (N, D) each
        metrics = retrieval(images, prompts) | {
            "num_images": len(images),
            "num_prompts": len(np.unique(prompts, axis=0)),
        }
        logger.info("held out: %s", describe_metrics(metrics))
        value = metrics["recall_at_1"] + metrics["recall_at_5"] + metrics["mean_cosine"]
        return Evaluation(value, metrics, torch.empty(0))

    return make_trainer(
        config, model, batches.train, compute_loss=compute_loss, evaluate=evaluate, folder=Path(run.output_dir),
        identity=identity_of(config) | batches.identity | {"the number of processes": dist.world_size()},
        seed=(run.seed, 0), device=device, stop=stop,
    )  # fmt: skip


def _fit(trainer: Trainer, resume: bool) -> None:
    def same(state: dict[str, Any]) -> None:
        check_identity(state["identity"], trainer.identity, trainer.folder)

    if resume and trainer.restore(same):
        logger.info("going on at epoch %d, step %d", trainer.progress.epoch + 1, trainer.progress.step + 1)
    try:
        trainer.fit()
    except NonFiniteLossError as error:
        raise not_finite(error) from None


def _finish(trainer: Trainer, config: Config) -> None:
    """Writes the image tower of the best epoch, and last the summary: its presence says that the run is finished."""
    if dist.is_main():
        best = checkpoint.load(trainer.best_path)
        trainer.model.load_state_dict(best["model"])
        encoder: Any = trainer.model.image_encoder
        tensors = {name: value.cpu().contiguous() for name, value in encoder.clip_tensors().items()}
        with checkpoint.replacing(trainer.folder / ENCODER, "wb") as file:
            file.write(serialise(tensors))
        assert trainer.evaluation is not None
        summary = {
            "format": 1,
            "dataset": config.dataset["name"],
            "task": config.task,
            "best": {"epoch": best["epoch"], **best["evaluation"]["metrics"]},
            "last": {"epoch": trainer.max_epochs, **trainer.evaluation.metrics},
        }
        checkpoint.write_json(trainer.folder / SUMMARY, summary)
    dist.barrier()


def describe_metrics(metrics: dict[str, Any]) -> str:
    """Returns what was measured, in words.

    >>> measured = {"recall_at_1": 0.5, "recall_at_5": 0.75, "mean_cosine": 0.31}
    >>> describe_metrics(measured | {"num_images": 8, "num_prompts": 7})
    'recall@1 0.500, recall@5 0.750, mean cosine 0.310 (8 images, 7 prompts)'
    """
    counts = f"{metrics['num_images']} images, {metrics['num_prompts']} prompts"
    values = (metrics["recall_at_1"], metrics["recall_at_5"], metrics["mean_cosine"])
    return "recall@1 {:.3f}, recall@5 {:.3f}, mean cosine {:.3f}".format(*values) + f" ({counts})"
