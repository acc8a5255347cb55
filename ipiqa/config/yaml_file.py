"""The one reader of YAML: configs, grids and the values of key=value. Any text becomes plain values or one error.

A number may be written 1e-4, a date is text, a key is text and stands once in its mapping. References (&, *) count as
often as they are used, so that a short file cannot become a long one.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from ipiqa.errors import ConfigError, did_you_mean

MAX_BYTES = 1 << 20  # of a file
MAX_VALUES = 100_000  # with every reference written out
MAX_DEPTH = 50  # of mappings and lists within each other
MAX_DIGITS = 100  # of a number
TOO_DEEP = f"more than {MAX_DEPTH} mappings and lists within each other"

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """YAML 1.1, save that 1e-4 is a number."""

    count = 0  # of values


_Loader.add_implicit_resolver(
    _TAG + "float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_mapping(path: Path, where: str, expected: str) -> dict[str, Any]:
    """Returns the mapping in a YAML file; one that cannot be read, or holds anything else, is a ConfigError.

    `where` names it in the message where it does not exist; `expected` is a sentence on what such a file holds.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: has {path.stat().st_size} bytes, more than {MAX_BYTES}. {expected}")
        content = parse(path.read_text(encoding="utf-8").removeprefix("\ufeff"))
    except FileNotFoundError:
        files = [p.name for p in path.parent.glob("*.y*ml")]
        raise ConfigError(f"{where}: '{path}' does not exist.{did_you_mean(path.name, files)} {expected}") from None
    except (UnicodeDecodeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text file (not UTF-8)"
        raise ConfigError(f"{path}: cannot be read: {reason}. Give a YAML file.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
        remedy = "Write `key: value`, indented with spaces; text with special characters in quotes."
        raise ConfigError(f"{path}{line}: invalid YAML: {problem}. {remedy}") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: holds no mapping of settings. {expected}")
    return content


def parse(text: str) -> Any:
    """Returns what a YAML text stands for: mappings with text keys, lists, texts, numbers, booleans and None.

    Raises yaml.YAMLError where it is no YAML, or one with values of other kinds, too many values or too deep ones.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(loader, node)
    except RecursionError:
        raise yaml.YAMLError(TOO_DEEP) from None
    except (ValueError, LookupError, OverflowError) as error:  # "!!bool maybe" and the like
        raise yaml.YAMLError(f"a value does not fit its tag: {error}") from None
    finally:
        loader.dispose()


def _value(loader: _Loader, node: yaml.Node, depth: int = 1) -> Any:
    """Returns what a node stands for, references in it written out."""
    loader.count += 1
    if loader.count > MAX_VALUES:
        raise _invalid(node, f"more than {MAX_VALUES} values, with references written out")
    if depth > MAX_DEPTH:
        raise _invalid(node, TOO_DEEP)
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _mapping(loader, node, depth)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(loader, item, depth + 1) for item in node.value]
    if not isinstance(node, yaml.ScalarNode) or kind not in ("str", "int", "float", "bool", "null", "timestamp"):
        raise _invalid(node, f"the tag {node.tag.replace(_TAG, '!!')!r} is not for settings")
    if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
        raise _invalid(node, f"a number of {len(node.value)} digits")
    return node.value if kind == "timestamp" else loader.construct_object(node)


def _mapping(loader: _Loader, node: yaml.Node, depth: int) -> dict[str, Any]:
    """Returns a mapping with keys that are text, each of them once; those of a merge (<<) stand behind its own."""
    own: dict[str, Any] = {}
    merged: list[dict[str, Any]] = []
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _invalid(key, "a key that is a mapping or a list")
        if key.value in own:
            raise _invalid(key, f"duplicate key {key.value[:80]!r}")
        own[key.value] = _value(loader, value, depth + 1)
        if key.tag == _TAG + "merge":
            given = own.pop(key.value)
            merged += given if isinstance(given, list) else [given]
    if not all(isinstance(other, dict) for other in merged):
        raise _invalid(node, "<< of what is no mapping")
    return {name: item for other in (*reversed(merged), own) for name, item in other.items()}


def _invalid(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
