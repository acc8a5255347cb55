"""YAML files in the form published with the reference code, read as ours.

The list of keys is closed: each does what it says, is answered in a note, or is an error. Nothing is ignored silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipiqa.errors import ConfigError, did_you_mean

# reference key -> where its value goes here; None: handled in words below
KEYS: dict[str, str | None] = {
    "model.arch": "model.name",
    "model.base_ckpt": "model.image_encoder.weights",
    "model.input_resolution": "image_size",
    "model.output_dim": "dataset.targets",
    "model.load_finetuned": "run.checkpoint",
    "model.finetuned": "run.checkpoint",
    "model.head_scale": "run.head_learning_rate_scale",
    "model.use_mlp_head": "model.head.name",
    "model.dropout_rate": "model.head.dropout",
    "model.freeze_text": "model.prompt_encoder.freeze",
    "model.qa_token": "model.prompt_encoder.qa_token",
    "dataset.data_path": "dataset.annotations",
    "dataset.vis_root": "dataset.images",
    "dataset.transform_train": "processor",
    "dataset.transform_val": "processor",
    "run.task": "dataset.name",
    "run.resume_ckpt_path": "run.checkpoint",
    "run.lr_sched": "run.schedule",
    "run.lr_decay_rate": "run.learning_rate_decay",
    "run.warmup_lr": "run.warmup_learning_rate",
    "run.warmup_steps": "run.warmup_steps",
    "run.min_lr": "run.min_learning_rate",
    "run.init_lr": "run.learning_rate",
    "run.lr_layer_decay": "run.layer_decay",
    "run.weight_decay": "run.weight_decay",
    "run.beta2": "run.beta2",
    "run.batch_size": "run.batch_size",
    "run.batch_size_val": "run.eval_batch_size",
    "run.num_worker": "run.num_workers",
    "run.max_epoch": "run.max_epochs",
    "run.log_freq": "run.log_every",
    "run.accum_grad_iters": "run.accumulate_steps",
    "run.grad_norm_clip": "run.clip_grad_norm",
    "run.output_dir": "run.output_dir",
    "run.evaluate": "run.evaluate",
    "run.eval_freq": "run.eval_every",
    "run.save_freq": "run.save_every",
    "run.amp": "run.amp",
    "run.device": "run.device",
    "run.distributed": None,
    "run.dist_url": None,
    "run.seed": "run.seed",
}
# Of these, the value is ours as it stands.
COPIED = [
    "run.lr_sched", "run.lr_decay_rate", "run.warmup_lr", "run.warmup_steps", "run.min_lr", "run.init_lr",
    "run.lr_layer_decay", "run.weight_decay", "run.beta2", "run.batch_size", "run.batch_size_val", "run.num_worker",
    "run.max_epoch", "run.log_freq", "run.accum_grad_iters", "run.grad_norm_clip", "run.output_dir", "run.evaluate",
    "run.eval_freq", "run.seed", "model.head_scale", "model.dropout_rate", "model.base_ckpt", "model.input_resolution",
    "dataset.data_path", "dataset.vis_root",
]  # fmt: skip
TASKS = {"agiqa": ("agiqa_1k", 1), "agiqa_doublescore": ("agiqa_3k", 2)}
_MARKS = ("model.arch", "model.base_ckpt", "model.input_resolution", "dataset.data_path", "dataset.vis_root", "run.init_lr")


def is_reference_format(settings: Mapping[str, Any]) -> bool:
    """Returns whether a mapping is written with the reference code's keys."""
    flat = _flat(settings)
    return any(mark in flat for mark in _MARKS)


def our_key(key: str) -> str | None:
    """Returns our name of a setting of the reference code, or None when it has none.

    >>> our_key("run.init_lr")
    'run.learning_rate'
    """
    return KEYS.get(key)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings by dotted name, two levels deep."""
    return {
        f"{section}.{key}": value
        for section, content in settings.items()
        if isinstance(content, Mapping)
        for key, value in content.items()
    }


def translate(settings: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Returns (our settings, notes on what was read as what).

    Args:
        settings: content of a YAML file in the reference code's form.
        where: the file, for messages.

    Raises:
        ConfigError: an unknown key, a missing one, or values that contradict each other.
    """
    given = _flat(settings)
    _refuse_unknown(settings, given, where)
    out: dict[str, Any] = {}
    notes = ["written for the reference code; read as the config that `ipiqa config show` prints"]
    for key in COPIED:
        if key in given:
            _put(out, str(KEYS[key]), given[key])
    _model(given, out, where)
    _resolution(given, where)
    _dataset(given, out, notes, where)
    _start(given, out, notes, where)
    _device(given, out, notes, where)
    if given.get("run.save_freq", 1) != 1:
        notes.append(f"run.save_freq {given['run.save_freq']}: a run that can be resumed is saved every epoch (run.save_every)")
    return out, notes


