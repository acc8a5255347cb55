"""YAML files in the form published with the reference code, read as ours.

The list of keys is closed: each does what it says, is mentioned in a note, or is an error. Nothing is ignored silently.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipiqa.config.yaml_file import read_mapping
from ipiqa.errors import ConfigError, did_you_mean, shorten
from ipiqa.registry import file_path

logger = logging.getLogger("ipiqa")

_FORM = read_mapping(Path(__file__).with_suffix(".yaml"), "reference.yaml", "Install ipiqa once more.")
KEYS: dict[str, str] = _FORM["copied"] | _FORM["noted"] | _FORM["derived"]  # the reference code's -> ours


def is_reference_format(settings: Mapping[str, Any]) -> bool:
    """Returns whether a mapping is written with the reference code's keys, and not with ours.

    >>> is_reference_format({"model": {"arch": "ipiqa"}}), is_reference_format({"model": {"name": "ipiqa"}})
    (True, False)
    """
    given = _flat(settings)
    is_ours = "image_size" in settings or "model.name" in given or "dataset.name" in given
    return not is_ours and any(KEYS.get(key, key) != key for key in given)


def with_other_name(message: str, *, is_translated: bool) -> str:
    """Returns a message about a setting with its name in the other form.

    >>> with_other_name("run.max_epochs: 0 is out of range.", is_translated=True)
    'run.max_epochs: 0 is out of range. In the file it is run.max_epoch.'
    >>> with_other_name("run.init_lr: no such setting. It takes: seed.", is_translated=False)
    'run.init_lr: a key of the reference code. Here it is run.learning_rate.'
    """
    where, _, problem = message.partition(": ")
    if where in KEYS and problem.startswith("no such setting"):
        return f"{where}: a key of the reference code. Here it is {KEYS[where]}."
    theirs = [key for key, ours in KEYS.items() if is_translated and ours == where and key != where]
    return f"{message} In the file it is {' or '.join(theirs)}." if theirs else message


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of sections by dotted name, and what is no section under its own."""
    out: dict[str, Any] = {}
    for section, content in settings.items():
        out |= {f"{section}.{k}": v for k, v in content.items()} if isinstance(content, Mapping) else {section: content}
    return out


