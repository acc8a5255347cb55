"""`ipiqa data init`, `card` and `prepare`: begin with a database, or with images of one's own."""

import argparse
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import add_command, add_config_arguments, add_overrides, path, put
from ipiqa.cli.arguments import load as load_config_of
from ipiqa.errors import ConfigError, did_you_mean


def add_commands(actions: Any) -> None:
    """Adds `ipiqa data init`, `card` and `prepare`."""
    init = add_command(actions, "init", run_init, "write a first config for a table of one's own")
    init.add_argument("source", type=path("init"), metavar="FOLDER|TABLE", help="table, or folder with one and images")
    init.add_argument("--out", type=path("--out"), metavar="YAML", help="file to write; default <name>.yaml here")
    card = add_command(actions, "card", run_card, "print a page about a database", " Images need not be there.")
    add_config_arguments(card)
    card.add_argument("--out", type=path("--out"), metavar="FILE", help="file to write; default standard output")
    more = (
        " Table files and images are found by name, copied to where the database's config looks, counted and decoded."
    )
    get = add_command(actions, "prepare", run_prepare, "lay out a published database from its archive or folder", more)
    get.add_argument("project", metavar="NAME", help="name of its folder in ipiqa/projects, e.g. aigciqa2023")
    what = "archives (zip, tar), folders, table files, or addresses of them"
    get.add_argument("--from", dest="sources", nargs="+", required=True, metavar="SOURCE", help=what)
    get.add_argument("--downloads", type=path("--downloads"), default="cache/downloads", metavar="FOLDER", help=(
        "where to keep what comes from an address; default %(default)s"))  # fmt: skip
    add_overrides(get, "settings to change, e.g. dataset.images=elsewhere")


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

    dataset = make_dataset(load_config_of(arguments))
    name = Path(getattr(dataset, "annotations", "images")).name
    text = database_card(dataset.load(), name, getattr(dataset, "about", None))
    put(text, arguments.out)
    return 0


def run_prepare(arguments: argparse.Namespace) -> int:
    """Lays out a database and checks it."""
    import ipiqa
    from ipiqa.build import make_dataset, make_processor
    from ipiqa.datasets.databases.annotated import AnnotatedImages
    from ipiqa.datasets.prepare import prepare
    from ipiqa.errors import DataError
    from ipiqa.registry import file_path

    projects = Path(ipiqa.__file__).parent / "projects"
    arguments.cfg_path = str(projects / arguments.project / "ipiqa.yaml")
    names = sorted(folder.parent.name for folder in projects.glob("*/ipiqa.yaml") if folder.parent.name != "demo")
    if arguments.project not in names:
        near = f"{did_you_mean(arguments.project, names)} There are: {', '.join(names)}."
        raise ConfigError(f"prepare: no database is called {arguments.project!r}.{near}")
    config = load_config_of(arguments)
    dataset = make_dataset(config)
    assert isinstance(dataset, AnnotatedImages)  # all projects with this name are
    prepare(dataset, [file_path(source, "--from") for source in arguments.sources], Path(arguments.downloads))
    findings = dataset.check(make_processor(config))
    print(*findings.problems, *findings.summary, sep="\n")
    if findings.refusal:
        raise DataError(findings.refusal)
    return 0
