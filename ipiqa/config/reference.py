"""YAML files in the form published with the reference code, read as ours.

The list of keys is closed: each does what it says, is mentioned in a note, or is an error. Nothing is ignored silently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipiqa.errors import ConfigError, did_you_mean, shorten

# reference key -> ours, which takes the value as it stands
_COPIED = {
    "model.base_ckpt": "model.image_encoder.weights", "model.input_resolution": "image_size",
    "model.head_scale": "run.head_learning_rate_scale", "model.dropout_rate": "model.head.dropout",
    "dataset.data_path": "dataset.annotations", "dataset.vis_root": "dataset.images",
    "run.lr_sched": "run.schedule", "run.lr_decay_rate": "run.learning_rate_decay",
    "run.warmup_lr": "run.warmup_learning_rate", "run.warmup_steps": "run.warmup_steps",
    "run.min_lr": "run.min_learning_rate", "run.init_lr": "run.learning_rate", "run.lr_layer_decay": "run.layer_decay",
    "run.weight_decay": "run.weight_decay", "run.beta2": "run.beta2", "run.batch_size": "run.batch_size",
    "run.batch_size_val": "run.eval_batch_size", "run.num_worker": "run.num_workers", "run.max_epoch": "run.max_epochs",
    "run.log_freq": "run.log_every", "run.accum_grad_iters": "run.accumulate_steps",
    "run.grad_norm_clip": "run.clip_grad_norm", "run.output_dir": "run.output_dir", "run.evaluate": "run.evaluate",
    "run.eval_freq": "run.eval_every", "run.seed": "run.seed",
}  # fmt: skip
# reference key -> ours, whose value follows from it; None: there is no such setting here
_TRANSLATED = {
    "model.arch": "model.name", "model.use_mlp_head": "model.head.name",
    "model.freeze_text": "model.prompt_encoder.freeze", "model.qa_token": "model.prompt_encoder.train_embeddings",
    "dataset.transform_train": "processor", "dataset.transform_val": "processor", "run.task": "dataset.name",
    "run.amp": "run.amp", "run.device": "run.device", "run.distributed": None, "run.dist_url": None,
}  # fmt: skip
# reference key -> ours; compared, or mentioned in a note of its own
_NOTED = {
    "model.output_dim": "dataset.targets", "model.load_finetuned": "run.checkpoint",
    "model.finetuned": "run.checkpoint", "run.resume_ckpt_path": "run.checkpoint", "run.save_freq": "run.save_every",
}  # fmt: skip
KEYS: dict[str, str | None] = {**_COPIED, **_TRANSLATED, **_NOTED}
TASKS = {"agiqa": ("agiqa_1k", 1), "agiqa_doublescore": ("agiqa_3k", 2)}  # dataset, number of targets
TRANSFORMS = {"dataset.transform_train": "image_train_processor", "dataset.transform_val": "image_eval_processor"}
_NEEDED = ("model.base_ckpt", "model.input_resolution", "dataset.data_path", "dataset.vis_root", "run.task")
# What the reference code takes where the file says nothing
_DEFAULTS: dict[str, Any] = {
    "model.arch": "ipiqa", "model.freeze_text": True, "model.qa_token": False, "model.use_mlp_head": True,
    "model.load_finetuned": False, "run.lr_sched": "constant_lr", "run.save_freq": 1, "run.amp": False,
    "run.device": "cuda", "run.distributed": False, "run.dist_url": "env://",
}  # fmt: skip
# No file of ours has these, and every file of theirs has one of them.
_MARKS = (
    "model.arch", "model.base_ckpt", "model.input_resolution", "dataset.data_path", "dataset.vis_root", "run.init_lr",
)  # fmt: skip


def is_reference_format(settings: Mapping[str, Any]) -> bool:
    """Returns whether a mapping is written with the reference code's keys, and not with ours.

    >>> is_reference_format({"model": {"arch": "ipiqa"}}), is_reference_format({"model": {"name": "ipiqa"}})
    (True, False)
    """
    given = _flat(settings)
    is_ours = "image_size" in settings or "model.name" in given or "dataset.name" in given
    return not is_ours and any(mark in given for mark in _MARKS)


def suggest_our_key(key: str) -> str:
    """Returns what to say to someone who sets a key of the reference code in our config.

    >>> suggest_our_key("run.init_lr")
    'run.init_lr: a key of the reference code. Here it is run.learning_rate.'
    """
    ours = KEYS[key]
    here = "Here the number of processes is what torchrun starts" if ours is None else f"Here it is {ours}"
    return f"{key}: a key of the reference code. {here}."


def with_reference_key(message: str) -> str:
    """Returns a message about one of our settings with the key that it has in the reference's file.

    >>> with_reference_key("run.max_epochs: 0 is out of range.")
    'run.max_epochs: 0 is out of range. In the file it is run.max_epoch.'
    """
    where = message.partition(": ")[0]
    theirs = [key for key, ours in KEYS.items() if ours == where and key != where]
    return f"{message} In the file it is {' or '.join(theirs)}." if theirs else message


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings by dotted name, two levels deep."""
    return {
        f"{section}.{key}": value
        for section, content in settings.items()
        if isinstance(content, Mapping)
        for key, value in content.items()
    }


