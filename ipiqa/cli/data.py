"""`ipiqa data`: look at a dataset before anything is trained."""

import argparse
import json
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import add_command, add_config_arguments, load, path, whole_number
from ipiqa.config.settings import MAX_FOLDS


def add_commands(commands: Any) -> None:
    """Adds `ipiqa data check` and `ipiqa data split`."""
    data = commands.add_parser("data", help="check a dataset, write a split", description="Look at a dataset.")
    actions = data.add_subparsers(metavar="<action>", required=True)
    add_config_arguments(add_command(actions, "check", run_check, "check the table and decode every image"))
    split = add_command(actions, "split", run_split, "write the split of one fold")
    add_config_arguments(split)
    fold = whole_number("--fold", 0, MAX_FOLDS - 1)
    split.add_argument("--fold", type=fold, required=True, metavar="K", help="number of the fold, from 0")
    split.add_argument("--out", type=path("--out"), metavar="FILE", help="json file to write; default standard output")


def run_check(arguments: argparse.Namespace) -> int:
    """Prints what is wrong with a dataset: every image that is missing or cannot be decoded, by name."""
    from ipiqa.build import make_dataset, make_processor
    from ipiqa.errors import DataError

    config = load(arguments)
    findings = make_dataset(config).check(make_processor(config))
    print(*findings.problems, sep="\n", end="\n" if findings.problems else "")
    if findings.refusal:
        raise DataError(findings.refusal)
    print(*findings.summary, sep="\n")
    return 0


def run_split(arguments: argparse.Namespace) -> int:
    """Writes the split of one fold; the images need not be there."""
    from ipiqa.build import make_dataset, split_of
    from ipiqa.files import write_text

    config = load(arguments)
    table = make_dataset(config).load()
    text = json.dumps(split_of(config, table, arguments.fold).to_json(table), indent=1) + "\n"
    if not arguments.out:
        print(text, end="")
    else:
        write_text(Path(arguments.out), text)
        print(arguments.out)
    return 0
