"""Calls that run what stands in a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator

FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load",
    "torch.jit.load", "torch.hub.load", "pandas.read_pickle", "pandas.eval",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all",
}  # fmt: skip


def unsafe_calls(tree: ast.Module) -> list[str]:
    """Returns "line: name" of each call and base class in a module that could run what stands in a file."""
    names = dict(_imported(tree))
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = {_name(base, names) for base in node.bases}
            if bases & safe:
                safe.add(node.name)
            if "pickle.Unpickler" in bases and "find_class" not in {getattr(item, "name", "") for item in node.body}:
                found.append(f"{node.lineno}: pickle.Unpickler that takes any class")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    unsafe = [(call.lineno, _unsafe(call, _name(call.func, names), names, safe)) for call in calls]
    return found + [f"{line}: {what}" for line, what in unsafe if what]


def _unsafe(call: ast.Call, name: str, names: dict[str, str], safe: set[str]) -> str:
    """Returns what is unsafe about a call, or ""."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in FORBIDDEN or name.endswith((".extractall", ".add_safe_globals", ".safe_globals")):
        return name
    if name == "torch.load" and not _is_constant(given.get("weights_only"), True):
        return "torch.load without weights_only=True"
    if name == "yaml.load" and _name(given.get("Loader"), names) not in safe:
        return "yaml.load without a SafeLoader"
    if "allow_pickle" in given and not _is_constant(given["allow_pickle"], False):
        return f"{name} with allow_pickle"
    if "shell" in given and not _is_constant(given["shell"], False):
        return f"{name} with shell"
    return ""


def _is_constant(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yields (name in the file, full name) of everything imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _name(node: ast.expr | None, names: dict[str, str]) -> str:
    """Returns the dotted name of an expression, imports resolved; what is called on an object keeps its last part."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value, names)}.{node.attr}"
    return ""
