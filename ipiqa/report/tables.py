"""The results of a run as text: terminal, csv, json, markdown and LaTeX tables."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from dataclasses import asdict
from typing import Any

from ipiqa.evaluation.results import Summary, facts
from ipiqa.metrics import METRICS, Spread

WIDTH = 100
LABELS = {"srcc": "SRCC", "plcc": "PLCC", "krcc": "KRCC", "rmse": "RMSE", "plcc_fitted": "PLCC*"}
FITTED = "PLCC*: after the 4-parameter logistic fit. Other PLCC: without fitting."
_MAX_NOTES = 8


def number(value: float, width: int = 6) -> str:
    """Returns a number with as many decimals (four at most) as fit the width.

    >>> number(0.87123), number(-0.5), number(12.3456), number(float("nan"))
    ('0.8712', '-0.500', '12.346', 'nan')
    """
    texts = [f"{value:.{decimals}f}" for decimals in (4, 3, 2, 1, 0)]
    return next((text for text in texts if len(text) <= width), texts[-1])


def mean_std(spread: Spread) -> str:
    """Returns "mean ± std", or the mean alone when there is one fold.

    >>> from ipiqa.metrics import describe
    >>> mean_std(describe([0.5, 0.75])), mean_std(describe([0.5]))
    ('0.6250 ± 0.1768', '0.5000')
    """
    return number(spread.mean) if math.isnan(spread.std) else f"{number(spread.mean)} ± {number(spread.std)}"


def moment_title(summary: Summary, moment: str) -> str:
    """Returns the heading of a column group: a run that only evaluated has neither best nor last epoch."""
    return f"{moment} epoch" if summary.run.trained else "checkpoint"


def shown_notes(summary: Summary) -> list[str]:
    """Returns the notes a table carries, the first few when there are many."""
    notes = list(summary.notes)
    if len(notes) > _MAX_NOTES:
        notes = [*notes[:_MAX_NOTES], f"and {len(summary.notes) - _MAX_NOTES} more like these, see summary.json"]
    return notes


def console_table(summary: Summary) -> str:
    """Returns the tables printed at the end of training: one block a target, at most 100 columns wide."""
    lines = [summary.run.name]
    for label, words in facts(summary.run):
        lines += textwrap.wrap(words, WIDTH, initial_indent=f"  {label:<9}", subsequent_indent=" " * 11)
    for target in summary.run.targets:
        lines += ["", *_console_block(summary, target)]
    lines += ["", FITTED]
    for note in shown_notes(summary):
        lines += textwrap.wrap(note, WIDTH, initial_indent="! ", subsequent_indent="  ")
    return "\n".join(lines)


def _console_block(summary: Summary, target: str) -> list[str]:
    run = summary.run
    head, titles = f"{'fold':<5}{'images':>7}", f"{target:<12}"
    if len(target) > 11:
        titles = " " * 12
    for moment in run.moments:
        head += "  " + (f"{'epoch':>5}" if run.trained else "") + "".join(f"{LABELS[m]:>7}" for m in METRICS)
        titles += "  " + f" {moment_title(summary, moment)} ".center(40 if run.trained else 35, "─")
    lines = [] if titles.startswith(target) else [target]
    lines += [titles.rstrip(), head]
    for fold in run.folds:
        line = f"{fold.number:<5}{fold.split['num_val']:>7}"
        for moment in run.moments:
            checkpoint = fold.moments[moment]
            line += "  " + (f"{checkpoint.epoch or '-':>5}" if run.trained else "")
            line += "".join(f"{number(checkpoint.metrics[target][m]):>7}" for m in METRICS)
        lines.append(line)
    if len(run.folds) > 1:
        lines.append("─" * len(head))
        for label, field in (("mean", "mean"), ("± std", "std")):
            line = f"{label:<12}"
            for moment in run.moments:
                spreads = summary.spreads[target][moment]
                line += "  " + (" " * 5 if run.trained else "")
                line += "".join(f"{number(getattr(spreads[m], field)):>7}" for m in METRICS)
            lines.append(line)
    return lines


def summary_json(summary: Summary) -> dict[str, Any]:
    """Returns the content of summary.json: facts, spreads and notes; the folds are in their own scores.json."""
    run = summary.run
    return {
        "format": 1,
        "run": run.name,
        "facts": dict(facts(run)),
        "dataset_sha256": run.folds[0].dataset["sha256"],
        "split_kind": run.folds[0].split["kind"],
        "split_seed": run.folds[0].split["seed"],
        "split_sha256": {str(fold.number): fold.split["sha256"] for fold in run.folds},
        "selection": run.folds[0].selection,
        "finished_folds": [fold.number for fold in run.folds],
        "missing_folds": list(run.missing),
        "targets": {
            target: {
                moment: {metric: asdict(spread) for metric, spread in spreads.items()}
                for moment, spreads in moments.items()
            }
            for target, moments in summary.spreads.items()
        },
        "notes": list(summary.notes),
    }


def summary_csv(summary: Summary) -> str:
    """Returns one row for each target, moment and fold, then one for each statistic; `row` tells which it is."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["target", "checkpoint", "row", "fold", "epoch", "images", *METRICS])
    for target in summary.run.targets:
        for moment in summary.run.moments:
            for fold in summary.run.folds:
                checkpoint = fold.moments[moment]
                values = [_cell(checkpoint.metrics[target][metric]) for metric in METRICS]
                epoch = "" if checkpoint.epoch is None else checkpoint.epoch
                writer.writerow([target, moment, "fold", fold.number, epoch, fold.split["num_val"], *values])
            spreads = summary.spreads[target][moment]
            for statistic in ("mean", "std", "median", "low", "high"):
                values = [_cell(getattr(spreads[metric], statistic)) for metric in METRICS]
                writer.writerow([target, moment, statistic, "", "", "", *values])
    return out.getvalue()


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def summary_markdown(summary: Summary) -> str:
    """Returns the results as markdown: one table of means and one of folds for each target."""
    run = summary.run
    lines = [f"# {escaped(run.name)}", "", *(f"- **{label}**: {escaped(words)}" for label, words in facts(run)), ""]
    lines += [f"Mean ± std over {len(run.folds)} fold{'s' * (len(run.folds) > 1)}. {escaped(FITTED)}", ""]
    header = ["target", "epoch", *(escaped(LABELS[m]) for m in METRICS)]
    rows = [
        [escaped(target), moment if run.trained else "checkpoint", *(mean_std(spreads[m]) for m in METRICS)]
        for target, moments in summary.spreads.items()
        for moment, spreads in moments.items()
    ]
    lines += markdown_table(header, rows)
    for target in run.targets:
        lines += ["", f"## {escaped(target)}, by fold", ""]
        header = ["fold", "images"]
        for moment in run.moments:
            prefix = f"{moment} " if run.trained else ""
            header += ([f"{moment} epoch"] if run.trained else []) + [f"{prefix}{escaped(LABELS[m])}" for m in METRICS]
        rows = []
        for fold in run.folds:
            row = [str(fold.number), str(fold.split["num_val"])]
            for moment in run.moments:
                checkpoint = fold.moments[moment]
                row += [str(checkpoint.epoch)] if run.trained else []
                row += [number(checkpoint.metrics[target][m]) for m in METRICS]
            rows.append(row)
        lines += markdown_table(header, rows)
    lines += ["", *(f"- Note: {escaped(note)}" for note in shown_notes(summary))] if summary.notes else []
    return "\n".join(lines) + "\n"


def markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Returns the lines of a markdown table whose source is aligned as well.

    >>> markdown_table(["a", "b"], [["1", "22"]])
    ['| a | b  |', '| - | -- |', '| 1 | 22 |']
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, rule, *rows]
    ]


def escaped(text: str) -> str:
    """Returns text that markdown and an HTML page made from it show as it is."""
    for character in "\\`*_|<>[]":
        text = text.replace(character, "\\" + character)
    return text.replace("\n", " ")


def summary_latex(summary: Summary) -> str:
    """Returns a booktabs table of mean ± std, with what a caption must say in comments above it."""
    run = summary.run
    lines = [f"% {' '.join(f'{label}: {words}'.split())}" for label, words in facts(run)]
    lines += ["% needs \\usepackage{booktabs}; PLCC$^*$: after the 4-parameter logistic fit"]
    lines += [r"\begin{tabular}{ll" + "c" * len(METRICS) + "}", r"\toprule"]
    lines.append(" & ".join(["Target", "Epoch", *(LABELS[m].replace("*", "$^*$") for m in METRICS)]) + r" \\")
    for target, moments in summary.spreads.items():
        lines.append(r"\midrule")
        for moment, spreads in moments.items():
            first = latex_escaped(target) if moment == run.moments[0] else ""
            cells = [f"${mean_std(spreads[m])}$".replace("±", r"\pm").replace("$nan$", "--") for m in METRICS]
            lines.append(" & ".join([first, moment if run.trained else "--", *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex_escaped(text: str) -> str:
    r"""Returns text without special meaning to LaTeX.

    >>> print(latex_escaped("a_b & 5 %"))
    a\_b \& 5 \%
    """
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)
