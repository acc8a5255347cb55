"""The moving average of the weights: what it is, that it is what counts, and that a resumed run goes on with it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from processes import INTERRUPTED, run_together, train
from test_engine_trainer import assert_same_files, make_trainer
from toy import write_config

import ipiqa
from ipiqa.config.loading import load_config
from ipiqa.engine import checkpoint
from ipiqa.engine.stop import Interrupted, StopSignals
from ipiqa.errors import ConfigError, DataError
from ipiqa.training.cross_validation import run


def test_it_is_the_average_over_steps_of_weights_and_of_batchnorm_statistics(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ema=0.3, max_epochs=2, accumulate_steps=2)
    expected = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    step, count = trainer.optimizer.step, 0

    def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        out = step(*arguments, **options)
        decay = min(0.3, (1 + count) / (10 + count))
        for name, value in trainer.model.state_dict().items():
            is_number = name.endswith("num_batches_tracked")
            expected[name] = value.clone() if is_number else decay * expected[name] + (1 - decay) * value
        count += 1
        return out

    trainer.optimizer.step = watched  # type: ignore[method-assign]
    trainer.fit()
    assert count == 6  # two epochs of six batches, in pairs
    last = checkpoint.load(tmp_path / "last.pt")
    for name, value in last["model"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(last["newest"][name], trainer.model.state_dict()[name])
    assert not torch.equal(last["model"]["0.weight"], last["newest"]["0.weight"])


def test_the_average_is_evaluated_and_saved_as_the_model(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ema=0.9)
    trainer.fit()
    best = checkpoint.load(tmp_path / "best.pt")
    assert "newest" not in best
    trainer.model.load_state_dict(best["model"])
    assert torch.equal(trainer.evaluate(trainer.model).predictions, best["evaluation"]["predictions"])
    assert "newest" not in checkpoint.load(make_trainer_without(tmp_path / "plain") / "last.pt")


def make_trainer_without(folder: Path) -> Path:
    make_trainer(folder, max_epochs=1).fit()
    return folder


@pytest.mark.parametrize(("stop_epoch", "stop_step"), [(0, 2), (2, 5)])
def test_a_resumed_run_goes_on_with_the_average(stop_epoch: int, stop_step: int, tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole", ema=0.9).fit()
    seen = []

    def interrupt(stop: StopSignals, epoch: int, batch: dict) -> None:
        seen.append(epoch)
        if epoch == stop_epoch and seen.count(epoch) == stop_step + 1:
            stop.signal_number = signal.SIGTERM

    with pytest.raises(Interrupted):
        make_trainer(tmp_path / "parts", ema=0.9, after_step=interrupt).fit()
    trainer = make_trainer(tmp_path / "parts", ema=0.9)
    assert trainer.restore(lambda state: None)
    trainer.fit()
    assert_same_files(tmp_path / "whole", tmp_path / "parts")
    left, right = (checkpoint.load(tmp_path / name / "last.pt")["newest"] for name in ("whole", "parts"))
    assert all(torch.equal(value, right[name]) for name, value in left.items())
    state = checkpoint.load(tmp_path / "parts/last.pt")
    del state["newest"]
    checkpoint.save(tmp_path / "parts/last.pt", state)
    with pytest.raises(DataError, match=r"last.pt: not the state of this training"):
        make_trainer(tmp_path / "parts", ema=0.9).restore(lambda state: None)


@pytest.mark.slow
def test_two_processes_have_one_average_and_resume_it(tmp_path: Path) -> None:
    cfg = write_config(tmp_path)
    assert run_together(2, train, cfg, f"{tmp_path}/whole", False, None, "run.ema=0.9") == [0, 0]
    assert run_together(2, train, cfg, f"{tmp_path}/parts", False, 6, "run.ema=0.9") == [INTERRUPTED] * 2
    assert run_together(2, train, cfg, f"{tmp_path}/parts", True, None, "run.ema=0.9") == [0, 0]
    left, right = (checkpoint.load(tmp_path / name / "fold_00/last.pt") for name in ("whole", "parts"))
    for part in ("model", "newest"):
        assert all(torch.equal(value, right[part][name]) for name, value in left[part].items())
    for name in ("predictions.csv", "metrics.jsonl"):  # every process has scored its share with the same weights
        assert (tmp_path / "whole/fold_00" / name).read_text() == (tmp_path / "parts/fold_00" / name).read_text()


def test_the_scores_of_a_run_are_those_of_the_average(tmp_path: Path) -> None:
    cfg = write_config(tmp_path)
    folder = run(load_config(cfg, "run.ema=0.5"), folds=[0]) / "fold_00"
    table = pd.read_csv(folder / "predictions.csv")
    images = [tmp_path / "images" / name for name in table["image"]]
    scores = ipiqa.load(folder, "cpu").score(images, table["prompt"].tolist())
    assert np.allclose(scores, table[["best_quality", "best_alignment"]].to_numpy(), atol=1e-4)
    with pytest.raises(ConfigError, match=r"run.ema: 1.0 is out of range"):
        load_config(cfg, "run.ema=1.0")
    changes = ["model.name=kernel_ridge", "model.image_encoder.freeze=all", f"run.output_dir={tmp_path}/ridge"]
    with pytest.raises(ConfigError, match=r"run.ema: 'kernel_ridge' is solved and not trained by steps"):
        run(load_config(cfg, *changes, "run.ema=0.5"), folds=[0])
    with pytest.raises(ConfigError, match=r"run.ema was 0.5, is None"):
        run(load_config(cfg), folds=[0], resume=True)
