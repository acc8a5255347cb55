"""`ipiqa ablate`: the runs of a grid, and their table."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ipiqa.cli.arguments import add_command, add_overrides
from ipiqa.errors import ConfigError


def add_commands(commands: Any) -> None:
    """Adds `ipiqa ablate`."""
    more = (
        " Every point that is not finished is run, and one table written of all that are. A point that cannot be run "
        "is reported and the others run (status 2). Started again, it goes on where it was stopped."
    )
    parser = add_command(commands, "ablate", ablate, "run a grid of changes of a config and compare them", more)
    example = "ipiqa/projects/agiqa3k/ablation.yaml"
    parser.add_argument("--grid", required=True, metavar="YAML", help=f"grid file, e.g. {example}")
    share = "run only every N-th point, from the I-th on: 1/3, 2/3, 3/3"
    parser.add_argument("--shard", type=parse_shard, default=(1, 1), metavar="I/N", help=share)
    parser.add_argument("--dry-run", action="store_true", help="print the points and how far they are")
    add_overrides(parser, "settings to change in all points, e.g. run.max_epochs=10")


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (number, count) of "1/3"; a text that is no such pair is a ConfigError."""
    number, _, count = text.partition("/")
    try:
        shard = int(number), int(count)
    except ValueError:
        shard = 0, 0
    if not 1 <= shard[0] <= shard[1]:
        raise ConfigError(f"--shard: {text!r} is no share of the points. Write I/N with I from 1 to N, such as 1/3.")
    return shard


def ablate(arguments: argparse.Namespace) -> int:
    """Runs the points of this shard, and writes and prints the table of all points that are finished."""
    from ipiqa import dist
    from ipiqa.ablation import check_folders, load_grid, rows_of
    from ipiqa.report import write_ablation

    grid = load_grid(arguments.grid, *arguments.options, *arguments.overrides)
    check_folders(grid.points)
    number, count = arguments.shard
    chosen = grid.points[number - 1 :: count]
    if arguments.dry_run:
        if dist.is_main():
            for i, point in enumerate(grid.points, 1):
                print(f"{i if point in chosen else '-':>3}  {point.name}: {point.state}")
                print(f"     {' '.join(point.changes) or '(no change)'}\n     {point.run_dir}")
        return 0

    def show(failures: dict[str, str]) -> None:
        rows = rows_of(grid, failures)
        if all(row.run is None for row in rows):
            print(f"{grid.output_dir}: no point is finished, so there is no table yet")
        else:
            print(write_ablation(grid.output_dir, rows))
            print(f"Table: {grid.output_dir}/ablation.md  .csv  .tex  .json")

    return run_and_show(chosen, show)


def run_and_show(points: Sequence[Any], show: Callable[[dict[str, str]], None]) -> int:
    """Runs points, shows what came out and returns the exit status; `show` takes the errors by name of point."""
    from ipiqa import dist
    from ipiqa.ablation import run_points
    from ipiqa.engine.stop import Interrupted

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
