"""A run with several seeds: a run folder for each, and one report in which they are no folds of their own."""

from __future__ import annotations

import csv
import json
import math
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from fake_runs import page, write_run
from processes import run_together
from toy import write_config

import ipiqa
from ipiqa import cli
from ipiqa.ablation import load_grid, rows_of, run_points
from ipiqa.config.loading import load_config
from ipiqa.errors import ConfigError, DataError
from ipiqa.evaluation.held_out import HeldOut
from ipiqa.evaluation.results import load_run
from ipiqa.evaluation.summary import compare, summarise
from ipiqa.export.folder import export_folder
from ipiqa.report import compare_runs, console_table, write_summary
from ipiqa.report.leaderboard import reported
from ipiqa.training.cross_validation import run

KEY = ("quality", "last", "srcc")


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def trained(cfg: Path) -> Path:
    return run(load_config(cfg, "run.seeds=[3, 5]", f"run.output_dir={cfg.parent}/seeds"))


def scores(run_dir: Path, seed: int, fold: int) -> dict:
    return json.loads((run_dir / f"seed_{seed}/fold_{fold:02d}/scores.json").read_text())


def test_each_seed_leaves_the_run_it_would_leave_alone(cfg: Path, trained: Path, tmp_path: Path) -> None:
    assert {p.name for p in trained.iterdir() if not p.name.startswith(".")} == {"config.yaml", "seed_3", "seed_5"}
    assert load_config(trained / "config.yaml").run.seeds == [3, 5]
    alone = run(load_config(cfg, "run.seed=5", f"run.output_dir={tmp_path}/alone"), folds=[1])
    for name in ("scores.json", "predictions.csv", "metrics.jsonl", "split.json"):
        assert (alone / "fold_01" / name).read_text() == (trained / "seed_5/fold_01" / name).read_text()
    own = load_config(trained / "seed_5/config.yaml")
    assert (own.run.seed, own.run.seeds) == (5, None)


def test_a_value_is_the_mean_over_seeds_and_only_folds_count(trained: Path) -> None:
    summary = summarise(load_run(trained))
    by_seed = [
        [scores(trained, seed, fold)["last"]["metrics"]["quality"]["srcc"] for seed in (3, 5)] for fold in (0, 1)
    ]
    assert summary.values[KEY] == pytest.approx(dict(enumerate(map(statistics.mean, by_seed))))
    spread = summary.spreads[KEY]
    assert spread.n == 2 and spread.std == pytest.approx(statistics.stdev(map(statistics.mean, by_seed)))
    expected = statistics.mean(map(statistics.stdev, by_seed))
    assert spread.seed_std == pytest.approx(expected) and expected > 0
    within = summary.beside.spreads["quality", "last", "all", "srcc"]  # measured again, from the predictions
    assert (within.mean, within.low) == pytest.approx((spread.mean, spread.low))
    assert set(summary.beside.frame["seed"]) == {"3, 5"}
    assert not any(by_seed[0][0] == value for value in by_seed[1])


def test_every_view_says_the_seeds(trained: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(trained, tmp_path / "run"))
    summary = write_summary(run_dir)
    std = summary.spreads[KEY].seed_std
    shown = console_table(summary)
    assert "3, 5, no folds of their own" in " ".join(shown.split())
    assert f"last epoch: quality {std:.4f}, alignment" in " ".join(shown.split()) and "± seeds" in shown
    assert json.loads((run_dir / "summary.json").read_text())["targets"]["quality"]["last"]["srcc"]["seed_std"] == std
    rows = list(csv.DictReader((run_dir / "summary.csv").read_text().splitlines()))
    one = next(row for row in rows if (row["row"], row["target"], row["checkpoint"]) == ("seed_std", *KEY[:2]))
    assert float(one["srcc"]) == std
    assert {row["epoch"] for row in rows if (row["row"], row["checkpoint"]) == ("fold", "last")} == {"2, 2"}
    assert "no folds of their own" in page(run_dir).text


