"""The report of a run: its tables, what it warns of, and the comparison of two runs."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fake_runs import Page, edit, page, write_run
from scipy import stats

from ipiqa.errors import DataError
from ipiqa.metrics import measure
from ipiqa.report import compare_runs, console_table, load_run, summarise, write_summary


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return write_run(tmp_path / "agiqa3k" / "ipiqa")


def table(run_dir: Path) -> str:
    return console_table(summarise(load_run(run_dir)))


def cells(text: str, *begin: str) -> list[list[str]]:
    """Returns the rows of the markdown tables of a text that begin with these cells."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [line for line in ([cell.strip() for cell in line] for line in lines) if line[: len(begin)] == [*begin]]


def drop_predictions(run_dir: Path) -> Path:
    for path in run_dir.glob("fold_*/predictions.csv"):
        path.unlink()
    return run_dir


# Tables


def test_means_are_those_of_the_folds(run_dir) -> None:
    summary = summarise(load_run(run_dir))
    scores = [json.loads((run_dir / f"fold_0{k}" / "scores.json").read_text()) for k in range(3)]
    values = [s["last"]["metrics"]["alignment"]["krcc"] for s in scores]
    spread = summary.spreads["alignment", "last", "krcc"]
    assert spread.mean == pytest.approx(np.mean(values)) and spread.std == pytest.approx(np.std(values, ddof=1))
    assert summary.values["alignment", "last", "krcc"] == dict(enumerate(values)) and len(summary.values) == 2 * 2 * 5


@pytest.mark.parametrize("kind", ["reference", "kfold"])
def test_intervals_allow_for_folds_that_share_images(tmp_path, kind) -> None:
    """Plain t for disjoint folds; for draws, held-out images against all others: those of the selection part too."""
    run = load_run(write_run(tmp_path / "run", kind=kind, selection="validation part"))
    spread = summarise(run).spreads["quality", "best", "srcc"]
    overlap = 0 if kind == "kfold" else 120 / (480 + 48)
    reach = stats.t.ppf(0.975, 2) * spread.std * math.sqrt(1 / 3 + overlap)
    assert (spread.low, spread.high) == pytest.approx((spread.mean - reach, spread.mean + reach))
    saved = write_summary(run.run_dir) and json.loads((run.run_dir / "summary.json").read_text())
    assert ("disjoint" in saved["interval"]) is (kind == "kfold")


