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

_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name for name in ("str", "int", "float", "bool", "null")}


class _Loader(yaml.SafeLoader):
    """YAML 1.1, save that 1e-4 is a number."""


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
        if node is None:
            return None
        _measure(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError(f"more than {MAX_DEPTH} mappings and lists within each other") from None
    except (ValueError, LookupError, OverflowError) as error:  # "!!bool maybe" and the like
        raise yaml.YAMLError(f"a value does not fit its tag: {error}") from None
    finally:
        loader.dispose()


def _measure(node: yaml.Node, known: dict[yaml.Node, tuple[int, int] | None]) -> tuple[int, int]:
    """Returns (number of values, depth) of a node with references written out; makes dates and its keys text.

    A node that is not for a file of settings is a YAMLError. `known` has None for nodes that are being measured.
    """
    if node in known:
        size = known[node]
        if size is None:
            raise _invalid(node, "a reference leads back to itself")
        return size
    known[node] = None
    children: list[yaml.Node] = []
    if node.tag == _TAG + "timestamp":
        node.tag = _TAG + "str"
    if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
        if node.tag in (_TAG + "int", _TAG + "float") and len(node.value) > MAX_DIGITS:
            raise _invalid(node, f"a number of {len(node.value)} digits")
    elif isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        node.value = _with_text_keys(node.value)
        children = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        children = node.value
    else:
        raise _invalid(node, f"the tag {node.tag.replace(_TAG, '!!')!r} is not for settings")
    sizes = [_measure(child, known) for child in children]
    number, depth = 1 + sum(size for size, _ in sizes), 1 + max((deep for _, deep in sizes), default=0)
    if number > MAX_VALUES:
        raise _invalid(node, f"more than {MAX_VALUES} values, with references written out")
    if depth > MAX_DEPTH:
        raise RecursionError
    known[node] = number, depth
    return number, depth


def _with_text_keys(pairs: list[tuple[yaml.Node, yaml.Node]]) -> list[tuple[yaml.Node, yaml.Node]]:
    """Returns the pairs of a mapping with keys that are text, each of them once."""
    out, seen = [], set()
    for key, value in pairs:
        if not isinstance(key, yaml.ScalarNode):
            raise _invalid(key, "a key that is a mapping or a list")
        if key.value in seen:
            raise _invalid(key, f"duplicate key {key.value[:80]!r}")
        seen.add(key.value)
        if key.tag != _TAG + "merge":
            key = yaml.ScalarNode(_TAG + "str", key.value, key.start_mark, key.end_mark)
        out.append((key, value))
    return out


def _invalid(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
