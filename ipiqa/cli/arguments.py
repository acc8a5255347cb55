"""From commands.yaml to parsers, and from arguments to a config."""

import argparse
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ipiqa.cli.guard import guarded
from ipiqa.config import settings, yaml_file
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


@functools.cache
def commands() -> dict[str, Any]:
    """Returns what commands.yaml says of each command."""
    return yaml_file.read_mapping(Path(__file__).with_name("commands.yaml"), "commands", "It lies beside this file.")


def add_all(parser: argparse.ArgumentParser, about: Mapping[str, Any], what: str = "command") -> None:
    """Adds commands and those below them to a parser; modules without arguments in commands.yaml add their own."""
    actions = parser.add_subparsers(title=f"{what}s", metavar=f"<{what}>", required=True)
    for name, command in about.items():
        if "module" in command:
            importlib.import_module(f"ipiqa.cli.{command['module']}").add_commands(actions)
            continue
        module, _, run = command.get("run", "").partition(".")
        run = getattr(importlib.import_module(f"ipiqa.cli.{module}"), run) if module else None
        own = add_command(actions, name, run, command["summary"], f" {command.get('more', '')}".rstrip())
        if "commands" in command:
            add_all(own, command["commands"], "action")
        add_arguments(own, command.get("arguments", {}))


def add_command(commands: Any, name: str, run: Any, summary: str, more: str = "") -> Any:
    """Returns the parser of a new command that `run` carries out; `more` follows the summary in its help."""
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.{more}")
    parser.set_defaults(run=run)
    return parser


def add_arguments(parser: argparse.ArgumentParser, arguments: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds arguments as commands.yaml gives them, the names of each mapped to its options."""
    for names, options in arguments.items():
        first, *others = names.split()
        kind, options = options.get("type"), {name: value for name, value in options.items() if name != "type"}
        if isinstance(kind, list):
            low, high = (getattr(settings, end) if isinstance(end, str) else end for end in kind)
            options["type"] = whole_number(first, low, high)
        elif kind:
            options["type"] = {"path": path(first), "folds": parse_folds, "shard": parse_shard}[kind]
        parser.add_argument(first, *others, **options)


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


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (number, count) of "1/3"; a text that is no such pair is a ConfigError."""
    number, _, count = text.partition("/")
    try:
        shard = int(number), int(count)
    except ValueError:
        shard = 0, 0
    if not 1 <= shard[0] <= shard[1]:
        raise ConfigError(f"--shard: {text!r} is no share of the points. Write I/N with I from 1 to N, such as 1/3.")
    return shard


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
