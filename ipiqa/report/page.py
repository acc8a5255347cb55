"""The report as one HTML file: nothing is loaded, nothing runs, everything from the data is escaped."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ipiqa.evaluation.results import EvaluatedEpoch, RunResult
from ipiqa.evaluation.summary import Summary, checkpoint_title, facts, interval_words, selection_rule
from ipiqa.metrics import Spread, fit_logistic
from ipiqa.report import plots
from ipiqa.report.breakdown import Cell, Section
from ipiqa.report.plots import Line, chart
from ipiqa.report.render import render
from ipiqa.report.tables import LEGENDS, fold_table, label, mean_std, number, shown_notes

NUM_WORST = 10
MAX_PROMPT = 240

Chart = dict[str, Any] | None


def report_page(summary: Summary, sections: Sequence[Section] = ()) -> str:
    """Returns the whole page as HTML text; `sections` are the run in parts."""
    run = summary.run
    images = {target: pooled(run, target, "best") for target in run.targets}
    return render(
        "report.html.j2", run=run, facts=facts(run), warnings=shown_notes(summary), interval=interval_words(run),
        selection_rule=f"{'Best' if run.trained else 'Weights'}: {selection_rule(run)}.",
        cards=[_card(summary, target) for target in run.targets], frame=plots,
        folds=[(target, fold_table(summary, target)) for target in run.targets],
        sections=sections, curves=list(_curves(run)), main=label(run.main), legend=LEGENDS[run.main],
        scatters=[_scatter(*item) for item in images.items() if len(item[1])],
        max_points=plots.MAX_POINTS, num_predictions=len(images[run.targets[0]]),
        residuals=[errors for item in images.items() if (errors := _residuals(*item))],
        which=checkpoint_title(run, "best"),
        environment=[(k, v if isinstance(v, str) else json.dumps(v)) for k, v in run.environment.items()],
        splits=[(str(fold.number), fold.scores.split.sha256) for fold in run.folds],
    )  # fmt: skip


def _card(summary: Summary, target: str) -> dict[str, Any]:
    """Returns what stands at the top for a target: the main metric large, all with their intervals in a table."""
    titles = {checkpoint_title(summary.run, c): c for c in summary.run.checkpoints}
    of = {m: {t: summary.spreads.get((target, c, m)) for t, c in titles.items()} for m in summary.metrics}
    rows = [[label(metric), *map(_with_interval, of[metric].values())] for metric in summary.metrics]
    return {"target": target, "main": of.get(summary.run.main, {}), "header": ["", *titles], "rows": rows}


def _with_interval(spread: Spread | None) -> Cell:
    if spread is None or math.isnan(spread.low):
        return mean_std(spread)
    return mean_std(spread), f"{number(spread.low)} to {number(spread.high)}"


def _curves(run: RunResult) -> Iterator[Chart]:
    """Yields the loss and the main metric of each target by epoch, where the run has them."""
    if not any(result.curve for result in run.results.values()):
        return
    yield chart("training loss by epoch", "epoch", "training loss", _lines(run))
    best = [result.scores.best for result in run.results.values() if result.scores.best.epoch is not None]
    for target in run.targets:
        chosen = [one.epoch for one in best], [one.metrics[target].get(run.main) for one in best]
        title = f"{label(run.main)} of {target} on the held-out part, by epoch"
        yield chart(title, "epoch", f"{label(run.main)}, {target}", _lines(run, target), marks=chosen)


def _lines(run: RunResult, target: str | None = None) -> list[Line]:
    """Returns the loss, or the main metric of a target, of each fold and seed, and the mean where all have it."""

    def value(row: EvaluatedEpoch) -> Any:
        return row.loss if target is None else (row.metrics or {}).get(target, {}).get(run.main)

    values = [{row.epoch: v for row in one.curve if isinstance(v := value(row), float)} for one in run.results.values()]
    curves = [pd.Series(of_fold, dtype=float) for of_fold in values]
    lines = [("fold", curve.index, curve) for curve in curves]
    mean = pd.concat(curves, axis=1, join="inner").sort_index().mean(axis=1)
    return lines + [("mean", mean.index, mean)] * (len(curves) > 1)


def _scatter(target: str, images: pd.DataFrame) -> tuple[Chart, str]:
    """Returns a chart of MOS over prediction, and why it has no fitted curve."""
    predictions, mos = (images[name].to_numpy(dtype=np.float64) for name in ("prediction", "mos"))
    fit = fit_logistic(predictions, mos)
    lines: list[Line] = []
    finite = [values[np.isfinite(values)] for values in (predictions, mos)]
    if all(map(len, finite)):
        ends = [max(map(np.min, finite)), min(map(np.max, finite))]
        lines += [("equal", ends, ends)] * bool(ends[1] > ends[0])
    if fit.reason is None:
        x = np.linspace(predictions.min(), predictions.max(), 80)
        lines.append(("fit", x, fit(x)))
    title = f"{target}: MOS over prediction"
    return chart(title, "prediction", f"MOS, {target}", lines, points=(predictions, mos)), fit.reason or ""


def _residuals(target: str, images: pd.DataFrame) -> dict[str, Any] | None:
    """Returns the images and groups with the largest errors in a target as rows of tables."""
    images = image_residuals(images)
    if images.empty:
        return None
    groups, signed, parts = group_residuals(images), "{:+.3f}".format, []
    images = images[["image", "prompt", "mos", "prediction", "residual"]]
    over, under = images[images["residual"] > 0], images[images["residual"] < 0][::-1]
    for title, part in (("Rated too high", over), ("Rated too low", under)):
        parts += [(title, _rows(part, number, number, signed))] * (not part.empty)
    rows = _rows(groups, str, signed, number)
    return {"target": target, "images": parts, "num_groups": len(groups), "groups": rows}


def _rows(worst: pd.DataFrame, *formats: Callable[[Any], str]) -> list[list[Cell]]:
    """Returns the cells of the first rows of a frame: name with the prompt below, then its other columns as text."""
    out: list[list[Cell]] = []
    for name, prompt, *values in worst.head(NUM_WORST).itertuples(index=False):
        shown = prompt if len(prompt) <= MAX_PROMPT else prompt[: MAX_PROMPT - 1] + "…"
        out.append([(name, shown), *(text(value) for text, value in zip(formats, values, strict=True))])
    return out


def pooled(run: RunResult, target: str, checkpoint: str) -> pd.DataFrame:
    """Returns image, prompt, group, mos and prediction of all scored images, once for each fold and seed."""
    columns = {f"mos_{target}": "mos", f"{checkpoint}_{target}": "prediction"}
    names = ["image", "prompt", "group", *columns]
    parts = [result.predictions[names] for result in run.results.values() if result.predictions is not None]
    every = (pd.concat(parts) if parts else pd.DataFrame(columns=names)).rename(columns=columns)
    return every[every["mos"].notna()]


def image_residuals(images: pd.DataFrame) -> pd.DataFrame:
    """Returns every image of `pooled` once, from the most over-rated to the most under-rated.

    Its prediction is the mean over the folds that hold it out and their seeds; column `residual` is prediction - MOS.
    """
    images = images[np.isfinite(images[["prediction", "mos"]].astype(float)).all(axis=1)]
    keys = ["image", "mos"]  # a table may hold two rows of one name
    out = images.groupby(keys, as_index=False).agg({"prompt": "last", "group": "last", "prediction": "mean"})
    out["residual"] = out["prediction"] - out["mos"]
    return out.sort_values(["residual", "image"], ascending=[False, True], ignore_index=True)


def group_residuals(images: pd.DataFrame) -> pd.DataFrame:
    """Returns the groups with two images or more of `image_residuals`, the largest mean absolute residual first.

    Columns: group, prompt (one of them), num_images, mean and mean_absolute residual.
    """
    parts = images.assign(absolute=images["residual"].abs()).groupby("group", as_index=False)
    residuals = {"mean": ("residual", "mean"), "mean_absolute": ("absolute", "mean")}
    out = parts.agg(prompt=("prompt", "min"), num_images=("image", "size"), **residuals)
    out = out[out["num_images"] > 1]
    return out.sort_values(["mean_absolute", "group"], ascending=[False, True], ignore_index=True)
