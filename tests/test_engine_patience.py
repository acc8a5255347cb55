"""Training that ends where the selection part gets no better: when, what it leaves, and that it stays ended."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_trainer import assert_same_files, make_trainer
from toy import write_config

from ipiqa.config.loading import load_config
from ipiqa.engine import checkpoint
from ipiqa.engine.trainer import Evaluation, Trainer
from ipiqa.errors import ConfigError
from ipiqa.evaluation.results import load_run
from ipiqa.evaluation.summary import facts
from ipiqa.training import cross_validation
from ipiqa.training.cross_validation import run


def trainer_with(folder: Path, *values: float, **changes: Any) -> Trainer:
    """Returns a trainer whose evaluations come out as these values, one after the other."""
    left = iter(values)
    return make_trainer(folder, evaluate=lambda model: Evaluation(next(left), {}, torch.zeros(1)), **changes)


@pytest.mark.parametrize(
    ("values", "changes", "epochs", "best"),
    [
        ((3.0, 2.0, 1.0, 9.0), {"patience": 2}, 3, 1),
        ((3.0, 2.0, 4.0, 1.0), {"patience": 2}, 4, 3),  # a better one in time
        ((3.0, 3.0, 9.0, 9.0), {"patience": 1}, 2, 1),  # an equal one is no better
        ((-float("inf"),) * 4, {"patience": 3}, 3, 0),
        ((3.0, 2.0), {"patience": 1, "eval_every": 2, "max_epochs": 9}, 4, 2),
        ((3.0, 2.0, 1.0, 0.0), {}, 4, 1),
    ],
)
def test_it_ends_after_so_many_evaluations_without_a_better_one(
    values: tuple[float, ...], changes: dict[str, Any], epochs: int, best: int, tmp_path: Path
) -> None:
    trainer = trainer_with(tmp_path, *values, **changes)
    trainer.fit()
    assert (trainer.progress.epoch, trainer.progress.best_epoch) == (epochs, best) and trainer.ended
    assert checkpoint.load(tmp_path / "last.pt")["epoch"] == epochs  # also where no epoch's turn is to be saved
    assert not (tmp_path / "previous.pt").exists()


def test_a_training_that_ended_is_not_gone_on_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ipiqa"):
        trainer_with(tmp_path, 3.0, 2.0, patience=1, save_every=3).fit()
    assert "ends after epoch 2 of 4: no better value, patience 1" in caplog.text
    before = (tmp_path / "last.pt").read_bytes()
    again = trainer_with(tmp_path, patience=1)
    assert again.restore(lambda state: None) and again.ended
    again.fit()
    assert (tmp_path / "last.pt").read_bytes() == before and again.evaluation is not None


def test_a_killed_one_ends_where_it_would_have(tmp_path: Path) -> None:
    values = (3.0, 4.0, 1.0, 2.0)
    trainer_with(tmp_path / "whole", *values, patience=2, max_epochs=9).fit()

    def die(stop: Any, epoch: int, batch: Any) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer_with(tmp_path / "parts", *values, patience=2, max_epochs=9, after_step=die).fit()
    again = trainer_with(tmp_path / "parts", *values[3:], patience=2, max_epochs=9)
    assert again.restore(lambda state: None) and again.progress.epoch == 3
    again.fit()
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


def test_scores_say_the_epoch_and_the_report_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = write_config(tmp_path)
    changes = ["run.val_fraction=0.25", "run.batch_size=4", "run.max_epochs=20", "run.patience=1"]
    monkeypatch.setattr(cross_validation, "evaluate_split", _falling(cross_validation.evaluate_split))
    run_dir = run(load_config(cfg, *changes))
    for fold in (0, 1):
        scores = json.loads((run_dir / f"fold_{fold:02d}/scores.json").read_text())
        assert (scores["best"]["epoch"], scores["last"]["epoch"], scores["epochs"]) == (1, 2, 20)
    before = (run_dir / "fold_00/scores.json").stat().st_mtime_ns
    (run_dir / "fold_01/scores.json").unlink()  # killed between its last epoch and its scores
    run(load_config(cfg, *changes), resume=True)
    assert (run_dir / "fold_00/scores.json").stat().st_mtime_ns == before
    assert load_run(run_dir).folds[1].checkpoints["last"].epoch == 2
    rule = dict(facts(load_run(run_dir)))["best"]
    assert rule.endswith("training groups, which also ends training (run.patience=1)")


def _falling(evaluate: Any) -> Any:
    """Returns an evaluation whose value is worse each time it is called for a fold."""
    values: dict[int, float] = {}

    def falling(task: Any, table: Any, split: Any, *rest: Any) -> Evaluation:
        values[split.fold] = values.get(split.fold, 1.0) - 0.1
        found: Evaluation = evaluate(task, table, split, *rest)
        found.value = values[split.fold]
        return found

    return falling


def test_the_reported_part_may_not_end_training(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), "run.patience=3")
    with pytest.raises(ConfigError, match=r"run.patience: 3, but the reported part may not end training. Set"):
        run(config)
    assert not (tmp_path / "output").exists()
