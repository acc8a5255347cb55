"""Two runs over the same folds, compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ipiqa.errors import DataError
from ipiqa.evaluation.results import FoldResult, RunResult, fold_numbers
from ipiqa.metrics import METRICS, PairedTest, paired_test
from ipiqa.report.tables import FITTED, LABELS, escaped, markdown_table, number


def compare_runs(a: RunResult, b: RunResult) -> str:
    """Returns a markdown table of the differences a - b over the folds both runs have, with paired tests.

    Raises:
        DataError: no common target or fold, another dataset, or a fold with other parts.
    """
    targets = [target for target in a.targets if target in b.targets]
    common = {fold.number: fold for fold in b.folds}
    pairs = [(fold, common[fold.number]) for fold in a.folds if fold.number in common]
    where = f"report {a.run_dir} {b.run_dir}"
    if a.folds[0].dataset["sha256"] != b.folds[0].dataset["sha256"]:
        names = f"{a.folds[0].dataset['name']} and {b.folds[0].dataset['name']}"
        raise DataError(f"{where}: the annotation tables differ ({names}). Compare runs on the same dataset.")
    if not targets:
        raise DataError(f"{where}: no common target, {_listed(a)} against {_listed(b)}. Compare runs of one task.")
    if not pairs:
        have = f"{fold_numbers([f.number for f in a.folds])} against {fold_numbers([f.number for f in b.folds])}"
        raise DataError(f"{where}: no common fold, {have}. Train the same folds in both.")
    header = ["epoch", "metric", "A", "B", "A - B", "95 % interval", "p NB", "p t", "p rank", "ahead"]
    lines, notes = [f"# A = {a.run_dir}, B = {b.run_dir}", ""], dict[str, None]()
    for target in targets:
        rows = []
        for moment in [moment for moment in a.moments if moment in b.moments]:
            for metric in METRICS:
                test = compare_folds(pairs, target, moment, metric)
                rows.append([moment, LABELS[metric], *_cells(test, metric)])
                notes |= dict.fromkeys(test.notes)
        lines += [f"## {escaped(target)}", "", *markdown_table(header, rows), ""]
    lines += [f"- {len(pairs)} common fold{'s' * (len(pairs) > 1)}: {fold_numbers([one.number for one, _ in pairs])}"]
    lines += [
        "- interval and p NB: corrected resampled t-test, Nadeau & Bengio (2003); allows for shared images",
        "- p t: plain paired t-test, takes the folds for independent, too small; p rank: Wilcoxon signed ranks, exact",
        "- two-sided, each row by itself: among many rows some fall below 0.05 by chance",
        f"- {FITTED}",
    ]
    chosen = a.folds[0].selection, b.folds[0].selection
    if chosen[0] != chosen[1]:
        lines.append(f"- the best epochs were chosen differently: A on the {chosen[0]}, B on the {chosen[1]}")
    return "\n".join(lines + [f"- {note}" for note in notes]) + "\n"


def compare_folds(pairs: Sequence[tuple[FoldResult, FoldResult]], target: str, moment: str, metric: str) -> PairedTest:
    """Returns the paired test of one metric over pairs of folds.

    Raises:
        DataError: the folds of a pair were measured on different parts.
    """
    return paired_test(
        [one.moments[moment].metrics[target][metric] for one, _ in pairs],
        [other.moments[moment].metrics[target][metric] for _, other in pairs],
        test_to_train=float(np.mean([one.split["num_val"] / one.split["num_train"] for one, _ in pairs])),
        splits_a=[one.split["sha256"] for one, _ in pairs],
        splits_b=[other.split["sha256"] for _, other in pairs],
    )


def _listed(run: RunResult) -> str:
    return ", ".join(run.targets)


def _cells(test: PairedTest, metric: str) -> list[str]:
    p_values = [p_value(p) for p in (test.p_corrected, test.p_t, test.p_wilcoxon)]
    return [
        number(test.mean_a),
        number(test.mean_b),
        f"{test.difference:+.4f}",
        interval(test),
        *p_values,
        _ahead(test, metric),
    ]


def interval(test: PairedTest) -> str:
    """Returns "low to high" of a difference, "-" where there is none."""
    return "-" if math.isnan(test.low) else f"{test.low:+.3f} to {test.high:+.3f}"


def p_value(value: float) -> str:
    """Returns a p-value with three decimals, "-" where there is none.

    >>> p_value(0.0123), p_value(0.0001), p_value(float("nan"))
    ('0.012', '<0.001', '-')
    """
    if math.isnan(value):
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _ahead(test: PairedTest, metric: str) -> str:
    if math.isnan(test.low) or test.low <= 0 <= test.high:
        return "open"
    better_a = (test.difference < 0) == (metric == "rmse")
    return "A" if better_a else "B"
