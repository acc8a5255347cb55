"""Commands that show or convert: config, report, env, convert-clip."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import add_config_arguments, load, path


def add_commands(commands: Any) -> None:
    """Adds `ipiqa config show`, `ipiqa report`, `ipiqa env` and `ipiqa convert-clip`."""
    config = commands.add_parser("config", help="show a config with every default", description="Show configs.")
    actions = config.add_subparsers(metavar="<action>", required=True)
    show = actions.add_parser(
        "show", help="print the resolved YAML", description="Print the resolved YAML of a config."
    )
    add_config_arguments(show)
    show.set_defaults(run=run_config_show)

    report = commands.add_parser(
        "report", help="sum up a run, or compare two", description="Sum up the folds of a run; with two, compare them."
    )
    report.add_argument(
        "runs",
        nargs="+",
        type=path("report"),
        metavar="DIR",
        help="run folder; a second one is compared with the first",
    )
    report.set_defaults(run=run_report)

    env = commands.add_parser(
        "env", help="print versions and machine facts", description="Print what to put in a bug report."
    )
    env.set_defaults(run=run_env)

    convert = commands.add_parser(
        "convert-clip",
        help="write CLIP weights as safetensors",
        description="Convert CLIP weights, e.g. RN50.pt, to safetensors.",
    )
    convert.add_argument("source", type=path("source"), help="RN50.pt or another weights file")
    convert.add_argument("target", type=path("target"), help="safetensors file to write")
    convert.set_defaults(run=run_convert)


def run_config_show(arguments: argparse.Namespace) -> int:
    """Prints a config with every default filled in."""
    from ipiqa.engine import log

    log.set_up()
    print(load(arguments).to_yaml(), end="")
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    """Writes the summary of each run and prints it; two runs are compared as well."""
    from ipiqa.engine import log
    from ipiqa.errors import ConfigError
    from ipiqa.report import compare_runs, console_table, load_run, summarise, write_summary

    log.set_up()
    if len(arguments.runs) > 2:
        raise ConfigError(f"report: {len(arguments.runs)} runs. Give one to sum up or two to compare.")
    runs = [load_run(Path(folder)) for folder in arguments.runs]
    for folder, run in zip(arguments.runs, runs, strict=True):
        write_summary(Path(folder))
        print(console_table(summarise(run)))
        print(f"\nReport: {Path(folder) / 'report.html'}\n")
    if len(runs) == 2:
        print(compare_runs(*runs))
    return 0


def run_env(arguments: argparse.Namespace) -> int:
    """Prints the facts that `environment.json` keeps."""
    from ipiqa.training.run_folder import environment

    for name, value in environment().items():
        print(f"{name}: {value}")
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    """Writes CLIP weights as safetensors."""
    from ipiqa.engine import log
    from ipiqa.models.weights import convert_to_safetensors

    log.set_up()
    number = convert_to_safetensors(arguments.source, arguments.target)
    print(f"{number} tensors -> {arguments.target}")
    return 0
