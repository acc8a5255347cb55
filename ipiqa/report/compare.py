"""Runs over the same folds, compared in pairs: two of them, or many rows of which the first is the whole."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ipiqa.errors import DataError
from ipiqa.evaluation.results import CHECKPOINTS, RunResult, fold_numbers, short_name
from ipiqa.evaluation.summary import Summary, common_folds, compare, facts, interval_words, summarise, warnings
from ipiqa.files import write_json, write_text
from ipiqa.metrics import CHOSEN, METRICS, PairedTest, Spread, holm
from ipiqa.report.plots import forest
from ipiqa.report.render import MISSING, markdown_table, render
from ipiqa.report.tables import LEGENDS, label, mean_std, number

LEVEL = 0.05  # of p after Holm's correction, below which a difference is significant
TEST_COLUMNS = ("95 % interval", "p", "p Holm")
COLUMNS = ("srcc", "plcc")
UP, DOWN = "↑", "↓"


def compare_runs(a: RunResult, b: RunResult) -> str:
    """Returns a markdown table of the differences a - b over the folds both runs have, with paired tests.

    Where there is no target in which both held out the same images with the same scores, a DataError is raised.
    """
    first, second = summarise(a), summarise(b)
    tables, notes = [], dict[str, None]()
    reasons = {target: common_folds(a, b, target) for target in dict.fromkeys((*a.targets, *b.targets))}
    if not any(folds for folds, _ in reasons.values()):
        advice = "Give runs on the same dataset with the same split.kind, split.seed and folds."
        reason = reasons[a.targets[0]][1]
        raise DataError(f"report {a.run_dir} {b.run_dir}: cannot be compared: {reason}. {advice}")
    header = ["epoch", "metric", "A", "B", "A - B", *TEST_COLUMNS, "ahead"]
    for target, (folds, reason) in reasons.items():
        if not folds:
            notes[f"{target}: not compared, {reason}"] = None
            continue
        keys = [key for key in first.values if key[0] == target and key in second.values]
        tests = holm(compare(first, second, keys, folds))
        rows = []
        for (_, checkpoint, metric), test in zip(keys, tests, strict=True):
            means = number(test.mean_a), number(test.mean_b), f"{test.difference:+.4f}"
            rows.append([checkpoint, label(metric), *means, *interval_and_p(test), _ahead(test, metric)])
        notes |= {f"{target}: {test.note}": None for test in tests if test.note}
        notes[f"{target}: {len(folds)} common fold{'s' * (len(folds) > 1)}: {fold_numbers(folds)}"] = None
        tables.append((target, markdown_table(header, rows)))
    notes = dict.fromkeys(f"{name}: {words}" for name, run in (("A", a), ("B", b)) for words in warnings(run)) | notes
    context = {"interval": interval_words(a), "level": LEVEL, "legend": LEGENDS[a.main], "notes": notes}
    return render("compare.md.j2", a=a, b=b, tables=tables, **context)


def interval_and_p(test: PairedTest) -> list[str]:
    """Returns interval, p and corrected p as text, "-" where there is none."""
    interval = MISSING if math.isnan(test.low) else f"{test.low:+.3f} to {test.high:+.3f}"
    values = (test.p, test.p_holm)
    return [interval, *(MISSING if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}" for p in values)]


def _ahead(test: PairedTest, metric: str) -> str:
    if metric not in (*METRICS, *CHOSEN):  # whether more of it is better is not known
        return MISSING
    if not test.p_holm < LEVEL:  # nan is not below
        return "open"
    return "A" if (test.difference < 0) == (metric in ("rmse", "log_loss")) else "B"


@dataclass(frozen=True)
class AblationRow:
    """One row: its name, its changes as "key=value", how far it is, and its results, None until it is finished."""

    name: str
    changes: tuple[str, ...]
    state: str
    run: RunResult | None


@dataclass(frozen=True)
class Ablation:
    """What the tables show: all rows, summaries of the finished ones by name, and differences."""

    rows: tuple[AblationRow, ...]
    summaries: dict[str, Summary]
    differences: dict[tuple[str, str, str], PairedTest]  # minus the first, by checkpoint, target, row
    notes: tuple[str, ...]
    columns: tuple[str, ...] = COLUMNS  # of which the first is compared

    @property
    def first(self) -> RunResult:
        """The first run that is finished."""
        return next(iter(self.summaries.values())).run

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(target for one in self.summaries.values() for target in one.run.targets))

    @property
    def checkpoints(self) -> dict[str, str]:
        """The heading of each checkpoint: runs that only evaluated have neither best nor last epoch."""
        trained = any(one.run.trained for one in self.summaries.values())
        return {c: c if trained else "checkpoint" for c in (reversed(CHECKPOINTS) if trained else CHECKPOINTS[:1])}

    def results(self, name: str, checkpoint: str, target: str) -> tuple[dict[str, Spread], PairedTest | None]:
        """Returns the spreads by metric of a row, none where it has none, and its test against the first."""
        spreads = self.summaries[name].spreads if name in self.summaries else {}
        shown = {metric: spreads[key] for metric in self.columns if (key := (target, checkpoint, metric)) in spreads}
        return shown, self.differences.get((checkpoint, target, name))


def write_ablation(
    folder: Path, rows: Sequence[AblationRow], *, name: str = "ablation", columns: tuple[str, ...] = COLUMNS
) -> str:
    """Writes <name>.md, .csv, .tex, .json and .svg into a folder, with these metrics, and returns the markdown.

    The other rows are compared with the first. Where none is finished, a DataError is raised and nothing is written.
    """
    ablation = compare_rows(rows)
    ablation = replace(ablation, columns=columns if ablation.first.main in columns else tuple(CHOSEN))
    text = ablation_markdown(ablation, short_name(folder))
    for kind, content in {"md": text, "csv": ablation_csv(ablation), "tex": ablation_latex(ablation)}.items():
        write_text(folder / f"{name}.{kind}", content)
    write_json(folder / f"{name}.json", ablation_json(ablation))
    write_text(folder / f"{name}.svg", ablation_svg(ablation))
    return text


def compare_rows(rows: Sequence[AblationRow]) -> Ablation:
    """Returns summaries and paired tests of all finished rows; DataError where there is none."""
    summaries = {row.name: summarise(row.run) for row in rows if row.run is not None}
    if not summaries:
        raise DataError("ablation: no row is finished. Run one, or copy its folder here.")
    notes = dict.fromkeys(_row_notes(summaries))  # a set that keeps order
    first = rows[0].name
    whole = summaries.get(first)
    if whole is None:
        unfinished = f"{first} is not finished: there is nothing to compare with yet"
        return Ablation(tuple(rows), summaries, {}, (*notes, unfinished))
    differences: dict[tuple[str, str, str], PairedTest] = {}
    for checkpoint, target in itertools.product(reversed(CHECKPOINTS), whole.run.targets):
        key, tests = (target, checkpoint, whole.run.main), {}
        for name, one in summaries.items():
            if one is whole or key not in one.values or key not in whole.values:
                continue
            folds, reason = common_folds(one.run, whole.run, target)
            if reason:
                notes[f"{name}: not compared with {first}, {reason}"] = None
                continue
            if len(folds) < max(len(one.run.folds), len(whole.run.folds)):
                notes[f"{name}: compared with {first} over the folds both have, {fold_numbers(folds)}"] = None
            tests[checkpoint, target, name] = test = compare(one, whole, [key], folds)[0]
            notes |= {f"{name}: {target}, {checkpoint} epoch: {test.note}": None} if test.note else {}
        differences |= zip(tests, holm(list(tests.values())), strict=True)
    return Ablation(tuple(rows), summaries, differences, tuple(notes))


def _row_notes(summaries: dict[str, Summary]) -> list[str]:
    """Returns the warnings of each row, how it was measured other than the facts above say, and what is undefined."""
    above = dict(facts(next(iter(summaries.values())).run))
    warned, others, undefined = [], [], []
    for name, one in summaries.items():
        warned += [f"{name}: {warning}" for warning in warnings(one.run)]
        others += [f"{name}: {fact}: {words}" for fact, words in facts(one.run) if words != above.get(fact)]
        for (target, checkpoint, metric), spread in one.spreads.items():
            if metric in (*COLUMNS, *CHOSEN) and math.isnan(spread.mean):
                undefined.append(f"{name}: {target} {label(metric)}, {checkpoint} epoch: {spread.note}")
    return warned + others + undefined


def ablation_markdown(ablation: Ablation, title: str) -> str:
    """Returns the table of all rows, the table of differences, and what must be known to read them."""
    header = ["epoch", "row", *(f"{t} {label(m)}" for t in ablation.targets for m in ablation.columns)]
    shown = itertools.product(ablation.checkpoints, ablation.summaries)
    rows = [[ablation.checkpoints[c], name, *_figures(ablation, c, name)] for c, name in shown]
    differences = []
    for (checkpoint, target, name), test in ablation.differences.items():
        figure = MISSING if math.isnan(test.difference) else f"{test.difference:+.4f} {mark(test)}".strip()
        differences.append([ablation.checkpoints[checkpoint], target, name, figure, *interval_and_p(test)])
    return render(
        "ablation.md.j2", title=title, ablation=ablation, facts=facts(ablation.first), remarks=_remarks(ablation),
        figures=markdown_table(header, rows), main=label(ablation.first.main),
        differences=markdown_table(["epoch", "target", "row", "difference", *TEST_COLUMNS], differences),
    )  # fmt: skip


def _figures(ablation: Ablation, checkpoint: str, name: str) -> list[str]:
    """Returns the cells of a row: each metric for each target, the main one with its mark."""
    results = [ablation.results(name, checkpoint, target) for target in ablation.targets]
    cells = [(m, mean_std(spreads.get(m)), test) for spreads, test in results for m in ablation.columns]
    return [f"{figure} {mark(test)}".strip() if m == ablation.first.main else figure for m, figure, test in cells]


def mark(test: PairedTest | None) -> str:
    """Returns an arrow where the difference is significant, else ""."""
    if test is None or not test.p_holm < LEVEL:  # nan is not below
        return ""
    return UP if test.difference > 0 else DOWN


def _remarks(ablation: Ablation) -> list[str]:
    """Returns what must be known to read the tables."""
    legends = [
        f"{UP} {DOWN}: {label(ablation.first.main)} differs from {ablation.rows[0].name}, p Holm < {LEVEL}",
        f"95 % interval and p: {interval_words(ablation.first)}, two-sided, each by itself",
        "p Holm: corrected for the number of rows that are compared, in each epoch and target by itself",
    ]
    unfinished = [f"{row.name}: not finished ({row.state})" for row in ablation.rows if row.run is None]
    return [*legends * bool(ablation.differences), *ablation.notes, *unfinished]


def ablation_csv(ablation: Ablation) -> str:
    """Returns one line for each row, checkpoint and target, with all digits; what is undefined is empty."""
    lines = []
    for row, checkpoint, target in itertools.product(ablation.rows, ablation.checkpoints, ablation.targets):
        spreads, test = ablation.results(row.name, checkpoint, target)
        if row.run is None or not spreads:
            continue
        line: dict[str, Any] = {"row": row.name, "changes": " ".join(row.changes), "checkpoint": checkpoint}
        line |= {"target": target, "folds": len(row.run.folds)}
        shown = itertools.product(ablation.columns, ("mean", "std"))
        line |= {f"{metric}_{field}": getattr(spreads.get(metric), field, None) for metric, field in shown}
        line |= {"common_folds": str(getattr(test, "n", "")), f"{row.run.main}_difference": test and test.difference}
        lines.append(line | {name: getattr(test, name, None) for name in ("low", "high", "p", "p_holm")})
    return str(pd.DataFrame(lines).to_csv(index=False, lineterminator="\n"))


def ablation_json(ablation: Ablation) -> dict[str, Any]:
    """Returns the content of ablation.json: every row with its state, spreads and tests."""
    rows = []
    for row in ablation.rows:
        targets: dict[str, Any] = {target: {} for target in ablation.targets}
        for target, checkpoint in itertools.product(targets, ablation.checkpoints):
            spreads, test = ablation.results(row.name, checkpoint, target)
            if spreads:
                difference = None if test is None else asdict(test) | {"mark": mark(test)}
                shown = {metric: asdict(spread) for metric, spread in spreads.items()}
                targets[target][checkpoint] = {f"{ablation.first.main}_minus_first": difference} | shown
        run_dir = None if row.run is None else str(row.run.run_dir)
        about = {"name": row.name, "changes": row.changes, "state": row.state, "run_dir": run_dir}
        rows.append(about | {"targets": targets})
    above = {"format": 1, "facts": dict(facts(ablation.first)), "level": LEVEL}
    return above | {"rows": rows, "notes": ablation.notes}


def ablation_svg(ablation: Ablation) -> str:
    """Returns a plot of the means and intervals of all finished rows, at the last epoch where they have one."""
    finished = [row.name for row in ablation.rows if row.run is not None]
    rows, metric = [], ablation.first.main
    for name in finished:
        of_targets: list[tuple[float, float, float] | None] = []
        for target in ablation.targets:
            found = (ablation.results(name, checkpoint, target)[0] for checkpoint in ("last", "best"))
            spread = next((spreads[metric] for spreads in found if metric in spreads), None)
            of_targets.append(None if spread is None else (spread.mean, spread.low, spread.high))
        rows.append((name, of_targets))
    titles = [f"{target}: {label(metric)}, 95 % interval" for target in ablation.targets]
    about = "Means and intervals of the rows of an ablation; the numbers are in the table beside it"
    return render("ablation.svg.j2", about=about, **forest(rows, titles))


def ablation_latex(ablation: Ablation) -> str:
    """Returns a booktabs table with a block for each checkpoint, and what a caption must say in comments above it."""
    blocks = [
        (f"{heading} epoch" if heading == c else heading, [(n, _figures(ablation, c, n)) for n in ablation.summaries])
        for c, heading in ablation.checkpoints.items()
    ]
    above = {"facts": facts(ablation.first), "remarks": _remarks(ablation)}
    columns = [label(metric) for metric in ablation.columns]
    return render("ablation.tex.j2", ablation=ablation, columns=columns, blocks=blocks, **above)
