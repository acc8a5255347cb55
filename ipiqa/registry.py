"""Named parts and the settings they take.

A part is a class registered under a kind ("model", "image_encoder", "dataset", ...) and a name. The constructor is the
schema of the part's YAML section:

* keyword-only parameters are the settings: their annotation is the type (`FilePath` for files and folders), their
  default the default;
* positional parameters come from the code that builds it: either a value of the caller's (`context`) or, where the
  parameter bears the name of a kind, a nested part whose section stands under that key.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ipiqa.errors import ConfigError, did_you_mean, shorten

KINDS = ("model", "image_encoder", "prompt_encoder", "fusion", "head", "dataset", "processor", "task")

FUNCTIONS = ("loss",)  # kinds of parts without a section: a setting names them

_PARTS: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in (*KINDS, *FUNCTIONS)}

FilePath = Annotated[str, "path"]  # a setting that names a file or folder, or a pattern of them; `~` is expanded

Part = TypeVar("Part", bound=Callable[..., Any])


def register(kind: str, name: str) -> Callable[[Part], Part]:
    """Returns a decorator that makes a class available as `name: <name>` in a section of this kind."""

    def add(part: Part) -> Part:
        known = _PARTS[kind].setdefault(name, part)
        if _full_name(known) != _full_name(part):  # the same name again is a module that was reloaded
            raise ValueError(f"{kind} {name!r} is registered twice: {_full_name(known)} and {_full_name(part)}")
        _PARTS[kind][name] = part
        return part

    return add


def _full_name(part: Callable[..., Any]) -> str:
    return f"{part.__module__}.{part.__qualname__}"


def list_registered(kind: str) -> list[str]:
    """Returns the names registered under a kind, sorted.

    Raises:
        ConfigError: the kind is unknown.
    """
    if kind not in _PARTS:
        raise ConfigError(
            f"{kind}: no such kind of part.{did_you_mean(kind, _PARTS)} The kinds are: {', '.join(_PARTS)}."
        )
    return sorted(_PARTS[kind])


def lookup(kind: str, name: object, where: str) -> Callable[..., Any]:
    """Returns the part registered under `name`.

    Raises:
        ConfigError: no such name; the message gives the near miss and all names.
    """
    names = list_registered(kind)
    if not isinstance(name, str) or name not in _PARTS[kind]:
        near = did_you_mean(str(name), names)
        setting = where if kind in FUNCTIONS else f"{where}.name"
        raise ConfigError(f"{setting}: no {kind} is called {shorten(name)}.{near} There are: {', '.join(names)}.")
    return _PARTS[kind][name]


@functools.cache
def _parameters(component: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """Returns (settings by name, nested kinds and context names -> default) of a constructor, annotations resolved."""
    target = component.__init__ if inspect.isclass(component) else component
    hints = get_type_hints(target, include_extras=True)
    settings, given = {}, {}
    for name, parameter in inspect.signature(component).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            settings[name] = parameter.replace(annotation=hints.get(name, Any))
        elif parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            given[name] = parameter.default
    return settings, given


def settings_of(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the settings a constructor takes: its keyword-only parameters, annotations resolved."""
    return dict(_parameters(component)[0])


def file_path(text: str, where: str) -> str:
    """Returns the name of a file or folder with `~` expanded.

    Raises:
        ConfigError: no file can have this name.
    """
    problem = None
    try:
        if "\0" in text:
            problem = "it holds a NUL byte"
        elif any(len(part) > 255 and b"{" not in part for part in text.encode().split(b"/")):
            problem = "a name in it has more than 255 bytes"
    except UnicodeEncodeError:
        problem = "it is not UTF-8"
    if problem:
        raise ConfigError(f"{where}: {shorten(text)} is not a path: {problem}. Give the path of a file or folder.")
    return os.path.expanduser(text)  # noqa: PTH111 (Path raises where a user is unknown)


def describe_type(annotation: Any) -> str:
    """Returns a type in words for an error message.

    >>> describe_type(float | None)
    'a number or null'
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(a) for a in arguments)
    if origin is list:
        return f"a list ({describe_type(arguments[0])} each)"
    if origin is dict:
        return f"a mapping ({describe_type(arguments[1])} each)"
    words = {
        int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null",
        dict: "a mapping", list: "a list", FilePath: "a path",
    }  # fmt: skip
    return words.get(annotation, str(annotation))


class _MismatchError(Exception):
    """A value is not of the type of its setting."""


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """Returns a value as the type of its setting: whole numbers become floats, paths lose their `~`.

    Raises:
        _MismatchError: it is of another type.
        ConfigError: a path that no file can have.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            with contextlib.suppress(_MismatchError):
                return _convert(value, argument, where)
    elif origin is list and isinstance(value, (list, tuple)):
        return [_convert(item, arguments[0], where) for item in value]
    elif origin is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _convert(item, arguments[1], where) for key, item in value.items()}
    elif origin is Literal and any(value == choice and type(value) is type(choice) for choice in arguments):
        return value
    elif annotation == FilePath and isinstance(value, str):
        return file_path(value, where)
    elif origin is None:
        return _convert_plain(value, annotation)
    raise _MismatchError


def _convert_plain(value: Any, annotation: Any) -> Any:
    if annotation is Any:
        return value
    if isinstance(value, bool) and annotation is not bool:
        raise _MismatchError
    if annotation is float and isinstance(value, (int, float)):
        with contextlib.suppress(OverflowError):  # a whole number too large to be one with a point
            if math.isfinite(value):
                return float(value)
    elif annotation is not float and isinstance(value, annotation):
        return value
    raise _MismatchError


