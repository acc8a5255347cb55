"""Errors a user can mend: one line that says where, what is wrong, what would be right and how to get there."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Any


class IpiqaError(Exception):
    """A mistake in the input. The command line prints its one line and ends with status 2."""


class ConfigError(IpiqaError):
    """A setting that cannot be used: unknown key or name, wrong type, combination that makes no sense."""


class DataError(IpiqaError):
    """A file that cannot be used: table, image, weights or checkpoint."""


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Puts a place before the message of an error raised within the block."""
    try:
        yield
    except IpiqaError as error:
        raise type(error)(f"{where}: {error}") from None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the nearest choice, or "" when none is near.

    >>> did_you_mean("nmae", ["name", "freeze"])
    " Did you mean 'name'?"
    >>> did_you_mean("zzz", ["name"])
    ''
    """
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def shorten(value: Any) -> str:
    """Returns a value for a message; a long one is cut."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"
