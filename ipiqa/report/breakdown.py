"""A run in parts as tables: beside what needs no picture, and by generator, style or prompt length."""

import dataclasses
import math

from ipiqa.evaluation.held_out import basis_of
from ipiqa.evaluation.results import RunResult
from ipiqa.evaluation.segments import ALL, IMAGES, ORDER, Breakdown
from ipiqa.evaluation.summary import Summary, checkpoint_title
from ipiqa.metrics import Spread
from ipiqa.report.render import MISSING, markdown_table, render

BESIDE = {"srcc": "SRCC", "srcc_within": "SRCC within prompts", "pair_accuracy": "pairs in order"}
BY = {
    "srcc": ("SRCC", ".3f"), "srcc_within": ("within prompts", ".3f"), "bias": ("mean error", "+.3f"),
    "slope": ("slope", ".3f"), "intercept": ("intercept", "+.3f"),
}  # fmt: skip

BESIDE_TITLE = "Within prompts, and without a picture"
BY_NOTES = (
    "mean error: mean of prediction - MOS; slope and intercept: of the line from prediction to MOS, 1 and 0 at best",
)

Cell = str | tuple[str, str]  # text, or a text and a small one below
Table = tuple[list[str], list[list[Cell]]]  # header, rows


def with_interval(spread: Spread | None, form: str = ".3f") -> Cell:
    """Returns a mean and its interval, the mean alone where it has none, or "-" where it is undefined."""
    if spread is None or math.isnan(spread.mean):
        return MISSING
    mean, low, high = (format(value, form) for value in (spread.mean, spread.low, spread.high))
    return mean if math.isnan(spread.low) else (mean, f"{low} to {high}")


def beside_table(summary: Summary, target: str) -> Table:
    """Returns the agreement of both checkpoints in a target, and of each baseline."""
    spreads, run, rows = summary.beside.spreads, summary.run, []
    for name in dict.fromkeys(key[1] for key in spreads if key[0] == target):
        title = checkpoint_title(run, name) if name in run.checkpoints else f"no picture: {name}"
        rows.append([title, *(with_interval(spreads.get((target, name, ALL, metric))) for metric in BESIDE)])
    return [target, *BESIDE.values()], rows


def segment_table(run: RunResult, parts: Breakdown, target: str) -> Table:
    """Returns a row for all images and for each segment, at the last epoch, which nothing chose."""
    rows: list[list[Cell]] = []
    for subset in parts.subsets:
        of = {metric: parts.spreads[target, run.checkpoints[-1], subset, metric] for metric in (IMAGES, *BY)}
        label = subset.removeprefix(f"{parts.by}=") or "(empty)"
        images = with_interval(dataclasses.replace(of.pop(IMAGES), low=math.nan), ".0f")
        rows.append([label, images, *(with_interval(of[metric], form) for metric, (_, form) in BY.items())])
    header = [target, "images", *(title for title, _ in BY.values())]
    if all(row[3] == MISSING for row in rows[1:]):  # segments that hold one image of a prompt
        header, rows = header[:3] + header[4:], [row[:3] + row[4:] for row in rows]
    return header, rows


def order_words(run: RunResult, parts: Breakdown, target: str) -> str:
    """Returns how well the mean predictions of a target order the segments."""
    cell = with_interval(parts.spreads[target, run.checkpoints[-1], ALL, ORDER])
    return f"order of the means: SRCC {_in_one(cell)}" if cell != MISSING else ""


def beside_text(summary: Summary) -> str:
    """Returns the tables of `beside_table` as markdown, with what must be known to read them."""
    tables = [(_as_markdown(beside_table(summary, target)), "") for target in summary.run.targets]
    notes = [*beside_notes(summary), interval_note(summary.run)]
    return render("breakdown.md.j2", title=BESIDE_TITLE, tables=tables, notes=notes)


def segments_text(run: RunResult, parts: Breakdown) -> str:
    """Returns the tables of `segment_table` as markdown, with what must be known to read them."""
    tables = [(_as_markdown(segment_table(run, parts, t)), order_words(run, parts, t)) for t in run.targets]
    title = f"By {parts.by}, {checkpoint_title(run, run.checkpoints[-1])}"
    return render("breakdown.md.j2", title=title, tables=tables, notes=[*BY_NOTES, interval_note(run)])


def beside_notes(summary: Summary) -> list[str]:
    """Returns what must be known to read a table of `beside_table`."""
    notes = [
        "within prompts: SRCC among the images of each prompt that has three or more, as a mean over prompts; pairs in "
        "order: share of the pairs of images of one prompt. Equal predictions count as no order: 0, and half"
    ]
    if len({key[1] for key in summary.beside.spreads}) > len(summary.run.checkpoints):
        notes.append(
            "no picture: what the training scores alone predict, as the mean of a generator, style or prompt, or a "
            "line through prompt length; other targets: what the image was rated in them. Only beyond that, pictures tell"
        )
    return notes


def interval_note(run: RunResult) -> str:
    """Returns in words what stands in brackets."""
    return f"in brackets: 95 % interval, {basis_of(run).value}"


def _as_markdown(table: Table) -> str:
    """Returns a table as markdown; slope and intercept without their intervals, which a page has room for."""
    header, rows = table
    narrow = header.index("slope") if "slope" in header else len(header)
    cells = [[_in_one(c) if i < narrow or isinstance(c, str) else c[0] for i, c in enumerate(row)] for row in rows]
    return markdown_table(header, cells)


def _in_one(cell: Cell) -> str:
    return cell if isinstance(cell, str) else f"{cell[0]} ({cell[1]})"
