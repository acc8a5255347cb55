"""Named parts and the settings they take.

A part is a class registered under a kind ("model", "image_encoder", "dataset", ...) and a name. The constructor is the
schema of the part's YAML section:

* keyword-only parameters are the settings: their annotation is the type (`FilePath` for files and folders), their
  default the default;
* positional parameters come from the code that builds it: either a value of the caller's (`context`) or, where the
  parameter bears the name of a kind, a nested part whose section stands under that key.
"""

import contextlib
import copy
import functools
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ipiqa.errors import ConfigError, did_you_mean, shorten

KINDS = ("model", "image_encoder", "prompt_encoder", "fusion", "head", "dataset", "processor", "task", "scorer")

FUNCTIONS = ("loss",)  # kinds of parts without a section: a setting names them

_PARTS: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in (*KINDS, *FUNCTIONS)}

FilePath = Annotated[str, "path"]  # a setting that names a file or folder, or a pattern of them; `~` is expanded

_UNIONS = (typing.Union, types.UnionType)

Part = TypeVar("Part", bound=Callable[..., Any])


def register(kind: str, name: str) -> Callable[[Part], Part]:
    """Returns a decorator that makes a class available as `name: <name>` in a section of this kind."""

    def add(part: Part) -> Part:
        known, new = (f"{p.__module__}.{p.__qualname__}" for p in (_PARTS[kind].get(name, part), part))
        if known != new:  # the same name again is a module that was reloaded
            raise ValueError(f"{kind} {name!r} is registered twice: {known} and {new}")
        _PARTS[kind][name] = part
        return part

    return add


def list_registered(kind: str) -> list[str]:
    """Returns the names registered under a kind, sorted; a ConfigError where there is no such kind."""
    if kind not in _PARTS:
        near = did_you_mean(kind, _PARTS)
        raise ConfigError(f"{kind}: no such kind of part.{near} The kinds are: {', '.join(_PARTS)}.")
    return sorted(_PARTS[kind])


def lookup(kind: str, name: object, where: str) -> Callable[..., Any]:
    """Returns the part registered under `name`; the ConfigError of an unknown one gives the near miss and all names."""
    names = list_registered(kind)
    if not isinstance(name, str) or name not in _PARTS[kind]:
        setting = where if kind in FUNCTIONS else f"{where}.name"
        near = did_you_mean(str(name), names)
        raise ConfigError(f"{setting}: no {kind} is called {shorten(name)}.{near} There are: {', '.join(names)}.")
    return _PARTS[kind][name]


@functools.cache
def _parameters(component: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """Returns (settings by name, nested kinds and context names -> default) of a constructor, annotations resolved."""
    hints = get_type_hints(component.__init__ if inspect.isclass(component) else component, include_extras=True)
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


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted name, such as `run.seed`."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def file_path(text: str, where: str) -> str:
    """Returns the name of a file or folder with `~` expanded; a name that no file can have is a ConfigError."""
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
    """Returns a type in words for an error message, such as "a number or null"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in _UNIONS:
        return " or ".join(map(describe_type, arguments))
    if origin in (list, dict):
        return f"{describe_type(origin)} ({describe_type(arguments[-1])} each)"
    words = {
        int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null",
        dict: "a mapping", list: "a list", FilePath: "a path", Any: "a value",
    }  # fmt: skip
    return words.get(annotation, str(annotation))


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """Returns a value as the type of its setting: whole numbers become floats, paths lose their `~`; or TypeError."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in _UNIONS:
        for argument in arguments:
            with contextlib.suppress(TypeError):
                return _convert(value, argument, where)
    elif origin is list and isinstance(value, (list, tuple)):
        return [_convert(item, arguments[0], where) for item in value]
    elif origin is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _convert(item, arguments[1], where) for key, item in value.items()}
    elif origin is Literal and any(value == choice and type(value) is type(choice) for choice in arguments):
        return value
    elif annotation == FilePath and isinstance(value, str):
        return file_path(value, where)
    elif annotation is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:  # finite
        return float(value)
    elif annotation is Any or (annotation is not float and type(value) is annotation):
        return value
    raise TypeError


def _remedy(value: Any, annotation: Any) -> str:
    """Returns what would be right instead of a value: its near miss among named ones, a finite number, or ""."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(item, float) and not math.isfinite(item) for item in items):
        return " Give finite numbers."
    choices = get_args(annotation) if get_origin(annotation) is not Literal else (annotation,)
    literals = [str(a) for choice in choices if get_origin(choice) is Literal for a in get_args(choice)]
    return did_you_mean(str(value), literals)


def check_settings(
    component: Callable[..., Any], section: Any, where: str, parts: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the complete settings of a component: those given, checked, and the defaults of the rest.

    The component is a registered part or a dataclass with keyword-only fields; what it does not take, save the keys in
    `parts`, is a ConfigError. `where` is the dotted path of the section.
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
        annotation, value = parameter.annotation, section.get(key, parameter.default)
        if key not in section and value is inspect.Parameter.empty:
            raise ConfigError(f"{where}.{key}: missing. Give {describe_type(annotation)}.")
        if key not in section:
            out[key] = copy.deepcopy(value)  # a list must not be shared by all configs
            continue
        if value == "None" and type(None) in get_args(annotation):
            raise ConfigError(f"{where}.{key}: 'None' is text. Write null for none.")
        try:
            out[key] = _convert(value, annotation, f"{where}.{key}")
        except TypeError:
            problem = f"{where}.{key}: {shorten(value)} is not {describe_type(annotation)}."
            raise ConfigError(problem + _remedy(value, annotation)) from None
    return out


def resolve(kind: str, section: Any, where: str) -> dict[str, Any]:
    """Returns a section with every default filled in, nested parts included; builds nothing.

    What the named part does not take is a ConfigError.
    """
    section = {"name": section} if isinstance(section, str) else section
    if not isinstance(section, Mapping):
        what = f"name: and the settings of the {kind}"
        raise ConfigError(f"{where}: {shorten(section)} is not a mapping. Write {what} under it.")

    def given(key: str, kind: str) -> Any:
        if key not in section:
            raise ConfigError(f"{where}.{key}: missing. There are: {', '.join(list_registered(kind))}.")
        return section[key]

    part = lookup(kind, given("name", kind), where)
    nested = _nested(kind, part)
    settings = check_settings(part, section, where, ("name", *nested))
    parts = {name: resolve(name, given(name, name), f"{where}.{name}") for name in nested}
    return {"name": section["name"]} | parts | settings


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
    """Returns the part that a section from `resolve` describes, its nested parts built first, in their order.

    The context has values for positional parameters that are not parts, such as `image_size`. Parts built on the way
    are handed to their younger siblings, so that a fusion can read the sizes of the encoders; a parameter that is
    neither is read off the youngest sibling with an attribute of that name (`num_features` of a fusion).
    """
    part = lookup(kind, section["name"], where)
    settings, given = _parameters(part)
    known = dict(context)
    for name in [name for name in given if name not in known]:
        elders = [value for key, value in known.items() if key in KINDS and hasattr(value, name)]
        if name in KINDS:
            known[name] = build(name, section[name], f"{where}.{name}", known)
        elif elders:
            known[name] = getattr(elders[-1], name)
        elif given[name] is inspect.Parameter.empty:
            raise TypeError(f"{part.__qualname__} needs {name!r}, which is neither a part nor in the context")
    arguments = {name: known[name] for name in given if name in known}
    return part(**arguments, **{name: section[name] for name in settings})
