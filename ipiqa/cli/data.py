"""`ipiqa data`: look at a dataset before anything is trained, get one into place, begin with one's own."""

import argparse
import json
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import load, put
from ipiqa.errors import ConfigError, DataError, did_you_mean


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
    print(markdown_table(*leak_rows(splits, [leak(table, split, hashes) for split in splits])))
    if hashes is None:
        print(f"\nImages are not compared: {problem}.")
    return 0


def run_init(arguments: argparse.Namespace) -> int:
    """Writes a commented config, unless there is one."""
    from ipiqa.datasets.discover import discover
    from ipiqa.files import write_text
    from ipiqa.report.database import first_config

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
    from ipiqa.report.database import database_card

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
    prepare(dataset, arguments.sources, Path(arguments.downloads))
    return _show(dataset.check(make_processor(config)))
