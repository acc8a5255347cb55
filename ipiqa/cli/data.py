"""`ipiqa data`: look at a dataset before anything is trained."""

import argparse
import json
from pathlib import Path
from typing import Any

from ipiqa.cli import databases
from ipiqa.cli.arguments import add_command, add_config_arguments, load, path, put, whole_number
from ipiqa.config.settings import MAX_FOLDS
from ipiqa.errors import ConfigError


def add_commands(commands: Any) -> None:
    """Adds `ipiqa data check`, `split`, `leak`, and those of `databases`."""
    what = "check a dataset, write a split, find its leaks, begin with one's own data"
    data = commands.add_parser("data", help=what, description="Look at a dataset, or get one into place.")
    actions = data.add_subparsers(metavar="<action>", required=True)
    check = add_command(actions, "check", run_check, "check the table and decode every image")
    add_config_arguments(check)
    look = "how to look at images: decode them whole, read their headers, or not at all"
    check.add_argument("--images", choices=("decode", "headers", "none"), default="decode", help=look)
    split = add_command(actions, "split", run_split, "write the split of one fold")
    add_config_arguments(split)
    fold = whole_number("--fold", 0, MAX_FOLDS - 1)
    split.add_argument("--fold", type=fold, required=True, metavar="K", help="number of the fold, from 0")
    split.add_argument("--out", type=path("--out"), metavar="FILE", help="json file to write; default standard output")
    summary = "count the held-out rows whose prompt or image is trained on"
    leak = add_command(actions, "leak", run_leak, summary, " The table is markdown.")
    what = "published split (json, table or folder of lists; with --cfg-path), run folder, or config for its own split"
    leak.add_argument("split", type=path("leak"), metavar="SPLIT|RUN|YAML", help=what)
    add_config_arguments(leak, required=False)
    leak.add_argument("--no-images", action="store_true", help="do not read the image files")
    databases.add_commands(actions)


def run_check(arguments: argparse.Namespace) -> int:
    """Prints what is wrong with a dataset: every image that is missing or cannot be decoded, by name."""
    from ipiqa.build import make_dataset, make_processor
    from ipiqa.errors import DataError

    config = load(arguments)
    dataset, processor = make_dataset(config), make_processor(config)
    if dataset.streamed and arguments.images != "decode":
        raise ConfigError(f"--images: {arguments.images!r} is for tables. The images of shards are always decoded.")
    findings = dataset.check(processor) if dataset.streamed else dataset.check(processor, arguments.images)
    print(*findings.problems, sep="\n", end="\n" if findings.problems else "")
    if findings.refusal:
        raise DataError(findings.refusal)
    print(*findings.summary, sep="\n")
    return 0


def run_split(arguments: argparse.Namespace) -> int:
    """Writes the split of one fold; the images need not be there."""
    from ipiqa.build import make_dataset, split_of

    config = load(arguments)
    table = make_dataset(config).load()
    text = json.dumps(split_of(config, table, arguments.fold).to_json(table), indent=1) + "\n"
    put(text, arguments.out)
    return 0


def run_leak(arguments: argparse.Namespace) -> int:
    """Prints the leak of each fold of a published split, of a run, or of the split of a config."""
    from ipiqa.build import make_dataset, split_of
    from ipiqa.datasets.splits import leak, leak_rows, splits_in
    from ipiqa.report.render import markdown_table

    source = Path(arguments.split)
    is_config = source.suffix in (".yaml", ".yml")
    of_run = source / "config.yaml"
    arguments.cfg_path = str(source) if is_config else arguments.cfg_path or (str(of_run) if of_run.is_file() else None)
    if arguments.cfg_path is None:
        raise ConfigError("--cfg-path: missing. Give the config whose dataset the split is of.")
    config = load(arguments)
    dataset = make_dataset(config)
    table = dataset.load()
    assert not dataset.streamed  # those have no table to load
    folds = range(config.run.num_folds)
    splits = [split_of(config, table, fold) for fold in folds] if is_config else splits_in(source, table)
    problem = "--no-images" if arguments.no_images else f"no folder {str(table.image_dir)!r}"
    is_read = not arguments.no_images and table.image_dir.is_dir()
    hashes = dataset.image_hashes(table) if is_read else None
    header, rows = leak_rows(splits, [leak(table, split, hashes) for split in splits])
    print(markdown_table(header, rows))
    if hashes is None:
        print(f"\nImages are not compared: {problem}.")
    return 0
