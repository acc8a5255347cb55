"""A run in parts as tables: beside what needs no picture, and by generator, style or prompt length."""

import math
from typing import NamedTuple

from ipiqa.evaluation.results import RunResult
from ipiqa.evaluation.summary import ALL, IMAGES, ORDER, Breakdown, Summary, checkpoint_title, interval_words
from ipiqa.metrics import Spread
from ipiqa.report.render import MISSING, markdown_table, render

BESIDE = {"srcc": "SRCC", "srcc_within": "SRCC within prompts", "pair_accuracy": "pairs in order"}
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


def beside_section(summary: Summary) -> Section:
    """Returns for each target the agreement of both checkpoints, and of the baselines."""
    run, spreads, tables = summary.run, summary.beside.spreads, []
    for target in run.targets:
        rows: list[list[Cell]] = []
        for name in dict.fromkeys(key[1] for key in spreads if key[0] == target):
            title = checkpoint_title(run, name) if name in run.checkpoints else f"no picture: {name}"
            rows.append([title, *(_cell(spreads[target, name, ALL, metric]) for metric in BESIDE)])
        tables.append(([target, *BESIDE.values()], rows, ""))
    has_baselines = any(key[1] not in run.checkpoints for key in spreads)
    notes = [_WITHIN, *[_NO_PICTURE] * has_baselines, _interval(run)]
    return Section("Within prompts, and without a picture", tables, notes)


def segment_section(run: RunResult, parts: Breakdown) -> Section:
    """Returns for each target a row for all images and for each segment, at the last epoch, which nothing chose."""
    checkpoint, tables = run.checkpoints[-1], []
    for target in run.targets:
        rows: list[list[Cell]] = []
        for subset in parts.subsets:
            spreads = {metric: parts.spreads[target, checkpoint, subset, metric] for metric in BY}
            cells = [_cell(spreads[m], form, m not in _WITHOUT_INTERVAL) for m, (_, form) in BY.items()]
            rows.append([subset.removeprefix(f"{parts.by}=") or "(empty)", *cells])
        order = _cell(parts.spreads[target, checkpoint, ALL, ORDER])
        words = "" if order == MISSING else f"Order of the means: SRCC {_in_one(order)}."
        tables.append(([target, *(title for title, _ in BY.values())], rows, words))
    return Section(f"By {parts.by}, {checkpoint_title(run, checkpoint)}", tables, [_BY, _interval(run)])


def section_text(section: Section) -> str:
    """Returns a section as markdown, intervals in brackets behind the means."""
    tables = [(markdown_table(h, [[*map(_in_one, row)] for row in rows]), words) for h, rows, words in section.tables]
    return render("breakdown.md.j2", title=section.title, tables=tables, notes=section.notes)


def _cell(spread: Spread, form: str = ".3f", has_interval: bool = True) -> Cell:
    """Returns a mean and its interval, the mean alone where it has none, or "-" where it is undefined."""
    mean, low, high = (format(value, form) for value in (spread.mean, spread.low, spread.high))
    if math.isnan(spread.mean):
        return MISSING
    return mean if math.isnan(spread.low) or not has_interval else (mean, f"{low} to {high}")


def _in_one(cell: Cell) -> str:
    return cell if isinstance(cell, str) else f"{cell[0]} ({cell[1]})"


def _interval(run: RunResult) -> str:
    return f"With the means: 95 % interval, {interval_words(run)}."