def translate(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the settings of `where`, a file in the reference code's form, as ours by dotted name; logs what it read.

    An unknown key, a missing one, or values that contradict each other are a ConfigError.
    """
    import torch

    given = _flat(settings)
    values = _checked(given)
    device = values["run.device"]
    has_gpu = device != "cpu" and torch.cuda.is_available()
    copied = {ours: given[key] for key, ours in _FORM["copied"].items() if key in given}
    ours: dict[str, Any] = (
        _FORM["fixed"]
        | copied
        | {
            "model.prompt_encoder.weights": values["model.base_ckpt"],
            "model.prompt_encoder.freeze": "reference" if values["model.freeze_text"] else "none",
            "model.prompt_encoder.train_embeddings": values["model.qa_token"],
            "model.head.name": "mlp" if values["model.use_mlp_head"] else "linear",
            "dataset.name": _FORM["tasks"][values["run.task"]][0],
            "dataset.annotations": _table(values),
            "run.checkpoint": _checkpoint(values),
            "run.device": "cpu" if device == "cpu" else "auto",
            "run.amp": ("fp16" if has_gpu else "bf16") if values["run.amp"] else "none",
        }
    )
    for text in _notes(given, values, ours):
        logger.info("%s: %s", where, text)
    if device != "cpu" and not has_gpu:
        logger.warning("%s: run.device: %r, but PyTorch sees no GPU; read as auto, which takes the CPU", where, device)
    elif device not in ("cpu", "cuda"):
        logger.warning("%s: run.device: %r is read as auto; choose with CUDA_VISIBLE_DEVICES", where, device)
    return ours


def _notes(given: Mapping[str, Any], values: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Returns what was read as what, and what was not read."""
    pairs = ", ".join(f"{key} as {KEYS[key]}" for key in given if key not in _FORM["noted"] and KEYS[key] != key)
    finetuned, resumed = values.get("model.finetuned"), values.get("run.resume_ckpt_path")
    loads, table = values["model.load_finetuned"], values["dataset.data_path"]
    is_constant, every = values["run.lr_sched"] == "constant_lr", int(values["run.save_freq"])
    notes = {
        f"written for the reference code; `ipiqa config show` prints it in our form; read {pairs}": True,
        f"read '{ours['dataset.annotations']}', since '{table}' is not there; it has the same scores": (
            ours["dataset.annotations"] != table
        ),
        "read model.finetuned as run.checkpoint": loads,
        f"model.finetuned: '{finetuned}' is not loaded, because model.load_finetuned is false": finetuned and not loads,
        f"run.resume_ckpt_path: the weights of '{resumed}' are where every fold starts (or what is evaluated); an "
        "interrupted run is continued with --resume instead": resumed,
        "run.warmup_steps: constant_lr does not use it": values.get("run.warmup_steps") and is_constant,
        "run.lr_decay_rate: constant_lr does not use it": values.get("run.lr_decay_rate") and is_constant,
        f"run.save_freq: {every}, but last.pt is saved each epoch, so that a run can be resumed; "
        f"run.save_every={every} on the command line saves as rarely": every > 1,
        "run.distributed: the number of processes is that of torchrun, or one": values["run.distributed"],
        f"read run.amp true as {ours['run.amp']}; fp16 needs a GPU": values["run.amp"],
    }
    return [text for text, is_true in notes.items() if is_true]


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values given and the defaults of the rest; what is not copied to a setting of ours is checked."""
    for key in given:
        if key not in KEYS:
            takes = [k for k in KEYS if k.split(".")[0] == key.split(".")[0]] or ["model", "dataset", "run"]
            near = did_you_mean(key, takes)
            raise ConfigError(f"{key}: the reference code has no such key.{near} It has: {', '.join(takes)}.")
    for key in _FORM["needed"]:
        if given.get(key) is None:
            raise ConfigError(f"{key}: missing. The reference code needs it too; here it is {KEYS[key]}.")
    values = _FORM["defaults"] | dict(given)
    for key, default in _FORM["defaults"].items():
        if isinstance(default, bool) and not isinstance(values[key], bool):
            raise ConfigError(f"{key}: {shorten(values[key])} is not true or false.")
    for key, (pattern, *choices) in _FORM["values"].items():
        if not re.fullmatch(pattern, str(values[key])):
            near = did_you_mean(str(values[key]), choices)
            raise ConfigError(f"{key}: {shorten(values[key])} is invalid.{near} Give {' or '.join(choices)}.")
    task, number = values["run.task"], _FORM["tasks"][values["run.task"]][1]
    if values.get("model.output_dim", number) != number:
        given_number = shorten(values["model.output_dim"])
        raise ConfigError(f"model.output_dim: {given_number} does not go with run.task {task}. Set it to {number}.")
    for key, name in _FORM["transforms"].items():
        expected = {"name": name, "cfg": {"image_size": values["model.input_resolution"]}}
        if not _is_part(values.get(key), expected):
            raise ConfigError(f"{key}: {shorten(values[key])} does not go with the rest. Write {shorten(expected)}.")
    return values


def _is_part(value: Any, whole: Any) -> bool:
    """Returns whether a value is null, equal to another, or a mapping with some of the other's keys and values."""
    if isinstance(value, Mapping) and isinstance(whole, Mapping):
        return all(key in whole and _is_part(item, whole[key]) for key, item in value.items())
    return value is None or bool(value == whole)


def _table(values: Mapping[str, Any]) -> Any:
    """Returns AGIQA-3k's data.csv as the table where mos_joint.xlsx, which is made from it by hand, is not there."""
    given = values["dataset.data_path"]
    annotations = Path(file_path(str(given), "dataset.data_path"))
    published = annotations.parent / "data.csv"
    is_made = values["run.task"] == "agiqa_doublescore" and annotations.name == "mos_joint.xlsx"
    return str(published) if is_made and not annotations.exists() and published.exists() else given


def _checkpoint(values: Mapping[str, Any]) -> Any:
    """Returns what training starts from, or what is evaluated."""
    finetuned, resumed = values.get("model.finetuned") or None, values.get("run.resume_ckpt_path") or None
    if not values["model.load_finetuned"]:
        return resumed
    if finetuned is None or resumed not in (None, finetuned):
        raise ConfigError(
            f"model.load_finetuned: true does not go with model.finetuned {shorten(finetuned)} and "
            f"run.resume_ckpt_path {shorten(resumed)}. Name one checkpoint; here it is run.checkpoint."
        )
    return finetuned
