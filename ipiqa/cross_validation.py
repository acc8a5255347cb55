"""From a config to the scores of every fold: builds data, model and trainer, trains, evaluates, sums up."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from ipiqa import dist, registry
from ipiqa.config import Config
from ipiqa.datasets.agiqa import AnnotatedImages
from ipiqa.datasets.checks import image_set_sha256
from ipiqa.datasets.splits import Split, make_split
from ipiqa.datasets.tables import AnnotationTable
from ipiqa.engine.log import add_file, remove_file
from ipiqa.engine.stop import StopSignals
from ipiqa.errors import ConfigError, IpiqaError
from ipiqa.fold import Data, FoldRun, build_model
from ipiqa.models.tokens import tokenize
from ipiqa.processors.image import SquashProcessor
from ipiqa.run_folder import claim, is_finished

logger = logging.getLogger("ipiqa")


def run(config: Config, *, folds: list[int] | None = None, resume: bool = False) -> Path:
    """Trains and evaluates the folds asked for and returns the run folder.

    Args:
        config: what to run.
        folds: numbers of folds, from 0; None for all of `run.num_folds`.
        resume: go on with a run that was interrupted; finished folds are skipped.

    Raises:
        ConfigError: settings that cannot be run, or a run folder that belongs to another run.
        DataError: table, images, weights or checkpoints that cannot be used.
        Interrupted: stopped by a signal; the state is saved.
    """
    device = choose_device(config)
    chosen = _chosen_folds(config, folds)
    run_dir = Path(config.run.output_dir)
    with dist.process_group(device):
        data = load_data(config)
        splits = {fold: split_of(config, data.table, fold) for fold in chosen}
        build_model(config, len(data.table.targets))  # finds missing or wrong weights before the folder is made
        _on_main(lambda: claim(config, chosen, resume=resume))
        handler = add_file(run_dir / "train.log") if dist.is_main() else None
        try:
            with StopSignals() as stop:
                for fold in chosen:
                    if is_finished(run_dir, fold):
                        logger.info("fold %d is finished, skipped", fold)
                        continue
                    FoldRun(config, data, splits[fold], device).run(resume, stop)
        finally:
            if handler is not None:
                remove_file(handler)
    return run_dir


def _on_main(action: Callable[[], None]) -> None:
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
    """Returns the device of this process and sets the precision options that hold for all of it.

    Raises:
        ConfigError: a GPU is asked for and there is none, or fp16 without one.
    """
    wanted = config.run.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device: 'cuda', but PyTorch sees no GPU. Set run.device=auto or run.device=cpu.")
    if wanted == "cpu" or not torch.cuda.is_available():
        if config.run.amp == "fp16":
            raise ConfigError("run.amp: 'fp16' needs a GPU. On the CPU take run.amp=bf16.")
        return torch.device("cpu")
    device = torch.device("cuda", dist.local_rank())
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.run.tf32
    torch.backends.cudnn.deterministic = True
    return device


def load_data(config: Config) -> Data:
    """Returns table, images and tokens, all checked.

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
    return Data(table, processor, images, tokenize(table.prompts), image_set_sha256(table))


def make_dataset(config: Config) -> AnnotatedImages:
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