def _remedy(value: Any, annotation: Any) -> str:
    """Returns what would be right instead of a value: its near miss among named ones, a finite number, or ""."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(item, float) and not math.isfinite(item) for item in items):
        return " Give finite numbers."
    choices = get_args(annotation) if get_origin(annotation) is not Literal else (annotation,)
    literals = [str(a) for choice in choices if get_origin(choice) is Literal for a in get_args(choice)]
    return did_you_mean(str(value), literals)


def _accepts_null(annotation: Any) -> bool:
    return get_origin(annotation) in (typing.Union, types.UnionType) and type(None) in get_args(annotation)


def check_settings(
    component: Callable[..., Any], section: Any, where: str, parts: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the complete settings of a component: those given, checked, and the defaults of the rest.

    Args:
        component: a registered part or a dataclass with keyword-only fields.
        section: settings by name.
        where: dotted path of the section, for messages.
        parts: other keys that may be in the section.

    Raises:
        ConfigError: no mapping, unknown key, wrong type, or a setting without default that is not given.
    """
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}: {shorten(section)} is not a mapping. Write its settings under it, indented.")
    settings = settings_of(component)
    takes = [*parts, *settings]
    for key in section:
        if key not in takes:
            near = did_you_mean(str(key), takes)
            raise ConfigError(f"{where}.{key}: no such setting.{near} It takes: {', '.join(takes) or 'no settings'}.")
    out = {}
    for key, parameter in settings.items():
        if key not in section:
            if parameter.default is inspect.Parameter.empty:
                raise ConfigError(f"{where}.{key}: missing. Give {describe_type(parameter.annotation)}.")
            out[key] = copy.deepcopy(parameter.default)  # a list must not be shared by all configs
            continue
        if section[key] == "None" and _accepts_null(parameter.annotation):
            raise ConfigError(f"{where}.{key}: 'None' is text. Write null for none.")
        value, annotation = section[key], parameter.annotation
        try:
            out[key] = _convert(value, annotation, f"{where}.{key}")
        except _MismatchError:
            problem = f"{where}.{key}: {shorten(value)} is not {describe_type(annotation)}."
            raise ConfigError(problem + _remedy(value, annotation)) from None
    return out


def resolve(kind: str, section: Any, where: str) -> dict[str, Any]:
    """Returns a section with every default filled in, nested parts included; builds nothing.

    Raises:
        ConfigError: anything in the section that the named part does not take.
    """
    if isinstance(section, str):
        section = {"name": section}
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"{where}: {shorten(section)} is not a mapping. Write name: and the settings of the {kind} under it."
        )
    if "name" not in section:
        raise ConfigError(f"{where}.name: missing. There are: {', '.join(list_registered(kind))}.")
    part = lookup(kind, section["name"], where)
    nested = _nested(kind, part)
    settings = check_settings(part, section, where, ("name", *nested))
    out: dict[str, Any] = {"name": section["name"]}
    for name in nested:
        if name not in section:
            raise ConfigError(f"{where}.{name}: missing. There are: {', '.join(list_registered(name))}.")
        out[name] = resolve(name, section[name], f"{where}.{name}")
    return out | settings


def keys_of(kind: str, name: str) -> list[str]:
    """Returns the keys a section of this part may have: its nested parts and its settings."""
    part = _PARTS[kind][name]
    return [*_nested(kind, part), *settings_of(part)]


def _nested(kind: str, part: Callable[..., Any]) -> list[str]:
    """Returns the kinds whose sections stand in the section of a part.

    The towers, the fusion and the head of a model stand beside each other, so that they are handed to one another.
    """
    siblings = ("image_encoder", "prompt_encoder", "fusion", "head")
    return [name for name in _parameters(part)[1] if name in KINDS and not (kind in siblings and name in siblings)]


def build(kind: str, section: Mapping[str, Any], where: str, context: Mapping[str, Any]) -> Any:
    """Returns the part a resolved section describes, its nested parts built first, in the order of its parameters.

    Args:
        kind: kind of the part.
        section: what `resolve` returned.
        where: dotted path of the section, for messages.
        context: values for positional parameters that are not parts, such as `image_size`. Parts built on the way are
            handed to their younger siblings, so that a fusion can read the sizes of the encoders; a parameter that is
            neither is read off the youngest sibling with an attribute of that name (`num_features` of a fusion).
    """
    part = lookup(kind, section["name"], where)
    settings, given = _parameters(part)
    known = dict(context)
    for name, default in given.items():
        if name in known:
            continue
        if name in KINDS:
            known[name] = build(name, section[name], f"{where}.{name}", known)
        elif (elder := _youngest_with(name, known)) is not None:
            known[name] = getattr(elder, name)
        elif default is inspect.Parameter.empty:
            raise TypeError(f"{part.__qualname__} needs {name!r}, which is neither a part nor in the context")
    arguments = {name: known[name] for name in given if name in known}
    return part(**arguments, **{name: section[name] for name in settings})


def _youngest_with(attribute: str, known: Mapping[str, Any]) -> Any:
    """Returns the part built last that has the attribute, or None."""
    elders = [value for name, value in known.items() if name in KINDS and hasattr(value, attribute)]
    return elders[-1] if elders else None
