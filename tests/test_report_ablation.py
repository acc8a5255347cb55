"""The table of an ablation: its numbers, what is compared with what, and how it is written."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_runs import HOSTILE, Page, edit, write_run
from scipy import stats

from ipiqa.errors import DataError
from ipiqa.report import AblationRow, load_run, write_ablation
from ipiqa.report.compare import compare_rows, mark

FOLDS = {"folds": range(6), "num_folds": 6, "epochs": 3}


def row(name: str, run_dir: Path | None) -> AblationRow:
    run = None if run_dir is None else load_run(run_dir)
    return AblationRow(name, (f"a.key={name}",), "not begun" if run is None else "finished", run)


@pytest.fixture
def rows(tmp_path: Path) -> list[AblationRow]:
    """A whole, a row that is clearly worse, and one that is a little so."""
    noises = {"whole": 0.3, "worse": 2.0, "alike": 0.32}
    return [row(name, write_run(tmp_path / name, noise=noise, **FOLDS)) for name, noise in noises.items()]


def values(run_dir: Path, checkpoint: str, target: str, metric: str) -> np.ndarray:
    paths = sorted(run_dir.glob("fold_*/scores.json"))
    return np.array([json.loads(path.read_text())[checkpoint]["metrics"][target][metric] for path in paths])


def cells(text: str, *begin: str) -> list[str]:
    """Returns the one row of the tables of a page that begins with these cells."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    found = [line for line in ([cell.strip() for cell in line] for line in lines) if line[: len(begin)] == [*begin]]
    assert len(found) == 1, found
    return found[0]


