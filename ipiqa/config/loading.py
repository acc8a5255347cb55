"""From a YAML file and `key=value` changes to a checked, complete config. Only this module knows OmegaConf."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

# Importing the packages registers their parts.
import ipiqa.datasets
import ipiqa.models
import ipiqa.processors
import ipiqa.tasks  # noqa: F401
from ipiqa import registry
from ipiqa.config import reference, yaml_file
from ipiqa.config.settings import RunConfig, SplitConfig
from ipiqa.errors import ConfigError, did_you_mean, shorten
from ipiqa.models.checkpoints import check_qa_token
from ipiqa.models.towers import set_normalisation
from ipiqa.registry import list_registered

__all__ = ["Config", "list_registered", "load_config"]

logger = logging.getLogger("ipiqa")

MAX_KEYS = 20  # between the dots of a key
MAX_IMAGE_SIZE = 2048  # pixels; the tables of positions grow with its square

PARTS = ("model", "dataset", "processor", "task")
SETTINGS = {"split": SplitConfig, "run": RunConfig}
SECTIONS = ("image_size", "model", "dataset", "processor", "split", "task", "run")
CONTENT = f"A config has the sections {', '.join(SECTIONS)}."
DEFAULTS: dict[str, Any] = {
    "processor": {"name": "squash"},
    "task": {"name": "quality_regression"},
    "split": {},
    "run": {},
}


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

    Args:
        cfg_path: YAML file, ours or in the form published with the reference code; `base: other.yaml` in it names a
            file, relative to it, whose settings it changes.
        overrides: "key=value" with dotted keys; the value is read as YAML.

    Raises:
        ConfigError: a file that cannot be read, or a setting that is unknown, missing, of the wrong type or out of
            range.
    """
    path = Path(registry.file_path(str(cfg_path), "--cfg-path"))
    file, is_translated = _read_with_bases(path, ())
    changes: dict[str, Any] = {}
    for override in overrides:
        key, value = parse_override(override)
        if key == "base":
            raise ConfigError(
                f"{override!r}: the base of a file cannot be changed from outside. Give another --cfg-path."
            )
        _set(changes, key, value)
    # All changes count as one file: a setting given beside a new name is meant for the part of that name.
    settings = _interpolate(_merge(_merge(DEFAULTS, file), changes), path)
    try:
        return _resolve(settings)
    except ConfigError as error:
        if not is_translated:
            raise
        raise ConfigError(reference.with_reference_key(str(error))) from None


def parse_override(text: str) -> tuple[str, Any]:
    """Returns (dotted key, value) of "key=value"; the value is read as YAML, and is text where it is no valid YAML.

    >>> parse_override("run.learning_rate=1e-4")
    ('run.learning_rate', 0.0001)
    >>> parse_override("model.fusion=null"), parse_override("dataset.images=a=b #1")
    (('model.fusion', None), ('dataset.images', 'a=b #1'))

    Raises:
        ConfigError: there is no "=", or a part of the key is empty.
    """
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(part.strip() for part in parts) or len(parts) > MAX_KEYS:
        raise ConfigError(
            f"{shorten(text)}: not a setting. Write key=value with a dotted key, such as run.max_epochs=10."
        )
    key, value = key.strip(), value.strip()
    try:
        content = yaml_file.parse(f"value: {value}")
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict) or set(content) != {"value"}:
        return key, value
    loaded = content["value"]
    # Nothing after "=" is the empty text, and " #" in a path begins no comment.
    is_bare = value.lower() not in ("null", "~") if loaded is None else value[:1] not in ("'", '"')
    return key, value if is_bare and (loaded is None or isinstance(loaded, str)) else loaded


