"""Whole runs on a toy dataset, in this process."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import write_config

import ipiqa
from ipiqa.config.loading import Config, load_config
from ipiqa.errors import ConfigError, DataError
from ipiqa.metrics.agreement import measure
from ipiqa.training.cross_validation import run


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def scores_of(run_dir: Path, fold: int = 0) -> dict:
    return json.loads((run_dir / f"fold_{fold:02d}" / "scores.json").read_text())


def same_results(a: Path, b: Path, fold: int = 0) -> None:
    for name in ("scores.json", "predictions.csv", "metrics.jsonl", "split.json"):
        assert (a / f"fold_{fold:02d}" / name).read_text() == (b / f"fold_{fold:02d}" / name).read_text(), name


def test_a_run_leaves_the_documented_folder(cfg: Path) -> None:
    run_dir = run(load_config(cfg))
    assert {p.name for p in run_dir.iterdir()} == {
        "config.yaml", "command.txt", "environment.json", "identity.json", "jobs.jsonl", "train.log",
        "fold_00", "fold_01",
    }  # fmt: skip
    assert {p.name for p in (run_dir / "fold_00").iterdir()} == {
        "split.json", "metrics.jsonl", "last.pt", "best.pt", "scores.json", "predictions.csv",
    }  # fmt: skip
    scores = scores_of(run_dir)
    assert scores["targets"] == ["quality", "alignment"] and scores["last"]["epoch"] == 2
    with (run_dir / "fold_00" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    split = json.loads((run_dir / "fold_00" / "split.json").read_text())
    assert [row["image"] for row in rows] == split["val"] and len(rows) == 8
    for which in ("best", "last"):  # the table of predictions gives the scores again
        found = np.array([[float(row[f"{which}_{t}"]) for t in scores["targets"]] for row in rows])
        mos = np.array([[float(row[f"mos_{t}"]) for t in scores["targets"]] for row in rows])
        again = measure(found, mos, scores["targets"])
        for target in scores["targets"]:
            for metric in ("srcc", "plcc", "krcc", "rmse"):
                assert again[target][metric] == pytest.approx(scores[which]["metrics"][target][metric], abs=1e-9)


def test_the_same_seed_gives_the_same_run_and_folds_do_not_depend_on_each_other(cfg: Path, tmp_path: Path) -> None:
    both = run(load_config(cfg))
    alone = run(load_config(cfg, f"run.output_dir={tmp_path}/alone"), folds=[1])
    same_results(both, alone, fold=1)
    other = run(load_config(cfg, f"run.output_dir={tmp_path}/other", "run.seed=7"), folds=[1])
    a, b = ((p / "fold_01" / "metrics.jsonl").read_text() for p in (both, other))
    assert a != b
    assert (both / "fold_01" / "split.json").read_text() == (other / "fold_01" / "split.json").read_text()


def test_a_run_is_never_overwritten(cfg: Path) -> None:
    run_dir = run(load_config(cfg), folds=[0])
    before = (run_dir / "fold_00" / "scores.json").stat().st_mtime_ns
    with pytest.raises(ConfigError, match="already holds a run. Continue it with --resume or choose another"):
        run(load_config(cfg))
    run(load_config(cfg), folds=[1])  # a job with other folds joins
    run(load_config(cfg), resume=True)  # nothing left to do
    assert (run_dir / "fold_00" / "scores.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"run.learning_rate was 0.001, is 0.1"):
        run(load_config(cfg, "run.learning_rate=0.1"), resume=True)
    with pytest.raises(ConfigError, match=r"model.head.dropout was 0.1, is 0.2"):
        run(load_config(cfg, "model.head.dropout=0.2", "run.num_folds=3"), folds=[2])
    (cfg.parent / "other").mkdir()
    (cfg.parent / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files but no run"):
        run(load_config(cfg, f"run.output_dir={cfg.parent}/other"))
    with pytest.raises(ConfigError, match="there is no run to continue"):
        run(load_config(cfg, f"run.output_dir={cfg.parent}/new"), resume=True)


def test_harmless_settings_may_change_on_resume(cfg: Path) -> None:
    run_dir = run(load_config(cfg), folds=[0])
    run(load_config(cfg, "run.num_workers=1", "run.log_every=1", "dataset.image_cache=false"), folds=[1], resume=True)
    assert scores_of(run_dir, 1)["last"]["epoch"] == 2


def test_evaluation_of_checkpoints_gives_the_scores_of_training(cfg: Path, tmp_path: Path) -> None:
    trained = run(load_config(cfg))
    evaluated = run(
        load_config(cfg, "run.evaluate=true", f"run.checkpoint={trained}", f"run.output_dir={tmp_path}/evaluated")
    )
    for fold in (0, 1):
        assert scores_of(evaluated, fold)["best"]["metrics"] == scores_of(trained, fold)["best"]["metrics"]
        assert "last" not in scores_of(evaluated, fold)
    with pytest.raises(ConfigError, match=r"run.evaluate"):
        load_config(cfg, "run.evaluate=true")


def test_start_from_a_checkpoint_changes_the_first_epoch(cfg: Path, tmp_path: Path) -> None:
    first = run(load_config(cfg), folds=[0])
    again = run(
        load_config(cfg, f"run.checkpoint={first}/fold_00/best.pt", f"run.output_dir={tmp_path}/again"), folds=[0]
    )
    losses = [json.loads((p / "fold_00" / "metrics.jsonl").read_text().splitlines()[0])["loss"] for p in (first, again)]
    assert losses[1] < losses[0]


def test_nested_selection_chooses_on_a_part_that_is_not_reported(cfg: Path) -> None:
    run_dir = run(load_config(cfg, "run.val_fraction=0.25", "run.batch_size=4"), folds=[0])
    scores = scores_of(run_dir)
    assert scores["selection"] == "validation part"
    assert (
        scores["split"]["num_selection"] == 8 and scores["split"]["num_train"] == 24 and scores["split"]["num_val"] == 8
    )
    split = json.loads((run_dir / "fold_00" / "split.json").read_text())
    assert not set(split["selection"]) & set(split["val"] + split["train"])


def test_bad_images_end_the_run_before_anything_is_made(cfg: Path) -> None:
    images = sorted((cfg.parent / "images").iterdir())
    images[3].unlink()
    with pytest.raises(DataError, match=r"dataset.images: 1 of 40 images (is|are) missing under"):
        run(load_config(cfg))
    shutil.copy(images[0], images[3])
    images[3].write_bytes(b"not an image")
    with pytest.raises(DataError, match="is not an image"):
        run(load_config(cfg))
    assert not (cfg.parent / "output").exists()


@pytest.mark.parametrize("folds", [[2], [-1], [0, 0], []])
def test_folds_that_are_not_there_are_refused(cfg: Path, folds: list[int]) -> None:
    with pytest.raises(ConfigError, match="is not a choice from 0 to 1"):
        run(load_config(cfg), folds=folds)


def test_diverging_training_names_fold_epoch_step_and_images(cfg: Path) -> None:
    with pytest.raises(DataError, match=r"fold 0, epoch \d+, step \d+: loss or weights are not finite"):
        run(load_config(cfg, "run.learning_rate=1e30", "run.max_epochs=3"), folds=[0])


def test_constant_predictions_say_why_and_the_last_epoch_stands_in(cfg: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="ipiqa"):
        run_dir = run(
            load_config(cfg, "model.head.dropout=1.0", "run.learning_rate=0.0", "run.max_epochs=1"), folds=[0]
        )
    assert scores_of(run_dir)["best"]["epoch"] == 1


@pytest.mark.parametrize("options", [["run.amp=bf16"], ["run.grad_checkpointing=true"], ["dataset.image_cache=true"]])
def test_options_of_speed_and_memory_run(cfg: Path, options: list[str]) -> None:
    cache = f"dataset.cache_dir={cfg.parent}/cache"
    run_dir = run(load_config(cfg, *options, cache), folds=[0])
    assert scores_of(run_dir)["last"]["epoch"] == 2


def test_cached_and_uncached_images_give_the_same_run(cfg: Path, tmp_path: Path) -> None:
    plain = run(load_config(cfg), folds=[0])
    options = ("dataset.image_cache=true", f"dataset.cache_dir={tmp_path}/cache", f"run.output_dir={tmp_path}/cached")
    same_results(plain, run(load_config(cfg, *options), folds=[0]))


def test_device_and_precision_are_answered(cfg: Path) -> None:
    def config(*overrides: str) -> Config:
        return load_config(cfg, *overrides)

    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="PyTorch sees no GPU"):
            run(config("run.device=cuda"))
    with pytest.raises(ConfigError, match="'fp16' needs a GPU"):
        run(config("run.device=cpu", "run.amp=fp16"))


def test_public_build_model_scores_images(cfg: Path) -> None:
    model = ipiqa.build_model(cfg, "image_size=64")
    scores = model(torch.zeros(2, 3, 64, 64), ["a cat", "a dog"])
    assert scores.shape == (2, 2) and not model.training
    run_dir = run(load_config(cfg), folds=[0])
    trained = ipiqa.build_model(cfg, f"run.checkpoint={run_dir}/fold_00/best.pt")
    weights = torch.load(run_dir / "fold_00" / "best.pt", weights_only=True)["model"]
    assert all(torch.equal(value, weights[name]) for name, value in trained.state_dict().items())


def test_one_image_a_batch_where_batchnorm_has_one_value_is_one_line(cfg: Path) -> None:
    config = load_config(cfg, "run.batch_size=1", "image_size=32")
    with pytest.raises(ConfigError, match=r"run.batch_size: BatchNorm cannot train on one value per channel"):
        run(config, folds=[0])


def test_predictions_of_another_form_in_a_checkpoint_are_refused(cfg: Path) -> None:
    run_dir = run(load_config(cfg), folds=[0])
    (run_dir / "fold_00/scores.json").unlink()
    state = torch.load(run_dir / "fold_00/last.pt", weights_only=True)
    state["evaluation"]["predictions"] = torch.zeros(3, 2)
    torch.save(state, run_dir / "fold_00/last.pt")
    with pytest.raises(DataError, match="fold_00: the last checkpoint holds other predictions"):
        run(load_config(cfg), folds=[0], resume=True)
