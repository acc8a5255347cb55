"""The results of a run as text: terminal, csv, json, markdown and LaTeX tables."""

from __future__ import annotations

import itertools
import math
import textwrap
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from ipiqa.evaluation.results import RunResult
from ipiqa.evaluation.summary import Summary, facts, interval_words
from ipiqa.metrics import Spread
from ipiqa.report.render import MISSING, markdown_table, one_line, render

WIDTH = 100
LABELS = {"srcc": "SRCC", "plcc": "PLCC", "krcc": "KRCC", "rmse": "RMSE", "plcc_fitted": "PLCC*"}
FITTED = "PLCC*: after the 4-parameter logistic fit. Other PLCC: without fitting."
_MAX_NOTES = 8
_STATISTICS = ("mean", "std", "median", "low", "high")


def number(value: float, width: int = 6) -> str:
    """Returns a number with as many decimals (four at most) as fit the width.

    >>> number(0.87123), number(-0.5), number(12.3456), number(float("nan")), number(1e30)
    ('0.8712', '-0.500', '12.346', 'nan', '1e+30')
    """
    texts = [f"{value:.{decimals}f}" for decimals in (4, 3, 2, 1, 0)]
    return next((text for text in texts if len(text) <= width), f"{value:.3g}")


def mean_std(spread: Spread | None) -> str:
    """Returns "mean ± std", the mean alone when there is one fold, or "-" for None.

    >>> from ipiqa.metrics import describe
    >>> mean_std(describe([0.5, 0.75], overlap=0)), mean_std(describe([0.5], overlap=0)), mean_std(None)
    ('0.6250 ± 0.1768', '0.5000', '-')
    """
    if spread is None:
        return MISSING
    return number(spread.mean) if math.isnan(spread.std) else f"{number(spread.mean)} ± {number(spread.std)}"


def label(metric: str) -> str:
    """Returns what a metric is called in a heading; an unknown one by its own name."""
    return LABELS.get(metric, one_line(metric))


def checkpoint_title(run: RunResult, checkpoint: str) -> str:
    """Returns the heading of a checkpoint: a run that only evaluated has neither best nor last epoch."""
    return f"{checkpoint} epoch" if run.trained else "checkpoint"


def shown_notes(summary: Summary) -> list[str]:
    """Returns the notes a table carries, the first few when there are many."""
    notes = list(summary.notes)
    if len(notes) > _MAX_NOTES:
        notes = [*notes[:_MAX_NOTES], f"and {len(summary.notes) - _MAX_NOTES} more like these, see summary.json"]
    return notes


@dataclass(frozen=True)
class FoldTable:
    """The folds of a run in one target: the first two columns, then a group of columns for each checkpoint."""

    groups: list[tuple[str, int]]  # title and number of columns
    header: list[str]
    rows: list[list[str]]
    footer: list[list[str]]  # mean, standard deviation and median; empty for a single fold


def fold_table(summary: Summary, target: str) -> FoldTable:
    """Returns one row for each fold, all cells as text."""
    run, metrics = summary.run, summary.metrics
    columns = ["epoch"] * run.trained + [label(metric) for metric in metrics]
    groups = [("", 2)] + [(checkpoint_title(run, checkpoint), len(columns)) for checkpoint in run.checkpoints]
    values = summary.frame[summary.frame["target"] == target].set_index(["fold", "checkpoint", "metric"])["value"]
    values = values.to_dict()
    rows = []
    for fold in run.folds:
        row = [str(fold.number), str(fold.scores.split.num_val)]
        for checkpoint, measured in fold.checkpoints.items():
            row += [MISSING if measured.epoch is None else str(measured.epoch)] * run.trained
            cells = (values.get((fold.number, checkpoint, metric)) for metric in metrics)
            row += [MISSING if value is None else number(value) for value in cells]
        rows.append(row)
    footer = []
    for name, field in (("mean", "mean"), ("± std", "std"), ("median", "median")):
        row = [name, ""]
        for checkpoint in run.checkpoints:
            spreads = (summary.spreads.get((target, checkpoint, metric)) for metric in metrics)
            row += [""] * run.trained + [MISSING if s is None else number(getattr(s, field)) for s in spreads]
        footer.append(row)
    return FoldTable(groups, ["fold", "images", *columns * len(run.checkpoints)], rows, footer * (len(run.folds) > 1))


def mean_rows(summary: Summary) -> list[list[str]]:
    """Returns [target, checkpoint, "mean ± std" of each metric] for each target and checkpoint."""
    return [
        [target, checkpoint if summary.run.trained else "checkpoint"]
        + [mean_std(summary.spreads.get((target, checkpoint, metric))) for metric in summary.metrics]
        for target, checkpoint in itertools.product(summary.run.targets, summary.run.checkpoints)
    ]


