"""Many contestants on several databases: a table, a page with intervals, and one JSON file a row."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ipiqa.evaluation.held_out import basis_of
from ipiqa.evaluation.results import FoldResult, RunResult
from ipiqa.evaluation.summary import facts
from ipiqa.files import without_nan, write_json, write_text
from ipiqa.report.compare import LEVEL, AblationRow, compare_rows, interval_and_p, mark
from ipiqa.report.render import render, script_hash


def write_leaderboard(folder: Path, boards: Mapping[str, Sequence[AblationRow]], command: str) -> str:
    """Writes leaderboard.md and .html and rows/<database>/*.json into a folder, and returns the markdown.

    `boards` has the contestants of each database; all are compared with the first, where that is finished.
    """
    shown = {}
    for database, rows in boards.items():
        finished = without_nan(board_rows(database, [row for row in rows if row.run is not None]))
        for row in finished:
            write_json(folder / "rows" / row["file"], row)
        left = [(row.name, row.state) for row in rows if row.run is None]
        shown[database] = {"rows": finished, "left": left, "targets": _ranked(finished)}
    script = (Path(__file__).parent / "templates" / "leaderboard.js").read_text(encoding="utf-8")
    context = {"boards": shown, "command": command, "level": LEVEL, "shared": _shared(shown)}
    text = render("leaderboard.md.j2", **context)
    write_text(folder / "leaderboard.md", text)
    page = render("leaderboard.html.j2", script=script, digest=script_hash(script), **context)
    write_text(folder / "leaderboard.html", page)
    return text


def board_rows(database: str, rows: Sequence[AblationRow]) -> list[dict[str, Any]]:
    """Returns the content of the JSON file of each finished contestant, all compared with the first in SRCC."""
    runs = {row.name: reported(row.run) for row in rows if row.run is not None}
    if not runs:
        return []
    ablation = compare_rows([AblationRow(name, (), "finished", run) for name, run in runs.items()])
    out = []
    for name, run in runs.items():
        targets, settings, is_trained = {}, run.first.settings or {}, run.first.epochs is not None
        measured = ablation.summaries[name].beside.spreads  # SRCC, PLCC, and within prompts
        for target in run.targets:
            own = {m: spread for (t, e, _, m), spread in measured.items() if (t, e) == (target, "best")}
            targets[target] = {metric: dataclasses.asdict(spread) for metric, spread in own.items()}
            if (test := ablation.differences.get(("best", target, name))) is not None:
                shown = {"mark": mark(test), "p_text": interval_and_p(test)[2]}
                targets[target]["srcc_minus_first"] = dataclasses.asdict(test) | shown
        compared = (f"{name}: not compared", f"{name}: compared")
        out.append({
            "format": 1, "file": f"{run.run_dir.parent.name}/{run.run_dir.name}.json", "database": database,
            "contestant": name, "first": rows[0].name, "targets": targets, "interval": basis_of(run).value,
            "kind": settings.get("scorer.kind", "trained here" if is_trained else "zero-shot"),
            "trained_on": settings.get("scorer.trained_on", "the training part" if is_trained else "not here"),
            "licence": settings.get("scorer.licence", ""), "flags": _flags(run), "facts": dict(facts(run)),
            "table_sha256": run.first.dataset.sha256, "settings": settings, "command": run.command,
            "split_sha256": {str(fold.number): fold.scores.split.sha256 for fold in run.folds},
            "environment": run.environment,
            "notes": [note for note in ablation.notes if note.startswith(compared)],
        })  # fmt: skip
    return out


def reported(run: RunResult) -> RunResult:
    """Returns a run with the one epoch that no reported image has chosen: the last, or the best of a selection part."""
    if not run.trained:
        return run
    name, other = ("best", "last") if run.first.selection == "validation part" else ("last", "best")

    def one_epoch(fold: FoldResult) -> FoldResult:
        scores, frame = dataclasses.replace(fold.scores, best=fold.checkpoints[name], last=None), fold.predictions
        if frame is not None:
            frame = frame.drop(columns=[f"{other}_{target}" for target in run.targets])
            frame = frame.rename(columns={f"{name}_{target}": f"best_{target}" for target in run.targets})
        seeds = {seed: one_epoch(result) for seed, result in fold.seeds.items()}
        return dataclasses.replace(fold, scores=scores, predictions=frame, seeds=seeds)

    return dataclasses.replace(run, folds=tuple(map(one_epoch, run.folds)))


def _flags(run: RunResult) -> list[str]:
    """Returns in words what makes the figures of a contestant other than they seem."""
    folds = [fold.scores for fold in run.folds]
    seen, held_out = sum(f.seen_in_training or 0 for f in folds), sum(f.split.num_val for f in folds)
    is_turned = any("as seen" in str(metrics.get("notes")) for f in folds for metrics in f.best.metrics.values())
    known = {
        f"trained on {seen} of the {held_out} held-out images": seen > 0,
        "direction as seen on the reported images": is_turned,
        "the prompts leak": run.first.split.kind == "image_random",
    }
    return [words for words, holds in known.items() if holds]


def _ranked(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Returns the rows by target, the highest SRCC first and what is undefined last."""
    out: dict[str, list[Mapping[str, Any]]] = {}
    for target in dict.fromkeys(target for row in rows for target in row["targets"]):
        srcc = {i: row["targets"][target]["srcc"]["mean"] for i, row in enumerate(rows) if target in row["targets"]}
        out[target] = [rows[i] for i in sorted(srcc, key=lambda i: (srcc[i] is None, -(srcc[i] or 0)))]
    return out


def _shared(boards: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns target, contestant and SRCC by database of those that are on several databases."""
    found: dict[tuple[str, str], dict[str, float | None]] = {}
    for database, board in boards.items():
        for target, row in ((target, row) for target, rows in board["targets"].items() for row in rows):
            on = found.setdefault((target, row["contestant"]), {})
            on[database] = row["targets"][target]["srcc"]["mean"]
    return [{"target": target, "contestant": name, "srcc": on} for (target, name), on in found.items() if len(on) > 1]
