"""`ipiqa data`: look at a dataset before anything is trained, get one into place, begin with one's own."""

import argparse
import json
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import add_command, add_config_arguments, add_overrides, load, path, put, whole_number
from ipiqa.config.settings import MAX_FOLDS
from ipiqa.errors import ConfigError, DataError, did_you_mean
from ipiqa.registry import file_path


def add_commands(commands: Any) -> None:
    """Adds `ipiqa data check`, `split`, `leak`, `init`, `card` and `prepare`."""
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
    summary = "count the held-out rows whose prompt or image is trained on"
    leak = add_command(actions, "leak", run_leak, summary, " The table is markdown.")
    what = "published split (json, table or folder of lists; with --cfg-path), run folder, or config for its own split"
    leak.add_argument("split", type=path("leak"), metavar="SPLIT|RUN|YAML", help=what)
    add_config_arguments(leak, required=False)
    leak.add_argument("--no-images", action="store_true", help="do not read the image files")
    init = add_command(actions, "init", run_init, "write a first config for a table of one's own")
    init.add_argument("source", type=path("init"), metavar="FOLDER|TABLE", help="table, or folder with one and images")
    init.add_argument("--out", type=path("--out"), metavar="YAML", help="file to write; default <name>.yaml here")
    card = add_command(actions, "card", run_card, "print a page about a database", " Images need not be there.")
    add_config_arguments(card)
    for parser in (split, card):
        what = "file to write; default standard output"
        parser.add_argument("--out", type=path("--out"), metavar="FILE", help=what)
    more = (
        " Table files and images are found by name, copied to where the database's config looks, counted and decoded."
    )
    get = add_command(actions, "prepare", run_prepare, "lay out a published database from its archive or folder", more)
    get.add_argument("project", metavar="NAME", help="name of its folder in ipiqa/projects, e.g. aigciqa2023")
    what = "archives (zip, tar), folders, table files, or addresses of them"
    get.add_argument("--from", dest="sources", nargs="+", required=True, metavar="SOURCE", help=what)
    what, cache = "where to keep what comes from an address; default %(default)s", "cache/downloads"
    get.add_argument("--downloads", type=path("--downloads"), default=cache, metavar="FOLDER", help=what)
    add_overrides(get, "settings to change, e.g. dataset.images=elsewhere")


def run_check(arguments: argparse.Namespace) -> int:
    """Prints what is wrong with a dataset: every image that is missing or cannot be decoded, by name."""
    from ipiqa.build import make_dataset, make_processor

    config = load(arguments)
    dataset, processor = make_dataset(config), make_processor(config)
    if dataset.streamed and arguments.images != "decode":
        raise ConfigError(f"--images: {arguments.images!r} is for tables. The images of shards are always decoded.")
    return _show(dataset.check(processor) if dataset.streamed else dataset.check(processor, arguments.images))


def _show(findings: Any) -> int:
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
    put(json.dumps(split_of(config, table, arguments.fold).to_json(table), indent=1) + "\n", arguments.out)
    return 0


def run_leak(arguments: argparse.Namespace) -> int:
    """Prints the leak of each fold of a published split, of a run, or of the split of a config."""
    from ipiqa.build import make_dataset, split_of
    from ipiqa.datasets.leak import leak, leak_rows
    from ipiqa.datasets.splits import splits_in
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
    print(markdown_table(*leak_rows(splits, [leak(table, split, hashes) for split in splits])))
    if hashes is None:
        print(f"\nImages are not compared: {problem}.")
    return 0


def run_init(arguments: argparse.Namespace) -> int:
    """Writes a commented config, unless there is one."""
    from ipiqa.datasets.discover import discover
    from ipiqa.files import write_text
    from ipiqa.report.first_config import first_config

    source = Path(arguments.source)
    out = Path(arguments.out or f"{source.absolute().stem}.yaml")
    if out.exists():
        raise ConfigError(f"--out: '{out}' is there already. Name another file.")
    found = discover(source)
    write_text(out, first_config(found, out))
    targets = ", ".join(score.name for score in found.scores)
    print(f"{out}: {found.num_rows} rows of '{found.table}', {found.num_images} images found; targets: {targets}")
    print(f"Read it, then: ipiqa data check --cfg-path {out}")
    return 0


def run_card(arguments: argparse.Namespace) -> int:
    """Prints or writes the card of the dataset of a config."""
    from ipiqa.build import make_dataset
    from ipiqa.report.card import database_card

    dataset = make_dataset(load(arguments))
    name = Path(getattr(dataset, "annotations", "images")).name
    put(database_card(dataset.load(), name, getattr(dataset, "about", None)), arguments.out)
    return 0


def run_prepare(arguments: argparse.Namespace) -> int:
    """Lays out a database and checks it."""
    import ipiqa
    from ipiqa.build import make_dataset, make_processor
    from ipiqa.datasets.databases.annotated import AnnotatedImages
    from ipiqa.datasets.prepare import prepare

    projects = Path(ipiqa.__file__).parent / "projects"
    arguments.cfg_path = str(projects / arguments.project / "ipiqa.yaml")
    names = sorted(folder.parent.name for folder in projects.glob("*/ipiqa.yaml") if folder.parent.name != "demo")
    if arguments.project not in names:
        near = f"{did_you_mean(arguments.project, names)} There are: {', '.join(names)}."
        raise ConfigError(f"prepare: no database is called {arguments.project!r}.{near}")
    config = load(arguments)
    dataset = make_dataset(config)
    assert isinstance(dataset, AnnotatedImages)  # all projects with this name are
    prepare(dataset, [file_path(source, "--from") for source in arguments.sources], Path(arguments.downloads))
    return _show(dataset.check(make_processor(config)))
