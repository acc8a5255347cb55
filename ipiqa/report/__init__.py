"""The report of a run: what its folds came to, as tables and as a page."""

from pathlib import Path

import pandas as pd

from ipiqa.evaluation.results import load_run
from ipiqa.evaluation.summary import Breakdown, Summary, by_segment, summarise
from ipiqa.files import write_json, write_text
from ipiqa.report.breakdown import section_of, section_text
from ipiqa.report.compare import AblationRow, compare_runs, write_ablation
from ipiqa.report.page import report_page
from ipiqa.report.tables import console_table, summary_csv, summary_json, summary_latex, summary_markdown

__all__ = ["AblationRow", "breakdown_text", "compare_runs", "console_table", "load_run", "summarise", "write_ablation"]
__all__ += ["write_summary"]


def write_summary(run_dir: Path, by: str | None = None) -> Summary:
    """Writes summary.json, .csv, .md, .tex, breakdown.csv and report.html beside the folds.

    `by` is a column to break the run down by. Writes nothing where `load_run` or `by_segment` raise.
    """
    summary = summarise(load_run(run_dir))
    parts = _parts(summary, by)
    write_json(run_dir / "summary.json", summary_json(summary))
    for kind, view in {"csv": summary_csv, "md": summary_markdown, "tex": summary_latex}.items():
        write_text(run_dir / f"summary.{kind}", view(summary))
    values = pd.concat([part.frame for part in parts])
    write_text(run_dir / "breakdown.csv", values.to_csv(index=False, lineterminator="\n"))
    write_text(run_dir / "report.html", report_page(summary, [section_of(summary.run, part) for part in parts]))
    return summary


def breakdown_text(summary: Summary, by: str | None = None) -> str:
    """Returns the run within prompts, beside baselines, and by a column, if one is named, as markdown."""
    return "\n".join(section_text(section_of(summary.run, part)) for part in _parts(summary, by))


def _parts(summary: Summary, by: str | None) -> list[Breakdown]:
    return [summary.beside, *([by_segment(summary.run, by)] if by else [])]