def _read_with_bases(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], bool]:
    """Returns (a file's settings merged over its base's, whether they were translated from the reference's form)."""
    if path.resolve() in chain:
        names = " -> ".join(p.name for p in (*chain, path.resolve()))
        raise ConfigError(f"{path}: base: leads in a circle ({names}). Remove one of them.")
    own = _read(path, chain)
    base = own.pop("base", None)
    if base is None:
        is_reference = reference.is_reference_format(own)
        return (_translate(own, path) if is_reference else own), is_reference
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: {base!r} is not a file name. Give one relative to this file.")
    inherited, is_translated = _read_with_bases(
        path.parent / registry.file_path(base, f"{path}: base"), (*chain, path.resolve())
    )
    return _merge(inherited, own), is_translated


def _translate(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns settings in the reference code's form as ours, and logs how they were read."""
    ours, notes, warnings = reference.translate(_interpolate(settings, path), str(path))
    for note in notes:
        logger.info("%s: %s", path, note)
    for warning in warnings:
        logger.warning("%s: %s", path, warning)
    return ours


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """Returns the mapping that stands in a file."""
    if not path.is_file():
        where = f"{chain[-1]}: base: '{path}'" if chain else f"--cfg-path: '{path}'"
        what = "is a folder" if path.is_dir() else "does not exist"
        folder = path if path.is_dir() else path.parent
        files = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        raise ConfigError(f"{where} {what}.{did_you_mean(path.name, files)} Configs are in ipiqa/projects/*/*.yaml.")
    return yaml_file.read_mapping(path, CONTENT)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any], kind: str | None = None) -> dict[str, Any]:
    """Returns `base` with the settings of `over`, sections merged key by key; a mapping that is a value is replaced.

    Where `over` names another part, inherited settings that only the old part takes are dropped, so that an ablation is
    one line.

    Args:
        base: inherited settings.
        over: settings that win.
        kind: what kind of part the settings are of, or None.
    """
    out = dict(base)
    if kind is not None and "name" in over:
        for key in _keys(kind, base.get("name")) - _keys(kind, over["name"]):
            out.pop(key, None)
    for key, value in over.items():
        old, new = _as_section(out.get(key), key), _as_section(value, key)
        is_section = _is_section(key) and isinstance(old, Mapping) and isinstance(new, Mapping)
        out[key] = _merge(old, new, key if key in registry.KINDS else None) if is_section else new
    return out


