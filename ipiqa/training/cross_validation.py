"""k folds of one config: checks everything first, then trains and evaluates fold after fold."""

import logging
from pathlib import Path

from ipiqa import build, dist
from ipiqa.build import Data
from ipiqa.config.loading import Config
from ipiqa.datasets.loaders import check_batch_size
from ipiqa.datasets.splits import Split
from ipiqa.errors import ConfigError
from ipiqa.models.checkpoints import load_model
from ipiqa.training import run_folder
from ipiqa.training.fold import FoldRun

logger = logging.getLogger("ipiqa")


def run(config: Config, *, folds: list[int] | None = None, resume: bool = False) -> Path:
    """Trains and evaluates the folds asked for and returns the run folder.

    Args:
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
    resume = resume or run_folder.is_restarted(run_dir)
    with dist.process_group(device):
        run_folder.check_same_command(config, folds=chosen, resume=resume)
        processor = build.make_processor(config)
        data = build.load_data(config, processor)
        splits = {fold: build.split_of(config, data.table, fold) for fold in chosen}
        _check_early(config, data, splits)
        weights = run_folder.weights_of(config, chosen)
        content = run_folder.content_of(device, data, splits.values()) | weights
        with run_folder.claimed(config, content, chosen, resume=resume) as stop:
            for fold in chosen:
                if run_folder.is_finished(run_dir, fold):
                    logger.info("fold %d is finished, skipped", fold)
                    continue
                now = run_folder.weights_of(config, [fold])  # each fold reads its own files anew
                run_folder.check_identity({name: weights[name] for name in now}, now, run_dir)
                FoldRun(config, data, processor, splits[fold], device, content, stop).run(resume)
    return run_dir


def _check_early(config: Config, data: Data, splits: dict[int, Split]) -> None:
    """Raises, before the run folder is made, what would stop a fold at its start: weights or too few images."""
    model = build.make_model(config, len(data.table.targets), data.table.targets)
    spec = build.describe_model(config, model, data.table.targets)
    if config.run.checkpoint is not None:
        for path in dict.fromkeys(run_folder.checkpoint_path(config, fold) for fold in splits):
            load_model(model, path, "run.checkpoint", spec)
    if not config.run.evaluate:
        check_batch_size(min(len(split.train) for split in splits.values()), config.run.batch_size, dist.world_size())


def _chosen_folds(config: Config, folds: list[int] | None) -> list[int]:
    count = config.run.num_folds
    if folds is None:
        return list(range(count))
    if not folds or len(set(folds)) != len(folds) or not set(folds) <= set(range(count)):
        shown = ",".join(map(str, folds))
        raise ConfigError(f"--folds: {shown} is not a choice from 0 to {count - 1}. Folds are counted from 0.")
    return folds