def test_numbers_are_those_computed_by_hand(rows, tmp_path: Path) -> None:
    text = write_ablation(tmp_path / "out", rows)
    assert text == (tmp_path / "out/ablation.md").read_text()
    with (tmp_path / "out/ablation.csv").open(newline="") as file:
        lines = {(line["row"], line["checkpoint"], line["target"]): line for line in csv.DictReader(file)}
    assert len(lines) == 3 * 2 * 2
    saved = json.loads((tmp_path / "out/ablation.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    for checkpoint in ("last", "best"):
        for target in ("quality", "alignment"):
            whole, other = (values(tmp_path / name, checkpoint, target, "srcc") for name in ("whole", "alike"))
            difference, ratio = other - whole, 120 / 480
            error = math.sqrt((1 / 6 + ratio) * difference.var(ddof=1))
            p = 2 * stats.t.sf(abs(difference.mean() / error), 5)
            low = difference.mean() - stats.t.ppf(0.975, 5) * error
            line = lines["alike", checkpoint, target]
            wanted = {
                "srcc_mean": other.mean(), "srcc_std": other.std(ddof=1), "srcc_difference": difference.mean(),
                "plcc_mean": values(tmp_path / "alike", checkpoint, target, "plcc").mean(), "low": low, "p": p,
            }  # fmt: skip
            assert {name: float(line[name]) for name in wanted} == pytest.approx(wanted, rel=1e-9)
            p_worse = float(lines["worse", checkpoint, target]["p"])
            assert p_worse < p and float(line["p_holm"]) == pytest.approx(max(p, 2 * p_worse))
            assert float(lines["worse", checkpoint, target]["p_holm"]) == pytest.approx(2 * p_worse)
            assert (line["folds"], line["common_folds"], line["changes"]) == ("6", "6", "a.key=alike")
            test = saved["rows"][2]["targets"][target][checkpoint]["srcc_minus_first"]
            assert test["difference"] == pytest.approx(difference.mean()) and test["p_holm"] == float(line["p_holm"])
    assert all(lines["whole", "last", "quality"][name] == "" for name in ("srcc_difference", "low", "p", "p_holm"))


def test_the_page_shows_both_checkpoints_and_marks_what_is_significant(rows, tmp_path: Path) -> None:
    text = write_ablation(tmp_path / "out", rows)
    for checkpoint in ("last", "best"):
        srcc = values(tmp_path / "worse", checkpoint, "quality", "srcc")
        plcc = values(tmp_path / "worse", checkpoint, "quality", "plcc")
        found = cells(text, checkpoint, "worse")
        assert found[2] == f"{srcc.mean():.4f} ± {srcc.std(ddof=1):.4f} ↓"
        assert found[3] == f"{plcc.mean():.4f} ± {plcc.std(ddof=1):.4f}"
        assert cells(text, checkpoint, "quality", "worse")[3].endswith(" ↓")
        assert not any(mark in "".join(cells(text, checkpoint, "whole")) for mark in "↑↓")
    assert "- ↑ ↓: SRCC differs from whole, p Holm < 0.05\n" in text
    assert "p Holm: corrected for the number of rows that are compared, in each epoch and target by itself" in text
    assert "- **split**: reference, seed 42: prompt-disjoint draws as in the reference code; folds overlap" in text
    assert "best epoch on the reported part (optimistic" in text
    better = write_ablation(tmp_path / "turned", [rows[1], rows[0]])
    assert cells(better, "last", "whole")[2].endswith(" ↑") and "SRCC minus that of worse" in better


def test_a_significance_that_holm_takes_back_is_not_marked(rows) -> None:
    test = compare_rows(rows).differences["last", "quality", "worse"]
    assert test.p < test.p_holm < 0.01
    marks = [mark(dataclasses.replace(test, p_holm=p)) for p in (0.049, 0.05, math.nan)]
    assert marks == ["↓", "", ""]


def test_rows_that_are_not_finished_are_listed(rows, tmp_path: Path) -> None:
    text = write_ablation(tmp_path / "out", [rows[0], row("to come", None), rows[1]])
    assert text.endswith("- to come: not finished (not begun)\n") and text.count("to come") == 1
    assert "% to come: not finished" in (tmp_path / "out/ablation.tex").read_text()
    assert json.loads((tmp_path / "out/ablation.json").read_text())["rows"][1]["run_dir"] is None
    text = write_ablation(tmp_path / "out", [row("first", None), *rows])
    assert "- first is not finished: there is nothing to compare with yet\n" in text and "minus" not in text
    assert "↓" not in text
    with pytest.raises(DataError, match="no row is finished"):
        write_ablation(tmp_path / "none", [row("first", None)])
    assert not (tmp_path / "none").exists()


def one_target(run_dir: Path, mos: float | None = None) -> Path:
    """Makes a run one that was trained on quality alone, from a table with other columns."""
    for fold in range(6):
        edit(run_dir, fold, lambda s: (s.update(targets=["quality"]), s["dataset"].update(sha256="e" * 64)))
    if mos is not None:
        path = run_dir / "fold_03/predictions.csv"
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        lines[5]["mos_quality"] = str(mos)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    return run_dir


def test_a_row_without_a_target_of_the_first(rows, tmp_path: Path) -> None:
    alone = row("alone", one_target(write_run(tmp_path / "alone", noise=2.0, **FOLDS)))
    text = write_ablation(tmp_path / "out", [*rows, alone])
    assert cells(text, "last", "alone")[4:] == ["-", "-"] and cells(text, "last", "alone")[2].endswith("↓")
    assert cells(text, "last", "quality", "alone")[3] == cells(text, "last", "quality", "worse")[3]
    assert "| alignment | alone" not in text
    # the other way round, too
    text = write_ablation(tmp_path / "out", [alone, rows[0]])
    assert cells(text, "last", "alone")[4:] == ["-", "-"] and "-" not in cells(text, "last", "whole")[4:]
    assert len(compare_rows([alone, rows[0]]).differences) == 2


def test_what_cannot_be_compared_is_told(rows, tmp_path: Path) -> None:
    others = {
        "leaks": write_run(tmp_path / "leaks", kind="image_random", seed=7, **FOLDS),
        "scores": one_target(write_run(tmp_path / "scores", **FOLDS), mos=9.5),
        "folds": write_run(tmp_path / "folds", folds=range(6, 9), num_folds=9, epochs=3),
        "fewer": write_run(tmp_path / "fewer", noise=2.0, folds=(1, 2, 4), num_folds=5, epochs=3),
    }
    text = write_ablation(tmp_path / "out", [rows[0], *(row(name, folder) for name, folder in others.items())])
    assert text.count("- leaks: not compared with whole, other images were held out in fold 0\n") == 1
    assert "- leaks: split: image\\_random, seed 7: prompts leak between parts: do not compare" in text
    assert "- scores: not compared with whole, the scores of quality are others\n" in text
    assert "- folds: not compared with whole, no common fold, 6 to 8 against 0 to 5\n" in text
    assert "- fewer: compared with whole over the folds both have, 1, 2, 4\n" in text
    assert {key[2] for key in compare_rows([rows[0], *(row(*o) for o in others.items())]).differences} == {"fewer"}
    assert not any(mark in "".join(cells(text, "last", "leaks")) for mark in "↑↓")


def test_undefined_figures_are_explained(rows, tmp_path: Path) -> None:
    edit(tmp_path / "alike", 1, lambda s: s["last"]["metrics"]["quality"].update(srcc=None))
    text = write_ablation(tmp_path / "out", [*rows[:2], row("alike", tmp_path / "alike")])
    assert cells(text, "last", "alike")[2] == "nan"
    assert cells(text, "last", "quality", "alike")[3:] == ["-", "-", "-", "-"]
    assert "- alike: quality SRCC, last epoch: undefined in 1 of 6 folds\n" in text
    assert " & -- & " in (tmp_path / "out/ablation.tex").read_text()
    same = write_ablation(tmp_path / "same", [rows[0], row("twin", tmp_path / "whole")])
    assert "- twin: quality, last epoch: all 6 differences are zero: a t-test is undefined\n" in same


def test_one_fold_is_tested_over_its_prompts(tmp_path: Path) -> None:
    """And not at all without predictions, from which prompts could be drawn."""
    runs = [
        write_run(tmp_path / name, folds=(0,), num_folds=1, noise=noise) for name, noise in (("a", 0.3), ("b", 2.0))
    ]
    text = write_ablation(tmp_path / "out", [row(run.name, run) for run in runs])
    low, _, high = cells(text, "last", "quality", "b")[4].split()
    assert "±" not in "".join(cells(text, "last", "b")) and -1 < float(low) < float(high) < 0
    assert cells(text, "last", "quality", "b")[3].endswith("↓") and "t over prompts, from 1,000 draws" in text
    for path in tmp_path.glob("*/fold_00/predictions.csv"):
        path.unlink()
    text = write_ablation(tmp_path / "out", [row(run.name, run) for run in runs])
    assert cells(text, "last", "quality", "b")[4:] == ["-", "-", "-"]
    assert "- b: quality, last epoch: n = 1: a paired test needs two folds or more\n" in text


def test_rows_that_only_evaluated_have_one_checkpoint(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, epochs=None, noise=noise) for name, noise in (("a", 0.3), ("b", 2.0))]
    text = write_ablation(tmp_path / "out", [row(run.name, run) for run in runs])
    assert cells(text, "checkpoint", "a") and "| last" not in text and "| best" not in text
    assert "epoch}" not in (tmp_path / "out/ablation.tex").read_text()


def test_a_row_that_only_evaluated_beside_trained_ones_is_told(rows, tmp_path: Path) -> None:
    evaluated = row("evaluated", write_run(tmp_path / "evaluated", **FOLDS | {"epochs": None}))
    assert "- evaluated: weights: not trained here: the checkpoint" in write_ablation(
        tmp_path / "out", [*rows, evaluated]
    )


def test_a_line_break_in_a_name_stays_in_its_comment(rows, tmp_path: Path) -> None:
    names = ["a\nb", "c\rd\u2028e"]
    folders = [row(names[0], tmp_path / "worse"), row(names[1], None)]
    text = write_ablation(tmp_path / "out", [rows[0], *(dataclasses.replace(f, state="x\ny") for f in folders)])
    latex = (tmp_path / "out/ablation.tex").read_text()
    starts = ("%", "\\", "{", "Row", " & ")
    assert all(line.startswith(starts) for line in latex.splitlines()) and "% c d e: not finished (x y)" in latex
    assert "- c d e: not finished (x y)" in text and "| a b " in text


def test_latex_and_names_with_special_signs(rows, tmp_path: Path) -> None:
    name = f"[QA] 5 % a_b {HOSTILE}"
    text = write_ablation(tmp_path / "out", [rows[0], AblationRow(name, (), "finished", rows[1].run)])
    assert Page(f"<p>{text}</p>".replace("&", "&amp;").replace("\\<", "&lt;")).tags == ["p"]
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {7, 8}
    latex = (tmp_path / "out/ablation.tex").read_text()
    assert "\n{[QA] 5 \\% a\\_b " in latex and r"\downarrow" in latex and r"\emph{last epoch}" in latex
    body = [line for line in latex.splitlines() if line.startswith(("{whole", "{[QA]", "Row"))]
    assert len(body) == 5 and all(line.count(" & ") - line.count(r"\& ") == 4 for line in body[:2])
    with (tmp_path / "out/ablation.csv").open(newline="") as file:
        assert {line["row"] for line in csv.DictReader(file)} == {"whole", name}
    if shutil.which("pdflatex"):
        page = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{latex}\end{{document}}"
        (tmp_path / "t.tex").write_text(page)
        subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_the_plot_has_every_finished_row_where_its_numbers_are(rows, tmp_path: Path) -> None:
    write_ablation(tmp_path / "out", [*rows, row("to come", None), dataclasses.replace(rows[1], name="<b>&")])
    drawn = ElementTree.parse(tmp_path / "out/ablation.svg").getroot()  # a name with signs of XML must not break it
    space = "{http://www.w3.org/2000/svg}"
    names = [text.text for text in drawn.findall(f"{space}text")]
    assert names == ["whole", "worse", "alike", "<b>&"]
    saved = json.loads((tmp_path / "out/ablation.json").read_text())["rows"]
    for target, panel in zip(("quality", "alignment"), drawn.findall(f"{space}g"), strict=True):
        dots = [float(dot.get("cx", "nan")) for dot in panel.findall(f"{space}circle")]
        bars = [[float(bar.get(x, "nan")) for x in ("x1", "x2")] for bar in panel.findall(f"{space}line[@class='bar']")]
        found = [saved[i]["targets"][target]["last"]["srcc"] for i in range(3)]
        places = np.array([[dots[i], *bars[i]] for i in range(3)])
        numbers = np.array([[one["mean"], one["low"], one["high"]] for one in found])
        fit = np.polyfit(numbers.ravel(), places.ravel(), 1)
        assert fit[0] > 0 and np.abs(np.polyval(fit, numbers) - places).max() < 0.1  # one scale for all of a panel


def test_the_plot_has_room_for_long_names(tmp_path: Path) -> None:
    long = "product of image and prompt feature beside the fusion"
    write_ablation(tmp_path / "out", [row(long, write_run(tmp_path / "long", **FOLDS))])
    drawn = ElementTree.parse(tmp_path / "out/ablation.svg").getroot()
    (text,) = drawn.findall("{http://www.w3.org/2000/svg}text")
    assert float(text.get("x", "nan")) >= 6.5 * len(long)  # it ends there, at 13 px
