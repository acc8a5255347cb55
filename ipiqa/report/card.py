"""A page about a database, in markdown: what its scores, prompts and generators are like, whatever model comes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import stats

from ipiqa.datasets.databases.annotated import About
from ipiqa.datasets.table import AnnotationTable
from ipiqa.metrics.ceiling import noise_ceiling
from ipiqa.metrics.variance import share_between
from ipiqa.prompts import describe
from ipiqa.report.render import MISSING, markdown_table, one_line, render

BINS, WIDTH = 10, 40  # of a histogram: bars, and the characters of the longest
MOST_ROWS = 40  # of a table by segment
MOST_PROMPTS, MOST_LETTERS = 5, 90  # that are shown


def database_card(table: AnnotationTable, name: str, about: About | None) -> str:
    """Returns the page, its title the name of what is published or the given one; images are not looked at."""
    segments = {title: _by_segment(table, texts) for title, texts in table.segments.items()}
    prompts = Counter(table.prompts_read)
    per_prompt = Counter(prompts.values())
    title, published = (about.name, about.compare(table)) if about else (name, "")
    return render(
        "card.md.j2", name=title, about=about, published=published, table=table,
        num_prompts=len(prompts), num_groups=len(set(table.groups)), missing=int(np.isnan(table.scores).sum()),
        per_prompt=", ".join(f"{number} with {count}" for count, number in sorted(per_prompt.items())[:8]),
        parts=", ".join(f"{part} {count:,}" for part, count in Counter(table.official or ()).items()),
        targets=_targets(table), histograms={t: _histogram(s) for t, s in _known(table).items()}, segments=segments,
        correlations=_correlations(table) if len(table.targets) > 1 else "", ceilings=_ceilings(table),
        variance=_variance(table),
        repeated=[(count, _short(p)) for p, count in prompts.most_common(MOST_PROMPTS) if count > 1],
        reading=describe(table.prompts), longest=_short(max(table.prompts, key=len)),
    )  # fmt: skip


def _known(table: AnnotationTable) -> dict[str, np.ndarray]:
    """Returns the scores of each target that are not missing."""
    columns = zip(table.target_names, table.scores.T, strict=True)
    return {name: scores[~np.isnan(scores)] for name, scores in columns}


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]} ... ({len(line):,} characters)"


def _targets(table: AnnotationTable) -> str:
    rows = []
    for target, scores in zip(table.targets, _known(table).values(), strict=True):
        low, high = (MISSING if end is None else f"{end:g}" for end in (target.low, target.high))
        numbers = [scores.min(), scores.mean(), np.median(scores), scores.max(), scores.std()] if len(scores) else []
        cells = [f"{number:.3f}" for number in numbers] or [MISSING] * 5
        rows.append([target.name, target.meaning or MISSING, f"{low} to {high}", f"{len(scores):,}", *cells])
    return markdown_table(["target", "meaning", "scale", "scores", "min", "mean", "median", "max", "std"], rows)


def _histogram(scores: np.ndarray) -> str:
    """Returns a bar of text for each tenth of the range of scores."""
    if not len(scores):
        return "(no score)"
    counts, edges = np.histogram(scores, BINS)
    ends = [f"{low:6.2f} to {high:6.2f}" for low, high in itertools.pairwise(edges)]
    bars = ["█" * max(round(WIDTH * count / counts.max()), bool(count)) for count in counts]
    return "\n".join(f"{end}  {bar} {count}" for end, bar, count in zip(ends, bars, counts, strict=True))


def _by_segment(table: AnnotationTable, texts: Sequence[str]) -> str:
    """Returns for each value its number of images and the mean of each target, the best of the first target first."""
    values = np.array([text or "(none)" for text in texts], dtype=object)
    rows = []
    for value, count in Counter(values.tolist()).most_common(MOST_ROWS):
        scores = table.scores[values == value]
        known = [column[~np.isnan(column)] for column in scores.T]
        cells = [f"{column.mean():.3f} ± {column.std():.3f}" if len(column) else MISSING for column in known]
        rows.append((-known[0].mean() if len(known[0]) else np.inf, [value, f"{count:,}", *cells]))
    shown = [row for _, row in sorted(rows, key=lambda row: row[0])]
    left_out = len(set(values)) - len(shown)
    page = markdown_table(["", "images", *table.target_names], shown)
    return page + (f"\n\n{left_out} rarer ones are not shown." if left_out else "")


def _correlations(table: AnnotationTable) -> str:
    """Returns SRCC / PLCC of every pair of targets, over the images that have both scores."""

    def cell(a: int, b: int) -> str:
        x, y = table.scores[~np.isnan(table.scores[:, [a, b]]).any(axis=1)][:, [a, b]].T
        if a == b or len(x) < 3 or not np.ptp(x) or not np.ptp(y):
            return "" if a == b else MISSING
        return f"{stats.spearmanr(x, y).statistic:.3f} / {stats.pearsonr(x, y).statistic:.3f}"

    count = len(table.targets)
    rows = [[name, *(cell(a, b) for b in range(count))] for a, name in enumerate(table.target_names)]
    return markdown_table(["SRCC / PLCC", *table.target_names], rows)


def _ceilings(table: AnnotationTable) -> str:
    """Returns the noise ceilings of the targets whose raters' spread is known, "" where none is."""
    rows = []
    for t, name in enumerate(table.target_names):
        if table.rater_std is None or table.num_raters is None:
            continue
        raters = table.num_raters[:, t]
        ceiling = noise_ceiling(table.scores[:, t], table.rater_std[:, t], raters, table.prompts_read)
        if ceiling is not None:
            numbers = [f"{number:.3f}" for number in (ceiling.srcc, ceiling.plcc, ceiling.within)]
            rows.append([name, f"{np.nanmean(raters):.3g}", *numbers])
    header = ["target", "raters", "SRCC", "PLCC", "SRCC within a prompt"]
    return markdown_table(header, rows) if rows else ""


def _variance(table: AnnotationTable) -> str:
    """Returns the share of each target's variance between segments, and between prompts."""
    groups = {**table.segments, "prompt": table.prompts_read}
    rows = []
    for name, labels in groups.items():
        shares = [share_between(labels, scores) for scores in table.scores.T]
        cells = [MISSING if share is None else f"{100 * share:.1f} %" for share in shares]
        rows.append([name, f"{len(set(labels)):,}", *cells])
    return markdown_table(["between", "values", *table.target_names], rows)