def translate(settings: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """Returns (our settings, notes on what was read as what, warnings).

    Args:
        settings: content of a YAML file in the reference code's form.
        where: the file, for messages.

    Raises:
        ConfigError: an unknown key, a missing one, or values that contradict each other.
    """
    given = _flat(settings)
    _refuse_unknown(settings, given, where)
    notes, warnings = _renamed(given), list[str]()
    values = _checked(given, where)
    _check_resolution(values, where)
    task, weights = values["run.task"], values["model.base_ckpt"]
    name, num_targets = TASKS[task]
    if values.get("model.output_dim", num_targets) != num_targets:
        raise ConfigError(
            f"{where}: model.output_dim: {shorten(values['model.output_dim'])} does not go with run.task {task}, which "
            f"has {num_targets}. Set it to {num_targets}."
        )
    ours = {ours: given[key] for key, ours in _COPIED.items() if key in given} | {
        "model.name": "ipiqa",
        "model.image_encoder.name": "clip",
        "model.prompt_encoder.name": "clip",
        "model.prompt_encoder.weights": weights,
        "model.prompt_encoder.freeze": "reference" if values["model.freeze_text"] else "none",
        "model.prompt_encoder.train_embeddings": values["model.qa_token"],
        "model.fusion.name": "cross_attention",
        "model.head.name": "mlp" if values["model.use_mlp_head"] else "linear",
        "dataset.name": name,
        "processor.name": "squash",
        "processor.flip": 0.5,
        "split.kind": "reference",
    }
    ours |= _published_table(values, notes) | _start(values, notes, where) | _device(values, notes, warnings)
    _note_unused(values, notes)
    out: dict[str, Any] = {}
    for key, value in ours.items():
        *sections, last = key.split(".")
        section = out
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return out, notes, warnings


def _renamed(given: Mapping[str, Any]) -> list[str]:
    """Returns one note for each section: the keys that are called something else here."""
    notes = ["written for the reference code; `ipiqa config show` prints it in our form"]
    for section in ("model", "dataset", "run"):
        keys = [key for key in given if key.startswith(f"{section}.") and key not in _NOTED]
        pairs = [f"{key} as {KEYS[key]}" for key in keys if KEYS[key] not in (key, None)]
        if pairs:
            notes.append("read " + ", ".join(pairs))
    return notes


def _refuse_unknown(settings: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    sections = ("model", "dataset", "run")
    for section, content in settings.items():
        if section not in sections:
            near = did_you_mean(section, sections)
            raise ConfigError(
                f"{where}: {section}: the reference code has no such section.{near} It has: {', '.join(sections)}."
            )
        if not isinstance(content, Mapping):
            raise ConfigError(
                f"{where}: {section}: {shorten(content)} is not a mapping. Write its settings under it, indented."
            )
    for key in given:
        if key not in KEYS:
            section, _, name = key.partition(".")
            takes = [k.partition(".")[2] for k in KEYS if k.startswith(f"{section}.")]
            near = did_you_mean(name, takes)
            raise ConfigError(f"{where}: {key}: the reference code has no such key.{near} It has: {', '.join(takes)}.")


def _checked(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the values given and the defaults of the rest; each that is read here is of its type."""
    for key in _NEEDED:
        if given.get(key) is None:
            raise ConfigError(f"{where}: {key}: missing. The reference code needs it too; here it is {KEYS[key]}.")
    values = {**_DEFAULTS, **given}
    for key, default in _DEFAULTS.items():
        if isinstance(default, bool) and not isinstance(values[key], bool):
            raise ConfigError(f"{where}: {key}: {shorten(values[key])} is not true or false.")
    every = values["run.save_freq"]
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ConfigError(f"{where}: run.save_freq: {shorten(every)} is not a number of epochs. Give 1 or more.")
    for key, pattern, choices in (
        ("model.arch", "(?i)ip[-_]?iqa", ("ipiqa",)),
        ("run.task", "|".join(TASKS), TASKS),
        ("run.device", "cpu|cuda(:[0-9]+)?", ("cuda", "cpu")),
        ("run.dist_url", "env://", ("env://, where torchrun starts the processes",)),
    ):
        if not re.fullmatch(pattern, str(values[key])):
            near = did_you_mean(str(values[key]), choices)
            problem = f"{where}: {key}: {shorten(values[key])} is unknown.{near}"
            raise ConfigError(f"{problem} There are: {', '.join(choices)}.")
    return values


def _check_resolution(values: Mapping[str, Any], where: str) -> None:
    """The reference code has the image size in three places; they must agree."""
    size = values["model.input_resolution"]
    for key, name in TRANSFORMS.items():
        transform = {} if values.get(key) is None else values[key]
        cfg = (transform.get("cfg") or {}) if isinstance(transform, Mapping) else None
        if not isinstance(cfg, Mapping) or set(transform) - {"name", "cfg"} or set(cfg) - {"image_size"}:
            raise ConfigError(
                f"{where}: {key}: {shorten(transform)} is not understood. It has name and cfg.image_size."
            )
        if transform.get("name", name) != name:
            raise ConfigError(f"{where}: {key}.name: {shorten(transform['name'])} is unknown. There is: {name}.")
        if cfg.get("image_size", size) != size:
            raise ConfigError(
                f"{where}: {key}.cfg.image_size: {shorten(cfg['image_size'])} is not model.input_resolution, "
                f"{shorten(size)}. Make them equal; here both are image_size."
            )


def _published_table(values: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Returns AGIQA-3k's data.csv as the table where mos_joint.xlsx, which is made from it by hand, is not there."""
    annotations = Path(str(values["dataset.data_path"])).expanduser()
    published = annotations.with_name("data.csv") if annotations.name == "mos_joint.xlsx" else annotations
    if values["run.task"] != "agiqa_doublescore" or annotations.exists() or not published.exists():
        return {}
    notes.append(f"read '{published}', since '{annotations}' is not there; it has the same scores")
    return {"dataset.annotations": str(published)}


def _start(values: Mapping[str, Any], notes: list[str], where: str) -> dict[str, Any]:
    """Returns what training starts from, or what is evaluated."""
    finetuned, resumed = values.get("model.finetuned") or None, values.get("run.resume_ckpt_path") or None
    loads = values["model.load_finetuned"]
    if loads and finetuned is None:
        raise ConfigError(
            f"{where}: model.load_finetuned is true, but model.finetuned names no file. Name the checkpoint."
        )
    if loads and resumed not in (None, finetuned):
        raise ConfigError(
            f"{where}: run.resume_ckpt_path: {shorten(resumed)} would replace what model.finetuned loads, "
            f"{shorten(finetuned)}. Keep one of them; here both are run.checkpoint."
        )
    if loads:
        notes.append("read model.finetuned as run.checkpoint")
    elif finetuned is not None:
        notes.append(f"model.finetuned: '{finetuned}' is not loaded, because model.load_finetuned is false")
    if resumed is not None:
        notes.append(
            f"run.resume_ckpt_path: the weights of '{resumed}' are where every fold starts (or what is evaluated); "
            "an interrupted run is continued with --resume instead"
        )
    checkpoint = resumed or (finetuned if loads else None)
    return {} if checkpoint is None else {"run.checkpoint": checkpoint}


def _device(values: Mapping[str, Any], notes: list[str], warnings: list[str]) -> dict[str, Any]:
    """Returns the device and the precision."""
    import torch

    device, wants_gpu = values["run.device"], values["run.device"] != "cpu"
    has_gpu = wants_gpu and torch.cuda.is_available()
    if wants_gpu and not has_gpu:
        warnings.append(f"run.device: '{device}', but PyTorch sees no GPU; read as auto, which takes the CPU")
    elif wants_gpu and device != "cuda":
        warnings.append(f"run.device: '{device}' is read as auto; choose a GPU with CUDA_VISIBLE_DEVICES")
    amp = "none"
    if values["run.amp"]:
        amp = "fp16" if has_gpu else "bf16"
        notes.append(f"read run.amp true as {'fp16' if has_gpu else 'bf16, since fp16 needs a GPU'}")
    return {"run.device": "auto" if wants_gpu else "cpu", "run.amp": amp}


def _note_unused(values: Mapping[str, Any], notes: list[str]) -> None:
    unused = [key for key in ("run.warmup_steps", "run.lr_decay_rate") if values.get(key)]
    if unused and values["run.lr_sched"] == "constant_lr":
        notes.append(f"{' and '.join(unused)}: constant_lr does not use it")
    every = values["run.save_freq"]
    if every > 1:
        notes.append(
            f"run.save_freq: {every}, but last.pt is saved every epoch, so that a run can be resumed; "
            f"run.save_every={every} on the command line saves as rarely as that"
        )
    if values["run.distributed"]:
        notes.append("run.distributed: the number of processes is what torchrun starts; without it there is one")
