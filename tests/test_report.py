"""The report of a run: reading it back, refusing what does not belong together, tables, comparison."""

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

from ipiqa.errors import DataError
from ipiqa.metrics import measure
from ipiqa.report import compare_runs, console_table, load_run, summarise, write_summary


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return write_run(tmp_path / "agiqa3k" / "ipiqa")


# Reading


def test_reads_what_was_written(run_dir) -> None:
    run = load_run(run_dir)
    assert (run.name, run.targets, run.moments) == ("agiqa3k/ipiqa", ("quality", "alignment"), ("best", "last"))
    assert [fold.number for fold in run.folds] == [0, 1, 2] and run.missing == () and run.num_folds == 3
    assert run.folds[1].moments["best"].epoch == 11 and run.folds[1].moments["last"].epoch == 12
    part = run.folds[0].predictions
    assert part is not None and part.mos.shape == (120, 2)
    again = measure(part.found["best"], part.mos, run.targets)
    assert again["alignment"]["srcc"] == run.folds[0].moments["best"].metrics["alignment"]["srcc"]
    assert len(run.folds[0].curve) == 12


def test_means_are_those_of_the_folds(run_dir) -> None:
    summary = summarise(load_run(run_dir))
    scores = [json.loads((run_dir / f"fold_0{k}" / "scores.json").read_text()) for k in range(3)]
    values = [s["last"]["metrics"]["alignment"]["krcc"] for s in scores]
    spread = summary.spreads["alignment"]["last"]["krcc"]
    assert spread.mean == pytest.approx(np.mean(values)) and spread.std == pytest.approx(np.std(values, ddof=1))


def test_missing_and_unfinished_folds_are_told(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", folds=(0, 3), num_folds=10)
    (run_dir / "fold_05").mkdir()
    run = load_run(run_dir)
    assert run.missing == (1, 2, 4, 5, 6, 7, 8, 9)
    assert "2 of 10, missing: 1, 2, 4 to 9" in console_table(summarise(run))
    assert "2 of 10, missing: 1, 2, 4 to 9" in page(run_dir).text


def test_folder_without_folds(tmp_path) -> None:
    with pytest.raises(DataError, match=r"holds no finished fold \(fold_\*/scores.json\). Give the output folder"):
        load_run(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["split"].update(seed=7), "split seed: 42 in folds 0, 1, 7 in fold 2"),
        (lambda s: s["split"].update(kind="kfold"), "split kind: reference in folds 0, 1, kfold in fold 2"),
        (
            lambda s: s["dataset"].update(sha256="e" * 64),
            r"dataset: agiqa_3k \(dddddddddddd\) in folds 0, 1, agiqa_3k \(e",
        ),
        (lambda s: s.update(selection="validation part"), "selection: reported part in folds 0, 1, validation part in"),
        (lambda s: s.update(epochs=100), "number of epochs: 12 in folds 0, 1, 100 in fold 2"),
        (lambda s: s.pop("last"), "epochs measured: best and last in folds 0, 1, best in fold 2"),
    ],
)
def test_mixed_runs_are_refused(run_dir, change, words) -> None:
    edit(run_dir, 2, change)
    with pytest.raises(DataError, match=words):
        load_run(run_dir)
    with pytest.raises(DataError, match="the folds are of different runs"):
        write_summary(run_dir)
    assert not (run_dir / "summary.json").exists()


