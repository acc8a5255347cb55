"""`ipiqa ablate`: the runs of a grid, and their table."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ipiqa.cli.arguments import add_overrides
from ipiqa.errors import ConfigError

if TYPE_CHECKING:
    from ipiqa.ablation import Grid, Point


def add_commands(commands: Any) -> None:
    """Adds `ipiqa ablate`."""
    parser = commands.add_parser(
        "ablate",
        help="run a grid of changes of a config and compare them",
        description="Run every point of a grid that is not finished, and write one table of all that are. "
        "A point that cannot be run is reported and the others run (status 2). Started again, it goes on where it was "
        "stopped.",
    )
    parser.add_argument(
        "--grid", required=True, metavar="YAML", help="grid file, e.g. ipiqa/projects/agiqa3k/ablation.yaml"
    )
    parser.add_argument("--shard", metavar="I/N", help="run only every N-th point, from the I-th on: 1/3, 2/3, 3/3")
    parser.add_argument("--dry-run", action="store_true", help="print the points and how far they are")
    add_overrides(parser, "settings to change in all points, e.g. run.max_epochs=10")
    parser.set_defaults(run=ablate)


def parse_shard(text: str | None) -> tuple[int, int]:
    """Returns (number, count) of "1/3", and (1, 1) for None.

    Raises:
        ConfigError: it is no such pair.
    """
    number, _, count = (text or "1/1").partition("/")
    try:
        shard = int(number), int(count)
    except ValueError:
        shard = 0, 0
    if not 1 <= shard[0] <= shard[1]:
        raise ConfigError(f"--shard: {text!r} is no share of the points. Write I/N with I from 1 to N, such as 1/3.")
    return shard


def ablate(arguments: argparse.Namespace) -> int:
    """Runs the points of this shard, and writes and prints the table of all points that are finished."""
    number, count = parse_shard(arguments.shard)
    from ipiqa import dist
    from ipiqa.ablation import check_folders, load_grid, rows_of, run_points, shard_of
    from ipiqa.engine import log
    from ipiqa.engine.stop import Interrupted
    from ipiqa.report import write_ablation

    log.set_up()
    grid = load_grid(arguments.grid, *arguments.options, *arguments.overrides)
    check_folders(grid.points)
    chosen = shard_of(grid.points, number, count)
    if arguments.dry_run:
        if dist.is_main():
            print(_plan(grid, chosen))
        return 0
    try:
        failures = run_points(chosen)
    except Interrupted as error:  # reported here, because this command goes on without --resume
        if dist.is_main():
            print(f"ipiqa: stopped {error}. The state is saved; go on with the same command", file=sys.stderr)
        return 128 + error.signal_number
    if not dist.is_main():
        return 0
    rows = rows_of(grid, failures)
    if all(row.run is None for row in rows):
        print(f"{grid.output_dir}: no point is finished, so there is no table yet")
    else:
        print(write_ablation(grid.output_dir, rows))
        print(f"Table: {grid.output_dir}/ablation.md  .csv  .tex  .json")
    for name, problem in failures.items():
        print(f"ipiqa: row {name!r}: {problem}", file=sys.stderr)
    return 2 if failures else 0


def _plan(grid: Grid, chosen: list[Point]) -> str:
    """Returns the points as text: those of this shard with their numbers, all with state, changes and folder."""
    lines = []
    for number, point in enumerate(grid.points, 1):
        mine = f"{number:>3}" if point in chosen else "  -"
        lines += [f"{mine}  {point.name}: {point.state}", f"     {' '.join(point.changes) or '(no change)'}"]
        lines += [f"     {point.run_dir}"]
    return "\n".join(lines)
