"""`ipiqa bench`, `ipiqa protocol` and `ipiqa scorers`: metrics side by side."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from ipiqa.cli.ablate import run_and_show
from ipiqa.cli.arguments import add_command, add_config_arguments, add_overrides, load, path, whole_number
from ipiqa.config.settings import MAX_FOLDS

PROTOCOLS = ("reference", "holdout", "kfold", "image_random", "file", "official", "all")


def add_commands(commands: Any) -> None:
    """Adds the commands of the workbench."""
    more = (
        " Every contestant leaves a run folder, and all of them one leaderboard. One that fails is reported and the "
        "others run (status 2). Started again, it goes on where it was stopped."
    )
    bench = add_command(commands, "bench", run_bench, "compare models, metrics and tables of scores", more)
    databases = "configs of databases: 'LABEL=YAML KEY=VALUE', of which only YAML is needed"
    bench.add_argument("--databases", nargs="+", required=True, metavar="YAML", help=databases)
    names = "train, 'train KEY=VALUE', no-pixel, table:FILE[:COLUMN], or what ipiqa.load takes: a run, a file, a name"
    bench.add_argument("--scorers", nargs="+", required=True, metavar="NAME", help=names)
    kinds = f"kind of split, {', '.join(PROTOCOLS)}; default as each config says"
    bench.add_argument("--protocol", choices=PROTOCOLS, metavar="KIND", help=kinds)
    curve = "map from scores to MOS, fitted to the training part, linear or logistic; default linear"
    bench.add_argument("--scale", choices=("linear", "logistic"), default="linear", metavar="MAP", help=curve)
    add_overrides(bench, "settings to change for all databases, e.g. run.max_epochs=10")
    protocol = add_command(commands, "protocol", run_protocol, "run one config under every kind of split")
    add_config_arguments(protocol)
    for parser, out in ((bench, "output/bench"), (protocol, "output/protocol")):
        folds = whole_number("--folds", 1, MAX_FOLDS)
        parser.add_argument("--folds", type=folds, metavar="N", help="number of folds; default as a config says")
        parser.add_argument("--out", type=path("--out"), default=out, metavar="DIR", help="default %(default)s")
    add_command(commands, "scorers", run_scorers, "list the scorers that have names")


def run_bench(arguments: argparse.Namespace) -> int:
    """Runs every contestant that is not finished, and writes and prints the leaderboard."""
    from ipiqa.ablation import check_folders
    from ipiqa.bench.contestants import Bench, boards_of
    from ipiqa.report.leaderboard import write_leaderboard

    overrides, out = (*arguments.options, *arguments.overrides), Path(arguments.out)
    bench = Bench(out, overrides, arguments.protocol, arguments.folds, arguments.scale)
    points = bench.contestants(arguments.databases, arguments.scorers)

    def show(failures: dict[str, str]) -> None:
        print(write_leaderboard(out, boards_of(points, failures), shlex.join(["ipiqa", *sys.argv[1:]])))
        print(f"Leaderboard: {out}/leaderboard.md  .html, {out}/rows/")

    check_folders(points)
    return run_and_show(points, show)


def run_protocol(arguments: argparse.Namespace) -> int:
    """Runs a config under every kind of split that its dataset has, and writes and prints one table."""
    from ipiqa import build
    from ipiqa.ablation import GridFile, check_folders, make_grid, rows_of
    from ipiqa.report import write_ablation

    config, out = load(arguments), Path(arguments.out)
    build.check_kind(config, folds=True)
    has_reference = build.make_dataset(config).load().reference_draw is not None
    plain = {"split.file": None, "run.val_fraction": 0.0}
    kinds = ("reference",) * has_reference + ("holdout", "kfold", "image_random")
    rows: list[dict[str, Any]] = [{"name": kind, "set": plain | {"split.kind": kind}} for kind in kinds]
    # the best epoch is chosen on a part of the training groups, and not on the reported images
    rows.append({"name": "nested", "set": plain | {"split.kind": "holdout", "run.val_fraction": 0.2}})
    num_folds = arguments.folds or max(2, config.run.num_folds)
    file = GridFile(config=arguments.cfg_path, output_dir=str(out), num_folds=num_folds, rows=rows)
    grid = make_grid(file, [*arguments.options, *arguments.overrides])

    def show(failures: dict[str, str]) -> None:
        columns = ("srcc", "plcc", "plcc_fitted")
        print(write_ablation(out, rows_of(grid, failures), name="protocol", columns=columns))
        print(f"Table: {out}/protocol.md  .csv  .tex  .json")

    check_folders(grid.points)
    return run_and_show(grid.points, show)


def run_scorers(arguments: argparse.Namespace) -> int:
    """Prints what is known of every registered scorer."""
    from ipiqa.report.render import markdown_table
    from ipiqa.scorers import FACTS

    print(markdown_table(["name", *FACTS["table"]], [[name, *facts.values()] for name, facts in FACTS.items()]))
    return 0
