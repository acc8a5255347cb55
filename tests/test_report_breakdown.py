"""The tables of a run in parts: what stands in them, on the terminal, in markdown and on the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_runs import HOSTILE, Page, edit, write_run
from test_evaluation_segments import change_predictions
from test_report_tables import cells

from ipiqa import cli
from ipiqa.report import breakdown_text, load_run, summarise, write_summary

BASELINES = {
    "generator": {"quality": {"srcc": 0.5, "srcc_within": 0.25, "pair_accuracy": 0.625}},
    "other targets": {"quality": {"srcc": 0.75, "srcc_within": None, "pair_accuracy": 0.5}},
}


@pytest.fixture
def run_dir(tmp_path) -> Path:
    run_dir = write_run(tmp_path / "run")
    makers = {"maker": ["north", "south", "west"] * 40}
    change_predictions(run_dir, lambda frame, fold: frame.assign(**makers))
    return run_dir


def test_baselines_stand_below_the_run(run_dir) -> None:
    for fold in range(3):
        edit(run_dir, fold, lambda s: s.update(baselines=BASELINES))
    text = breakdown_text(summarise(load_run(run_dir)))
    names = ["best epoch", "last epoch", "no picture: generator", "no picture: other targets", "alignment"]
    assert [row[0] for row in cells(text)][:7] == ["quality", "-" * 25, *names]
    assert cells(text, "no picture: generator")[0][1:] == [f"{v} ({v} to {v})" for v in ("0.500", "0.250", "0.625")]
    assert cells(text, "no picture: other targets")[0][2:] == ["-", "0.500 (0.500 to 0.500)"]
    assert cells(text, "no picture: generator")[1][1:] == ["-", "-", "-"]  # alignment has none
    spread = summarise(load_run(run_dir)).spreads["alignment", "last", "srcc"]
    assert cells(text, "last epoch")[1][1] == f"{spread.mean:.3f} ({spread.low:.3f} to {spread.high:.3f})"
    assert "- No picture: what the training scores alone predict" in text and "Nadeau & Bengio" in text


def test_a_run_without_baselines_does_not_speak_of_them(run_dir) -> None:
    text = breakdown_text(summarise(load_run(run_dir)))
    assert "o picture" not in text.replace("without a picture", "") and len(cells(text, "best epoch")) == 2


def test_by_a_column_on_the_terminal(run_dir, capsys) -> None:
    assert cli.main(["report", str(run_dir), "--by", "maker"]) == 0
    text = capsys.readouterr().out.partition("## By maker, last epoch")[2]
    assert [row[0] for row in cells(text)][:6] == ["quality", "-" * 7, "all", "north", "south", "west"]
    row = cells(text, "north")[0]
    assert row[1] == "40" and row[4][0] in "+-" and text.count("Order of the means: SRCC ") == 2
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 120
    assert "quality,last,maker=west,bias" in (run_dir / "breakdown.csv").read_text()
    before = (run_dir / "report.html").read_bytes()
    assert cli.main(["report", str(run_dir), "--by", "makers"]) == 2
    assert "Did you mean 'maker'?" in capsys.readouterr().err and (run_dir / "report.html").read_bytes() == before


def test_the_page_has_the_tables(run_dir) -> None:
    write_summary(run_dir)
    found = Page((run_dir / "report.html").read_text())
    assert "Within prompts, and without a picture" in found.text and "By maker" not in found.text
    write_summary(run_dir, by="maker")
    found = Page((run_dir / "report.html").read_text())
    assert "By maker, last epoch" in found.text and "south" in found.text and "Order of the means: SRCC" in found.text


def test_labels_from_the_data_are_escaped(run_dir) -> None:
    change_predictions(run_dir, lambda frame, fold: frame.assign(maker=[HOSTILE, "b", "c"] * 40))
    write_summary(run_dir, by="maker")
    found = Page((run_dir / "report.html").read_text())
    assert "script" not in found.tags and "img" not in found.tags and HOSTILE in found.text
    text = breakdown_text(summarise(load_run(run_dir)), "maker")
    assert len({len(row) for row in cells(text.partition("## By")[2])}) == 1


def test_missing_scores_leave_the_charts_whole(run_dir) -> None:
    def remove(frame, fold):
        frame.loc[frame.index < 20, "mos_quality"] = float("nan")
        return frame

    change_predictions(run_dir, remove)
    write_summary(run_dir)
    assert "No curve" not in Page((run_dir / "report.html").read_text()).text
