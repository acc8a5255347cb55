"""JSON that nobody has to trust -> dataclasses: types, ranges and depth checked in one place."""

from __future__ import annotations

import dataclasses
import json
import reprlib
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ipiqa.errors import DataError

LARGEST = 1e100  # squares of it, and their sums, are finite
MAX_DEPTH = 20  # of what stands where any value may
_NAMES = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null",
    list: "a list", dict: "a mapping",
}  # fmt: skip

T = TypeVar("T")


class _MismatchError(Exception):
    """Where in the content a value is, and what is wrong with it."""

    def __init__(self, where: str, value: Any, problem: str) -> None:
        shown = "" if value is dataclasses.MISSING else f"{reprlib.repr(value)} "
        super().__init__(f"{where[:200]}: {shown}{problem}".removeprefix(": "))


def parse(kind: type[T], text: str, where: Path | str, advice: str) -> T:
    """Returns a JSON text as an instance of a dataclass; keys that it does not have are left out.

    Types that are understood: int, float, str, bool, None, unions of them, list, tuple[X, ...], dict[str, X], other
    dataclasses, and Any (at most 20 levels deep). A float may be written without a point.

    Args:
        kind: the dataclass, or another of these types.
        text: what to read.
        where: what the message begins with.
        advice: what it ends with.

    Raises:
        DataError: no JSON, or a value of another type, not finite or beyond 1e100.
    """
    try:
        result: T = _typed(kind, json.loads(text, parse_constant=_refuse), "")
    except _MismatchError as error:
        raise DataError(f"{where}: {error}. {advice}") from None
    except (ValueError, RecursionError) as error:
        problem = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise DataError(f"{where}: no valid JSON ({problem}). {advice}") from None
    return result


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number in JSON")


def _typed(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        _check_depth(value, where, MAX_DEPTH)
        return value
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where)
    if dataclasses.is_dataclass(kind):
        return _record(kind, _plain(dict, value, where), where)
    if origin in (list, tuple):
        return origin(_typed(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(_plain(list, value, where)))
    if origin is dict:
        items = _plain(dict, value, where).items()
        return {_typed(str, key, where): _typed(arguments[1], v, _at(where, key)) for key, v in items}
    if type(value) in (int, float) and not abs(value) <= LARGEST:
        raise _MismatchError(where, value, f"is not a number up to {LARGEST:g}")
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and any("\ud800" <= character <= "\udfff" for character in _plain(str, value, where)):
        raise _MismatchError(where, value, "holds half a character")
    return _plain(kind, value, where)


def _plain(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise _MismatchError(where, value, f"is not {_NAMES[kind]}")
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    problems = []
    for kind in kinds:
        try:
            return _typed(kind, value, where)
        except _MismatchError as error:
            problems.append(error)
    raise problems[0]


def _record(kind: Any, content: dict[str, Any], where: str) -> Any:
    hints, values = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in content:
            values[field.name] = _typed(hints[field.name], content[field.name], _at(where, field.name))
        elif field.default is dataclasses.MISSING:
            raise _MismatchError(_at(where, field.name), dataclasses.MISSING, "is missing")
    return kind(**values)


def _check_depth(value: Any, where: str, left: int) -> None:
    if isinstance(value, (dict, list)):
        if not left:
            raise _MismatchError(where, value, "is nested too deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, where, left - 1)


def _at(where: str, key: str) -> str:
    return f"{where}.{key:.40}".removeprefix(".")
