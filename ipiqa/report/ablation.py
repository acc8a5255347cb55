"""Many runs over the same folds in one table: the first is the whole, every other one is compared with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ipiqa.errors import DataError
from ipiqa.evaluation.results import CHECKPOINTS, RunResult, fold_numbers
from ipiqa.evaluation.summary import (
    Values,
    by_fold,
    common_folds,
    compare,
    facts,
    interval_words,
    long_frame,
    warnings,
)
from ipiqa.files import write_json, write_text
from ipiqa.metrics import PairedTest, Spread, describe, holm
from ipiqa.report.compare import LEVEL, TEST_COLUMNS, interval_and_p
from ipiqa.report.render import markdown_table, render
from ipiqa.report.tables import mean_std

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
class Ablation:
    """What the tables show: spreads of each (row, target, checkpoint, metric), and differences."""

    rows: tuple[AblationRow, ...]  # all of them; those without a run are listed below the table
    runs: dict[str, RunResult]  # of the finished ones
    spreads: dict[tuple[str, str, str, str], Spread]
    differences: dict[tuple[str, str, str], PairedTest]  # SRCC minus that of the first, by checkpoint, target, row
    notes: tuple[str, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(target for run in self.runs.values() for target in run.targets))

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return tuple(c for c in reversed(CHECKPOINTS) if any(c in run.checkpoints for run in self.runs.values()))

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What stands above the table: of the first finished row."""
        return facts(next(iter(self.runs.values())))

    def heading(self, checkpoint: str) -> str:
        """Returns what stands for a checkpoint: runs that only evaluated have neither best nor last epoch."""
        return checkpoint if any(run.trained for run in self.runs.values()) else "checkpoint"


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
    runs = {row.name: row.run for row in rows if row.run is not None}
    if not runs:
        raise DataError("ablation: no row is finished. Run one, or copy its folder here.")
    values = by_fold(long_frame(runs))
    spreads = {key: describe(v, overlap=runs[key[0]].overlap) for key, v in values.items() if key[3] in COLUMNS}
    notes = dict.fromkeys(_other_facts(runs))  # a set that keeps order
    for (name, target, checkpoint, metric), spread in spreads.items():
        if math.isnan(spread.mean):
            notes[f"{name}: {target} {metric.upper()}, {checkpoint} epoch: {spread.note}"] = None
    first = rows[0].name
    if first not in runs:
        notes[f"{first} is not finished: there is nothing to compare with yet"] = None
    differences: dict[tuple[str, str, str], PairedTest] = {}
    for checkpoint, target in itertools.product(reversed(CHECKPOINTS), runs[first].targets if first in runs else ()):
        tests = dict(_tests(values, runs, first, target, checkpoint, notes))
        corrected = zip(tests, holm(list(tests.values())), strict=True)
        differences |= {(checkpoint, target, name): test for name, test in corrected}
    return Ablation(tuple(rows), runs, spreads, differences, tuple(notes))


def _tests(
    values: Values, runs: dict[str, RunResult], first: str, target: str, checkpoint: str, notes: dict[str, None]
) -> Iterator[tuple[str, PairedTest]]:
    """Yields the test of each row against the first; what cannot be compared goes into the notes."""
    key = (target, checkpoint, "srcc")
    for name, run in runs.items():
        if name == first or (name, *key) not in values or (first, *key) not in values:
            continue
        folds, reason = common_folds(run, runs[first], target)
        if reason:
            notes[f"{name}: not compared with {first}, {reason}"] = None
            continue
        if len(folds) < max(len(run.folds), len(runs[first].folds)):
            notes[f"{name}: compared with {first} over the folds both have, {fold_numbers(folds)}"] = None
        test = compare(values, runs, name, first, key, folds)
        notes |= {f"{name}: {target}, {checkpoint} epoch: {test.note}": None} if test.note else {}
        yield name, test


def _other_facts(runs: dict[str, RunResult]) -> list[str]:
    """Returns the warnings of each row, and in what it was not measured as the row whose facts stand above."""
    above = dict(facts(next(iter(runs.values()))))
    out = [f"{name}: {warning}" for name, run in runs.items() for warning in warnings(run)]
    for name, run in runs.items():
        out += [f"{name}: {label}: {words}" for label, words in facts(run) if words != above.get(label, words)]
    return out


# -------------------------------------------------------------------------------------------------------------- writing


