"""k folds of one config: checks everything first, then trains and evaluates fold after fold, each in its own folder."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ipiqa import build, dist
from ipiqa.build import Data, Inputs
from ipiqa.config.loading import Config
from ipiqa.datasets.image_cache import NoImages
from ipiqa.datasets.splits import Split, leak
from ipiqa.engine import checkpoint
from ipiqa.engine.predict import predict
from ipiqa.engine.stop import StopSignals
from ipiqa.engine.trainer import Evaluation, NonFiniteLossError, Trainer
from ipiqa.errors import ConfigError, DataError
from ipiqa.evaluation.protocol import evaluate_split
from ipiqa.evaluation.results import Measured, write_fold
from ipiqa.files import write_json
from ipiqa.models.bundle import HASH_DIGITS, ModelSpec, load_model
from ipiqa.processors.image import SquashProcessor
from ipiqa.training import run_folder

logger = logging.getLogger("ipiqa")


def run(config: Config, *, folds: list[int] | None = None, resume: bool = False) -> Path:
    """Trains and evaluates the folds asked for, with each of `run.seeds`, and returns the run folder.

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
        seeds = run_folder.of_seeds(config)
        for one in seeds if config.run.checkpoint is not None else seeds[:1]:  # which may be another for each
            _check_early(one, data, splits, device)
        begun = [True]
        if config.run.seeds is not None:
            begun = dist.from_main(dist.on_main(lambda: run_folder.begin_seeds(config, resume=resume)))
        for one, is_begun in zip(seeds, begun, strict=True):
            _run_folds(one, processor, data, splits, device, resume=resume and is_begun)
    return run_dir


def _run_folds(
    config: Config, processor: SquashProcessor, data: Data, splits: dict[int, Split], device: torch.device, *,
    resume: bool,
) -> None:  # fmt: skip
    """Trains and evaluates folds with one seed, in the run folder of the config."""
    run_dir = Path(config.run.output_dir)
    weights = run_folder.weights_of(config, splits)
    content = run_folder.content_of(device, data, splits.values()) | weights
    with run_folder.claimed(config, content, list(splits), resume=resume) as stop:
        for fold, split in splits.items():
            if run_folder.is_finished(run_dir, fold):
                logger.info("fold %d is finished, skipped", fold)
                continue
            now = run_folder.weights_of(config, [fold])  # each fold reads its own files anew
            run_folder.check_identity({name: weights[name] for name in now}, now, run_dir)
            FoldRun(config, data, processor, split, device, content, stop).run(resume)


def _check_early(config: Config, data: Data, splits: dict[int, Split], device: torch.device) -> None:
    """Raises, before the run folder is made, what would stop a fold at its start: weights or too few images.

    So does `run.patience` without a part to choose the epoch on: the reported images must not end training.
    """
    if config.run.patience is not None and not all(len(split.selection) for split in splits.values()):
        advice = "Set run.val_fraction, such as 0.1, or run.patience=null."
        raise ConfigError(f"run.patience: {config.run.patience}, but the reported part may not end training. {advice}")
    model = build.make_model(config, len(data.table.targets), data.table.targets)
    spec = build.describe_model(config, model, data.table.targets)
    if config.run.checkpoint is not None:
        for path in dict.fromkeys(run_folder.checkpoint_path(config, fold) for fold in splits):
            load_model(model, path, "run.checkpoint", spec)
    if not config.run.evaluate:
        for split in sorted(splits.values(), key=lambda split: len(split.train)):
            build.train_batches(config, data, split, device)


def _chosen_folds(config: Config, folds: list[int] | None) -> list[int]:
    count = config.run.num_folds
    if folds is None:
        return list(range(count))
    if not folds or len(set(folds)) != len(folds) or not set(folds) <= set(range(count)):
        shown = ",".join(map(str, folds))
        raise ConfigError(f"--folds: {shown} is not a choice from 0 to {count - 1}. Folds are counted from 0.")
    return folds


