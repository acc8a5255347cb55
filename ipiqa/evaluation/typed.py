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
_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", types.NoneType: "null"}

T = TypeVar("T")


class _Mismatch(Exception):
    """Where in the content a value is, and what is wrong with it."""


def parse(kind: type[T], text: str, where: Path | str, advice: str) -> T:
    """Returns a JSON text as an instance of a dataclass; keys that it does not have are left out.

    Types that are understood: int, float, str, bool, None, unions of them, list, tuple[X, ...], dict[str, X], other
    dataclasses, and Any (at most 20 levels deep). A float may be written without a point.

    Args:
        kind: the dataclass.
        text: what to read.
        where: what the message begins with.
        advice: what it ends with.

    Raises:
        DataError: no JSON, or a value of another type, not finite or beyond 1e100.
    """
    try:
        content = json.loads(text, parse_constant=_refuse)
        result: T = _typed(kind, content, "")
    except _Mismatch as error:
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
        return _record(kind, value, where)
    if origin in (list, tuple):
        items = _plain(list, value, where, "a list")
        return origin(_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        items = _plain(dict, value, where, "a mapping")
        return {_typed(str, key, where): _typed(arguments[1], item, _at(where, key)) for key, item in items.items()}
    if type(value) in (int, float) and not abs(value) <= LARGEST:
        raise _Mismatch(f"{_place(where)}{reprlib.repr(value)} is not a number up to {LARGEST:g}")
    if kind is float and type(value) is int:
        return float(value)
    _plain(kind, value, where, _NAMES[kind])
    if kind is str and any("\ud800" <= character <= "\udfff" for character in value):
        raise _Mismatch(f"{_place(where)}{reprlib.repr(value)} holds half a character")
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    problems = []
    for kind in kinds:
        try:
            return _typed(kind, value, where)
        except _Mismatch as error:
            problems.append(error)
    raise problems[0]


def _record(kind: Any, value: Any, where: str) -> Any:
    found = _plain(dict, value, where, "a mapping")
    hints = get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        if field.name in found:
            values[field.name] = _typed(hints[field.name], found[field.name], _at(where, field.name))
        elif field.default is dataclasses.MISSING:
            raise _Mismatch(f"{_at(where, field.name)} is missing")
    return kind(**values)


def _plain(kind: type, value: Any, where: str, name: str) -> Any:
    if type(value) is not kind:
        raise _Mismatch(f"{_place(where)}{reprlib.repr(value)} is not {name}")
    return value


def _check_depth(value: Any, where: str, left: int) -> None:
    if isinstance(value, (dict, list)):
        if not left:
            raise _Mismatch(f"{_place(where)}nested too deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, where, left - 1)


def _at(where: str, key: Any) -> str:
    return f"{where}.{key if len(str(key)) < 80 else reprlib.repr(key)}".removeprefix(".")


def _place(where: str) -> str:
    return f"{where}: " if where else ""
