"""Many runs over the same folds in one table: the first is the whole, every other one is compared with it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ipiqa.errors import DataError
from ipiqa.evaluation.results import MOMENTS, FoldResult, RunResult, facts, fold_numbers
from ipiqa.files import write_json, write_text
from ipiqa.metrics import PairedTest, Spread, describe
from ipiqa.report.compare import compare_folds, interval, p_value
from ipiqa.report.tables import escaped, latex_escaped, markdown_table, mean_std

LEVEL = 0.05  # of the corrected p below which a difference is marked
COLUMNS = ("srcc", "plcc")
UP, DOWN = "↑", "↓"


@dataclass(frozen=True)
class AblationRow:
    """One row: its name, its changes as "key=value", how far it is, and its results, None until it is finished."""

    name: str
    changes: tuple[str, ...]
    state: str
    run: RunResult | None


@dataclass(frozen=True)
class Cell:
    """One row under one heading: spreads over its folds, and its SRCC minus that of the first row.

    `test` is None for the first row and where the two cannot be paired; `p_holm` is nan where the test has no p.
    """

    spreads: dict[str, Spread]
    test: PairedTest | None
    p_holm: float

    @property
    def mark(self) -> str:
        """An arrow where the difference is significant, else ""."""
        if self.test is None or not self.p_holm < LEVEL:  # nan is not below
            return ""
        return UP if self.test.difference > 0 else DOWN


@dataclass(frozen=True)
class Ablation:
    """What the tables show: cells[moment, target][row name] for the rows that have this moment and target."""

    rows: tuple[AblationRow, ...]  # all of them; those without a run are listed below the table
    targets: tuple[str, ...]
    moments: tuple[str, ...]
    cells: dict[tuple[str, str], dict[str, Cell]]
    notes: tuple[str, ...]

    @property
    def finished(self) -> list[tuple[str, RunResult]]:
        return [(row.name, row.run) for row in self.rows if row.run is not None]

    @property
    def differences(self) -> list[tuple[str, str, str, Cell, PairedTest]]:
        """Each comparison as (moment, target, row name, cell, test)."""
        return [
            (moment, target, name, cell, cell.test)
            for (moment, target), cells in self.cells.items()
            for name, cell in cells.items()
            if cell.test is not None
        ]

    def heading(self, moment: str) -> str:
        """Returns what stands for a moment: runs that only evaluated have neither best nor last epoch."""
        return moment if any(run.trained for _, run in self.finished) else "checkpoint"


def write_ablation(folder: Path, rows: Sequence[AblationRow]) -> str:
    """Writes ablation.md, .csv, .tex and .json into a folder and returns the markdown.

    Args:
        folder: where to.
        rows: the first is what the others are compared with; at least one has a run.

    Raises:
        DataError: no row is finished.
    """
    ablation = compare_rows(rows)
    title = "/".join(folder.resolve().parts[-2:])
    text = ablation_markdown(ablation, title)
    write_text(folder / "ablation.md", text)
    write_text(folder / "ablation.csv", ablation_csv(ablation))
    write_text(folder / "ablation.tex", ablation_latex(ablation))
    write_json(folder / "ablation.json", ablation_json(ablation))
    return text


# ------------------------------------------------------------------------------------------------------------ comparing


def compare_rows(rows: Sequence[AblationRow]) -> Ablation:
    """Returns spreads and paired tests of all finished rows.

    Raises:
        DataError: no row is finished.
    """
    runs = [(row.name, row.run) for row in rows if row.run is not None]
    if not runs:
        raise DataError("ablation: no row is finished. Run one, or copy its folder here.")
    targets = tuple(dict.fromkeys(target for _, run in runs for target in run.targets))
    moments = tuple(m for m in reversed(MOMENTS) if any(m in run.moments for _, run in runs))
    notes = dict.fromkeys(_other_facts(runs))  # a set that keeps order
    cells: dict[tuple[str, str], dict[str, Cell]] = {}
    for moment in moments:
        for target in targets:
            have = [(name, run) for name, run in runs if target in run.targets and moment in run.moments]
            if have:
                cells[moment, target] = _column(have, rows[0], target, moment, notes)
    return Ablation(tuple(rows), targets, moments, cells, tuple(notes))


def _column(
    runs: Sequence[tuple[str, RunResult]], first: AblationRow, target: str, moment: str, notes: dict[str, None]
) -> dict[str, Cell]:
    """Returns the cells of all rows under one heading; they are one family for Holm's correction."""
    tests = {name: _against_first(name, run, first, target, moment, notes) for name, run in runs}
    p_values = [math.nan if test is None else test.p_corrected for test in tests.values()]
    out = {}
    for (name, run), p_holm in zip(runs, holm(p_values), strict=True):
        spreads = {metric: describe(run.values(target, moment, metric)) for metric in COLUMNS}
        for metric, spread in spreads.items():
            if math.isnan(spread.mean):
                notes[f"{name}: {target} {metric.upper()}, {moment} epoch: {spread.note}"] = None
        out[name] = Cell(spreads, tests[name], p_holm)
    return out


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for being several: the chance that any falls below by luck stays under the level.

    A nan is no comparison: it stays, and does not count.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).

    >>> holm([0.04, 0.01, float("nan"), 0.03])
    [0.06, 0.03, nan, 0.06]
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    out, highest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        out[i] = highest
    return out


