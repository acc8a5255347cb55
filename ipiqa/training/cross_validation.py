"""k folds of one config: checks everything first, then trains and evaluates fold after fold."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from ipiqa import build, dist
from ipiqa.config.loading import Config
from ipiqa.datasets.loaders import check_batch_size
from ipiqa.datasets.splits import Split
from ipiqa.engine.log import recording
from ipiqa.engine.stop import StopSignals
from ipiqa.errors import ConfigError
from ipiqa.models.bundle import ModelSpec
from ipiqa.models.checkpoints import load_model
from ipiqa.training.fold import FoldRun, checkpoint_path
from ipiqa.training.run_folder import (
    check_identity,
    check_same_command,
    claimed,
    content_of,
    is_finished,
    is_restarted,
    weights_of,
)

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
    build.check_kind(config, folds=True)
    device = build.choose_device(config)
    chosen = _chosen_folds(config, folds)
    run_dir = Path(config.run.output_dir)
    resume = resume or is_restarted(run_dir)
    with dist.process_group(device):
        check_same_command(config, folds=chosen, resume=resume)
        processor = build.make_processor(config)
        data = build.load_data(config, processor)
        splits = {fold: build.split_of(config, data.table, fold) for fold in chosen}
        tokens = build.make_tokenizer(config)(data.table.prompts)
        # Built to find missing or wrong weights before the folder is made.
        model = build.make_model(config, len(data.table.targets))
        _check_early(config, model, build.describe_model(config, model, data.table.targets), splits)
        del model
        checkpoints = {}
        if config.run.checkpoint is not None and Path(config.run.checkpoint).is_dir():
            checkpoints = {f"run.checkpoint of fold {fold}": checkpoint_path(config, fold) for fold in chosen}
        weights = weights_of(config, checkpoints)
        content = content_of(device, data, splits.values()) | weights
        with (
            claimed(config, content, chosen, resume=resume),
            recording(run_dir / "train.log"),
            StopSignals() as stop,
        ):
            for fold in chosen:
                if is_finished(run_dir, fold):
                    logger.info("fold %d is finished, skipped", fold)
                    continue
                check_identity(weights, weights_of(config, checkpoints), run_dir)  # each fold reads the files anew
                FoldRun(config, data, processor, tokens, splits[fold], device, content, stop).run(resume)
    return run_dir


def _check_early(config: Config, model: nn.Module, spec: ModelSpec, splits: dict[int, Split]) -> None:
    """Finds before the run folder is made what would stop a fold at its start.

    Raises:
        DataError: a checkpoint that does not fit, or too few images for one batch.
    """
    paths = dict.fromkeys(checkpoint_path(config, fold) for fold in splits) if config.run.checkpoint else {}
    for path in paths:
        load_model(model, path, "run.checkpoint", spec)
    if not config.run.evaluate:
        check_batch_size(min(len(split.train) for split in splits.values()), config.run.batch_size, dist.world_size())


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
