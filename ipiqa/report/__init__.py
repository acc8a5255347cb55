"""The report of a run: what its folds came to, as tables and as a page."""

from pathlib import Path

from ipiqa.evaluation.results import load_run
from ipiqa.evaluation.summary import Summary, summarise
from ipiqa.files import write_json, write_text
from ipiqa.report.ablation import AblationRow, write_ablation
from ipiqa.report.compare import compare_runs
from ipiqa.report.page import report_page
from ipiqa.report.tables import console_table, summary_csv, summary_json, summary_latex, summary_markdown

__all__ = ["AblationRow", "compare_runs", "console_table", "load_run", "summarise", "write_ablation", "write_summary"]


def write_summary(run_dir: Path) -> Summary:
    """Writes summary.json, .csv, .md, .tex and report.html beside the folds, or nothing where `load_run` raises."""
    summary = summarise(load_run(run_dir))
    write_json(run_dir / "summary.json", summary_json(summary))
    for kind, view in {"csv": summary_csv, "md": summary_markdown, "tex": summary_latex}.items():
        write_text(run_dir / f"summary.{kind}", view(summary))
    write_text(run_dir / "report.html", report_page(summary))
    return summary
