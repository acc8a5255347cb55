"""The report as one HTML file: nothing is loaded, nothing runs, everything from the data is escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape

import numpy as np

from ipiqa.evaluation.results import Checkpoint, FoldResult, RunResult, Summary, facts, selection_rule
from ipiqa.metrics import METRICS, Spread, fit_logistic
from ipiqa.report.plots import MAX_POINTS, Line, chart
from ipiqa.report.residuals import ImageResidual, group_residuals, image_residuals, pooled
from ipiqa.report.style import STYLE
from ipiqa.report.tables import LABELS, moment_title, number, shown_notes

NUM_WORST = 10
_MAX_PROMPT = 240


def report_page(summary: Summary) -> str:
    """Returns the whole page as HTML text."""
    run = summary.run
    body = [
        _header(summary),
        _headline(summary),
        _fold_tables(summary),
        _curves(run),
        _scatters(summary),
        *(_residuals(run, target) for target in run.targets),
        _provenance(run),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            # Should a prompt ever slip through unescaped, it still cannot load or run anything.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{escape(run.name)}: IP-IQA report</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            *(part for part in body if part),
            "</body>",
            "</html>",
            "",
        ]
    )


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Sequence[int] = (),
    footer: int = 0,
    above: Sequence[tuple[str, int]] = (),
) -> str:
    """Returns a table that scrolls in its own box; cells are HTML.

    Args:
        header, rows: cells, already escaped.
        words: columns of text, set flush left.
        footer: how many of the last rows are the footer.
        above: a first line of the header, as (title, number of columns under it).
    """

    def line(cells: Sequence[str], tag: str) -> str:
        inner = "".join(f"<{tag}{' class=words' if i in words else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{inner}</tr>"

    split = len(rows) - footer
    titles = "".join(f'<th class="above" colspan="{span}">{title}</th>' for title, span in above)
    first = f"<tr>{titles}</tr>" if above else ""
    parts = [
        f"<thead>{first}{line(header, 'th')}</thead>",
        "<tbody>",
        *(line(row, "td") for row in rows[:split]),
        "</tbody>",
    ]
    if footer:
        parts += ["<tfoot>", *(line(row, "td") for row in rows[split:]), "</tfoot>"]
    return f'<div class="scroll" tabindex="0"><table>{"".join(parts)}</table></div>'


def _header(summary: Summary) -> str:
    run = summary.run
    items = "".join(f"<dt>{label}</dt><dd>{escape(words)}</dd>" for label, words in facts(run))
    warnings = [escape(note) for note in shown_notes(summary)]
    if run.folds[0].split["kind"] == "image_random":
        warnings.insert(0, "Prompts leak between the parts of this split: do not compare with prompt-disjoint results.")
    box = f'<ul class="warning">{"".join(f"<li>{w}</li>" for w in warnings)}</ul>' if warnings else ""
    return f"<header><h1>{escape(run.name)}</h1><dl>{items}</dl>{box}</header>"


def _headline(summary: Summary) -> str:
    run = summary.run
    cards = []
    for target in run.targets:
        titles = [escape(moment_title(summary, moment)) for moment in run.moments]
        values = [_big(summary.spreads[target][moment]["srcc"]) for moment in run.moments]
        figures = "".join(
            f'<div class="figure"><span>SRCC, {title}</span><b>{value}</b></div>'
            for title, value in zip(titles, values, strict=True)
        )
        rows = [
            [LABELS[metric], *(_interval(summary.spreads[target][moment][metric]) for moment in run.moments)]
            for metric in METRICS
        ]
        table = _table(["", *titles], rows, words=(0,))
        cards.append(f'<div class="card"><h3>{escape(target)}</h3><div class="figures">{figures}</div>{table}</div>')
    spread = summary.spreads[run.targets[0]][run.moments[0]]["srcc"]
    if spread.n == 1:
        caption = "One fold: there is no spread to tell."
    else:
        caption = (
            f"Mean ± sample standard deviation over {spread.n} folds; below, the 95 % bootstrap interval of the mean."
        )
        caption += " With so few folds it is too narrow." if spread.note and spread.note.startswith("n =") else ""
    caption += " PLCC*: after the 4-parameter logistic fit."
    return (
        f'<section><h2>Results</h2><p class="caption">{caption}</p><div class="cards">{"".join(cards)}</div></section>'
    )


def _big(spread: Spread) -> str:
    if math.isnan(spread.mean):
        return "nan"
    return f"{spread.mean:.3f}" + ("" if math.isnan(spread.std) else f"<i> ± {spread.std:.3f}</i>")


def _interval(spread: Spread) -> str:
    text = number(spread.mean) + ("" if math.isnan(spread.std) else f" ± {number(spread.std)}")
    return text if math.isnan(spread.low) else f"{text}<br><small>{number(spread.low)} to {number(spread.high)}</small>"


def _fold_tables(summary: Summary) -> str:
    run = summary.run
    parts = []
    for target in run.targets:
        header, above = ["fold", "images"], [("", 2)]
        for moment in run.moments:
            columns = (["epoch"] if run.trained else []) + [LABELS[m] for m in METRICS]
            header += columns
            above.append((moment_title(summary, moment), len(columns)))
        rows = [_fold_row(run, fold, target) for fold in run.folds]
        footer = 0
        if len(run.folds) > 1:
            for label, field in (("mean", "mean"), ("std", "std"), ("median", "median")):
                row = [label, ""]
                for moment in run.moments:
                    row += [""] if run.trained else []
                    row += [number(getattr(summary.spreads[target][moment][m], field)) for m in METRICS]
                rows.append(row)
            footer = 3
        parts.append(f"<h3>{escape(target)}</h3>{_table(header, rows, words=(0,), footer=footer, above=above)}")
    rule = f"{'Best' if run.trained else 'Weights'}: {selection_rule(run)}."
    caption = f'<p class="caption">{escape(rule)}</p>'
    return f"<section><h2>Folds</h2>{caption}{''.join(parts)}</section>"


def _fold_row(run: RunResult, fold: FoldResult, target: str) -> list[str]:
    row = [str(fold.number), str(fold.split["num_val"])]
    for moment in run.moments:
        checkpoint: Checkpoint = fold.moments[moment]
        row += [escape(str(checkpoint.epoch))] if run.trained else []
        row += [number(checkpoint.metrics[target][m]) for m in METRICS]
    return row


def _curve(fold: FoldResult, target: str | None) -> tuple[list[int], list[float]]:
    """Returns epochs and SRCC of a target (or the loss, for None); epochs without the value are left out."""
    found = []
    for row in fold.curve:
        value = row.get("loss") if target is None else ((row.get("metrics") or {}).get(target) or {}).get("srcc")
        if isinstance(value, (int, float)):
            found.append((int(row["epoch"]), float(value)))
    return [epoch for epoch, _ in found], [value for _, value in found]


def _curves(run: RunResult) -> str:
    if not any(fold.curve for fold in run.folds):
        return ""
    charts = []
    for target in (None, *run.targets):
        curves = [_curve(fold, target) for fold in run.folds]
        lines = [Line(epochs, values, "fold") for epochs, values in curves]
        if len(curves) > 1:
            tables = [dict(zip(*curve, strict=True)) for curve in curves]
            shared = sorted(set.intersection(*(set(table) for table in tables)))
            lines.append(Line(shared, [float(np.mean([table[e] for table in tables])) for e in shared], "mean"))
        marks = None
        if target is not None:
            chosen = [(fold.moments["best"].epoch, fold.moments["best"].metrics[target]["srcc"]) for fold in run.folds]
            marks = [e for e, _ in chosen if e is not None], [v for e, v in chosen if e is not None]
        title = "training loss by epoch" if target is None else f"SRCC of {target} on the held-out part, by epoch"
        label = "training loss" if target is None else f"SRCC, {target}"
        charts.append(f"<figure>{chart(title, 'epoch', label, lines, marks=marks)}</figure>")
    mean = "thick their mean, " if len(run.folds) > 1 else ""
    words = f"Thin lines are folds, {mean}dots the epochs chosen as best. SRCC is on the held-out part."
    return _chart_section("Learning curves", words, charts)


def _chart_section(title: str, caption: str, figures: Sequence[str]) -> str:
    charts = f'<div class="charts">{"".join(figures)}</div>'
    return f'<section><h2>{title}</h2><p class="caption">{caption}</p>{charts}</section>'


def _scatters(summary: Summary) -> str:
    run, charts = summary.run, []
    num_images = 0
    for target in run.targets:
        predictions, mos = pooled(run, target, "best")
        num_images = len(predictions)
        if not num_images:
            return ""
        fit = fit_logistic(predictions, mos)
        lines = []
        finite = predictions[np.isfinite(predictions)]
        if len(finite) and np.isfinite(mos).any():
            ends = [max(finite.min(), np.nanmin(mos)), min(finite.max(), np.nanmax(mos))]
            lines += [Line(ends, ends, "equal")] if ends[1] > ends[0] else []
        if fit.reason is None:
            x = np.linspace(predictions.min(), predictions.max(), 80)
            lines.append(Line(x.tolist(), fit(x).tolist(), "fit"))
        drawn = chart(
            f"{target}: MOS over prediction", "prediction", f"MOS, {target}", lines, points=(predictions, mos)
        )
        caption = "" if fit.reason is None else f"<figcaption>No curve: {escape(fit.reason)}.</figcaption>"
        charts.append(f"<figure>{drawn}{caption}</figure>")
    which = "best epoch" if run.trained else "checkpoint"
    words = (
        f"Held-out images of all folds ({num_images}), {which}. Line: logistic fit over all; dashed: prediction = MOS."
    )
    words += " Only some of the points are drawn." if num_images > MAX_POINTS else ""
    return _chart_section("Predicted and rated", words, charts)


def _shorten(prompt: str) -> str:
    return escape(prompt if len(prompt) <= _MAX_PROMPT else prompt[: _MAX_PROMPT - 1] + "…")


def _named(name: str, prompt: str) -> str:
    return f"{escape(name)}<br><small>{_shorten(prompt)}</small>"


def _image_rows(images: Sequence[ImageResidual]) -> list[list[str]]:
    return [[_named(r.image, r.prompt), number(r.mos), number(r.prediction), f"{r.residual:+.3f}"] for r in images]


def _residuals(run: RunResult, target: str) -> str:
    images = image_residuals(run, target, "best")
    if not images:
        return ""
    over = [image for image in images[:NUM_WORST] if image.residual > 0]
    under = [image for image in images[: -NUM_WORST - 1 : -1] if image.residual < 0]
    header = ["image and prompt", "MOS", "predicted", "off by"]
    groups = group_residuals(images)
    which = "best epoch" if run.trained else "checkpoint"
    parts = [
        f"<section><h2>Largest errors: {escape(target)}</h2>",
        f'<p class="caption">Held-out images, {which}; an image held out in several folds counts once, with its mean '
        "prediction. Off by: prediction - MOS.</p>",
    ]
    for title, rows in (("Rated too high", over), ("Rated too low", under)):
        if rows:
            parts.append(f"<h3>{title}</h3>{_table(header, _image_rows(rows), words=(0,))}")
    if groups:
        cells = [
            [_named(g.group, g.prompt), str(g.num_images), f"{g.mean:+.3f}", number(g.mean_absolute)]
            for g in groups[:NUM_WORST]
        ]
        header = ["group and one of its prompts", "images", "off by", "error"]
        parts.append(f"<h3>Groups, worst {len(cells)} of {len(groups)}</h3>")
        parts.append('<p class="caption">Off by: mean of prediction - MOS; error: mean of its absolute value.</p>')
        parts.append(f"{_table(header, cells, words=(0,))}")
    return "".join([*parts, "</section>"])


def _provenance(run: RunResult) -> str:
    parts = ["<section><h2>How it was made</h2>"]
    if run.command:
        parts.append(f"<pre>{escape(run.command)}</pre>")
    if run.config_text:
        parts.append(f"<details><summary>Configuration</summary><pre>{escape(run.config_text)}</pre></details>")
    if run.environment:
        cells = [
            [escape(str(k)), escape(v if isinstance(v, str) else json.dumps(v))] for k, v in run.environment.items()
        ]
        parts.append(f"<details><summary>Environment</summary>{_table(['', ''], cells, words=(0, 1))}</details>")
    splits = [[str(fold.number), escape(str(fold.split["sha256"]))] for fold in run.folds]
    parts.append(f"<details><summary>Split hashes</summary>{_table(['fold', 'sha256'], splits, words=(1,))}</details>")
    return "".join([*parts, "</section>"])