def test_mixed_targets_are_refused(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", folds=(0,))
    shutil.copytree(write_run(tmp_path / "other", folds=(1,), targets=("quality",)) / "fold_01", run_dir / "fold_01")
    with pytest.raises(DataError, match="targets: quality, alignment in fold 0, quality in fold 1"):
        load_run(run_dir)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("scores.json", "{", "cannot be read as json"),
        ("scores.json", "[]", r"not the scores of a fold \(TypeError"),
        ("scores.json", '{"format": 1}', r"not the scores of a fold \(KeyError: 'fold'\)"),
        ("scores.json", '{"format": 2}', "format 2, this version reads up to 1. Update ipiqa."),
        (
            "predictions.csv",
            "image,prompt\na,b\n",
            r"not the predictions of a fold \(no column 'best_quality'\)|no column",
        ),
        ("predictions.csv", None, None),
        ("metrics.jsonl", '{"epoch": 1, "loss": 0.5}\n{"epo', None),
    ],
)
def test_damaged_files(run_dir, file, content, words) -> None:
    path = run_dir / "fold_01" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    if words is None:
        assert page(run_dir).text  # what a report can do without
    else:
        with pytest.raises(DataError, match=words) as caught:
            load_run(run_dir)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_renamed_fold_is_refused(run_dir) -> None:
    (run_dir / "fold_02").rename(run_dir / "fold_04")
    with pytest.raises(DataError, match=r"holds fold 2. Was the folder renamed\? It belongs in fold_02"):
        load_run(run_dir)


@pytest.mark.parametrize("text", ["", "- a\n", "run: 3\n", "run: {num_folds: many}\n", "a: [\n", "\x00"])
def test_report_does_without_the_config(run_dir, text) -> None:
    (run_dir / "config.yaml").write_text(text)
    run = load_run(run_dir)
    assert run.num_folds is None and run.missing == ()


# Tables


@pytest.mark.parametrize("targets", [("quality", "alignment"), ("mos",), ("a_rather_long_target_name", "b")])
@pytest.mark.parametrize("epochs", [12, None])
@pytest.mark.parametrize("kind", ["reference", "image_random"])
def test_console_table_fits_a_terminal(tmp_path, targets, epochs, kind) -> None:
    run_dir = write_run(tmp_path / "run", targets=targets, epochs=epochs, kind=kind)
    text = console_table(summarise(load_run(run_dir)))
    assert max(map(len, text.splitlines())) <= 100
    assert all(target in text for target in targets)
    assert text.count("± std") == len(targets)


def test_console_table_names_split_and_selection(tmp_path, run_dir) -> None:
    def table(name, **settings):
        return " ".join(console_table(summarise(load_run(write_run(tmp_path / name, **settings)))).split())

    text = " ".join(console_table(summarise(load_run(run_dir))).split())
    assert "split reference, seed 42: prompt-disjoint draws as in the reference code" in text
    assert "best epoch on the reported part (optimistic: the reported images also choose the epoch)" in text
    assert "agiqa_3k, 600 images, 120 held out per fold" in text
    assert "best epoch on a validation part of 10 % of the training groups" in table("a", selection="validation part")
    leaks = "prompts leak between parts: do not compare with prompt-disjoint results"
    assert leaks in table("b", kind="image_random") and leaks not in text
    assert "held out exactly once" in table("c", kind="kfold")
    assert "exact share of the groups" in table("d", kind="holdout")
    assert "not trained here" in table("e", epochs=None)


def test_console_table_shows_the_numbers(run_dir) -> None:
    lines = console_table(summarise(load_run(run_dir))).splitlines()
    row = next(line for line in lines if line.startswith("1 ")).split()
    best = load_run(run_dir).folds[1].moments["best"]
    assert row[:3] == ["1", "120", "11"] and row[3] == f"{best.metrics['quality']['srcc']:.4f}"


