"""One fold: its model, its trainer and its files."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ipiqa import dist, registry
from ipiqa.config import Config
from ipiqa.datasets.image_cache import ImageSource
from ipiqa.datasets.loaders import eval_loader, train_loader
from ipiqa.datasets.splits import Split
from ipiqa.datasets.tables import AnnotationTable
from ipiqa.engine import checkpoint
from ipiqa.engine.optim import Schedule, make_adamw, parameter_groups
from ipiqa.engine.predict import Batch, predict
from ipiqa.engine.stop import StopSignals
from ipiqa.engine.trainer import Evaluation, NonFiniteLossError, Trainer
from ipiqa.errors import DataError
from ipiqa.metrics.correlation import aggregate, measure
from ipiqa.models.checkpoints import load_model
from ipiqa.models.ipiqa import is_head, parameter_depth
from ipiqa.processors.image import SquashProcessor
from ipiqa.run_folder import check_identity, fold_dir, identity_of

logger = logging.getLogger("ipiqa")


@dataclass(frozen=True)
class Data:
    """Everything the folds share."""

    table: AnnotationTable
    processor: SquashProcessor
    images: ImageSource
    images_sha256: str


class EpochLoader(Protocol):
    """Batches of one epoch after the other."""

    def __iter__(self) -> Any: ...
    def __len__(self) -> int: ...
    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Chooses the epoch to come and how many of its steps to leave out."""


def build_model(config: Config, num_targets: int) -> nn.Module:
    """Returns the model of a config, on the CPU, its CLIP weights loaded."""
    context = {"image_size": config.image_size, "num_targets": num_targets}
    model: nn.Module = registry.build("model", config.model, "model", context)
    if config.run.grad_checkpointing:
        for module in model.modules():
            if hasattr(module, "grad_checkpointing"):
                setattr(module, "grad_checkpointing", True)  # noqa: B010 (a plain assignment is typed as a submodule)
    return model


def checkpoint_path(config: Config, fold: int) -> str:
    """Returns the file that `run.checkpoint` means for a fold: of a run folder, its best.pt of that fold."""
    path = Path(str(config.run.checkpoint))
    return str(fold_dir(path, fold) / "best.pt") if path.is_dir() else str(path)


def make_trainer(
    config: Config,
    model: nn.Module,
    loader: EpochLoader,
    *,
    compute_loss: Callable[[nn.Module, Batch, int], torch.Tensor],
    evaluate: Callable[[nn.Module], Evaluation],
    folder: Path,
    identity: dict[str, Any],
    seed: tuple[int, ...],
    device: torch.device,
    stop: StopSignals,
    label: str = "",
) -> Trainer:
    """Returns the trainer of a model with the optimizer, the schedule and the precision of a config."""
    run = config.run
    groups = parameter_groups(
        model.named_parameters(), weight_decay=run.weight_decay, head_scale=run.head_learning_rate_scale,
        layer_decay=run.layer_decay, is_head=is_head, depth=parameter_depth,
    )  # fmt: skip
    schedule = Schedule(
        kind=run.schedule, learning_rate=run.learning_rate, max_epochs=run.max_epochs, steps_per_epoch=len(loader),
        warmup_learning_rate=run.warmup_learning_rate, warmup_steps=run.warmup_steps,
        min_learning_rate=run.min_learning_rate, decay=run.learning_rate_decay,
    )  # fmt: skip
    return Trainer(
        model=model,
        optimizer=make_adamw(groups, learning_rate=run.learning_rate, beta2=run.beta2),
        schedule=schedule,
        train_loader=loader,
        start_epoch=loader.set_epoch,
        compute_loss=compute_loss,
        evaluate=evaluate,
        folder=folder,
        identity=identity,
        seed=seed,
        device=device,
        max_epochs=run.max_epochs,
        eval_every=run.eval_every,
        save_every=run.save_every,
        log_every=run.log_every,
        accumulate_steps=run.accumulate_steps,
        clip_grad_norm=run.clip_grad_norm,
        amp=run.amp,
        stop=stop,
        label=label,
        forward_module=torch.compile(model) if run.compile else None,  # type: ignore[arg-type]
    )


