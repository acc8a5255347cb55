"""Arguments that several commands share, and how they become a config."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ipiqa.cli.guard import guarded
from ipiqa.errors import ConfigError, shorten
from ipiqa.registry import file_path


def start(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Runs the command that a command line asks for, its `run`, and returns the exit status."""

    def run() -> int | None:
        arguments, rest = parser.parse_known_args(argv)
        # Settings may stand between the flags, where argparse alone does not take them.
        if flags := [word for word in rest if word.startswith("-") or "overrides" not in arguments]:
            parser.error(f"unrecognized arguments: {' '.join(flags)}")
        if rest:
            arguments.overrides = [*arguments.overrides, *rest]
        from ipiqa.engine import log

        log.set_up()
        status: int | None = arguments.run(arguments)
        return status

    return guarded(run)


def add_command(commands: Any, name: str, run: Callable[[Any], int], summary: str, more: str = "") -> Any:
    """Returns the parser of a new command that `run` carries out; `more` follows the summary in its help."""
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.{more}")
    parser.set_defaults(run=run)
    return parser


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the arguments that choose a config and change its settings."""
    example = "ipiqa/projects/agiqa3k/ipiqa.yaml"
    parser.add_argument("--cfg-path", required=required, metavar="YAML", help=f"config file, e.g. {example}")
    add_overrides(parser, "settings to change, e.g. run.max_epochs=10")


def add_overrides(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds settings as arguments, described by `what`."""
    parser.add_argument(
        "--options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="the same, as in LAVIS"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=what)


def whole_number(flag: str, low: int, high: int) -> Callable[[str], int]:
    """Returns the `type` of an argument that takes a whole number from `low` to `high`; others are a ConfigError."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise ConfigError(f"{flag}: {shorten(text)} is out of range. Give a whole number from {low} to {high}.")
        return number

    return read


def add_number(
    parser: Any, flag: str, low: int, high: int, about: str, *others: str, default: int | None = None,
    dest: str | None = None, metavar: str = "N",
) -> None:  # fmt: skip
    """Adds an argument, which `others` name as well, that takes a whole number from `low` to `high`."""
    about += f" (default: {default})" if default is not None else ""
    number = whole_number(flag, low, high)
    parser.add_argument(flag, *others, type=number, default=default, dest=dest, metavar=metavar, help=about)


def path(flag: str) -> Callable[[str], str]:
    """Returns the `type` of an argument that names a file or folder; a text that no file can bear is a ConfigError."""
    return lambda text: file_path(text, flag)


def load(arguments: argparse.Namespace) -> Any:
    """Returns the config the arguments describe; an argument that bears the name of a setting comes last."""
    from ipiqa.config.loading import load_config

    flags = [f"{name}={value}" for name, value in vars(arguments).items() if "." in name and value is not None]
    return load_config(arguments.cfg_path, *arguments.options, *arguments.overrides, *flags)


def parse_folds(text: str) -> list[int]:
    """Returns the numbers of "0,3"; a text that is no such list is a ConfigError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        advice = "Write numbers from 0 with commas, such as 0,3."
        raise ConfigError(f"--folds: {shorten(text)} is no list of folds. {advice}") from None


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that choose a trained model, and how it computes."""
    what = "run folder, best.pt, bundle, .onnx file, hf-hub:OWNER/NAME, or a name such as clipscore"
    parser.add_argument("model", type=path("model"), metavar="MODEL", help=what)
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1; default auto")
    parser.add_argument("--amp", default="none", metavar="NAME", help="none, bf16, or fp16 on a GPU; default none")
    folds = "folds of a run whose mean is taken; default all"
    parser.add_argument("--folds", type=parse_folds, metavar="0,3", help=folds)


def put(text: str, out: str | None) -> None:
    """Writes text to the file that --out names, and prints its name; without one, prints the text."""
    from ipiqa.files import write_text

    if out:
        write_text(Path(out), text)
    print(out or text, end="\n" if out else "")
