"""`ipiqa train` and the train scripts: k folds of one config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ipiqa.cli.arguments import add_config_arguments, load, parse, parse_folds, whole_number
from ipiqa.cli.guard import guarded
from ipiqa.config.settings import MAX_FOLDS, MAX_SEED
from ipiqa.errors import ConfigError


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a training run."""
    add_config_arguments(parser)
    num_folds = whole_number("--num_cv", 1, MAX_FOLDS)
    parser.add_argument("--num_cv", "--num-cv", type=num_folds, metavar="K", help="number of folds (run.num_folds)")
    parser.add_argument("--folds", metavar="0,3", help="train only these folds, counted from 0; default all")
    seed = whole_number("--seed", 0, MAX_SEED)
    parser.add_argument("--seed", type=seed, metavar="N", help="seed of training (run.seed); splits keep split.seed")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")


def add_commands(commands: Any) -> None:
    """Adds `ipiqa train`."""
    parser = commands.add_parser("train", help="train k folds of any config", description="Train k folds of a config.")
    add_train_arguments(parser)
    parser.set_defaults(run=train)


def train(arguments: argparse.Namespace, dataset: str | None = None) -> int:
    """Trains the folds asked for, prints their table and the path of the report.

    Args:
        arguments: parsed command line.
        dataset: the dataset that the config must name, or None for any.

    Raises:
        ConfigError: the config cannot be run.
    """
    folds = parse_folds(arguments.folds)
    from ipiqa.engine import log

    log.set_up()
    config = load(arguments)
    if dataset is not None and config.dataset["name"] != dataset:
        other = {"agiqa_1k": "train_agiqa1k.py", "agiqa_3k": "train_agiqa3k.py"}.get(
            config.dataset["name"], "ipiqa train"
        )
        raise ConfigError(f"{arguments.cfg_path}: dataset.name is {config.dataset['name']!r}. Start it with {other}.")
    from ipiqa import dist
    from ipiqa.training.cross_validation import run

    run_dir = run(config, folds=folds, resume=arguments.resume)
    if dist.is_main():
        from ipiqa.report import console_table, load_run, summarise, write_summary

        write_summary(run_dir)
        print(console_table(summarise(load_run(run_dir))))
        print(f"\nReport: {run_dir / 'report.html'}")
    return 0


def script(dataset: str, argv: Sequence[str] | None = None) -> int:
    """Runs a train script of one dataset and returns its exit status."""
    parser = argparse.ArgumentParser(description=f"Train and evaluate k folds on {dataset}.")
    add_train_arguments(parser)
    return guarded(lambda: train(parse(parser, argv), dataset))
