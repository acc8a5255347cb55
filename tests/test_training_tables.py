"""Runs on tables of strangers, from `ipiqa data init` to the report: missing scores, published splits, evaluation."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import toy

from ipiqa import registry
from ipiqa.cli import main
from ipiqa.config.loading import load_config
from ipiqa.datasets.splits import splits_in
from ipiqa.evaluation.results import load_run
from ipiqa.training.cross_validation import run

TARGETS = "{quality: {column: mos_quality, low: 0, high: 5}, fit: {column: mos_align, low: 0, high: 5}}"
TABLE = ["dataset.name=table", "dataset.image=name", f"dataset.targets={TARGETS}", "run.num_folds=1"]


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    return toy.write_config(tmp_path)


def empty_some(path: Path) -> int:
    """Takes every third score of the second target away and returns how many are left."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows[::3]:
        row["mos_align"] = ""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return sum(bool(row["mos_align"]) for row in rows)


def test_a_run_with_missing_scores(cfg: Path) -> None:
    left = empty_some(cfg.parent / "data.csv")
    settings = [*TABLE, "dataset.missing_scores=mask", "run.num_folds=2", "split.kind=kfold"]
    folder = run(load_config(cfg, *settings))
    result = load_run(folder)
    tables = [fold.predictions for fold in result.folds]
    joined = pandas.concat(table for table in tables if table is not None)
    assert (len(joined), int(joined["mos_fit"].notna().sum()), int(joined["best_fit"].notna().sum())) == (40, left, 40)
    for fold in result.folds:
        notes = fold.scores.best.metrics["fit"]["notes"]
        assert isinstance(notes, list) and "images have no MOS and are left out" in notes[0]
        assert np.isfinite(fold.scores.best.metrics["fit"]["srcc"])  # type: ignore[arg-type]
        assert fold.scores.best.metrics["quality"]["notes"] == []
    assert main(["report", str(folder)]) == 0


def test_no_missing_score_gives_the_same_bits(cfg: Path, tmp_path: Path) -> None:
    """Allowing missing scores, naming targets and giving their scales is not part of the numbers."""
    plain = run(load_config(cfg, "run.num_folds=1", f"run.output_dir={tmp_path}/plain"))
    table = [*TABLE, "dataset.missing_scores=mask", "dataset.group={name~_([0-9]+)[.]}"]  # as for AGIQA-3k
    ours = run(load_config(cfg, *table, f"run.output_dir={tmp_path}/ours"))
    a, b = (json.loads((folder / "fold_00" / "scores.json").read_text()) for folder in (plain, ours))
    assert a["best"]["metrics"]["alignment"] == b["best"]["metrics"]["fit"]
    assert a["last"]["metrics"]["quality"] == b["last"]["metrics"]["quality"]


def test_a_published_split_trains_and_its_leak_is_recorded(cfg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted(path.name for path in (cfg.parent / "images").iterdir())
    split = cfg.parent / "split.json"
    split.write_text(json.dumps({"train": names[:30], "test": names[30:]}))  # names sort by generator: prompts leak
    shutil.copy(cfg.parent / "images" / names[0], cfg.parent / "images" / names[-1])
    folder = run(load_config(cfg, "split.kind=file", f"split.file={split}", "run.num_folds=1"))
    fold = load_run(folder).folds[0].scores
    assert fold.split.kind == "file" and fold.split.num_val == 10
    assert fold.leak is not None and (fold.leak.num_held_out, fold.leak.tokens, fold.leak.images) == (10, 10, 1)
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    line = "Of 10 held-out rows, 10 (100.0 %) share the prompt, 1 (10.0 %) the image with rows trained on."
    assert line in (folder / "summary.md").read_text(encoding="utf-8")
    assert main(["data", "leak", str(folder)]) == 0
    assert "| all  |            | 10       | 10 (100.0 %) | 10 (100.0 %) | 1 (10.0 %) |" in capsys.readouterr().out
    table = registry.build("dataset", load_config(cfg).dataset, "dataset", {}).load()
    assert splits_in(folder, table)[0].sha256 == fold.split.sha256


def test_every_image_is_evaluated_under_all(cfg: Path, tmp_path: Path) -> None:
    trained = run(load_config(cfg, "run.num_folds=1", f"run.output_dir={tmp_path}/trained"))
    every = [f"run.checkpoint={trained}/fold_00/best.pt", "run.evaluate=true", "split.kind=all", "run.num_folds=1"]
    folder = run(load_config(cfg, *every, f"run.output_dir={tmp_path}/all"))
    result = load_run(folder)
    assert (result.first.split.num_val, result.first.split.num_train) == (40, 0)
    assert result.first.seen_in_training == 32
    assert main(["report", str(folder)]) == 0


def test_what_init_writes_is_checked_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write_dataset(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "init", "mine", "--out", "configs/first.yaml"]) == 0
    assert main(["data", "check", "--cfg-path", "configs/first.yaml"]) == 0
    sections = toy.CONFIG.format(folder=tmp_path).partition("dataset:")[0].splitlines()
    model = [line.strip().replace(": ", "=", 1) for line in sections if line.startswith("  ")]
    settings = [f"model.{line}" for line in model] + ["image_size=32", "run.max_epochs=1", "run.num_workers=0"]
    settings += ["model.image_encoder.weights=null", "model.prompt_encoder.weights=null"]
    config = load_config("configs/first.yaml", *settings, "run.learning_rate=1e-3")
    assert (config.split.kind, config.run.num_folds, config.run.batch_size) == ("kfold", 5, 8)
    result = load_run(run(config, folds=[0]))
    assert result.targets == ("quality", "align") and result.first.split.num_val == 8
