"""The results of a run as text: terminal, csv, json, markdown and LaTeX tables."""

import itertools
import math
import textwrap
from dataclasses import asdict
from typing import Any, NamedTuple

import pandas as pd

from ipiqa.evaluation.results import FoldResult
from ipiqa.evaluation.summary import Summary, checkpoint_title, facts, interval_words
from ipiqa.metrics import Spread
from ipiqa.report.breakdown import section_of, section_text
from ipiqa.report.render import MISSING, markdown_table, one_line, render

WIDTH = 100
LABELS = {"srcc": "SRCC", "plcc": "PLCC", "krcc": "KRCC", "rmse": "RMSE", "plcc_fitted": "PLCC*",
          "accuracy": "pair accuracy", "log_loss": "log loss"}  # fmt: skip
FITTED = "PLCC*: after the 4-parameter logistic fit. Other PLCC: without fitting."
CHOSEN = (
    "Pair accuracy: share of the held-out pairs whose chosen image scores higher, .5 by chance. Log loss: mean of -log "
    "of the chance that the model gives the choice, .693 by chance. Scores have no fixed scale."
)
LEGENDS = {"srcc": FITTED, "accuracy": CHOSEN}  # by the main metric of a run
_MAX_NOTES = 8


def number(value: float, width: int = 6) -> str:
    """Returns a number with as many decimals (four at most) as fit the width.

    >>> number(0.87123), number(-0.5), number(12.3456), number(float("nan")), number(1e30)
    ('0.8712', '-0.500', '12.346', 'nan', '1e+30')
    """
    texts = (f"{value:.{decimals}f}" for decimals in (4, 3, 2, 1, 0))
    return next((text for text in texts if len(text) <= width), f"{value:.3g}")


def mean_std(spread: Spread | None) -> str:
    """Returns "mean ± std", the mean alone when there is one fold, or "-" for None."""
    if spread is None:
        return MISSING
    return number(spread.mean) if math.isnan(spread.std) else f"{number(spread.mean)} ± {number(spread.std)}"


def label(metric: str) -> str:
    """Returns what a metric is called in a heading; an unknown one by its own name."""
    return LABELS.get(metric, one_line(metric))


def shown_notes(summary: Summary) -> list[str]:
    """Returns the notes a table carries, the first few when there are many."""
    more = len(summary.notes) - _MAX_NOTES
    return [*summary.notes[:_MAX_NOTES], *[f"and {more} more like these, see summary.json"] * (more > 0)]


class FoldTable(NamedTuple):
    """The folds of a run in one target, as text: two columns, then a group of columns for each checkpoint."""

    groups: list[tuple[str, int]]  # title and number of columns
    header: list[str]
    rows: list[list[str]]
    footer: list[list[str]]  # mean, standard deviation and median; empty for a single fold


def fold_table(summary: Summary, target: str) -> FoldTable:
    """Returns the results of a target, one row for each fold."""
    run, folds = summary.run, summary.run.folds
    statistics = {"mean": "mean", "± std": "std", "median": "median"} if len(folds) > 1 else {}
    statistics |= {"± seeds": "seed_std"} if run.seeds else {}
    blank = [""] * len(statistics)
    columns = [["fold", *(str(fold.number) for fold in folds), *statistics]]
    columns.append(["images", *(str(fold.scores.split.num_val) for fold in folds), *blank])
    for checkpoint in run.checkpoints:
        columns += [["epoch", *(epochs_of(fold, checkpoint) or MISSING for fold in folds), *blank]] * run.trained
        for metric in summary.metrics:
            cells = [MISSING] * (len(folds) + len(statistics))
            if (key := (target, checkpoint, metric)) in summary.values:
                spread = [getattr(summary.spreads[key], field) for field in statistics.values()]
                cells = [number(value) for value in (*summary.values[key].values(), *spread)]
            columns.append([label(metric), *cells])
    groups = [("", 2), *((checkpoint_title(run, c), run.trained + len(summary.metrics)) for c in run.checkpoints)]
    header, *rows = map(list, zip(*columns, strict=True))
    return FoldTable(groups, header, rows[: len(folds)], rows[len(folds) :])


def epochs_of(fold: FoldResult, checkpoint: str) -> str:
    """Returns the epochs of a checkpoint, one for each seed, "" where none was trained."""
    epochs = [one.checkpoints[checkpoint].epoch for one in fold.results]
    return ", ".join(map(str, epochs)) if all(epochs) else ""


def mean_rows(summary: Summary) -> list[list[str]]:
    """Returns [target, checkpoint, "mean ± std" of each metric] for each target and checkpoint."""
    rows = []
    for target, checkpoint in itertools.product(summary.run.targets, summary.run.checkpoints):
        figures = [mean_std(summary.spreads.get((target, checkpoint, metric))) for metric in summary.metrics]
        rows.append([target, checkpoint if summary.run.trained else "checkpoint", *figures])
    return rows


