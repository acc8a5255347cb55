"""A run in parts as tables: beside what needs no picture, and by generator, style or prompt length."""

import math
from typing import NamedTuple

from ipiqa.evaluation.results import RunResult
from ipiqa.evaluation.summary import ALL, IMAGES, ORDER, Breakdown, checkpoint_title, interval_words
from ipiqa.metrics import Spread
from ipiqa.report.render import MISSING, markdown_table, render

BESIDE = {
    "srcc": ("SRCC", ".3f"), "srcc_within": ("SRCC within prompts", ".3f"), "pair_accuracy": ("pairs in order", ".3f"),
}  # fmt: skip
BY = {
    IMAGES: ("images", ".0f"), "srcc": ("SRCC", ".3f"), "srcc_within": ("within prompts", ".3f"),
    "bias": ("mean error", "+.3f"), "slope": ("slope", ".3f"), "intercept": ("intercept", "+.3f"),
}  # fmt: skip
_WITHOUT_INTERVAL = (IMAGES, "slope", "intercept")  # to keep tables narrow; breakdown.csv has them by fold
_WITHIN = (
    "Within prompts: SRCC among the images of each prompt that has three or more, as a mean over prompts. Pairs in "
    "order: of the images of one prompt. Predictions that are equal put nothing in order: they count 0, and half."
)
_NO_PICTURE = (
    "No picture: what the training scores alone predict, as the mean of a generator, style or prompt, or a line "
    "through prompt length; other targets: from what the image was rated in them. A model that is no better may have "
    "learnt to tell generators apart, and nothing else of pictures."
)
_BY = "Mean error: mean of prediction - MOS. Slope and intercept: of the line from prediction to MOS, 1 and 0 at best."

Cell = str | tuple[str, str]  # text, or a text and a small one below


class Section(NamedTuple):
    """Tables, each as (header, rows, words below it), and what must be known to read them."""

    title: str
    tables: list[tuple[list[str], list[list[Cell]], str]]
    notes: list[str]


def section_of(run: RunResult, parts: Breakdown) -> Section:
    """Returns for each target a row for all images and for each segment, at the last epoch, which nothing chose.

    Where nothing parts the images, the rows are the agreement of both checkpoints and of the baselines.
    """
    last, names = run.checkpoints[-1], dict.fromkeys(name for _, name, _, _ in parts.spreads)
    titles = {n: checkpoint_title(run, n) if n in run.checkpoints else f"no picture: {n}" for n in names}
    shown = [(title, name, ALL) for name, title in titles.items()]
    title, columns, notes = "Within prompts, and without a picture", BESIDE, [_WITHIN]
    notes += [_NO_PICTURE] * any(name not in run.checkpoints for name in names)
    if parts.by:
        shown = [(subset.removeprefix(f"{parts.by}=") or "(empty)", last, subset) for subset in parts.subsets]
        title, columns, notes = f"By {parts.by}, {checkpoint_title(run, last)}", BY, [_BY]
    tables = []
    for target in run.targets:
        rows: list[list[Cell]] = []
        for words, name, subset in shown:
            spreads = {metric: parts.spreads[target, name, subset, metric] for metric in columns}
            rows.append([words, *(_cell(spreads[metric], form, metric) for metric, (_, form) in columns.items())])
        order = _cell(parts.spreads[target, last, ALL, ORDER]) if parts.by else MISSING
        words = "" if order == MISSING else f"Order of the means: SRCC {_in_one(order)}."
        tables += [([target, *(heading for heading, _ in columns.values())], rows, words)] * bool(rows)
    return Section(title, tables, [*notes, f"With the means: 95 % interval, {interval_words(run)}."])


def section_text(section: Section) -> str:
    """Returns a section as markdown, intervals in brackets behind the means."""
    tables = [(markdown_table(h, [[*map(_in_one, row)] for row in rows]), words) for h, rows, words in section.tables]
    return render("breakdown.md.j2", title=section.title, tables=tables, notes=section.notes)


def _cell(spread: Spread, form: str = ".3f", metric: str = "srcc") -> Cell:
    """Returns a mean and its interval, the mean alone where it has none, or "-" where it is undefined."""
    mean, low, high = (format(value, form) for value in (spread.mean, spread.low, spread.high))
    if math.isnan(spread.mean):
        return MISSING
    return mean if math.isnan(spread.low) or metric in _WITHOUT_INTERVAL else (mean, f"{low} to {high}")


def _in_one(cell: Cell) -> str:
    return cell if isinstance(cell, str) else f"{cell[0]} ({cell[1]})"
