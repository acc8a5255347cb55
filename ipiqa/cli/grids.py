"""`ipiqa ablate`, `bench`, `protocol` and `scorers`: many runs, and metrics, side by side."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import load


def ablate(arguments: argparse.Namespace) -> int:
    """Runs the points of this shard, and writes and prints the table of all points that are finished."""
    from ipiqa import dist
    from ipiqa.ablation import check_folders, load_grid

    grid = load_grid(arguments.grid, *arguments.options, *arguments.overrides)
    number, count = arguments.shard
    chosen = grid.points[number - 1 :: count]
    if not arguments.dry_run:
        return _run_grid(grid, chosen, "ablation", ("srcc", "plcc"))
    check_folders(grid.points)
    for i, point in enumerate(grid.points if dist.is_main() else (), 1):
        print(f"{i if point in chosen else '-':>3}  {point.name}: {point.state}")
        print(f"     {' '.join(point.changes) or '(no change)'}\n     {point.run_dir}")
    return 0


def run_bench(arguments: argparse.Namespace) -> int:
    """Runs every contestant that is not finished, and writes and prints the leaderboard."""
    from ipiqa.bench.contestants import Bench, boards_of
    from ipiqa.report.leaderboard import write_leaderboard

    overrides, out = (*arguments.options, *arguments.overrides), Path(arguments.out)
    bench = Bench(out, overrides, arguments.protocol, arguments.folds, arguments.scale)
    points = bench.contestants(arguments.databases, arguments.scorers)

    def show(failures: dict[str, str]) -> None:
        print(write_leaderboard(out, boards_of(points, failures), shlex.join(["ipiqa", *sys.argv[1:]])))
        print(f"Leaderboard: {out}/leaderboard.md  .html, {out}/rows/")

    return _run(points, points, show)


def run_protocol(arguments: argparse.Namespace) -> int:
    """Runs a config under every kind of split that its dataset has, and writes and prints one table."""
    from ipiqa import build
    from ipiqa.ablation import GridFile, make_grid

    config = load(arguments)
    build.check_kind(config, folds=True)
    table = build.make_dataset(config).load()
    plain = {"split.file": None, "run.val_fraction": 0.0}
    kinds = ("reference",) * (table.reference_draw is not None) + ("holdout", "kfold")
    kinds += ("image_random",) * (table.comparisons is None)
    rows: list[dict[str, Any]] = [{"name": kind, "set": plain | {"split.kind": kind}} for kind in kinds]
    # the best epoch is chosen on a part of the training groups, and not on the reported images
    rows.append({"name": "nested", "set": plain | {"split.kind": "holdout", "run.val_fraction": 0.2}})
    num_folds = arguments.folds or max(2, config.run.num_folds)
    file = GridFile(config=arguments.cfg_path, output_dir=arguments.out, num_folds=num_folds, rows=rows)
    grid = make_grid(file, [*arguments.options, *arguments.overrides])
    return _run_grid(grid, grid.points, "protocol", ("srcc", "plcc", "plcc_fitted"))


def _run_grid(grid: Any, points: Sequence[Any], name: str, columns: tuple[str, ...]) -> int:
    """Runs points of a grid, and writes and prints the table of all that are finished."""
    from ipiqa.ablation import rows_of
    from ipiqa.report import write_ablation

    def show(failures: dict[str, str]) -> None:
        rows = rows_of(grid.points, failures)
        if all(row.run is None for row in rows):
            print(f"{grid.output_dir}: no point is finished, so there is no table yet")
        else:
            print(write_ablation(grid.output_dir, rows, name=name, columns=columns))
            print(f"Table: {grid.output_dir}/{name}.md  .csv  .tex  .json  .svg")

    return _run(grid.points, points, show)


def _run(every: Sequence[Any], points: Sequence[Any], show: Callable[[dict[str, str]], None]) -> int:
    """Checks the folders of every point, runs some, shows what came out and returns the exit status.

    `show` takes the errors by name of point.
    """
    from ipiqa import dist
    from ipiqa.ablation import check_folders, run_points
    from ipiqa.engine.stop import Interrupted

    check_folders(every)
    try:
        failures = run_points(points)
    except Interrupted as error:  # reported here, because these commands go on without --resume
        if dist.is_main():
            print(f"ipiqa: stopped {error}. The state is saved; go on with the same command", file=sys.stderr)
        return 128 + error.signal_number
    if not dist.is_main():
        return 0
    show(failures)
    for name, problem in failures.items():
        print(f"ipiqa: row {name!r}: {problem}", file=sys.stderr)
    return 2 if failures else 0


def run_scorers(arguments: argparse.Namespace) -> int:
    """Prints what is known of every registered scorer."""
    from ipiqa.report.render import markdown_table
    from ipiqa.scorers import FACTS

    print(markdown_table(["name", *FACTS["table"]], [[name, *facts.values()] for name, facts in FACTS.items()]))
    return 0
