"""From a YAML file and `key=value` changes to a checked, complete config. Only this module knows OmegaConf."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Importing the packages registers their parts.
import ipiqa.datasets
import ipiqa.models
import ipiqa.processors
import ipiqa.tasks  # noqa: F401
from ipiqa import reference_config, registry
from ipiqa.errors import ConfigError, did_you_mean
from ipiqa.registry import list_registered
from ipiqa.settings import RunConfig, SplitConfig

__all__ = ["Config", "list_registered", "load_config"]

logger = logging.getLogger("ipiqa")

SECTIONS = ("image_size", "model", "dataset", "processor", "split", "task", "run")
PARTS = ("model", "dataset", "processor", "task")
DEFAULTS: dict[str, Any] = {"processor": {"name": "squash"}, "task": {"name": "quality_regression"}, "split": {}, "run": {}}


@dataclass(frozen=True)
class Config:
    """Everything a run depends on, complete and checked."""

    image_size: int  # side of the square input, in pixels, a multiple of 32
    model: dict[str, Any]
    dataset: dict[str, Any]
    processor: dict[str, Any]
    split: SplitConfig
    task: dict[str, Any]
    run: RunConfig

    def to_dict(self) -> dict[str, Any]:
        """Returns all settings as nested dictionaries."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """Returns all settings as YAML that `load_config` reads back to an equal config."""
        return OmegaConf.to_yaml(OmegaConf.create(self.to_dict(), flags={"allow_objects": False}))


def load_config(cfg_path: str | Path, *overrides: str) -> Config:
    """Returns the config of a YAML file with some settings changed.

    Args:
        cfg_path: YAML file, ours or in the form published with the reference code; `base: other.yaml` in it names a file,
            relative to it, whose settings it changes.
        overrides: "key=value" with dotted keys; the value is read as YAML.

    Raises:
        ConfigError: a file that cannot be read, or a setting that is unknown, missing, of the wrong type or out of range.
    """
    path = Path(cfg_path)
    merged = _read_with_bases(path, ())
    if reference_config.is_reference_format(merged):
        merged, notes = reference_config.translate(merged, str(path))
        for note in notes:
            logger.info("%s: %s", path, note)
    for override in overrides:
        key, value = parse_override(override)
        _check_override_key(key, value, merged)
        merged = _merge(merged, _nested(key, value))
    return _resolve(_interpolate(merged, path))


def parse_override(text: str) -> tuple[str, Any]:
    """Returns (dotted key, value) of "key=value"; the value is read as YAML.

    >>> parse_override("run.learning_rate=1e-4")
    ('run.learning_rate', 0.0001)
    >>> parse_override("model.fusion=null"), parse_override("dataset.images=a=b")
    (('model.fusion', None), ('dataset.images', 'a=b'))

    Raises:
        ConfigError: there is no "=", or a part of the key is empty.
    """
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"{text!r}: not a setting. Write key=value with a dotted key, such as run.max_epochs=10.")
    try:
        # OmegaConf's reader, so that 1e-4 is a number here as it is in a file
        loaded = OmegaConf.to_container(OmegaConf.create(f"value: {value}" if value else "value: ''"))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError):
        loaded = {"value": value}
    return key.strip(), loaded["value"] if isinstance(loaded, dict) and set(loaded) == {"value"} else value


def _read_with_bases(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """Returns a file's mapping merged over its base's."""
    if path.resolve() in chain:
        names = " -> ".join(p.name for p in (*chain, path.resolve()))
        raise ConfigError(f"{path}: base: leads in a circle ({names}). Remove one of them.")
    own = _read(path, chain)
    base = own.pop("base", None)
    if base is None:
        return own
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: {base!r} is not a file name. Give one relative to this file.")
    return _merge(_read_with_bases(path.parent / base, (*chain, path.resolve())), own)


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        where = f"{chain[-1]}: base: '{path}'" if chain else f"--cfg-path: '{path}'"
        what = "is a folder" if path.is_dir() else "does not exist"
        files = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(f"{where} {what}.{did_you_mean(path.name, files)} Configs are in ipiqa/projects/*/*.yaml.")
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        reason = "it is no text file (not UTF-8)" if isinstance(error, UnicodeDecodeError) else str(error.strerror)
        raise ConfigError(f"{path}: cannot be read: {reason}. Give a YAML file.") from None
    try:
        content = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_position(error)}: {_yaml_problem(error, text)}") from None
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())[:160]}. Give a plain YAML mapping.") from None
    if not isinstance(content, dict) or not content:
        found = "is empty" if not content else f"holds {type(content).__name__}, not a mapping"
        raise ConfigError(f"{path}: {found}. A config has the sections {', '.join(SECTIONS)}.")
    return {str(key): value for key, value in content.items()}


def _position(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark is not None else ""


def _yaml_problem(error: yaml.YAMLError, text: str) -> str:
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    if "duplicate key" in problem:
        return f"{problem}. Each setting stands once in its section."
    mark = getattr(error, "problem_mark", None)
    if mark is not None and "\t" in text.split("\n")[mark.line]:
        return "a tab. YAML is indented with spaces only."
    return f"no valid YAML ({problem}). Check indentation, colons and quotes there."


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with the settings of `over`, mappings merged key by key.

    Where `over` names another part, the settings inherited for the old one stay only if the new part takes them too, so
    that an ablation is one line.
    """
    out = dict(base)
    renamed = "name" in over and "name" in base and over["name"] != base["name"]
    for key, value in over.items():
        old = out.get(key)
        out[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    if renamed:
        known = _settings_of_name(str(over["name"]))
        if known is not None:
            out = {k: v for k, v in out.items() if k in over or k in known}
    return out


def _settings_of_name(name: str) -> set[str] | None:
    """Returns all keys that parts of this name take, of whichever kind, or None when there is no such part."""
    found: set[str] = set()
    known = False
    for kind in registry.KINDS:
        if name in list_registered(kind):
            known = True
            found |= set(registry.keys_of(kind, name))
    return found if known else None


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _check_override_key(key: str, value: Any, config: Mapping[str, Any]) -> None:
    """Answers a key of the reference code with ours, before the registry calls it unknown."""
    ours = reference_config.our_key(key)
    section = key.split(".")[0]
    if ours is not None and section in ("model", "dataset", "run") and not _takes(key, config):
        raise ConfigError(f"{key}: a key of the reference code. Here it is {ours}={value}.")


def _takes(key: str, config: Mapping[str, Any]) -> bool:
    """Whether our own config has a setting of this dotted name."""
    section, *rest = key.split(".")
    if section == "run":
        return rest[0] in {field.name for field in dataclasses.fields(RunConfig)}
    node = config.get(section)
    name = node.get("name") if isinstance(node, Mapping) else None
    return len(rest) > 1 or (isinstance(name, str) and name in list_registered(section) and rest[0] in ("name", *registry.keys_of(section, name)))


def _interpolate(merged: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the settings with every ${other.setting} replaced by its value."""
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"{path}: {reason}. Write ${{section.setting}} with a setting that exists.") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _resolve(settings: dict[str, Any]) -> Config:
    for key in settings:
        if key not in SECTIONS:
            near = did_you_mean(key, SECTIONS)
            raise ConfigError(f"{key}: no such section.{near} There are: {', '.join(SECTIONS)}, and base.")
    image_size = settings.get("image_size")
    if not isinstance(image_size, int) or isinstance(image_size, bool) or image_size < 32 or image_size % 32:
        raise ConfigError(f"image_size: {image_size!r} is not a multiple of 32 pixels. Give 224 or 512, for example.")
    sections = {**DEFAULTS, **settings}
    parts = {}
    for kind in PARTS:
        if kind not in sections:
            raise ConfigError(f"{kind}: missing. Give a section with a name, one of: {', '.join(list_registered(kind))}.")
        parts[kind] = registry.resolve(kind, sections[kind], kind)
    split = SplitConfig(**_typed(SplitConfig, sections["split"], "split"))
    run = RunConfig(**_typed(RunConfig, sections["run"], "run"))
    split.check()
    run.check()
    return Config(image_size=image_size, split=split, run=run, **parts)


def _typed(settings: type, section: Any, where: str) -> dict[str, Any]:
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}: {section!r} is not a mapping. Write its settings under it, indented.")
    return registry.check_settings(settings, section, where)
