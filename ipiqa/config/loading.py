"""From a YAML file and `key=value` changes to a checked, complete config. Only this module knows OmegaConf."""

import dataclasses
import functools
import re
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
import ipiqa.scorers
import ipiqa.tasks  # noqa: F401
from ipiqa import registry
from ipiqa.config import reference, yaml_file
from ipiqa.config.settings import RunConfig, SplitConfig, check
from ipiqa.errors import ConfigError, did_you_mean, located, shorten
from ipiqa.models.towers import set_normalisation
from ipiqa.registry import list_registered

__all__ = ["Config", "list_registered", "load_config"]

MAX_KEYS = 20  # between the dots of a key
MORE_THAN_REFERENCE = re.compile(r"(?<!\\)(\\\\)*\$\{[^}]*[:$]")  # a colon or a $ in ${...}; \${ opens nothing
MAX_IMAGE_SIZE = 2048  # pixels; the tables of positions grow with its square

PARTS = ("model", "dataset", "processor", "task")
SETTINGS = {"split": SplitConfig, "run": RunConfig}
SECTIONS = ("image_size", "model", "dataset", "processor", "split", "task", "run")
CONTENT = f"A config has the sections {', '.join(SECTIONS)}; there are some in ipiqa/projects."
DEFAULTS: dict[str, Any] = {"processor": "squash", "task": "quality_regression", "split": {}, "run": {}}


@dataclass(frozen=True)
class Config:
    """Everything a run depends on, complete and checked."""

    image_size: int  # side of the square input, in pixels; a tower may want a multiple of 14, 16 or 32
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
        return OmegaConf.to_yaml(OmegaConf.create(_escaped(self.to_dict())))


def load_config(cfg_path: str | Path, *overrides: str) -> Config:
    """Returns the config of a YAML file with some settings changed.

    A file that cannot be read, or a setting that is unknown, missing, of the wrong type or out of range, is a
    ConfigError.

    Args:
        cfg_path: YAML file, ours or in the form published with the reference code; `base: other.yaml` in it names a
            file, relative to it, whose settings it changes.
        overrides: "key=value" with dotted keys; the value is read as YAML.
    """
    (root, settings), *derived = _read_with_bases(str(cfg_path))
    is_translated = reference.is_reference_format(settings)
    if is_translated:
        theirs, settings = _interpolate(settings), {}
        with located(str(root)):
            for key, value in reference.translate(theirs, str(root)).items():
                _set(settings, key, value)
    changes: dict[str, Any] = {}
    for override in overrides:
        key, value = parse_override(override)
        if key == "base":
            raise ConfigError(f"{override!r}: a file's base cannot be changed from outside. Give another --cfg-path.")
        _set(changes, key, value)
    # All changes count as one file: a setting given beside a new name is meant for the part of that name.
    merged = functools.reduce(_merge, (DEFAULTS, settings, *(own for _, own in derived), changes))
    try:
        return _resolve(_interpolate(merged))
    except ConfigError as error:
        raise ConfigError(reference.with_other_name(str(error), is_translated=is_translated)) from None


def parse_override(text: str) -> tuple[str, Any]:
    """Returns (dotted key, value) of "key=value", else ConfigError; a value that is no valid YAML is text."""
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(part.strip() for part in parts) or len(parts) > MAX_KEYS:
        raise ConfigError(f"{shorten(text)}: not a setting. Write key=value with a dotted key, such as run.seed=1.")
    value = value.strip()
    try:
        content = yaml_file.parse(f"value: {value}")
    except yaml.YAMLError:
        content = {}
    loaded = content["value"] if content.keys() == {"value"} else value
    # Nothing after "=" is the empty text, and " #" in a path begins no comment.
    is_text = value.lower() not in ("null", "~") if loaded is None else not value.startswith(("'", '"'))
    return key.strip(), value if is_text and isinstance(loaded, str | None) else loaded


def _read_with_bases(name: str) -> list[tuple[Path, dict[str, Any]]]:
    """Returns a file and its settings after those of its base, and so on."""
    files: list[tuple[Path, dict[str, Any]]] = []
    folder, where, names = Path(), "--cfg-path", list[str]()
    while True:
        path = folder / registry.file_path(name, where)
        names.append(path.name)
        if any(path.resolve() == other.resolve() for other, _ in files):
            raise ConfigError(f"{where}: leads in a circle ({' -> '.join(names)}). Remove one of them.")
        settings = yaml_file.read_mapping(path, where, CONTENT)
        folder, where, base = path.parent, f"{path}: base", settings.pop("base", None)
        files.insert(0, (path, settings))
        if base is None:
            return files
        if not isinstance(base, str):
            raise ConfigError(f"{where}: {shorten(base)} is not a file name. Give one relative to this file.")
        name = base