@dataclass
class FoldRun:
    """One fold: builds its model, trains it, predicts the held-out part and hands over to `evaluation`."""

    config: Config
    data: Data
    processor: SquashProcessor
    split: Split
    device: torch.device
    content: Mapping[str, Any]  # what the run reads, by hash: kept in checkpoints, compared where one is continued
    stop: StopSignals
    seen_in_training: int | None = None  # held-out images that a checkpoint to be evaluated was trained on

    def __post_init__(self) -> None:
        run, fold, num_rows = self.config.run, self.split.fold, len(self.data.table)
        self.folder = run_folder.fold_dir(Path(run.output_dir), fold)
        self.task = build.make_task(self.config)
        self.inputs = Inputs(self.processor, self.device, num_rows=num_rows, seed=run.seed, fold=fold)
        self.held_out = build.held_out_batches(self.config, self.data, self.split, self.device)

    def run(self, resume: bool) -> None:
        """Trains or evaluates the fold and writes its files."""
        config, split, targets = self.config, self.split, self.data.table.targets
        counts = f"{len(split.train)} images to train on, {len(split.val)} held out"
        counts += f", {len(split.selection)} to choose the epoch on" if len(split.selection) else ""
        logger.info("fold %d of %d: %s", split.fold, config.run.num_folds, counts)
        if dist.is_main():
            write_json(self.folder / "split.json", split.to_json(self.data.table))
        # Fresh parts of the model are drawn from (seed, fold), so that a fold is the same alone or among others.
        torch.manual_seed(int(np.random.SeedSequence((config.run.seed, split.fold)).generate_state(1)[0]))
        model = build.make_model(config, len(targets), targets)
        spec = build.describe_model(config, model, targets, self.data, split)
        if config.run.checkpoint is not None:
            self._count_seen(load_model(model, run_folder.checkpoint_path(config, split.fold), "run.checkpoint", spec))
        model.to(self.device)
        if config.run.evaluate:
            self._write({"best": (None, self._evaluate(model))})
            return
        self.inputs.features = build.store_features(config, self.data, model, self.processor, self.device, self.stop)
        data = self.data if self.inputs.features is None else replace(self.data, images=NoImages())
        self.held_out = build.held_out_batches(config, data, split, self.device)
        own = f" of fold {split.fold}"
        identity = run_folder.identity_of(config)
        identity |= {n: value for n, value in self.content.items() if " of fold " not in n or n.endswith(own)}
        trainer = build.make_trainer(
            config, model, build.train_batches(config, data, split, self.device), task=self.task,
            inputs=self.inputs, evaluate=self._evaluate, folder=self.folder, identity=identity,
            spec=spec, stop=self.stop, label=f"fold {split.fold} ",
        )  # fmt: skip
        fit(trainer, resume, f"fold {split.fold}, ", self.data.table.names)
        self._finish(trainer)

    def _count_seen(self, trained: ModelSpec | None) -> None:
        """Counts the held-out images that a checkpoint was trained on; their scores say little of new images."""
        if trained is not None and (known := set(trained.training.images)):
            rows = self.split.val
            self.seen_in_training = sum(self.data.image_hashes[row][:HASH_DIGITS] in known for row in rows)
            if self.seen_in_training:
                seen = f"{self.seen_in_training} of the {len(rows)} held-out images"
                logger.warning("fold %d: run.checkpoint was trained on %s", self.split.fold, seen)

    def _evaluate(self, model: nn.Module) -> Evaluation:
        """Scores the held-out part, and the selection part where there is one: that one then chooses the epoch."""
        stop = self.stop if self.config.run.evaluate else None  # training saves its state first
        rows, outputs = predict(
            model, self.held_out, lambda module, batch: self.task.outputs(module, self.inputs(batch)),
            device=self.device, amp=self.config.run.amp, prompts=self.inputs.prompts,
            description=f"fold {self.split.fold} evaluation", stop=stop,
        )  # fmt: skip
        return evaluate_split(self.task, self.data.table, self.split, rows, outputs)

    def _finish(self, trainer: Trainer) -> None:
        """Writes the results of the best and the last epoch."""
        best = last = trainer.evaluation
        assert best is not None and last is not None
        best_epoch = trainer.progress.best_epoch
        if best_epoch == 0:
            logger.warning("fold %d: no epoch has finite metrics; the last one stands for the best", self.split.fold)
            best_epoch = trainer.progress.epoch
            if dist.is_main():
                checkpoint.save(trainer.best_path, trainer.model_state())
        elif best_epoch != trainer.progress.epoch:
            best = trainer.best_evaluation()
        self._write({"best": (best_epoch, best), "last": (trainer.progress.epoch, last)})
        dist.barrier()

    def _write(self, evaluations: dict[str, tuple[int | None, Evaluation]]) -> None:
        if not dist.is_main():
            return
        table, val, run, measured, predictions = self.data.table, self.split.val, self.config.run, {}, {}
        for name, (epoch, evaluation) in evaluations.items():
            predictions[name] = evaluation.predictions.numpy()
            if predictions[name].shape != (len(val), len(table.targets)):  # read from a checkpoint
                raise DataError(f"{self.folder}: the {name} checkpoint holds other predictions. {checkpoint.ANEW}")
            measured[name] = Measured(epoch, self.task.measure(predictions[name], table, val)[0])
        write_fold(
            self.folder, table, self.split, measured, predictions, epochs=None if run.evaluate else run.max_epochs,
            dataset=self.config.dataset["name"], num_folds=run.num_folds, settings=run_folder.identity_of(self.config),
            seen_in_training=self.seen_in_training,
            leak=leak(table, self.split, self.data.image_hashes) if len(self.split.train) else None,
        )  # fmt: skip


def fit(trainer: Trainer, resume: bool, where: str = "", names: tuple[str, ...] = ()) -> None:
    """Trains to the end, from the newest checkpoint in the folder where the run is resumed.

    A checkpoint of another run is a ConfigError, a loss or weights that are not finite a DataError. Messages begin with
    `where`, such as "fold 0, ", and give the `names` of images, which are by row.
    """

    def check(state: dict[str, Any]) -> None:
        before, now = state["identity"], trainer.identity
        common = [name for name in now if isinstance(before.get(name, ...), (str, int, float, list, type(None)))]
        run_folder.check_identity({n: before[n] for n in common}, {n: now[n] for n in common}, trainer.folder)

    if resume and trainer.restore(check):
        logger.info("%sresumes at epoch %d, step %d", where, trainer.progress.epoch + 1, trainer.progress.step + 1)
    try:
        trainer.fit()
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        problem = "BatchNorm cannot train on one value per channel, as of 1 image whose token map is 1 x 1"
        advice = "Use run.batch_size=2 or more, or a larger image_size."
        raise ConfigError(f"run.batch_size: {problem}. {advice}") from None
    except NonFiniteLossError as error:
        shown = ", ".join(names[row] for row in error.rows[:4] if row < len(names))
        images = f" in the batch with {shown}{' ...' * (len(error.rows) > 4)}" if shown else ""
        step = f"{where}epoch {error.epoch}, step {error.step}"
        advice = "Try a lower run.learning_rate, run.clip_grad_norm=1, or run.amp=none."
        raise DataError(f"{step}: loss or weights are not finite{images}. {advice}") from None