def _refuse_unknown(settings: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    for section, content in settings.items():
        if section not in ("model", "dataset", "run"):
            raise ConfigError(f"{where}: {section}: the reference code has no such section. It has: model, dataset, run.")
        if not isinstance(content, Mapping):
            raise ConfigError(f"{where}: {section}: {content!r} is not a mapping. Write its settings under it, indented.")
    for key in given:
        if key not in KEYS:
            section = key.split(".")[0]
            near = did_you_mean(key, KEYS)
            takes = ", ".join(k.partition(".")[2] for k in KEYS if k.startswith(section + "."))
            raise ConfigError(f"{where}: {key}: the reference code has no such key.{near} Under {section} it has: {takes}.")


def _put(out: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        out = out.setdefault(section, {})
    out[last] = value


def _need(given: Mapping[str, Any], key: str, where: str) -> Any:
    if given.get(key) is None:
        raise ConfigError(f"{where}: {key}: missing. The reference code needs it too; here it is {KEYS[key]}.")
    return given[key]


def _flag(given: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = given.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {key}: {value!r} is not true or false.")
    return value


def _model(given: Mapping[str, Any], out: dict[str, Any], where: str) -> None:
    arch = str(given.get("model.arch", "ipiqa"))
    if arch.lower().replace("-", "").replace("_", "") != "ipiqa":
        raise ConfigError(f"{where}: model.arch: {arch!r} is unknown. The reference code has one: ipiqa.")
    weights = _need(given, "model.base_ckpt", where)
    _put(out, "model.name", "ipiqa")
    _put(out, "model.image_encoder.name", "clip")
    freeze = "reference" if _flag(given, "model.freeze_text", True, where) else "none"
    qa_token = "embeddings" if _flag(given, "model.qa_token", False, where) else "none"
    _put(out, "model.prompt_encoder", {"name": "clip", "weights": weights, "freeze": freeze, "qa_token": qa_token})
    _put(out, "model.fusion.name", "cross_attention")
    _put(out, "model.head.name", "mlp" if _flag(given, "model.use_mlp_head", True, where) else "linear")


def _resolution(given: Mapping[str, Any], where: str) -> None:
    """The reference code has the image size in three places; they must agree."""
    size = _need(given, "model.input_resolution", where)
    for key, name in (("dataset.transform_train", "image_train_processor"), ("dataset.transform_val", "image_eval_processor")):
        transform = given.get(key)
        if transform is None:
            continue
        if not isinstance(transform, Mapping) or set(transform) - {"name", "cfg"}:
            raise ConfigError(f"{where}: {key}: {transform!r} is not understood. It has name and cfg, and cfg has image_size.")
        if transform.get("name", name) != name:
            raise ConfigError(f"{where}: {key}.name: {transform['name']!r} is unknown. The reference code has {name}.")
        cfg = transform.get("cfg") or {}
        if not isinstance(cfg, Mapping) or set(cfg) - {"image_size"}:
            raise ConfigError(f"{where}: {key}.cfg: {cfg!r} is not understood. It has image_size only.")
        if cfg.get("image_size", size) != size:
            raise ConfigError(
                f"{where}: {key}.cfg.image_size: {cfg['image_size']} is not model.input_resolution, {size}. "
                "Make them equal; here both are image_size."
            )


def _dataset(given: Mapping[str, Any], out: dict[str, Any], notes: list[str], where: str) -> None:
    task = _need(given, "run.task", where)
    if task not in TASKS:
        raise ConfigError(f"{where}: run.task: {task!r} is unknown.{did_you_mean(str(task), TASKS)} There are: {', '.join(TASKS)}.")
    name, num_targets = TASKS[task]
    if given.get("model.output_dim", num_targets) != num_targets:
        raise ConfigError(
            f"{where}: model.output_dim: {given['model.output_dim']} does not go with run.task {task}, which has "
            f"{num_targets}. Set it to {num_targets}."
        )
    _put(out, "dataset.name", name)
    annotations = str(_need(given, "dataset.data_path", where))
    _need(given, "dataset.vis_root", where)
    published = Path(annotations).with_name("data.csv")
    if name == "agiqa_3k" and not Path(annotations).exists() and published.exists():
        notes.append(f"dataset.data_path: '{annotations}' is not there; '{published}', which has the same scores, is read")
        _put(out, "dataset.annotations", str(published))
    _put(out, "processor", {"name": "squash", "flip": 0.5})
    _put(out, "split.kind", "reference")


def _start(given: Mapping[str, Any], out: dict[str, Any], notes: list[str], where: str) -> None:
    """What training starts from, or what is evaluated."""
    finetuned, resumed = given.get("model.finetuned") or None, given.get("run.resume_ckpt_path") or None
    if _flag(given, "model.load_finetuned", False, where):
        if finetuned is None:
            raise ConfigError(f"{where}: model.load_finetuned is true and model.finetuned names no file. Name the checkpoint.")
        _put(out, "run.checkpoint", finetuned)
    elif finetuned is not None:
        notes.append(f"model.finetuned: '{finetuned}' is not loaded, because model.load_finetuned is false")
    if resumed is not None:
        _put(out, "run.checkpoint", resumed)
        notes.append(
            f"run.resume_ckpt_path: the weights of '{resumed}' are where every fold starts (or what is evaluated); "
            "an interrupted run is continued with --resume instead"
        )


def _device(given: Mapping[str, Any], out: dict[str, Any], notes: list[str], where: str) -> None:
    import torch

    has_gpu = torch.cuda.is_available()
    device = str(given.get("run.device", "cuda"))
    if device.split(":")[0] not in ("cuda", "cpu"):
        raise ConfigError(f"{where}: run.device: {device!r} is unknown. Take cuda or cpu.")
    on_gpu = device.startswith("cuda") and has_gpu
    _put(out, "run.device", "cpu" if device == "cpu" else "auto")
    if device.startswith("cuda") and not has_gpu:
        notes.append("run.device: 'cuda', but PyTorch sees no GPU; the CPU is used")
    if _flag(given, "run.amp", False, where):
        _put(out, "run.amp", "fp16" if on_gpu else "bf16")
        notes.append(f"run.amp: true is read as {'fp16' if on_gpu else 'bf16, since fp16 needs a GPU'}")
    url = given.get("run.dist_url", "env://")
    if url != "env://":
        raise ConfigError(f"{where}: run.dist_url: {url!r} is not supported. Start several processes with torchrun (env://).")
    if _flag(given, "run.distributed", False, where):
        notes.append("run.distributed: the number of processes is what torchrun starts; without it there is one")
