"""From a config to the scores of every fold: builds data, model and trainer, trains, evaluates, sums up."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from ipiqa import dist, registry
from ipiqa.config import Config
from ipiqa.datasets.checks import image_set_sha256
from ipiqa.datasets.image_folder import ImageFolder
from ipiqa.datasets.loaders import check_batch_size
from ipiqa.datasets.splits import Split, make_split
from ipiqa.datasets.tables import AnnotationTable
from ipiqa.engine.log import recording
from ipiqa.engine.memory import keep_freed_memory
from ipiqa.engine.stop import StopSignals
from ipiqa.errors import ConfigError, IpiqaError
from ipiqa.fold import Data, FoldRun, build_model, checkpoint_path
from ipiqa.models.checkpoints import load_model
from ipiqa.processors.image import SquashProcessor
from ipiqa.run_folder import claim, is_finished, is_restarted

logger = logging.getLogger("ipiqa")


def run(config: Config, *, folds: list[int] | None = None, resume: bool = False) -> Path:
    """Trains and evaluates the folds asked for and returns the run folder.

    Args:
        config: what to run.
        folds: numbers of folds, from 0; None for all of `run.num_folds`.
        resume: go on with a run that was interrupted; finished folds are skipped. A job that torchrun has restarted
            goes on with what its first life has left, if that got so far.

    Raises:
        ConfigError: settings that cannot be run, or a run folder that belongs to another run.
        DataError: table, images, weights or checkpoints that cannot be used.
        Interrupted: stopped by a signal; the state is saved.
    """
    _check_kind_of_run(config)
    device = choose_device(config)
    chosen = _chosen_folds(config, folds)
    run_dir = Path(config.run.output_dir)
    resume = resume or is_restarted(run_dir)
    with dist.process_group(device):
        data = load_data(config)
        splits = {fold: split_of(config, data.table, fold) for fold in chosen}
        # Built for its tokenizer, and to find missing or wrong weights before the folder is made.
        model = build_model(config, len(data.table.targets))
        tokens = tokens_of(model, data.table.prompts)
        _check_early(config, model, splits)
        del model
        on_main(lambda: claim(config, chosen, resume=resume))
        with recording(run_dir / "train.log"), StopSignals() as stop:
            for fold in chosen:
                if is_finished(run_dir, fold):
                    logger.info("fold %d is finished, skipped", fold)
                    continue
                FoldRun(config, data, tokens, splits[fold], device).run(resume, stop)
    return run_dir


def _check_kind_of_run(config: Config) -> None:
    """Refuses what is no regression of scores.

    Raises:
        ConfigError: model, task or dataset belongs to pre-training.
    """
    for section, names in (("model", ["image2prompt"]), ("task", ["image2prompt"]),
                           ("dataset", ["pairs", "diffusiondb", "shards"])):  # fmt: skip
        name = getattr(config, section)["name"]
        if name in names:
            raise ConfigError(
                f"{section}.name: {name!r} is for pre-training, where nothing is scored. Start it with: ipiqa pretrain."
            )


def _check_early(config: Config, model: nn.Module, splits: dict[int, Split]) -> None:
    """Finds before the run folder is made what would stop a fold at its start.

    Raises:
        DataError: a checkpoint that does not fit, or too few images for one batch.
    """
    paths = dict.fromkeys(checkpoint_path(config, fold) for fold in splits) if config.run.checkpoint else {}
    for path in paths:
        load_model(model, path, "run.checkpoint")
    if not config.run.evaluate:
        check_batch_size(min(len(split.train) for split in splits.values()), config.run.batch_size, dist.world_size())


def on_main(action: Callable[[], None]) -> None:
    """Runs an action on rank 0; where it raises, every process raises the same."""
    error = None
    if dist.is_main():
        try:
            action()
        except IpiqaError as caught:
            error = caught
    error = dist.from_main(error)
    if error is not None:
        raise error


def _chosen_folds(config: Config, folds: list[int] | None) -> list[int]:
    if folds is None:
        return list(range(config.run.num_folds))
    wrong = [fold for fold in folds if not 0 <= fold < config.run.num_folds]
    if wrong or not folds or len(set(folds)) != len(folds):
        last = config.run.num_folds - 1
        raise ConfigError(
            f"--folds: {','.join(map(str, folds))} is not a choice from 0 to {last}. Folds are counted from 0."
        )
    return folds


def choose_device(config: Config) -> torch.device:
    """Returns the device of this process and sets the memory and precision options that hold for all of it.

    Raises:
        ConfigError: a GPU is asked for and there is none, or fp16 without one.
    """
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


def load_data(config: Config) -> Data:
    """Returns table and images, all checked.

    Raises:
        DataError: anything in them that cannot be trained on.
    """
    dataset = make_dataset(config)
    processor = make_processor(config)
    table = dataset.load()
    dataset.check_images(table, processor)
    if dist.is_main():  # one process builds the cache, the others find it
        images = dataset.open_images(table, processor)
    dist.barrier()
    if not dist.is_main():
        images = dataset.open_images(table, processor)
    logger.info(
        "%d images, %d prompts, %d groups; targets: %s",
        len(table),
        len(set(table.prompts)),
        len(set(table.groups)),
        ", ".join(table.targets),
    )
    return Data(table, processor, images, image_set_sha256(table))


def tokens_of(model: nn.Module, prompts: Sequence[str]) -> torch.Tensor:
    """Returns the tokens (N, context) that a model takes in place of prompts."""
    tokenize: Callable[[Sequence[str]], torch.Tensor] = model.tokenize  # type: ignore[assignment]
    return tokenize(prompts)


def make_dataset(config: Config) -> ImageFolder:
    """Returns the dataset of a config; no file is touched."""
    return registry.build("dataset", config.dataset, "dataset", {})


def make_processor(config: Config) -> SquashProcessor:
    """Returns the image processor of a config."""
    return registry.build("processor", config.processor, "processor", {"image_size": config.image_size})


def split_of(config: Config, table: AnnotationTable, fold: int) -> Split:
    """Returns the split of one fold."""
    return make_split(
        table,
        kind=config.split.kind,
        seed=config.split.seed,
        fold=fold,
        num_folds=config.run.num_folds,
        train_fraction=config.split.train_fraction,
        val_fraction=config.run.val_fraction,
    )


def split_json(config: Config, fold: int) -> str:
    """Returns the split of one fold as json text, from the table alone; no image is needed."""
    table = make_dataset(config).load()
    return json.dumps(split_of(config, table, fold).to_json(table), indent=1)
