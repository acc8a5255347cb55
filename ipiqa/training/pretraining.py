"""Image2Prompt pre-training: from a config to an image tower that knows prompts."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ipiqa import build, dist
from ipiqa.build import Inputs
from ipiqa.config.loading import Config
from ipiqa.config.settings import RunConfig
from ipiqa.datasets.loaders import BatchLoader
from ipiqa.datasets.shards import ShardBatches
from ipiqa.engine import checkpoint
from ipiqa.engine.predict import Batch, predict
from ipiqa.engine.stop import StopSignals
from ipiqa.engine.trainer import Evaluation, Trainer
from ipiqa.errors import ConfigError
from ipiqa.files import write_json
from ipiqa.models.bundle import load_model
from ipiqa.models.towers import tokenizer_of
from ipiqa.models.weights import write_tensors
from ipiqa.processors.image import SquashProcessor
from ipiqa.training.cross_validation import fit
from ipiqa.training.run_folder import check_same_command, claimed, content_of, identity_of, is_restarted, weights_of

logger = logging.getLogger("ipiqa")

SUMMARY, ENCODER = "summary.json", "image_encoder.safetensors"


def pretrain(config: Config, *, resume: bool = False) -> Path:
    """Trains the image tower of a config and returns the run folder.

    The folder holds what a fold holds, summary.json and, for `model.image_encoder.weights`, the image tower of the best
    epoch: the one with the highest sum of recall at 1, recall at 5 and mean cosine on held-out pairs.

    Model and task are `image2prompt`, the dataset has pairs (or scored images, whose scores are not read). `resume`
    goes on with a run that was interrupted. Raises what `cross_validation.run` raises.
    """
    _check(config)
    device = build.choose_device(config)
    run_dir = Path(config.run.output_dir)
    resume = resume or is_restarted(run_dir)
    with dist.process_group(device):
        check_same_command(config, resume=resume)
        torch.manual_seed(config.run.seed)
        model = build.make_model(config, num_targets=0)
        if config.run.checkpoint is not None:
            load_model(model, config.run.checkpoint, "run.checkpoint")
        processor = build.make_processor(config)
        train, held_out, num_rows, content = _batches(config, processor, device)
        content |= weights_of(config, [0])
        inputs = Inputs(processor, device, num_rows=num_rows, seed=config.run.seed, fold=0)
        with claimed(config, content, [], resume=resume) as stop:
            if (run_dir / SUMMARY).is_file():
                logger.info("%s is finished", run_dir)
                return run_dir
            trainer = _trainer(config, model.to(device), train, held_out, inputs, content, stop)
            fit(trainer, resume)
            if dist.is_main():
                _write(trainer, config)
            dist.barrier()
    return run_dir


def _check(config: Config) -> None:
    """Raises ConfigError where the config describes another kind of run."""
    build.check_kind(config, folds=False)
    for name in ("evaluate", "val_fraction", "num_folds", "seeds", "patience", "head_learning_rate_scale"):
        value, default = getattr(config.run, name), getattr(RunConfig, name)
        if value != default:
            raise ConfigError(f"run.{name}: {value!r} does nothing in pre-training. Leave it at {default!r}.")
    if build.make_processor(config).gives_views:
        raise ConfigError("processor.name: pre-training takes one view of an image. Take processor.name=squash.")
    if config.split.kind in ("reference", "kfold"):
        raise ConfigError(f"split.kind: {config.split.kind!r} is for folds. Take holdout.")


def _batches(
    config: Config, processor: SquashProcessor, device: torch.device
) -> tuple[BatchLoader | ShardBatches, Iterable[Batch], int | None, dict[str, Any]]:
    """Returns (batches to train on, held-out ones, rows of the table, what they come from) of a table or of shards.

    Streamed pairs have no rows; the held-out ones are then shards of their own.
    """
    dataset = build.make_dataset(config)
    if dataset.streamed:
        content = content_of(device, None, []) | dist.from_main(dist.on_main(dataset.identity))
        given = processor, tokenizer_of(config.model.get("prompt_encoder")), build.loading_of(config, device)
        streamed = dataset.train_batches(*given)
        content["run.num_workers, which decides the order of streamed pairs"] = streamed.num_workers
        return streamed, dataset.val_batches(*given), None, content
    data = build.load_data(config, processor)
    split = build.split_of(config, data.table, 0)
    logger.info("%d pairs to train on, %d held out", len(split.train), len(split.val))
    train = build.train_batches(config, data, split, device)
    held_out = build.held_out_batches(config, data, split, device)
    return train, held_out, len(data.table), content_of(device, data, [split])


def _trainer(
    config: Config, model: nn.Module, train: BatchLoader | ShardBatches, held_out: Iterable[Batch], inputs: Inputs,
    content: dict[str, Any], stop: StopSignals,
) -> Trainer:  # fmt: skip
    task = build.make_task(config)

    def evaluate(module: nn.Module) -> Evaluation:
        rows, outputs = predict(
            module, held_out, lambda m, batch: task.outputs(m, inputs(batch)), device=inputs.device,
            amp=config.run.amp, prompts=inputs.prompts, description="held-out pairs",
        )  # fmt: skip
        metrics, value = task.measure(outputs, None, rows)
        logger.info("held out: %s", describe_metrics(metrics))
        return Evaluation(value, metrics, torch.empty(0))

    return build.make_trainer(
        config, model, train, task=task, inputs=inputs, evaluate=evaluate, folder=Path(config.run.output_dir),
        identity=identity_of(config) | content, spec=build.describe_model(config, model), stop=stop,
    )  # fmt: skip


def _write(trainer: Trainer, config: Config) -> None:
    """Writes the image tower of the best epoch, and last the summary: its presence says that the run is finished."""
    assert trainer.evaluation is not None
    best = checkpoint.load(trainer.best_path)
    trainer.model.load_state_dict(best["model"])
    encoder: Any = trainer.model.image_encoder
    write_tensors(trainer.folder / ENCODER, encoder.clip_tensors())
    summary = {"format": 1, "dataset": config.dataset["name"], "task": config.task}
    summary["best"] = {"epoch": best["epoch"], **best["evaluation"]["metrics"]}
    summary["last"] = {"epoch": trainer.max_epochs, **trainer.evaluation.metrics}
    write_json(trainer.folder / SUMMARY, summary)


def describe_metrics(metrics: dict[str, Any]) -> str:
    """Returns what was measured, in words: "recall@1 0.500, ..., mean cosine 0.310 (8 images, 7 prompts)"."""
    form = "recall@1 {recall_at_1:.3f}, recall@5 {recall_at_5:.3f}, mean cosine {mean_cosine:.3f}"
    return (form + " ({num_images} images, {num_prompts} prompts)").format(**metrics)
