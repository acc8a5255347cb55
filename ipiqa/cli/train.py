"""`ipiqa train` and the train scripts: k folds of one config."""

import argparse
from collections.abc import Sequence
from typing import Any

from ipiqa.cli.arguments import add_command, add_config_arguments, load, parse_folds, start, whole_number
from ipiqa.config.settings import MAX_FOLDS, MAX_SEED
from ipiqa.errors import ConfigError

SCRIPTS = {"agiqa_1k": "train_agiqa1k.py", "agiqa_3k": "train_agiqa3k.py"}  # by the dataset they are for


def add_commands(commands: Any) -> None:
    """Adds `ipiqa train`."""
    _add_arguments(add_command(commands, "train", train, "train k folds of any config"), None)


def script(dataset: str, argv: Sequence[str] | None = None) -> int:
    """Runs a train script of one dataset and returns its exit status."""
    parser = argparse.ArgumentParser(description=f"Train and evaluate k folds on {dataset}.")
    parser.set_defaults(run=train)
    _add_arguments(parser, dataset)
    return start(parser, argv)


def _add_arguments(parser: argparse.ArgumentParser, dataset: str | None) -> None:
    """Adds the arguments of a training run; the config must name the dataset, if one is given."""
    add_config_arguments(parser)
    folds = whole_number("--num_cv", 1, MAX_FOLDS)
    about = "number of folds (run.num_folds)"
    parser.add_argument("--num_cv", "--num-cv", dest="run.num_folds", type=folds, metavar="K", help=about)
    about = "train only these folds, counted from 0; default all"
    parser.add_argument("--folds", type=parse_folds, metavar="0,3", help=about)
    add_seed_and_resume(parser, "seed of training (run.seed); splits keep split.seed")
    parser.set_defaults(dataset=dataset)


def add_seed_and_resume(parser: argparse.ArgumentParser, seed: str) -> None:
    """Adds the arguments that all training has; `seed` describes the first."""
    number = whole_number("--seed", 0, MAX_SEED)
    parser.add_argument("--seed", dest="run.seed", type=number, metavar="N", help=seed)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")


def train(arguments: argparse.Namespace) -> int:
    """Trains the folds asked for, prints their table and the path of the report."""
    config = load(arguments)
    name = config.dataset["name"]
    if arguments.dataset not in (None, name):
        other = SCRIPTS.get(name, "ipiqa train")
        raise ConfigError(f"{arguments.cfg_path}: dataset.name is {name!r}. Start it with {other}.")
    from ipiqa import dist
    from ipiqa.report import breakdown_text, console_table, write_summary
    from ipiqa.training.cross_validation import run

    run_dir = run(config, folds=arguments.folds, resume=arguments.resume)
    if dist.is_main():
        summary = write_summary(run_dir)
        print(console_table(summary), breakdown_text(summary), f"Report: {run_dir / 'report.html'}", sep="\n\n")
    return 0
