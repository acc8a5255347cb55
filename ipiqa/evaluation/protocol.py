"""Predictions + table + split -> what they are worth on the held-out part."""

import logging

import numpy as np
import torch

from ipiqa.datasets.splits import Split
from ipiqa.datasets.table import AnnotationTable
from ipiqa.engine.trainer import Evaluation
from ipiqa.tasks import Task

logger = logging.getLogger("ipiqa")


def evaluate_split(
    task: Task, table: AnnotationTable, split: Split, rows: np.ndarray, outputs: np.ndarray
) -> Evaluation:
    """Returns the metrics of the held-out part, and the value that chooses the epoch: of the selection part, if any.

    `rows` (N,) are ascending, at least those of both parts, and `outputs` (N, T) are theirs.
    """
    held_out = outputs[np.searchsorted(rows, split.val)]
    metrics, value = task.measure(held_out, table, split.val)
    if len(split.selection):
        _, value = task.measure(outputs[np.searchsorted(rows, split.selection)], table, split.selection)
    for target, measured in metrics.items():
        for note in measured["notes"]:
            logger.warning("fold %d, %s: %s", split.fold, target, note)
    labels = {"srcc": "SRCC", "plcc": "PLCC", "accuracy": "pair accuracy"}
    values = {t: [f"{labels[name]} {m[name]:.4f}" for name in labels if name in m] for t, m in metrics.items()}
    shown = "  ".join(" ".join([target, *figures]) for target, figures in values.items())
    logger.info("fold %d evaluated on %d images: %s", split.fold, len(split.val), shown)
    return Evaluation(value, metrics, torch.from_numpy(held_out))