def console_table(summary: Summary) -> str:
    """Returns the tables printed at the end of training: one block a target, at most 100 columns wide."""
    lines = [summary.run.name]
    for name, words in facts(summary.run):
        lines += textwrap.wrap(words, WIDTH, initial_indent=f"  {name:<9}", subsequent_indent=" " * 11)
    for target in summary.run.targets:
        lines += ["", *_console_block(fold_table(summary, target), one_line(target))]
    lines += ["", *textwrap.wrap(LEGENDS[summary.run.main], WIDTH)]
    for note in shown_notes(summary):
        lines += textwrap.wrap(note, WIDTH, initial_indent="! ", subsequent_indent="  ")
    return "\n".join(lines)


def _console_block(table: FoldTable, target: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, *table.footer, strict=True)]
    ends = list(itertools.accumulate(count for _, count in table.groups))
    spans = [slice(end - count, end) for end, (_, count) in zip(ends, table.groups, strict=True)]

    def line(row: list[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        padded[0] = row[0].ljust(widths[0])
        return "  ".join(" ".join(padded[span]) for span in spans)

    first, *others = [sum(widths[span]) + len(widths[span]) - 1 for span in spans]
    titles = [f" {title} ".center(width, "─") for (title, _), width in zip(table.groups[1:], others, strict=True)]
    fits, head = len(target) < first, line(table.header)
    above = "  ".join([(target if fits else "").ljust(first), *titles]).rstrip()
    lines = [*[target] * (not fits), above, head, *map(line, table.rows)]
    return lines + (["─" * len(head), *map(line, table.footer)] if table.footer else [])


def summary_json(summary: Summary) -> dict[str, Any]:
    """Returns the content of summary.json: facts, spreads and notes; the folds are in their own scores.json."""
    run, first = summary.run, summary.run.first
    targets: dict[str, dict[str, dict[str, Any]]] = {t: {c: {} for c in run.checkpoints} for t in run.targets}
    for (target, checkpoint, metric), spread in summary.spreads.items():
        targets[target][checkpoint][metric] = asdict(spread)
    return {
        "format": 1, "run": run.name, "facts": dict(facts(run)), "dataset_sha256": first.dataset.sha256,
        "split_kind": first.split.kind, "split_seed": first.split.seed,
        "split_sha256": {str(fold.number): fold.scores.split.sha256 for fold in run.folds},
        "selection": first.selection, "interval": interval_words(run),
        "finished_folds": [fold.number for fold in run.folds], "missing_folds": list(run.missing),
        "targets": targets, "notes": list(summary.notes),
    }  # fmt: skip


def summary_csv(summary: Summary) -> str:
    """Returns one row for each target, checkpoint and fold, then one for each statistic; `row` tells which it is."""
    run, rows = summary.run, []
    for target, checkpoint in itertools.product(run.targets, run.checkpoints):
        start = {"target": target, "checkpoint": checkpoint}
        keys = {metric: (target, checkpoint, metric) for metric in summary.metrics}
        for fold in run.folds:
            epochs, images = epochs_of(fold, checkpoint), fold.scores.split.num_val
            about = start | {"row": "fold", "fold": str(fold.number), "epoch": epochs, "images": str(images)}
            rows.append(about | {m: summary.values.get(key, {}).get(fold.number) for m, key in keys.items()})
        for name in ("mean", "std", "median", "low", "high", *["seed_std"] * bool(run.seeds)):
            about = start | {"row": name}
            rows.append(about | {m: getattr(summary.spreads.get(key), name, None) for m, key in keys.items()})
    columns = ["target", "checkpoint", "row", "fold", "epoch", "images", *summary.metrics]
    return str(pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n"))


def summary_markdown(summary: Summary) -> str:
    """Returns the results as markdown: one table of means and one of folds for each target."""
    run, folds = summary.run, []
    for target in run.targets:
        table = fold_table(summary, target)
        prefixes = ["", "", *(f"{c} " * run.trained for c in run.checkpoints for _ in range(table.groups[1][1]))]
        header = [prefix + name for prefix, name in zip(prefixes, table.header, strict=True)]
        folds.append((target, markdown_table(header, table.rows)))
    means = markdown_table(["target", "epoch", *map(label, summary.metrics)], mean_rows(summary))
    notes = shown_notes(summary)
    below = {"folds": folds, "beside": section_text(section_of(run, summary.beside)), "notes": notes}
    return render("summary.md.j2", run=run, facts=facts(run), means=means, legend=LEGENDS[run.main], **below)


def summary_latex(summary: Summary) -> str:
    """Returns a booktabs table of mean ± std, with what a caption must say in comments above it."""
    run, notes, labels = summary.run, summary.notes, [label(metric) for metric in summary.metrics]
    means = [(target, list(rows)) for target, rows in itertools.groupby(mean_rows(summary), key=lambda row: row[0])]
    return render("summary.tex.j2", run=run, facts=facts(run), notes=notes, labels=labels, means=means)
