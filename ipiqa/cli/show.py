"""Commands that show or convert: config, report, env, convert-clip."""

import argparse
from pathlib import Path

from ipiqa.cli.arguments import load
from ipiqa.errors import ConfigError


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
        print(*filter(None, (console_table(summary), breakdown_text(summary, arguments.by))), sep="\n\n")
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