def _merge(base: Mapping[str, Any], over: Mapping[str, Any], kind: str | None = None) -> dict[str, Any]:
    """Returns `base` with the settings of `over`, sections merged key by key; a mapping that is a value is replaced.

    Where `over` names another part of the kind, inherited settings that only the old part takes are dropped, so that an
    ablation is one line.
    """
    out = dict(base)
    if kind is not None and "name" in over:
        for key in _keys(kind, base.get("name")) - _keys(kind, over["name"]):
            out.pop(key, None)
    for key, value in over.items():
        old, new = _as_section(out.get(key), key), _as_section(value, key)
        is_kind = key in registry.KINDS
        is_section = (is_kind or key in SETTINGS) and isinstance(old, Mapping) and isinstance(new, Mapping)
        out[key] = _merge(old, new, key if is_kind else None) if is_section else new
    return out


def _set(settings: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets one setting of nested ones in place; sections are made where they are missing."""
    *sections, last = dotted.split(".")
    for section in sections:
        inner = _as_section(settings.get(section), section)
        settings[section] = dict(inner) if isinstance(inner, Mapping) else {}
        settings = settings[section]
    settings.update(_merge(settings, {last: value}))


def _keys(kind: str, name: object) -> set[str]:
    """Returns the keys a part takes; none where no part has this name, which is reported later."""
    return set(registry.keys_of(kind, name)) if isinstance(name, str) and name in list_registered(kind) else set()


def _as_section(value: Any, key: str) -> Any:
    """Returns the section that `head: mlp` is short for; any other value as it is."""
    is_name = key in registry.KINDS and isinstance(value, str) and "${" not in value
    return {"name": value} if is_name else value


def _interpolate(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings with every ${other.setting} replaced by its value."""
    _check_values(settings, "")
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(settings), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        where, reason = error.full_key or "config", str(error).split("\n")[0]
        raise ConfigError(f"{where}: {reason}. Write a value, or ${{section.setting}} that is given.") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _check_values(value: Any, where: str) -> None:
    """Refuses what does not mean the same on every machine: ${function:argument}, surrogates, more than 64 bits."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_values(item, f"{where}.{key}" if where else str(key))
    for item in value if isinstance(value, list) else ():
        _check_values(item, where)
    problems = {
        "is not UTF-8": isinstance(value, str) and re.search("[\ud800-\udfff]", value),
        "is more than a reference": isinstance(value, str) and MORE_THAN_REFERENCE.search(value),
        "has more than 63 bits": isinstance(value, int) and value.bit_length() > 63,
    }
    for problem in filter(problems.get, problems):
        raise ConfigError(f"{where}: {shorten(value)} {problem}. Write a plain value, or ${{section.setting}}.")


def _escaped(value: Any) -> Any:
    r"""Returns settings with every "${" that is meant as it stands written as OmegaConf reads it back: `\${`."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _resolve(settings: dict[str, Any]) -> Config:
    """Returns the config that complete settings describe; everything in them is checked."""
    for key in settings:
        if key not in SECTIONS:
            sections = [name for name, section in SETTINGS.items() if key in registry.settings_of(section)]
            near = f" Did you mean '{sections[0]}.{key}'?" if sections else did_you_mean(key, (*SECTIONS, "base"))
            raise ConfigError(f"{key}: no such section.{near} There are: {', '.join(SECTIONS)}, and base.")
    size = settings.get("image_size")
    if type(size) is not int or not 1 <= size <= MAX_IMAGE_SIZE:
        problem = "missing" if size is None else f"{shorten(size)} is out of range"
        raise ConfigError(f"image_size: {problem}. Give the pixels of a side, from 1 to {MAX_IMAGE_SIZE}, such as 224.")
    parts = {kind: registry.resolve(kind, settings.get(kind, {}), kind) for kind in PARTS}
    if "image_encoder" in parts["model"]:
        set_normalisation(parts["processor"], parts["model"]["image_encoder"])
    split = SplitConfig(**registry.check_settings(SplitConfig, settings["split"], "split"))
    run = RunConfig(**registry.check_settings(RunConfig, settings["run"], "run"))
    check(split, run)
    registry.build("task", parts["task"], "task", {})  # finds wrong names of losses
    is_zero_shot = getattr(registry.lookup("model", parts["model"]["name"], "model"), "is_zero_shot", False)
    if run.evaluate and run.checkpoint is None and not is_zero_shot:
        raise ConfigError("run.evaluate: there is nothing to evaluate. Name a file or a run folder in run.checkpoint.")
    return Config(image_size=size, split=split, run=run, **parts)