def test_a_report_names_the_seeds_that_are_missing(trained: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.rmtree(run_dir / "seed_5/fold_01")
    (run_dir / "seed_7").mkdir()
    summary = summarise(load_run(run_dir))
    assert "Fold 0 is not finished with seed 7." in summary.notes
    assert "Fold 1 is not finished with seed 5, 7." in summary.notes
    assert summary.values[KEY][1] == scores(run_dir, 3, 1)["last"]["metrics"]["quality"]["srcc"]
    with pytest.raises(DataError, match="holds no finished fold"):
        load_run(Path(shutil.copytree(run_dir / "seed_7", tmp_path / "empty/seed_7")).parent)


def test_seeds_of_different_runs_are_refused(tmp_path: Path) -> None:
    for seed, epochs in ((1, 12), (2, 11)):
        write_run(tmp_path / f"run/seed_{seed}", epochs=epochs)
    with pytest.raises(
        DataError, match="the seeds are of different runs, number of epochs: 12 in seed 1, 11 in seed 2"
    ):
        load_run(tmp_path / "run")


def test_draws_of_prompts_average_seeds_within_a_fold(tmp_path: Path) -> None:
    """A single fold: its interval comes from the prompts, each draw the mean over seeds, and not of more images."""
    for seed, noise in ((1, 0.3), (2, 0.6)):
        write_run(tmp_path / f"run/seed_{seed}", folds=[0], num_folds=1, noise=noise)
    whole = load_run(tmp_path / "run")
    both = HeldOut(whole)
    parts = both.parts("quality", "last")
    assert list(parts) == [(0, 0), (0, 1)]
    found = both.resampled("srcc", parts)
    single = [HeldOut(load_run(tmp_path / f"run/seed_{seed}")) for seed in (1, 2)]
    each = [one.resampled("srcc", one.parts("quality", "last")) for one in single]
    assert found is not None and None not in each
    assert np.allclose(found.values, np.mean([one.values for one in each], axis=0)) and found.degrees == each[0].degrees
    one = summarise(load_run(tmp_path / "run/seed_1"))
    test = compare(summarise(whole), one, [KEY], [0])[0]
    assert test.n == 1 and math.isfinite(test.p)
    assert "common fold: 0" in compare_runs(whole, one.run)
    assert reported(whole).folds[0].seeds.keys() == {1, 2} and not reported(whole).trained


def test_more_seeds_and_folds_may_join_and_other_settings_may_not(cfg: Path, tmp_path: Path) -> None:
    short = ["run.max_epochs=1", f"run.output_dir={tmp_path}/run"]
    config = load_config(cfg, "run.seeds=[3]", *short)
    with pytest.raises(ConfigError, match="there is no run to continue"):
        run(config, resume=True)
    run_dir = run(config, folds=[0])
    before = (run_dir / "seed_3/fold_00/scores.json").stat().st_mtime_ns
    run(config, folds=[1])
    with pytest.raises(ConfigError, match="already holds a run"):
        run(config)
    run(load_config(cfg, "run.seeds=[5]", *short), folds=[0], resume=True)
    assert load_config(run_dir / "config.yaml").run.seeds == [3, 5]
    assert (run_dir / "seed_3/fold_00/scores.json").stat().st_mtime_ns == before
    assert (run_dir / "seed_5/fold_00/scores.json").is_file()
    with pytest.raises(ConfigError, match=r"run.learning_rate was 0.001, is 0.1"):
        run(load_config(cfg, "run.seeds=[3]", *short, "run.learning_rate=0.1"), resume=True)
    with pytest.raises(ConfigError, match=r"run.seeds was \[3, 5\], is None"):
        run(load_config(cfg, *short), resume=True)
    with pytest.raises(ConfigError, match=r"run.seeds was None, is \[4\]"):
        run(load_config(cfg, "run.seeds=[4]", f"run.output_dir={run_dir}/seed_3"), resume=True)


def test_what_cannot_be_run_is_found_before_a_folder_is_made(cfg: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run.batch_size: 64 is more than the 32"):
        run(load_config(cfg, "run.seeds=[3, 5]", "run.batch_size=64", f"run.output_dir={tmp_path}/run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seeds", ["[]", "[1, 1]", "[-1]", "[4294967296]"])
def test_seeds_are_distinct_numbers(cfg: Path, seeds: str) -> None:
    with pytest.raises(ConfigError, match=r"run.seeds: .* are not distinct numbers from 0 to"):
        load_config(cfg, f"run.seeds={seeds}")


def test_a_scorer_is_the_mean_over_seeds_and_folds(trained: Path, tmp_path: Path) -> None:
    image = min((trained.parent / "images").iterdir())
    every = [
        ipiqa.load(trained / f"seed_{s}/fold_{f:02d}", "cpu").score(image, "a cat") for s in (3, 5) for f in (0, 1)
    ]
    assert np.allclose(ipiqa.load(trained, "cpu").score(image, "a cat"), np.mean(every, axis=0), atol=1e-6)
    of_fold = ipiqa.load(trained, "cpu", folds=[1]).score(image, "a cat")
    assert np.allclose(of_fold, np.mean(every[1::2], axis=0), atol=1e-6)
    assert export_folder(trained, tmp_path / "shared") == 4
    assert np.allclose(ipiqa.load(tmp_path / "shared", "cpu").score(image, "a cat"), np.mean(every, axis=0), atol=1e-6)
    assert "3, 5, no folds of their own" in (tmp_path / "shared/README.md").read_text()


def test_checkpoints_of_a_run_with_seeds_are_taken_seed_by_seed(cfg: Path, trained: Path, tmp_path: Path) -> None:
    changes = ["run.seeds=[3, 5]", "run.evaluate=true", f"run.checkpoint={trained}", f"run.output_dir={tmp_path}/again"]
    again = run(load_config(cfg, *changes), folds=[1])
    for seed in (3, 5):
        assert scores(again, seed, 1)["best"]["metrics"] == scores(trained, seed, 1)["best"]["metrics"]


def test_rows_of_a_grid_have_seeds(cfg: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    rows = "rows:\n  - {name: whole}\n  - {name: seeds, set: {run.seeds: [3, 5]}}\n"
    grid.write_text(f"config: {cfg}\noutput_dir: {tmp_path}/out\nnum_folds: 2\n{rows}")
    points = load_grid(grid, "run.max_epochs=1").points
    run(points[1].config, folds=[0])
    assert points[1].state == "2 of 4 folds"
    assert run_points(points) == {} and [point.state for point in points] == ["finished", "finished"]
    results = [row.run for row in rows_of(points, {})]
    assert [(len(one.folds), one.seeds) for one in results if one] == [(2, ()), (2, (3, 5))]
    changed = load_grid(grid, "run.max_epochs=1", "model.head.dropout=0.3").points[1]
    assert "model.head.dropout was 0.1, is 0.3" in refused(changed.check_folder)


def test_a_leaderboard_has_means_over_seeds_of_what_is_trained(cfg: Path, tmp_path: Path) -> None:
    command = ["bench", "--databases", str(cfg), "--scorers", "no-pixel", "train", "--out", str(tmp_path)]
    assert cli.main([*command, "--options", "run.seeds=[3, 5]", "run.max_epochs=1"]) == 0
    rows = {row["contestant"]: row for row in (json.loads(p.read_text()) for p in tmp_path.glob("rows/*/*.json"))}
    run_dir = next(path.parent for path in tmp_path.glob("*/*/seed_3"))
    each = [scores(run_dir, seed, fold)["last"]["metrics"]["quality"]["srcc"] for seed in (3, 5) for fold in (0, 1)]
    assert rows["ipiqa"]["targets"]["quality"]["srcc"]["mean"] == pytest.approx(statistics.mean(each))
    assert "no folds of their own" in rows["ipiqa"]["facts"]["seeds"]
    assert [name for name, row in rows.items() if "seeds" in row["facts"]] == ["ipiqa"]  # of no-pixel, none is trained


def train(cfg: Path, options: list[str]) -> None:
    """Trains in one of several processes."""
    run(load_config(cfg, *options))


@pytest.mark.slow
def test_several_processes_train_every_seed(cfg: Path, tmp_path: Path) -> None:
    options = ["run.seeds=[3, 5]", "run.batch_size=4", "run.max_epochs=1", f"run.output_dir={tmp_path}/two"]
    assert run_together(2, train, cfg, options) == [0, 0]
    whole = load_run(tmp_path / "two")
    assert [len(fold.seeds) for fold in whole.folds] == [2, 2] and whole.seeds == (3, 5)