def _against_first(
    name: str, run: RunResult, first: AblationRow, target: str, moment: str, notes: dict[str, None]
) -> PairedTest | None:
    """Returns the test of a row against the first, or None; why there is none goes into the notes."""
    if name == first.name:
        return None
    if first.run is None:
        notes[f"{first.name} is not finished: there is nothing to compare with yet"] = None
        return None
    if target not in first.run.targets or moment not in first.run.moments:
        return None
    theirs = {fold.number: fold for fold in first.run.folds}
    pairs = [(fold, theirs[fold.number]) for fold in run.folds if fold.number in theirs]
    obstacle = _obstacle(pairs, target)
    if obstacle:
        notes[f"{name}: not compared with {first.name}, {obstacle}"] = None
        return None
    if len(pairs) < max(len(run.folds), len(theirs)):
        numbers = fold_numbers([fold.number for fold, _ in pairs])
        notes[f"{name}: compared with {first.name} over the folds both have, {numbers}"] = None
    test = compare_folds(pairs, target, moment, "srcc")
    notes |= {f"{name}: {target}, {moment} epoch: {note}": None for note in test.notes if "Wilcoxon" not in note}
    return test


def _obstacle(pairs: Sequence[tuple[FoldResult, FoldResult]], target: str) -> str:
    """Returns why two rows cannot be compared in pairs, "" where they can.

    The hash of the table is no answer by itself: a row that trains on one target has read a narrower table.
    """
    if not pairs:
        return "no common fold"
    if any(a.split["sha256"] != b.split["sha256"] for a, b in pairs):
        return "other images were held out"
    if any(a.dataset["sha256"] != b.dataset["sha256"] and not _same_scores(a, b, target) for a, b in pairs):
        return f"the scores of {target} are others"
    return ""


def _same_scores(a: FoldResult, b: FoldResult, target: str) -> bool:
    if a.predictions is None or b.predictions is None or a.predictions.images != b.predictions.images:
        return False
    mos_a = a.predictions.mos[:, a.targets.index(target)]
    return np.array_equal(mos_a, b.predictions.mos[:, b.targets.index(target)])


def _other_facts(runs: Sequence[tuple[str, RunResult]]) -> list[str]:
    """Returns in what a row was not measured as the row whose facts stand above the table."""
    above = dict(facts(runs[0][1]))
    return [
        f"{name}: {label}: {words}"
        for name, run in runs[1:]
        for label, words in facts(run)
        if words != above.get(label, words)
    ]


# -------------------------------------------------------------------------------------------------------------- writing


def ablation_markdown(ablation: Ablation, title: str) -> str:
    """Returns the table of all rows, the table of differences, and what must be known to read them."""
    finished = ablation.finished
    lines = [f"# {escaped(title)}", ""]
    lines += [f"- **{label}**: {escaped(words)}" for label, words in facts(finished[0][1])]
    lines += ["", "Mean ± std over folds; PLCC without fitting.", ""]
    header = ["epoch", "row", *(f"{escaped(t)} {m.upper()}" for t in ablation.targets for m in COLUMNS)]
    rows = [
        [ablation.heading(moment), escaped(name), *_figures(ablation, moment, name, "-")]
        for moment in ablation.moments
        for name, _ in finished
    ]
    lines += markdown_table(header, rows)
    if ablation.differences:
        lines += ["", f"SRCC minus that of {escaped(ablation.rows[0].name)}:", ""]
        header = ["epoch", "target", "row", "difference", "95 % interval", "p", "p Holm"]
        rows = []
        for moment, target, name, cell, test in ablation.differences:
            figures = [interval(test), p_value(test.p_corrected), p_value(cell.p_holm)]
            difference = "-" if math.isnan(test.difference) else f"{test.difference:+.4f} {cell.mark}".strip()
            rows.append([ablation.heading(moment), escaped(target), escaped(name), difference, *figures])
        lines += markdown_table(header, rows)
    lines += [""]
    lines += [f"- {legend}" for legend in _legends(ablation)]
    lines += [f"- {escaped(note)}" for note in ablation.notes]
    lines += [f"- {escaped(row.name)}: not finished ({row.state})" for row in ablation.rows if row.run is None]
    return "\n".join(lines) + "\n"


def _figures(ablation: Ablation, moment: str, name: str, missing: str) -> list[str]:
    """Returns the cells of a row: SRCC with its mark, and PLCC, for each target."""
    out = []
    for target in ablation.targets:
        cell = ablation.cells.get((moment, target), {}).get(name)
        if cell is None:
            out += [missing] * len(COLUMNS)
        else:
            out += [f"{mean_std(cell.spreads['srcc'])} {cell.mark}".strip(), mean_std(cell.spreads["plcc"])]
    return out