def ablation_markdown(ablation: Ablation, title: str) -> str:
    """Returns the table of all rows, the table of differences, and what must be known to read them."""
    header = ["epoch", "row", *(f"{t} {m.upper()}" for t in ablation.targets for m in COLUMNS)]
    rows = [[ablation.heading(c), n, *_figures(ablation, c, n)] for c in ablation.checkpoints for n in ablation.runs]
    differences = []
    for (checkpoint, target, name), test in ablation.differences.items():
        shown = "-" if math.isnan(test.difference) else f"{test.difference:+.4f} {mark(test)}".strip()
        differences.append([ablation.heading(checkpoint), target, name, shown, *interval_and_p(test)])
    return render(
        "ablation.md.j2", title=title, ablation=ablation, remarks=_remarks(ablation),
        figures=markdown_table(header, rows),
        differences=markdown_table(["epoch", "target", "row", "difference", *TEST_COLUMNS], differences),
    )  # fmt: skip


def _figures(ablation: Ablation, checkpoint: str, name: str) -> list[str]:
    """Returns the cells of a row: SRCC with its mark, and PLCC, for each target."""
    out = []
    for target, metric in itertools.product(ablation.targets, COLUMNS):
        test = ablation.differences.get((checkpoint, target, name)) if metric == "srcc" else None
        out.append(f"{mean_std(ablation.spreads.get((name, target, checkpoint, metric)))} {mark(test)}".strip())
    return out


def mark(test: PairedTest | None) -> str:
    """Returns an arrow where the difference is significant, else ""."""
    if test is None or not test.p_holm < LEVEL:  # nan is not below
        return ""
    return UP if test.difference > 0 else DOWN


def _remarks(ablation: Ablation) -> list[str]:
    """Returns what must be known to read the tables."""
    legends = [
        f"{UP} {DOWN}: SRCC differs from {ablation.rows[0].name}, p Holm < {LEVEL}",
        f"95 % interval and p: {interval_words(next(iter(ablation.runs.values())))}, two-sided, each by itself",
        "p Holm: corrected for the number of rows that are compared, in each epoch and target by itself",
    ]
    unfinished = [f"{row.name}: not finished ({row.state})" for row in ablation.rows if row.run is None]
    return [*legends * bool(ablation.differences), *ablation.notes, *unfinished]


def ablation_csv(ablation: Ablation) -> str:
    """Returns one line for each row, checkpoint and target, with all digits; what is undefined is empty."""
    lines = []
    for row, checkpoint, target in itertools.product(ablation.rows, ablation.checkpoints, ablation.targets):
        spreads = {metric: ablation.spreads.get((row.name, target, checkpoint, metric)) for metric in COLUMNS}
        if not any(spreads.values()):
            continue
        run, test = ablation.runs[row.name], ablation.differences.get((checkpoint, target, row.name))
        line: dict[str, Any] = {"row": row.name, "changes": " ".join(row.changes), "checkpoint": checkpoint}
        line |= {"target": target, "folds": len(run.folds)}
        for metric, statistic in itertools.product(COLUMNS, ("mean", "std")):
            line[f"{metric}_{statistic}"] = getattr(spreads[metric], statistic, None)
        line |= {"common_folds": "" if test is None else str(test.n)}
        line |= {"srcc_difference": getattr(test, "difference", None)}
        lines.append(line | {name: getattr(test, name, None) for name in ("low", "high", "p", "p_holm")})
    return str(pd.DataFrame(lines).to_csv(index=False, lineterminator="\n"))


def ablation_json(ablation: Ablation) -> dict[str, Any]:
    """Returns the content of ablation.json: every row with its state, spreads and tests."""

    def results(name: str) -> dict[str, Any]:
        out: dict[str, Any] = {target: {} for target in ablation.targets}
        for (row, target, checkpoint, metric), spread in ablation.spreads.items():
            if row == name:
                out[target].setdefault(checkpoint, {"srcc_minus_first": None})[metric] = asdict(spread)
        for (checkpoint, target, row), test in ablation.differences.items():
            if row == name:
                out[target][checkpoint]["srcc_minus_first"] = asdict(test) | {"mark": mark(test)}
        return out

    rows = [
        {"name": row.name, "changes": list(row.changes), "state": row.state, "targets": results(row.name)}
        | {"run_dir": None if row.run is None else str(row.run.run_dir)}
        for row in ablation.rows
    ]
    return {"format": 1, "facts": dict(ablation.facts), "level": LEVEL, "rows": rows, "notes": list(ablation.notes)}


def ablation_latex(ablation: Ablation) -> str:
    """Returns a booktabs table with a block for each checkpoint, and what a caption must say in comments above it."""
    blocks = []
    for checkpoint in ablation.checkpoints:
        heading = ablation.heading(checkpoint)
        rows = [(name, _figures(ablation, checkpoint, name)) for name in ablation.runs]
        blocks.append((f"{heading} epoch" if heading == checkpoint else heading, rows))
    return render("ablation.tex.j2", ablation=ablation, remarks=_remarks(ablation), columns=COLUMNS, blocks=blocks)
