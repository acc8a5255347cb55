"""A database before any model: a page about its scores, prompts and generators, and the first config of one's own."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import ipiqa
from ipiqa.datasets.databases.annotated import About
from ipiqa.datasets.discover import Found
from ipiqa.datasets.table import AnnotationTable
from ipiqa.metrics.ceiling import noise_ceiling
from ipiqa.metrics.variance import share_between
from ipiqa.prompts import describe
from ipiqa.report.render import MISSING, markdown_table, one_line, render

BINS, WIDTH = 10, 40  # of a histogram: bars, and the characters of the longest
MOST_ROWS = 40  # of a table by segment
MOST_PROMPTS, MOST_LETTERS = 5, 90  # that are shown
_BASE = Path(ipiqa.__file__).parent / "projects" / "agiqa3k" / "ipiqa_224.yaml"
_SMALL = 1000  # rows; below, every prompt is held out once, which wastes none
_BATCH = 32  # of the base
_WIDE = 20  # end of a scale from which a head, which starts near 0, takes long


def database_card(table: AnnotationTable, name: str, about: About | None) -> str:
    """Returns the page, its title the name of what is published or the given one; images are not looked at."""
    scores = pd.DataFrame(table.scores, columns=list(table.target_names))
    prompts = Counter(table.prompts_read)
    per_prompt = Counter(prompts.values())
    title, published = (about.name, about.compare(table)) if about else (name, "")
    return render(
        "card.md.j2", name=title, about=about, published=published, table=table,
        num_prompts=len(prompts), num_groups=len(set(table.groups)), missing=int(scores.isna().sum().sum()),
        per_prompt=", ".join(f"{number} with {count}" for count, number in sorted(per_prompt.items())[:8]),
        parts=", ".join(f"{part} {count:,}" for part, count in Counter(table.official or ()).items()),
        targets=_targets(table, scores), histograms={t: _histogram(scores[t].dropna()) for t in scores},
        segments={title: _by_segment(scores, texts) for title, texts in table.segments.items()},
        correlations=_correlations(scores) if len(table.targets) > 1 else "", ceilings=_ceilings(table),
        variance=_variance(table),
        repeated=[(count, _short(p)) for p, count in prompts.most_common(MOST_PROMPTS) if count > 1],
        reading=describe(table.prompts), longest=_short(max(table.prompts, key=len)),
    )  # fmt: skip


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]} ... ({len(line):,} characters)"


def _figures(form: str, *numbers: float) -> str:
    return MISSING if np.isnan(numbers).any() else form.format(*numbers)


def _targets(table: AnnotationTable, scores: pd.DataFrame) -> str:
    rows = []
    for target in table.targets:
        known = scores[target.name]
        low, high = (MISSING if end is None else f"{end:g}" for end in (target.low, target.high))
        numbers = [known.min(), known.mean(), known.median(), known.max(), known.std(ddof=0)]
        cells = [f"{known.count():,}", *(_figures("{:.3f}", number) for number in numbers)]
        rows.append([target.name, target.meaning or MISSING, f"{low} to {high}", *cells])
    return markdown_table(["target", "meaning", "scale", "scores", "min", "mean", "median", "max", "std"], rows)


def _histogram(scores: pd.Series) -> str:
    """Returns a bar of text for each tenth of the range of scores."""
    if scores.empty:
        return "(no score)"
    counts, edges = np.histogram(scores, BINS)
    ends = [f"{low:6.2f} to {high:6.2f}" for low, high in itertools.pairwise(edges)]
    bars = ["█" * max(round(WIDTH * count / counts.max()), bool(count)) for count in counts]
    return "\n".join(f"{end}  {bar} {count}" for end, bar, count in zip(ends, bars, counts, strict=True))


def _by_segment(scores: pd.DataFrame, texts: Sequence[str]) -> str:
    """Returns for each value its number of images and the mean of each target, the best of the first target first."""
    values = [text or "(none)" for text in texts]
    counts = Counter(values)
    by_value = scores.groupby(values)
    means, deviations = by_value.mean(), by_value.std(ddof=0)
    common = means.loc[[value for value, _ in counts.most_common(MOST_ROWS)]]
    rows = []
    for value, mean in common.sort_values(scores.columns[0], ascending=False, kind="stable").iterrows():
        pairs = zip(mean, deviations.loc[value], strict=True)
        rows.append([str(value), f"{counts[str(value)]:,}", *(_figures("{:.3f} ± {:.3f}", *pair) for pair in pairs)])
    left_out = len(counts) - len(rows)
    page = markdown_table(["", "images", *scores], rows)
    return page + (f"\n\n{left_out} rarer ones are not shown." if left_out else "")


def _correlations(scores: pd.DataFrame) -> str:
    """Returns SRCC / PLCC of every pair of targets, over the images that have both scores."""
    both = [scores.corr(method, min_periods=3) for method in ("spearman", "pearson")]  # type: ignore[arg-type]
    pairs = {(a, b): _figures("{:.3f} / {:.3f}", *(one.loc[a, b] for one in both)) for a in scores for b in scores}
    rows = [[a, *("" if a == b else pairs[a, b] for b in scores)] for a in scores]
    return markdown_table(["SRCC / PLCC", *scores], rows)


def _ceilings(table: AnnotationTable) -> str:
    """Returns the noise ceilings of the targets whose raters' spread is known, "" where none is."""
    if table.rater_std is None or table.num_raters is None:
        return ""
    rows = []
    columns = zip(table.target_names, table.scores.T, table.rater_std.T, table.num_raters.T, strict=True)
    for name, mos, std, raters in columns:
        if ceiling := noise_ceiling(mos, std, raters, table.prompts_read):
            numbers = [f"{number:.3f}" for number in (ceiling.srcc, ceiling.plcc, ceiling.within)]
            rows.append([name, f"{np.nanmean(raters):.3g}", *numbers])
    header = ["target", "raters", "SRCC", "PLCC", "SRCC within a prompt"]
    return markdown_table(header, rows) if rows else ""


def _variance(table: AnnotationTable) -> str:
    """Returns the share of each target's variance between segments, and between prompts."""
    rows = []
    for name, labels in {**table.segments, "prompt": table.prompts_read}.items():
        shares = [share_between(labels, scores) for scores in table.scores.T]
        cells = [MISSING if share is None else f"{100 * share:.1f} %" for share in shares]
        rows.append([name, f"{len(set(labels)):,}", *cells])
    return markdown_table(["between", "values", *table.target_names], rows)


def first_config(found: Found, out: Path) -> str:
    """Returns the config that trains on what was found, as it will stand in the file `out`."""
    folds = min(5, found.num_prompts)
    kind = "holdout" if found.num_rows >= _SMALL else "kfold"
    kind = "official" if found.part else kind if folds > 1 else "image_random"
    smallest = found.num_rows * (folds - 1) // folds if folds > 1 else found.num_rows // 2
    return render(
        "init.yaml.j2", found=found, base=os.path.relpath(_BASE, out.absolute().parent), kind=kind,
        folds=1 if found.part else max(folds, 2), output=f"output/{out.stem}/ipiqa",
        batch=max(2, smallest // 4) if smallest < 2 * _BATCH else 0,
        wide=all(score.scale is not None and score.scale[1] > _WIDE for score in found.scores),
    )  # fmt: skip
