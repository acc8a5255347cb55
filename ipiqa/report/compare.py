"""Two runs over the same folds, compared in pairs."""

import math

from ipiqa.errors import DataError
from ipiqa.evaluation.results import RunResult, fold_numbers
from ipiqa.evaluation.summary import common_folds, compare, interval_words, summarise, warnings
from ipiqa.metrics import METRICS, PairedTest, holm
from ipiqa.report.render import MISSING, markdown_table, render
from ipiqa.report.tables import FITTED, label, number

LEVEL = 0.05  # of p after Holm's correction, below which a difference is significant
TEST_COLUMNS = ("95 % interval", "p", "p Holm")


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
    context = {"interval": interval_words(a), "level": LEVEL, "fitted": FITTED, "notes": notes}
    return render("compare.md.j2", a=a, b=b, tables=tables, **context)


def interval_and_p(test: PairedTest) -> list[str]:
    """Returns interval, p and corrected p as text, "-" where there is none."""
    interval = MISSING if math.isnan(test.low) else f"{test.low:+.3f} to {test.high:+.3f}"
    values = (test.p, test.p_holm)
    return [interval, *(MISSING if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}" for p in values)]


def _ahead(test: PairedTest, metric: str) -> str:
    if metric not in METRICS:  # whether more of it is better is not known
        return MISSING
    if not test.p_holm < LEVEL:  # nan is not below
        return "open"
    return "A" if (test.difference < 0) == (metric == "rmse") else "B"
