"""Whole runs on pairs of images: trained, resumed, reported, and used to score."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import error_of
from fake_runs import Page
from red_pairs import PROMPTS, write_pairs

import ipiqa
from ipiqa.bench.contestants import Bench
from ipiqa.config.loading import load_config
from ipiqa.engine import checkpoint
from ipiqa.engine.stop import Interrupted, StopSignals
from ipiqa.evaluation.results import load_run
from ipiqa.report import AblationRow, breakdown_text, compare_runs, console_table, write_ablation, write_summary
from ipiqa.training.cross_validation import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of both folds; the config stands two folders above."""
    return run(load_config(write_pairs(tmp_path_factory.mktemp("red") / "pairs")))


def test_the_redder_picture_of_new_prompts_scores_higher(trained: Path) -> None:
    summary = write_summary(trained)
    assert set(summary.metrics) == {"accuracy", "log_loss"} and summary.run.main == "accuracy"
    assert summary.spreads["preference", "last", "accuracy"].mean > 0.9
    assert summary.spreads["preference", "last", "log_loss"].mean < 0.5
    scorer = ipiqa.load(trained)
    assert [target.name for target in scorer.targets] == ["preference"]
    assert "Bradley" not in scorer.targets[0].meaning and "log odds" in scorer.targets[0].meaning
    pictures = torch.full((2, 3, 32, 32), 0.4)
    pictures[0, 0], pictures[1, 0] = 0.9, 0.1
    red, blue = scorer.score(pictures, [PROMPTS[0]] * 2)[:, 0]
    assert red > blue + 0.5
    assert list(scorer.rank(pictures, PROMPTS[0]).index) == [0, 1]
    assert "preference_percentile" not in scorer.frame(pictures, PROMPTS[0])


def test_turned_choices_turn_the_scores(trained: Path, tmp_path: Path) -> None:
    turned = "dataset.choices={a: b, b: a, tie: tie}"
    run_dir = run(load_config(trained.parent.parent / "pairs.yaml", f"run.output_dir={tmp_path}/turned", turned))
    assert write_summary(run_dir).spreads["preference", "last", "accuracy"].mean > 0.9
    pictures = torch.full((2, 3, 32, 32), 0.4)
    pictures[0, 0], pictures[1, 0] = 0.9, 0.1
    red, blue = ipiqa.load(run_dir).score(pictures, [PROMPTS[0]] * 2)[:, 0]
    assert red < blue - 0.5


def test_files_give_the_metrics_again(trained: Path) -> None:
    folder = trained / "fold_00"
    pairs = pd.read_csv(folder / "pairs.csv")
    predictions = pd.read_csv(folder / "predictions.csv").set_index("image")
    assert list(pairs) == ["image_a", "image_b", "preferred"] and len(pairs) == 36
    decided = pairs[pairs["preferred"] != "tie"]
    a, b = (predictions["last_preference"][decided[side]].to_numpy() for side in ("image_a", "image_b"))
    scores = json.loads((folder / "scores.json").read_text())
    right = ((a > b) == (decided["preferred"] == "a").to_numpy()).mean()
    assert scores["last"]["metrics"]["preference"]["accuracy"] == right
    assert not scores["baselines"]


def test_reports_speak_of_pairs_alone(trained: Path) -> None:
    summary = write_summary(trained)
    text = console_table(summary)
    assert "pairs    72 held out in all folds; 7 ties are left out" in text
    assert "pair accuracy log loss" in text and "Pair accuracy: share of the held-out pairs" in text
    html = (trained / "report.html").read_text()
    assert "pair accuracy, last epoch" in Page(html).text
    for view in (text, html, *((trained / f"summary.{kind}").read_text() for kind in ("md", "csv", "tex"))):
        assert "SRCC" not in view and "PLCC" not in view
    assert breakdown_text(summary) == "" and "Within prompts" not in html
    assert error_of(lambda: write_summary(trained, by="prompt")).startswith("--by: 'prompt', but the pairs of ")


def test_one_fold_has_an_interval_over_prompts(trained: Path) -> None:
    whole = load_run(trained)
    one = dataclasses.replace(whole, folds=whole.folds[:1])
    fold = one.folds[0]
    assert fold.predictions is not None
    noise = np.random.default_rng(0).normal(0, 5, len(fold.predictions))
    frame = fold.predictions.assign(best_preference=fold.predictions["best_preference"] + noise)
    one = dataclasses.replace(one, folds=(dataclasses.replace(fold, predictions=frame),))
    spread = ipiqa.report.summarise(one).spreads["preference", "best", "accuracy"]
    assert 0 < spread.low < spread.high and spread.high - spread.low > 0.02


