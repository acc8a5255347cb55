"""Commands that show or convert: config, report, env, convert-clip."""

import argparse
from pathlib import Path
from typing import Any

from ipiqa.cli.arguments import add_command, add_config_arguments, load, path
from ipiqa.errors import ConfigError


def add_commands(commands: Any) -> None:
    """Adds `ipiqa config show`, `ipiqa report`, `ipiqa env` and `ipiqa convert-clip`."""
    config = commands.add_parser("config", help="show a config with every default", description="Show configs.")
    actions = config.add_subparsers(metavar="<action>", required=True)
    add_config_arguments(add_command(actions, "show", run_config_show, "print the resolved YAML of a config"))
    report = add_command(commands, "report", run_report, "sum up a run, or compare two")
    folders = "run folder; a second one is compared with the first"
    report.add_argument("runs", nargs="+", type=path("report"), metavar="DIR", help=folders)
    column = "show the run by this column of its predictions as well: generator, style, prompt_length ..."
    report.add_argument("--by", metavar="COLUMN", help=column)
    add_command(commands, "env", run_env, "print versions and machine facts", " Put them in a bug report.")
    convert = add_command(commands, "convert-clip", run_convert, "write CLIP weights as safetensors")
    convert.add_argument("source", type=path("source"), help="RN50.pt or another weights file")
    convert.add_argument("target", type=path("target"), help="safetensors file to write")


def run_config_show(arguments: argparse.Namespace) -> int:
    """Prints a config with every default filled in."""
    print(load(arguments).to_yaml(), end="")
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    """Writes the summary of each run and prints it; two runs are compared as well."""
    from ipiqa.report import breakdown_text, compare_runs, console_table, write_summary

    if len(arguments.runs) > 2:
        raise ConfigError(f"report: {len(arguments.runs)} runs. Give one to sum up or two to compare.")
    summaries = [write_summary(Path(folder), arguments.by) for folder in arguments.runs]
    for summary in summaries:
        print(console_table(summary), breakdown_text(summary, arguments.by), sep="\n\n")
        print(f"Report: {summary.run.run_dir / 'report.html'}\n")
    if len(summaries) == 2:
        print(compare_runs(*(summary.run for summary in summaries)))
    return 0


def run_env(arguments: argparse.Namespace) -> int:
    """Prints the facts that `environment.json` keeps."""
    from ipiqa.training.run_folder import environment

    for name, value in environment().items():
        print(f"{name}: {value}")
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    """Writes CLIP weights as safetensors."""
    from ipiqa.models.weights import convert_to_safetensors

    number = convert_to_safetensors(arguments.source, arguments.target)
    print(f"{number} tensors -> {arguments.target}")
    return 0