def _legends(ablation: Ablation) -> list[str]:
    if not ablation.differences:
        return []
    return [
        f"{UP} {DOWN}: SRCC differs from {escaped(ablation.rows[0].name)}, p Holm < {LEVEL}",
        "95 % interval and p: corrected resampled t-test over common folds, Nadeau & Bengio (2003), two-sided; "
        "each by itself",
        "p Holm: corrected for the number of rows that are compared, in each epoch and target by itself",
    ]


def ablation_csv(ablation: Ablation) -> str:
    """Returns one line for each row, moment and target, with all digits; what is undefined is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    figures = [f"{metric}_{statistic}" for metric in COLUMNS for statistic in ("mean", "std")]
    tested = ["common_folds", "srcc_difference", "low", "high", "p", "p_holm"]
    writer.writerow(["row", "changes", "checkpoint", "target", "folds", *figures, *tested])
    for row in ablation.rows:
        for (moment, target), cells in ablation.cells.items():
            cell = cells.get(row.name)
            if cell is None:
                continue
            values = [value for metric in COLUMNS for value in (cell.spreads[metric].mean, cell.spreads[metric].std)]
            test = cell.test
            count = "" if test is None else test.n
            more = [math.nan] * 4 if test is None else [test.difference, test.low, test.high, test.p_corrected]
            texts = ["" if math.isnan(value) else repr(value) for value in (*values, *more, cell.p_holm)]
            line = [row.name, " ".join(row.changes), moment, target, cell.spreads["srcc"].n]
            writer.writerow([*line, *texts[: len(values)], count, *texts[len(values) :]])
    return out.getvalue()


def ablation_json(ablation: Ablation) -> dict[str, Any]:
    """Returns the content of ablation.json: every row with its state, spreads and tests."""

    def of(cell: Cell) -> dict[str, Any]:
        spreads = {metric: asdict(spread) for metric, spread in cell.spreads.items()}
        test = None if cell.test is None else asdict(cell.test) | {"p_holm": cell.p_holm, "mark": cell.mark}
        return spreads | {"srcc_minus_first": test}

    def results(name: str) -> dict[str, Any]:
        return {
            target: {
                m: of(ablation.cells[m, target][name]) for m in ablation.moments if _has(ablation, m, target, name)
            }
            for target in ablation.targets
        }

    return {
        "format": 1,
        "facts": dict(facts(ablation.finished[0][1])),
        "level": LEVEL,
        "rows": [
            {
                "name": row.name,
                "changes": list(row.changes),
                "state": row.state,
                "run_dir": None if row.run is None else str(row.run.run_dir),
                "targets": results(row.name),
            }
            for row in ablation.rows
        ],
        "notes": list(ablation.notes),
    }


def _has(ablation: Ablation, moment: str, target: str, name: str) -> bool:
    return name in ablation.cells.get((moment, target), {})


def ablation_latex(ablation: Ablation) -> str:
    """Returns a booktabs table with a block for each moment, and what a caption must say in comments above it."""
    finished = ablation.finished
    lines = [f"% {' '.join(f'{label}: {words}'.split())}" for label, words in facts(finished[0][1])]
    lines += [f"% {line}" for line in (*_legends(ablation), *ablation.notes)]
    lines += [f"% {row.name}: not finished ({row.state})" for row in ablation.rows if row.run is None]
    lines += ["% mean and standard deviation over folds; needs \\usepackage{booktabs}"]
    width = len(COLUMNS)
    lines += [r"\begin{tabular}{l" + "c" * (width * len(ablation.targets)) + "}", r"\toprule"]
    spans = [rf"\multicolumn{{{width}}}{{c}}{{{latex_escaped(target)}}}" for target in ablation.targets]
    lines.append(" & ".join(["", *spans]) + r" \\")
    lines.append(" & ".join(["Row", *(m.upper() for _ in ablation.targets for m in COLUMNS)]) + r" \\")
    for moment in ablation.moments:
        heading = ablation.heading(moment) + (" epoch" if ablation.heading(moment) == moment else "")
        lines += [r"\midrule", rf"\multicolumn{{{1 + width * len(ablation.targets)}}}{{l}}{{\emph{{{heading}}}}} \\"]
        for name, _ in finished:
            figures = [_latex_figure(text) for text in _figures(ablation, moment, name, "")]
            # In braces: "[" at the start of a line would be read as an argument of the line break before it.
            lines.append(" & ".join([f"{{{latex_escaped(name)}}}", *figures]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_figure(text: str) -> str:
    r"""Returns the text of a cell as mathematics.

    >>> print(_latex_figure("0.8712 ± 0.0021 ↓"), _latex_figure("nan"))
    $0.8712 \pm 0.0021 {\downarrow}$ --
    """
    if text in ("", "nan"):
        return "--"
    for sign, command in (("±", r"\pm"), (UP, r"{\uparrow}"), (DOWN, r"{\downarrow}")):
        text = text.replace(sign, command)
    return f"${text}$"