def not_finite(error: NonFiniteLossError, where: str = "", images: str = "") -> DataError:
    """Returns what a user is told of training that has gone wrong.

    Args:
        error: the epoch and the step.
        where: what stands before them, such as "fold 0, ".
        images: which images they were, such as " in the batch with a.png".
    """
    return DataError(
        f"{where}epoch {error.epoch}, step {error.step}: loss or weights are not finite{images}. "
        "Try a lower run.learning_rate, run.clip_grad_norm=1, or run.amp=none."
    )


class FoldRun:
    """One fold: its model, its trainer and its files."""

    def __init__(self, config: Config, data: Data, tokens: torch.Tensor, split: Split, device: torch.device) -> None:
        """Takes what the folds share, the tokens (N, context) of the table's prompts, and what is this fold's."""
        self.config, self.data, self.tokens, self.split, self.device = config, data, tokens, split, device
        self.folder = fold_dir(Path(config.run.output_dir), split.fold)
        self.num_folds = config.run.num_folds
        self.identity = identity_of(config) | {
            "the split (sha256)": split.sha256,
            "the annotation table (sha256)": data.table.sha256,
            "the image files (sha256)": data.images_sha256,
            "the number of processes": dist.world_size(),
        }
        # The held-out part and the part that selects the epoch, where there is one, are scored in one pass.
        self.eval_loader = eval_loader(
            data.table, data.images, tokens, np.sort(np.concatenate([split.selection, split.val])),
            batch_size=config.run.eval_batch_size, rank=dist.rank(), world_size=dist.world_size(),
            num_workers=config.run.num_workers, pin_memory=device.type == "cuda",
        )  # fmt: skip

    def run(self, resume: bool, stop: StopSignals) -> None:
        """Trains or evaluates the fold and writes its files."""
        split = self.split
        logger.info(
            "fold %d of %d: %d images to train on, %d held out%s",
            split.fold,
            self.num_folds,
            len(split.train),
            len(split.val),
            f", {len(split.selection)} to choose the epoch on" if len(split.selection) else "",
        )
        if dist.is_main():
            checkpoint.write_json(self.folder / "split.json", split.to_json(self.data.table))
        # Fresh parts of the model are drawn from (seed, fold), so that a fold is the same alone or among others.
        torch.manual_seed(int(np.random.SeedSequence((self.config.run.seed, split.fold)).generate_state(1)[0]))
        model = build_model(self.config, len(self.data.table.targets))
        if self.config.run.checkpoint is not None:
            load_model(model, checkpoint_path(self.config, split.fold), "run.checkpoint")
        model.to(self.device)
        if self.config.run.evaluate:
            found = self._evaluate(model)
            self._write_results({"best": (None, found)})
            return
        trainer = self._trainer(model, stop)
        if resume and trainer.restore(lambda state: check_identity(state["identity"], self.identity, self.folder)):
            logger.info(
                "fold %d goes on at epoch %d, step %d",
                split.fold,
                trainer.progress.epoch + 1,
                trainer.progress.step + 1,
            )
        try:
            trainer.fit()
        except NonFiniteLossError as error:
            raise self._explain(error) from None
        self._finish(trainer)

    def _explain(self, error: NonFiniteLossError) -> DataError:
        names = [self.data.table.names[row] for row in error.rows[:4]]
        images = f" in the batch with {', '.join(names)}" + (" ..." if len(error.rows) > 4 else "") if names else ""
        return not_finite(error, f"fold {self.split.fold}, ", images)

    def _forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        images = self.data.processor.normalise(batch["images"].to(self.device, non_blocking=True))
        return model(images, batch["tokens"])

    def _trainer(self, model: nn.Module, stop: StopSignals) -> Trainer:
        run, data, split = self.config.run, self.data, self.split
        task = registry.build("task", self.config.task, "task", {})
        loader = train_loader(
            data.table, data.images, self.tokens, split.train, batch_size=run.batch_size, seed=run.seed,
            fold=split.fold, rank=dist.rank(), world_size=dist.world_size(), num_workers=run.num_workers,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip

        def compute_loss(module: nn.Module, batch: Batch, epoch: int) -> torch.Tensor:
            flips = data.processor.flips(
                batch["rows"], num_rows=len(data.table), seed=run.seed, fold=split.fold, epoch=epoch
            )
            images = data.processor.normalise(batch["images"].to(self.device, non_blocking=True), flips)
            return task.loss(module(images, batch["tokens"]), batch["targets"].to(self.device, non_blocking=True))

        return make_trainer(
            self.config, model, loader, compute_loss=compute_loss, evaluate=self._evaluate, folder=self.folder,
            identity=self.identity, seed=(run.seed, split.fold), device=self.device, stop=stop,
            label=f"fold {split.fold} ",
        )  # fmt: skip

    def _evaluate(self, model: nn.Module) -> Evaluation:
        """Scores the held-out part, and the selection part where there is one: that one then chooses the epoch."""
        run, data, split = self.config.run, self.data, self.split
        rows, predictions = predict(
            model,
            self.eval_loader,
            self._forward,
            device=self.device,
            amp=run.amp,
            description=f"fold {split.fold} evaluation",
        )
        by_row = dict(zip(rows.tolist(), predictions, strict=True))

        def measured(part: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
            found = np.stack([by_row[row] for row in part.tolist()])
            return measure(found, data.table.scores[part], data.table.targets), found

        metrics, held_out = measured(split.val)
        value = aggregate(measured(split.selection)[0] if len(split.selection) else metrics)
        for target, found in metrics.items():
            for note in found["notes"]:
                logger.warning("fold %d, %s: %s", split.fold, target, note)
        shown = "  ".join(f"{t} SRCC {m['srcc']:.4f} PLCC {m['plcc']:.4f}" for t, m in metrics.items())
        logger.info("fold %d evaluated on %d images: %s", split.fold, len(split.val), shown)
        return Evaluation(value, metrics, torch.from_numpy(held_out))

    def _finish(self, trainer: Trainer) -> None:
        """Writes scores and predictions of the best and the last epoch."""
        last = trainer.evaluation
        assert last is not None
        best_epoch = trainer.progress.best_epoch
        if best_epoch == 0:
            logger.warning("fold %d: no epoch has finite metrics; the last one stands for the best", self.split.fold)
            best_epoch, best = trainer.max_epochs, last
            if dist.is_main():
                checkpoint.save(trainer.best_path, trainer.model_state())
        elif best_epoch == trainer.max_epochs:
            best = last
        else:
            best = Evaluation(**checkpoint.load(trainer.best_path)["evaluation"])
        self._write_results({"best": (best_epoch, best), "last": (trainer.max_epochs, last)})
        dist.barrier()

    def _write_results(self, found: dict[str, tuple[int | None, Evaluation]]) -> None:
        """Writes scores.json and predictions.csv of what was (epoch, evaluated) under each name."""
        if not dist.is_main():
            return
        split, table = self.split, self.data.table
        self._write_predictions({name: evaluation.predictions.numpy() for name, (_, evaluation) in found.items()})
        scores = {
            "format": 1,
            "fold": split.fold,
            "split": {
                "kind": split.kind, "seed": split.seed, "sha256": split.sha256, "num_train": len(split.train),
                "num_selection": len(split.selection), "num_val": len(split.val),
            },
            "selection": "validation part" if len(split.selection) else "reported part",
            "targets": list(table.targets),
            "dataset": {"name": self.config.dataset["name"], "sha256": table.sha256, "num_images": len(table)},
            "epochs": None if self.config.run.evaluate else self.config.run.max_epochs,
            **{name: {"epoch": epoch, "metrics": evaluation.metrics} for name, (epoch, evaluation) in found.items()},
        }  # fmt: skip
        checkpoint.write_json(self.folder / "scores.json", scores)  # last: its presence says that the fold is finished

    def _write_predictions(self, predictions: dict[str, np.ndarray]) -> None:
        table, rows = self.data.table, self.split.val
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        header = ["image", "prompt", "group", *(f"mos_{t}" for t in table.targets)]
        writer.writerow(header + [f"{name}_{t}" for name in predictions for t in table.targets])
        for i, row in enumerate(rows):
            values = [repr(float(v)) for v in table.scores[row]]
            values += [repr(float(v)) for found in predictions.values() for v in found[i]]
            writer.writerow([table.names[row], table.prompts[row], table.groups[row], *values])
        checkpoint.write_text(self.folder / "predictions.csv", out.getvalue())