def test_undefined_metrics_are_explained(run_dir) -> None:
    metrics = measure(np.ones((9, 2)), np.random.default_rng(0).normal(size=(9, 2)), ("quality", "alignment"))
    edit(run_dir, 1, lambda s: s["last"].update(metrics=metrics))
    summary = write_summary(run_dir)
    text = console_table(summary)
    note = "fold 1, epoch 12, quality: correlations are undefined: all 9 predictions are the same (1)"
    assert note in text and "nan" in text
    assert math.isnan(summary.spreads["quality"]["last"]["srcc"].mean)
    assert note in Page((run_dir / "report.html").read_text()).text
    saved = json.loads((run_dir / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert saved["targets"]["quality"]["last"]["srcc"]["mean"] is None and note in saved["notes"]


def test_many_notes_are_cut_short(run_dir) -> None:
    def change(scores):
        scores["last"]["metrics"]["quality"]["notes"] = [f"reason {i}" for i in range(30)]

    edit(run_dir, 0, change)
    text = console_table(summarise(load_run(run_dir)))
    assert "reason 7" in text and "reason 8" not in text and "and 22 more like these, see summary.json" in text


def test_single_fold_has_no_spread(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", folds=(0,), num_folds=1)
    assert "± std" not in console_table(summarise(load_run(run_dir)))
    assert "One fold: there is no spread to tell." in page(run_dir).text
    assert "nan" not in (run_dir / "summary.md").read_text() + (run_dir / "summary.tex").read_text()


def test_all_files_are_written_whole(run_dir) -> None:
    summary = write_summary(run_dir)
    files = {path.name for path in run_dir.iterdir() if path.name.startswith(("summary", "report"))}
    assert files == {"summary.json", "summary.csv", "summary.md", "summary.tex", "report.html"}
    assert not list(run_dir.glob(".*"))
    saved = json.loads((run_dir / "summary.json").read_text())
    assert saved["targets"]["quality"]["best"]["srcc"]["mean"] == summary.spreads["quality"]["best"]["srcc"].mean
    assert saved["finished_folds"] == [0, 1, 2] and saved["split_kind"] == "reference"
    rows = list(csv.DictReader((run_dir / "summary.csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * (3 + 5)
    mean = next(r for r in rows if (r["target"], r["checkpoint"], r["row"]) == ("quality", "last", "mean"))
    assert float(mean["plcc"]) == summary.spreads["quality"]["last"]["plcc"].mean
    before = {name: (run_dir / name).read_bytes() for name in files}
    write_summary(run_dir)
    assert before == {name: (run_dir / name).read_bytes() for name in files}


def test_markdown_and_latex(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", targets=("mos_quality", "a|b"))
    write_summary(run_dir)
    markdown = (run_dir / "summary.md").read_text()
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert cells == {8, 15} and r"a\|b" in markdown
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
    rows = [
        [c.strip() for c in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith(("| best", "| last"))
    ]
    assert len(rows) == 20 and all(row[-1] == "A" for row in rows)
    rmse = next(row for row in rows if row[1] == "RMSE")
    assert rmse[4].startswith("-") and float(rmse[6].lstrip("< ")) < 0.05
    assert compare_runs(b, a).count("| B ") == 2 + 20
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 100
    same = compare_runs(a, a)
    assert same.count("| open ") == 20 and "all 8 differences are zero" in same


def test_compare_tells_different_selection(tmp_path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", selection="validation part")
    text = compare_runs(load_run(a), load_run(b))
    assert "chosen differently: A on the reported part, B on the validation part" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": 7}, "3 of 3 folds were measured on different parts"),
        ({"targets": ("mos",)}, "no common target, quality, alignment against mos"),
        ({"folds": (3, 4), "num_folds": 5}, "no common fold, 0 to 2 against 3, 4"),
    ],
)
def test_compare_refuses(tmp_path, run_dir, settings, words) -> None:
    with pytest.raises(DataError, match=words):
        compare_runs(load_run(run_dir), load_run(write_run(tmp_path / "other", **settings)))


def test_compare_refuses_another_dataset(tmp_path, run_dir) -> None:
    other = write_run(tmp_path / "other")
    for fold in range(3):
        edit(other, fold, lambda s: s["dataset"].update(sha256="e" * 64))
    with pytest.raises(DataError, match="the annotation tables differ"):
        compare_runs(load_run(run_dir), load_run(other))