def console_table(summary: Summary) -> str:
    """Returns the tables printed at the end of training: one block a target, at most 100 columns wide."""
    lines = [summary.run.name]
    for name, words in facts(summary.run):
        lines += textwrap.wrap(words, WIDTH, initial_indent=f"  {name:<9}", subsequent_indent=" " * 11)
    for target in summary.run.targets:
        lines += ["", *_console_block(fold_table(summary, target), one_line(target))]
    lines += ["", FITTED]
    for note in shown_notes(summary):
        lines += textwrap.wrap(note, WIDTH, initial_indent="! ", subsequent_indent="  ")
    return "\n".join(lines)


def _console_block(table: FoldTable, target: str) -> list[str]:
    cells = [table.header, *table.rows, *table.footer]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.header))]
    ends = list(itertools.accumulate(count for _, count in table.groups))
    spans = [slice(end - count, end) for end, (_, count) in zip(ends, table.groups, strict=True)]

    def line(row: list[str]) -> str:
        padded = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        return "  ".join(" ".join(padded[span]) for span in spans)

    first, *others = [sum(widths[span]) + len(widths[span]) - 1 for span in spans]
    fits = len(target) < first
    titles = [f" {title} ".center(width, "─") for (title, _), width in zip(table.groups[1:], others, strict=True)]
    head = line(table.header)
    lines = [] if fits else [target]
    lines += ["  ".join([(target if fits else "").ljust(first), *titles]).rstrip(), head, *map(line, table.rows)]
    return lines + (["─" * len(head), *map(line, table.footer)] if table.footer else [])


def summary_json(summary: Summary) -> dict[str, Any]:
    """Returns the content of summary.json: facts, spreads and notes; the folds are in their own scores.json."""
    run, first = summary.run, summary.run.first
    targets: dict[str, dict[str, dict[str, Any]]] = {t: {c: {} for c in run.checkpoints} for t in run.targets}
    for (target, checkpoint, metric), spread in summary.spreads.items():
        targets[target][checkpoint][metric] = asdict(spread)
    return {
        "format": 1,
        "run": run.name,
        "facts": dict(facts(run)),
        "dataset_sha256": first.dataset.sha256,
        "split_kind": first.split.kind,
        "split_seed": first.split.seed,
        "split_sha256": {str(fold.number): fold.scores.split.sha256 for fold in run.folds},
        "selection": first.selection,
        "interval": interval_words(run),
        "finished_folds": [fold.number for fold in run.folds],
        "missing_folds": list(run.missing),
        "targets": targets,
        "notes": list(summary.notes),
    }


def summary_csv(summary: Summary) -> str:
    """Returns one row for each target, checkpoint and fold, then one for each statistic; `row` tells which it is."""
    run, rows = summary.run, []
    values = summary.frame.set_index(["target", "checkpoint", "fold", "metric"])["value"].to_dict()
    for target, checkpoint in itertools.product(run.targets, run.checkpoints):
        start = {"target": target, "checkpoint": checkpoint}
        for fold in run.folds:
            about = {"row": "fold", "fold": str(fold.number), "images": str(fold.scores.split.num_val)}
            epoch = {"epoch": str(fold.checkpoints[checkpoint].epoch or "")}
            metrics = {metric: values.get((target, checkpoint, fold.number, metric)) for metric in summary.metrics}
            rows.append(start | about | epoch | metrics)
        for statistic in _STATISTICS:
            spreads = {metric: summary.spreads.get((target, checkpoint, metric)) for metric in summary.metrics}
            rows.append(start | {"row": statistic} | {m: getattr(s, statistic, None) for m, s in spreads.items()})
    columns = ["target", "checkpoint", "row", "fold", "epoch", "images", *summary.metrics]
    return str(pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n"))


def summary_markdown(summary: Summary) -> str:
    """Returns the results as markdown: one table of means and one of folds for each target."""
    run, folds = summary.run, []
    for target in run.targets:
        table = fold_table(summary, target)
        prefixes = [f"{c} " if run.trained else "" for c in run.checkpoints for _ in range(table.groups[1][1])]
        header = [prefix + name for prefix, name in zip(["", "", *prefixes], table.header, strict=True)]
        folds.append((target, markdown_table(header, table.rows)))
    means = markdown_table(["target", "epoch", *map(label, summary.metrics)], mean_rows(summary))
    notes = shown_notes(summary)
    return render("summary.md.j2", run=run, facts=facts(run), means=means, folds=folds, notes=notes, fitted=FITTED)


def summary_latex(summary: Summary) -> str:
    """Returns a booktabs table of mean ± std, with what a caption must say in comments above it."""
    labels, means = [label(metric) for metric in summary.metrics], mean_rows(summary)
    targets = [(target, [row for row in means if row[0] == target]) for target in summary.run.targets]
    return render(
        "summary.tex.j2", run=summary.run, facts=facts(summary.run), notes=summary.notes, labels=labels, means=targets
    )