def test_runs_are_compared_in_pair_accuracy(trained: Path, tmp_path: Path) -> None:
    cfg = trained.parent.parent / "pairs.yaml"
    other = run(load_config(cfg, f"run.output_dir={tmp_path}/weak", "run.learning_rate=1e-6", "run.max_epochs=1"))
    text = compare_runs(load_run(trained), load_run(other))
    assert "| last  | pair accuracy |" in text and "| last  | log loss" in text
    rows = [AblationRow(name, (), "finished", load_run(f)) for name, f in (("whole", trained), ("weak", other))]
    table = write_ablation(tmp_path / "out", rows)
    assert "pair accuracy minus that of whole" in table and "SRCC" not in table
    lines = (other / "fold_00" / "pairs.csv").read_text().splitlines()
    choice = {"a": "b", "b": "a", "tie": "a"}
    head, _, word = lines[1].rpartition(",")
    (other / "fold_00" / "pairs.csv").write_text("\n".join([lines[0], f"{head},{choice[word]}", *lines[2:]]) + "\n")
    assert "the scores of preference are others" in error_of(lambda: compare_runs(load_run(trained), load_run(other)))


@pytest.mark.parametrize("change", ["1.png,2.png,a\n", "no commas\n", "\0"])
def test_damaged_pairs_are_one_line(change: str, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fold_00"
    folder.mkdir()
    for name in ("scores.json", "predictions.csv"):
        (folder / name).write_bytes((trained / "fold_00" / name).read_bytes())
    (folder / "pairs.csv").write_text("image_a,image_b,preferred\n" + change)
    message = error_of(lambda: load_run(tmp_path))
    assert message.startswith(f"{folder / 'pairs.csv'}: not the pairs of a fold (")


def test_a_resumed_run_is_the_uninterrupted_one(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(trained.parent.parent / "pairs.yaml", f"run.output_dir={tmp_path}/parts")
    asked = 0

    def requested(signals: StopSignals) -> bool:
        nonlocal asked
        asked += 1
        return asked == 6  # within the second epoch, whose steps are four

    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "requested", requested)
        with pytest.raises(Interrupted):
            run(config, folds=[0])
    assert checkpoint.load(tmp_path / "parts" / "fold_00" / "last.pt")["progress"]["step"] > 0
    run(config, folds=[0], resume=True)
    for name in ("predictions.csv", "pairs.csv", "metrics.jsonl", "scores.json"):
        assert (tmp_path / "parts" / "fold_00" / name).read_text() == (trained / "fold_00" / name).read_text(), name
    weights = [checkpoint.load(f / "fold_00" / "last.pt")["model"] for f in (trained, tmp_path / "parts")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["task.name=quality_regression"],
            "task.name: 'quality_regression' does not go with dataset.name 'preferences'. "
            "Task preference and dataset preferences go together, and others without them.",
        ),
        (["run.batch_size=40"], "run.batch_size: 40 is more than the 36 training pairs. Use at most 36."),
    ],
)
def test_what_cannot_be_trained_is_refused_at_the_start(settings: list[str], message: str, trained: Path) -> None:
    cfg = trained.parent.parent / "pairs.yaml"
    config = load_config(cfg, f"run.output_dir={trained.parent}/refused", *settings)
    assert error_of(lambda: run(config)) == message and not (trained.parent / "refused").exists()


def test_scores_are_no_pairs(tmp_path: Path) -> None:
    from toy import write_config

    message = error_of(lambda: run(load_config(write_config(tmp_path), "task.name=preference")))
    assert message == (
        "task.name: 'preference' does not go with dataset.name 'agiqa_3k'. "
        "Task preference and dataset preferences go together, and others without them."
    )


def test_the_workbench_takes_no_pairs(trained: Path, tmp_path: Path) -> None:
    cfg = trained.parent.parent / "pairs.yaml"
    message = error_of(lambda: Bench(tmp_path).contestants([str(cfg)], ["no-pixel"]))
    assert message.endswith("dataset.name: pairs have no MOS to agree with. Use ipiqa train.")