def test_missing_and_unfinished_folds_are_listed(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", folds=(0, 3), num_folds=10)
    (run_dir / "fold_05").mkdir()
    assert load_run(run_dir).missing == (1, 2, 4, 5, 6, 7, 8, 9)
    assert "2 of 10, missing: 1, 2, 4 to 9" in table(run_dir)
    assert "2 of 10, missing: 1, 2, 4 to 9" in page(run_dir).text


@pytest.mark.parametrize("targets", [("quality", "alignment"), ("a_rather_long_target_name", "b")])
@pytest.mark.parametrize("settings", [{"epochs": 12}, {"epochs": None, "kind": "image_random"}])
def test_console_table_fits_a_terminal(tmp_path, targets, settings) -> None:
    text = table(write_run(tmp_path / "run", targets=targets, **settings))
    assert max(map(len, text.splitlines())) <= 100
    assert all(target in text for target in targets)
    assert text.count("± std") == len(targets)


def test_console_table_names_split_and_selection(tmp_path, run_dir) -> None:
    def words(name, **settings):
        return " ".join(table(write_run(tmp_path / name, **settings)).split())

    text = " ".join(table(run_dir).split())
    assert "split reference, seed 42: prompt-disjoint draws as in the reference code" in text
    assert "best epoch on the reported part (optimistic: the reported images also choose the epoch)" in text
    assert "agiqa_3k, 600 images, 120 held out per fold" in text
    assert "best epoch on a validation part of 10 % of the training groups" in words("a", selection="validation part")
    assert "held out exactly once" in words("c", kind="kfold")
    assert "exact share of the groups" in words("d", kind="holdout")
    assert "not trained here" in words("e", epochs=None)


def test_console_table_shows_the_numbers(run_dir) -> None:
    row = next(line for line in table(run_dir).splitlines() if line.startswith("1 ")).split()
    best = load_run(run_dir).folds[1].scores.best
    assert row[:3] == ["1", "120", "11"] and row[3] == f"{best.metrics['quality']['srcc']:.4f}"


def test_undefined_metrics_are_explained(run_dir) -> None:
    metrics = measure(np.ones((9, 2)), np.random.default_rng(0).normal(size=(9, 2)), ("quality", "alignment"))
    edit(run_dir, 1, lambda s: s["last"].update(metrics=metrics))
    summary = write_summary(run_dir)
    text = console_table(summary)
    note = "fold 1, epoch 12, quality: correlations are undefined: all 9 predictions are the same (1)"
    assert note in text and "nan" in text
    assert math.isnan(summary.spreads["quality", "last", "srcc"].mean)
    assert note in Page((run_dir / "report.html").read_text()).text
    saved = json.loads((run_dir / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert saved["targets"]["quality"]["last"]["srcc"]["mean"] is None and note in saved["notes"]


def test_many_notes_are_cut_short(run_dir) -> None:
    def change(scores):
        scores["last"]["metrics"]["quality"]["notes"] = [f"reason {i}" for i in range(30)]

    edit(run_dir, 0, change)
    text = table(run_dir)
    assert "reason 7" in text and "reason 8" not in text and "and 22 more like these, see summary.json" in text


def test_an_unknown_metric_is_shown_and_a_known_one_may_be_missing(run_dir, tmp_path) -> None:
    def change(scores):
        for checkpoint in ("best", "last"):
            del scores[checkpoint]["metrics"]["alignment"]["krcc"]
            scores[checkpoint]["metrics"]["quality"]["main_score"] = 0.625

    for fold in range(3):
        edit(run_dir, fold, change)
    summary = write_summary(run_dir)
    assert summary.metrics == ("srcc", "plcc", "krcc", "rmse", "plcc_fitted", "main_score")
    assert "main_score" in console_table(summary) and summary.spreads["quality", "last", "main_score"].mean == 0.625
    row = cells((run_dir / "summary.md").read_text(), "alignment", "best")[0]
    assert row[4] == "-" and row[7] == "-" and "0.6250" in page(run_dir).text
    assert (run_dir / "summary.tex").read_text().count("--") == 4 and "main\\_score" in (
        run_dir / "summary.tex"
    ).read_text()
    compared = compare_runs(load_run(run_dir), load_run(write_run(tmp_path / "other", noise=0.6)))
    assert "main" not in compared and len(cells(compared, "best", "KRCC")) == 1


@pytest.mark.parametrize(
    ("settings", "change", "words"),
    [
        ({"kind": "image_random"}, lambda s: None, "Prompts leak between the parts of this split"),
        (
            {"epochs": None},
            lambda s: s.update(seen_in_training=40 * (s["fold"] != 1)),
            "The checkpoint was trained on 80 of the 360 held-out images (fold 0, 2).",
        ),
        ({}, lambda s: s.pop("settings"), "Fold 0 to 2 does not record its settings"),
    ],
)
def test_what_figures_are_not_is_said_in_every_view(tmp_path, settings, change, words) -> None:
    run_dir = write_run(tmp_path / "run", **settings)
    for fold in range(3):
        edit(run_dir, fold, change)
    text = page(run_dir).text
    views = [" ".join(table(run_dir).replace("\n  ", " ").split()), text]
    views += [(run_dir / f"summary.{kind}").read_text() for kind in ("md", "tex", "json")]
    views.append(compare_runs(load_run(run_dir), load_run(run_dir)))
    assert all(words in view for view in views)
    plain = write_run(tmp_path / "plain")
    write_summary(plain)
    assert words not in table(plain) and words not in (plain / "report.html").read_text()


def test_single_fold_has_no_spread(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", folds=(0,), num_folds=1)
    assert "± std" not in table(run_dir)
    assert "One fold: there is no spread over folds to tell." in page(run_dir).text
    assert "nan" not in (run_dir / "summary.md").read_text() + (run_dir / "summary.tex").read_text()


def test_all_files_are_written_whole(run_dir) -> None:
    summary = write_summary(run_dir)
    files = {path.name for path in run_dir.iterdir() if path.name.startswith(("summary", "report"))}
    assert files == {"summary.json", "summary.csv", "summary.md", "summary.tex", "report.html"}
    assert not list(run_dir.glob(".*"))
    saved = json.loads((run_dir / "summary.json").read_text())
    assert saved["targets"]["quality"]["best"]["srcc"]["mean"] == summary.spreads["quality", "best", "srcc"].mean
    assert saved["finished_folds"] == [0, 1, 2] and saved["split_kind"] == "reference"
    rows = list(csv.DictReader((run_dir / "summary.csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * (3 + 5)
    mean = next(r for r in rows if (r["target"], r["checkpoint"], r["row"]) == ("quality", "last", "mean"))
    assert float(mean["plcc"]) == summary.spreads["quality", "last", "plcc"].mean
    before = {name: (run_dir / name).read_bytes() for name in files}
    write_summary(run_dir)
    assert before == {name: (run_dir / name).read_bytes() for name in files}


def test_markdown_and_latex(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", targets=("mos_quality", "a|b"))
    write_summary(run_dir)
    markdown = (run_dir / "summary.md").read_text()
    assert {len(row) for row in cells(markdown)} == {4, 7, 14} and r"a\|b" in markdown
    latex = (run_dir / "summary.tex").read_text()
    assert r"\toprule" in latex and r"\bottomrule" in latex and r"mos\_quality" in latex
    assert re.search(r"\$0\.\d{4} \\pm 0\.\d{4}\$", latex)
    assert all(line.count("&") == 6 for line in latex.splitlines() if line.endswith(r"\\"))
    if shutil.which("pdflatex"):
        text = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{latex}\end{{document}}"
        (tmp_path / "t.tex").write_text(text)
        subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True)


# Comparison


def test_compare_finds_the_better_run(tmp_path) -> None:
    a = load_run(write_run(tmp_path / "a", folds=range(8), num_folds=8, noise=0.2, epochs=3))
    b = load_run(write_run(tmp_path / "b", folds=range(10), num_folds=10, noise=2.0, epochs=3))
    text = compare_runs(a, b)
    assert "8 common folds: 0 to 7" in text and "Nadeau & Bengio" in text
    rows = cells(text, "best") + cells(text, "last")
    assert len(rows) == 20 and all(row[-1] == "A" for row in rows)
    rmse = next(row for row in rows if row[1] == "RMSE")
    assert rmse[4].startswith("-") and rmse[6] == "<0.001"
    assert compare_runs(b, a).count("| B ") == 2 + 20
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 100
    same = compare_runs(a, a)
    assert same.count("| open ") == 20 and "all 8 differences are zero" in same


def test_one_p_for_each_row_and_holm_over_the_table(tmp_path) -> None:
    """With plain p below 0.05 in some rows, none is ahead: ten rows were looked at."""
    runs = [load_run(write_run(tmp_path / name, noise=noise)) for name, noise in (("a", 0.3), ("b", 0.6))]
    rows = cells(compare_runs(*runs).partition("## alignment")[0])[2:]
    assert len(rows) == 10
    p, corrected = ([float(row[i].lstrip("<")) for row in rows] for i in (6, 7))
    assert [row[8] for row in rows] == ["A" if value < 0.05 else "open" for value in corrected]
    assert min(corrected) == pytest.approx(10 * min(p), abs=0.006) and sum(value < 0.05 for value in p) > 4
    assert sum(value < 0.05 for value in corrected) == 2


def test_intervals_of_few_folds_stay_within_the_metric(tmp_path) -> None:
    spreads = write_summary(write_run(tmp_path / "run", num_images=3)).spreads
    srcc, rmse = (spreads["alignment", "best", metric] for metric in ("srcc", "rmse"))
    assert (srcc.high, rmse.low) == (1, 0)
    assert 0 < srcc.low < srcc.mean < 1 and 0 < rmse.mean < rmse.high


def test_kfold_is_compared_by_the_plain_test(tmp_path) -> None:
    runs = [load_run(write_run(tmp_path / f"{noise}", kind="kfold", noise=noise)) for noise in (0.3, 0.6)]
    values = [[fold.scores.best.metrics["quality"]["srcc"] for fold in run.folds] for run in runs]
    assert float(cells(compare_runs(*runs), "best", "SRCC")[0][6]) == round(stats.ttest_rel(*values).pvalue, 3)


def test_compare_tells_different_selection(tmp_path) -> None:
    """The split's hash is of all three parts: the held-out images decide whether two runs can be compared."""
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", selection="validation part", noise=0.6)
    for fold in range(3):
        edit(b, fold, lambda s: s["split"].update(sha256="f" * 64))
    text = compare_runs(load_run(a), load_run(b))
    assert "chosen differently: A on the reported part, B on the validation part" in text


def test_compare_with_a_run_that_trained_on_one_target(tmp_path, run_dir) -> None:
    """It has read a narrower table: another hash, the same scores."""
    alone = write_run(tmp_path / "alone", noise=0.6)
    for fold in range(3):
        edit(alone, fold, lambda s: (s.update(targets=["quality"]), s["dataset"].update(sha256="e" * 64)))
    text = compare_runs(load_run(run_dir), load_run(alone))
    assert len(cells(text, "best", "SRCC")) == 1 and "## quality" in text and "## alignment" not in text
    assert "- alignment: not compared, no common target, quality, alignment against quality" in text


@pytest.mark.parametrize(
    ("settings", "change", "words"),
    [
        ({"seed": 7}, None, "other images were held out in fold 0"),
        ({"targets": ("mos",)}, None, "no common target, quality, alignment against mos"),
        ({"folds": (3, 4), "num_folds": 5}, None, "no common fold, 0 to 2 against 3, 4"),
        ({}, drop_predictions, "the scores of quality are others"),
    ],
)
def test_compare_refuses(tmp_path, run_dir, settings, change, words) -> None:
    other = write_run(tmp_path / "other", **settings)
    if change is not None:
        change(other)
        for fold in range(3):
            edit(other, fold, lambda s: s["dataset"].update(sha256="e" * 64))
    with pytest.raises(DataError, match=f"cannot be compared: {words}"):
        compare_runs(load_run(run_dir), load_run(other))