def _set(settings: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets one setting of nested ones in place; sections are made where they are missing."""
    *sections, last = dotted.split(".")
    for section in sections:
        inner = _as_section(settings.get(section), section)
        settings[section] = dict(inner) if isinstance(inner, Mapping) else {}
        settings = settings[section]
    settings.update(_merge({last: settings[last]} if last in settings else {}, {last: value}))


def _is_section(key: str) -> bool:
    """Returns whether the mapping under a key holds settings; any other mapping is the value of a setting."""
    return key in SETTINGS or key in registry.KINDS


def _keys(kind: str, name: object) -> set[str]:
    """Returns the keys a part takes; none where no part has this name, which is reported later."""
    return set(registry.keys_of(kind, name)) if isinstance(name, str) and name in list_registered(kind) else set()


def _as_section(value: Any, key: str) -> Any:
    """Returns the section that `head: mlp` is short for; any other value as it is."""
    is_name = key in registry.KINDS and isinstance(value, str) and "${" not in value
    return {"name": value} if is_name else value


def _interpolate(merged: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the settings with every ${other.setting} replaced by its value."""
    _check_values(merged, "")
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(merged), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: missing ('???'). Give it a value, in {path} or as key=value.") from None
    except OmegaConfBaseException as error:
        reason = str(error).split("\n")[0]
        where = error.full_key or path
        raise ConfigError(f"{where}: {reason}. Write ${{section.setting}} with a setting that is given.") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _check_values(value: Any, where: str) -> None:
    """Refuses texts that are not UTF-8, numbers past 64 bits, and OmegaConf's ${function:argument}.

    A config means the same on every machine.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_values(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for item in value:
            _check_values(item, where)
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigError(f"{where}: {shorten(value)} is not UTF-8. Write it in UTF-8.")
    elif isinstance(value, str) and _has_call(value):
        raise ConfigError(
            f"{where}: {shorten(value)} calls a function. Write the value itself, or ${{section.setting}}."
        )
    elif isinstance(value, int) and value.bit_length() > 63:
        raise ConfigError(f"{where}: a whole number of {value.bit_length()} bits is out of range. Give a smaller one.")


def _has_call(text: str) -> bool:
    r"""Returns whether a colon stands inside ${...}; \${ opens nothing.

    >>> [_has_call(text) for text in ("${oc.env:HOME}", "${a.b}:c", r"\${a:b}", "${${a}.env:HOME}")]
    [True, False, False, True]
    """
    depth = 0
    for mark in re.findall(r"\\*\$\{|[}:]", text):
        if mark == ":" and depth:
            return True
        if mark == "}":
            depth = max(depth - 1, 0)
        elif mark != ":" and len(mark) % 2 == 0:  # an even number of backslashes before the two characters
            depth += 1
    return False


def _escaped(value: Any) -> Any:
    r"""Returns settings with every "${" that is meant as it stands written as OmegaConf reads it back.

    >>> _escaped({"images": "costs ${5}"})
    {'images': 'costs \\${5}'}
    """
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _resolve(settings: dict[str, Any]) -> Config:
    """Returns the config that complete settings describe; everything in them is checked."""
    for key in settings:
        if key not in SECTIONS:
            raise ConfigError(
                f"{key}: no such section.{_near_section(key)} There are: {', '.join(SECTIONS)}, and base."
            )
    _refuse_reference_keys(settings)
    check_qa_token(settings.get("model"))
    size = settings.get("image_size")
    if type(size) is not int or not 1 <= size <= MAX_IMAGE_SIZE:
        problem = "missing" if size is None else f"{shorten(size)} is out of range"
        raise ConfigError(f"image_size: {problem}. Give the pixels of a side, from 1 to {MAX_IMAGE_SIZE}, such as 224.")
    parts = {}
    for kind in PARTS:
        if kind not in settings:
            raise ConfigError(f"{kind}: missing. Give a section with a name: {', '.join(list_registered(kind))}.")
        parts[kind] = registry.resolve(kind, settings[kind], kind)
    if "image_encoder" in parts["model"]:
        set_normalisation(parts["processor"], parts["model"]["image_encoder"])
    split = SplitConfig(**registry.check_settings(SplitConfig, settings["split"], "split"))
    run = RunConfig(**registry.check_settings(RunConfig, settings["run"], "run"))
    split.check()
    run.check()
    registry.build("task", parts["task"], "task", {})  # finds wrong names of losses
    is_zero_shot = getattr(registry.lookup("model", parts["model"]["name"], "model"), "is_zero_shot", False)
    if run.evaluate and run.checkpoint is None and not is_zero_shot:
        raise ConfigError(
            "run.evaluate: there is nothing to evaluate. Name a checkpoint file or a run folder in run.checkpoint."
        )
    if split.kind == "kfold" and run.num_folds < 2:
        raise ConfigError("run.num_folds: 1 is out of range. split.kind kfold cuts the groups into 2 or more folds.")
    return Config(image_size=size, split=split, run=run, **parts)


def _near_section(key: str) -> str:
    """Returns the near miss of an unknown section: another section, or a setting written without its section."""
    for section, settings in SETTINGS.items():
        if key in registry.settings_of(settings):
            return f" Did you mean '{section}.{key}'?"
    return did_you_mean(key, (*SECTIONS, "base"))


def _refuse_reference_keys(settings: Mapping[str, Any]) -> None:
    """Refuses keys of the reference code with ours, before the registry calls them unknown."""
    for section in ("model", "dataset", "run"):
        content = settings.get(section)
        if not isinstance(content, Mapping):
            continue
        ours = registry.settings_of(RunConfig) if section == "run" else _keys(section, content.get("name"))
        for key in content:
            if key not in ours and f"{section}.{key}" in reference.KEYS:
                raise ConfigError(reference.suggest_our_key(f"{section}.{key}"))
