"""JSON that nobody has to trust -> dataclasses: types, ranges and depth checked in one place."""

import dataclasses
import json
import reprlib
import types
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ipiqa.errors import DataError

LARGEST = 1e100  # squares of it, and their sums, are finite
MAX_DEPTH = 20  # of what stands where any value may
_NAMES = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping"}

T = TypeVar("T")


def parse(kind: type[T], text: str, where: Path | str, advice: str) -> T:
    """Returns a JSON text as a value of a type; keys that a dataclass does not have are left out.

    Types that are understood: int, float, str, None, unions (X | Y), list, tuple[X, ...], dict[str, X], dataclasses,
    and Any (at most 20 levels deep). A float may be written without a point. What is no JSON, or a value of another
    type, not finite or beyond 1e100 raises a DataError, which begins with `where` and ends with `advice`.
    """
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # refuses half a character, as "\ud800" is
        result: T = _typed(kind, content, "")
    except (ValueError, RecursionError) as error:
        problem = f"no valid JSON ({error})" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{where}: {' '.join(problem.split())}. {advice}") from None
    return result


def _typed(kind: Any, value: Any, at: str) -> Any:
    """Returns a value as the first alternative of a type that it fits; `at` is the way to it, as ".best.epoch"."""
    shown = f"{at[1:200]}: {reprlib.repr(value)}".removeprefix(": ")
    if kind is Any:
        if _depth(value) > MAX_DEPTH:
            raise ValueError(f"{shown} is nested too deep")
        return value
    if type(value) in (int, float) and not abs(value) <= LARGEST:
        raise ValueError(f"{shown} is not a number up to {LARGEST:g}")
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(value) is int and int not in kinds and float in kinds:
        value = float(value)
    kind = next((one for one in kinds if _json_type(one) is type(value)), None)
    if kind is None:
        raise ValueError(f"{shown} is not {_NAMES[_json_type(kinds[0])]}")
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if field.name not in value and field.default is dataclasses.MISSING:
                raise ValueError(f"{at}.{field.name}: is missing"[1:])
        hints = get_type_hints(kind)
        return kind(**{name: _typed(hints[name], value[name], f"{at}.{name}") for name in hints if name in value})
    if isinstance(value, list):
        return get_origin(kind)(_typed(get_args(kind)[0], v, f"{at}[{i}]") for i, v in enumerate(value))
    if isinstance(value, dict):
        return {key: _typed(get_args(kind)[1], v, f"{at}.{key:.40}") for key, v in value.items()}
    return value


def _json_type(kind: Any) -> type:
    """Returns the type that json gives to values of a type."""
    plain = get_origin(kind) or kind
    return dict if dataclasses.is_dataclass(kind) else list if plain is tuple else plain


def _depth(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0) if isinstance(inner, list) else 0
