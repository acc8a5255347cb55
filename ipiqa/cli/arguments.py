"""Arguments that several commands share, and how they become a config."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from ipiqa.errors import ConfigError, shorten
from ipiqa.registry import file_path


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that choose a config and change its settings."""
    parser.add_argument(
        "--cfg-path", required=True, metavar="YAML", help="config file, e.g. ipiqa/projects/agiqa3k/ipiqa.yaml"
    )
    add_overrides(parser, "settings to change, e.g. run.max_epochs=10")


def add_overrides(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds settings as arguments, described by `what`."""
    parser.add_argument(
        "--options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="the same, as in LAVIS"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=what)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the parsed arguments; settings may stand between the flags, where argparse alone does not take them."""
    arguments, rest = parser.parse_known_args(argv)
    flags = [word for word in rest if word.startswith("-") or "overrides" not in arguments]
    if flags:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


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
    """Returns the config the arguments describe."""
    from ipiqa.config.loading import load_config

    changes = [*arguments.options, *arguments.overrides]
    if getattr(arguments, "num_cv", None) is not None:
        changes.append(f"run.num_folds={arguments.num_cv}")
    if getattr(arguments, "seed", None) is not None:
        changes.append(f"run.seed={arguments.seed}")
    return load_config(arguments.cfg_path, *changes)


def parse_folds(text: str | None) -> list[int] | None:
    """Returns the numbers of "0,3", or None for None.

    Raises:
        ConfigError: it is no list of whole numbers.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--folds: {shorten(text)} is no list of folds. Write numbers from 0 with commas, such as 0,3."
        ) from None
