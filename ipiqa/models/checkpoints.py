"""Checkpoints of whole models: ours, of version 0.1, of the reference code -> tensors and what rebuilds the model."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ipiqa import registry
from ipiqa.errors import ConfigError, DataError, IpiqaError
from ipiqa.models.bundle import CONFIG, WEIGHTS, ModelSpec, Training, read_bundle
from ipiqa.models.clip_weights import load_exactly
from ipiqa.models.towers.clip_image import ResNetSizes
from ipiqa.models.towers.clip_text import TextSizes
from ipiqa.models.weights import Tensors, read_checkpoint_file

logger = logging.getLogger("ipiqa")

# Longest prefix first: "resnet50." must not be taken for something shorter.
REFERENCE_NAMES = {
    "txt_attnpool.positional_embedding": "fusion.pool.positional_embedding",
    "txt_attnpool.cross_attn.out_proj.": "fusion.pool.c_proj.",
    "txt_attnpool.cross_attn.": "fusion.pool.",
    "txt_model.": "prompt_encoder.transformer.",
    "text_projection": "prompt_encoder.text_projection",
    "ln_final.": "prompt_encoder.ln_final.",
    "resnet50.": "image_encoder.tower.",
    "attnpool.": "image_encoder.pool.",
    "txt_pos": "prompt_encoder.positional_embedding",
    "wte.": "prompt_encoder.token_embedding.",
    "head.": "head.",
}
# The reference code leaves frozen parameters out of its checkpoints; the CLIP weights the model was built on hold them.
HINT = "Give a checkpoint, a bundle, or a run folder with the best.pt of every fold."
REFERENCE_FROZEN = ("prompt_encoder.transformer.", "prompt_encoder.ln_final.")


_PLACES = {"annotations": "-", "images": "-"}  # of a dataset that is asked for its targets alone

# prompt_encoder.qa_token of version 0.1 -> today's settings
QA_TOKEN: dict[object, dict[str, Any]] = {
    "embeddings": {"qa_token": "none", "train_embeddings": True},
    "token": {"qa_token": "prefix", "train_embeddings": False},
    "none": {"qa_token": "none", "train_embeddings": False},
}


def check_qa_token(model: Any) -> None:
    """Raises ConfigError, with today's settings, where a model section sets qa_token as version 0.1 had it."""
    section = model.get("prompt_encoder") if isinstance(model, Mapping) else None
    if not isinstance(section, Mapping):
        return
    old = section.get("qa_token", "none")
    if isinstance(old, str) and old in QA_TOKEN and (old != "none" or "qa_position" in section):
        today = QA_TOKEN[old] | ({"qa_token": section.get("qa_position", "prefix")} if old == "token" else {})
        words = ", ".join(f"{name}: {str(value).lower()}" for name, value in today.items())
        raise ConfigError(f"model.prompt_encoder.qa_token: {old!r} is of version 0.1. Write {words}.")


def is_reference(tensors: Tensors) -> bool:
    """Returns whether the names are those of the reference code."""
    return any(name.startswith(("resnet50.", "txt_attnpool.")) for name in tensors)


def from_reference(tensors: Tensors) -> Tensors:
    """Returns tensors named as the reference code does under our names; unknown names stay as they are."""
    out = {}
    for name, value in tensors.items():
        prefix = next((p for p in REFERENCE_NAMES if name.startswith(p)), None)
        out[name if prefix is None else REFERENCE_NAMES[prefix] + name.removeprefix(prefix)] = value
    return out


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a whole model under our names.

    Attributes:
        tensors: by name in the model.
        spec: what rebuilds the model; None where the file does not say.
        may_miss: prefixes of names that the file leaves out.
    """

    tensors: Tensors
    spec: ModelSpec | None = None
    may_miss: tuple[str, ...] = ()


def read_checkpoint(path: str | Path, where: str) -> Checkpoint:
    """Returns the weights in a file or a bundle: ours, of version 0.1, or of the reference code.

    Raises:
        DataError: it cannot be read.
    """
    path = Path(registry.file_path(str(path), where))
    bundle = path.parent if path.name == WEIGHTS else path
    if os.path.isfile(bundle / CONFIG):  # noqa: PTH113 (is_file raises where a whole path is too long)
        spec, tensors = read_bundle(bundle, where)
        return Checkpoint(tensors, spec)
    tensors, rest = read_checkpoint_file(path, where, HINT)
    if is_reference(tensors):
        logger.info("%s: '%s' was trained with the reference code; its names are translated", where, path)
        return Checkpoint(from_reference(tensors), None, REFERENCE_FROZEN)
    if rest.get("spec"):
        spec = ModelSpec.from_dict(rest["spec"], f"{where}: '{path}'")
        epoch = rest.get("epoch") if isinstance(rest.get("epoch"), int) else -1
        return Checkpoint(tensors, replace(spec, training=replace(spec.training, epoch=int(epoch or -1))))
    return Checkpoint(tensors, _spec_of_0_1(tensors, rest.get("identity"), path))


def _spec_of_0_1(tensors: Tensors, identity: Any, path: Path) -> ModelSpec | None:
    """Returns what the settings beside a checkpoint of version 0.1 say, in it or in the config.yaml of its run."""
    try:
        settings: Any = {}
        if isinstance(identity, Mapping) and "model.name" in identity:
            for key, value in identity.items():
                *sections, last = str(key).split(".")
                functools.reduce(lambda inner, section: inner.setdefault(section, {}), sections, settings)[last] = value
        else:
            settings = yaml.safe_load((path.parent.parent / "config.yaml").read_text(encoding="utf-8"))
        model = {kind: dict(part) if isinstance(part, Mapping) else part for kind, part in settings["model"].items()}
        renamed = {name.replace("image_encoder.tower.", "visual."): value for name, value in tensors.items()}
        renamed = {name.replace("image_encoder.pool.", "visual.attnpool."): value for name, value in renamed.items()}
        renamed |= {name.removeprefix("prompt_encoder."): value for name, value in tensors.items()}
        for kind, kept in (("image_encoder", ("freeze",)), ("prompt_encoder", ("freeze", "qa_token", "qa_position"))):
            section = model.get(kind)
            if section is None:
                continue
            sizes: ResNetSizes | TextSizes | None = None
            if section["name"] == "clip" and kind == "image_encoder" and "visual.layer1.0.conv1.weight" in renamed:
                sizes = ResNetSizes.of_tensors(renamed)
            elif section["name"] == "clip" and kind == "prompt_encoder" and "text_projection" in renamed:
                sizes = TextSizes.of_tensors(renamed)
            if sizes is not None:
                name = "clip_resnet" if kind == "image_encoder" else "clip_text"
                numbers = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(sizes).items()}
                section = {"name": name, **numbers, **{key: section[key] for key in kept if key in section}}
            position = section.pop("qa_position", "prefix")
            section |= QA_TOKEN.get(section.get("qa_token"), {})
            if section.get("qa_token") == "prefix":
                section["qa_token"] = position
            model[kind] = {key: value for key, value in section.items() if key not in ("weights", "sha256")}
        dataset = registry.build(
            "dataset", registry.resolve("dataset", _PLACES | settings["dataset"], "dataset"), "", {}
        )
        return ModelSpec(
            model=registry.resolve("model", model, "model"),
            image_size=int(settings["image_size"]),
            processor=registry.resolve("processor", settings["processor"], "processor"),
            targets=tuple(dataset.layout().targets),
            training=Training(dataset=settings["dataset"]["name"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError, IpiqaError):
        return None


def load_model(model: nn.Module, path: str | Path, where: str, spec: ModelSpec | None = None) -> ModelSpec | None:
    """Fills a whole model from a checkpoint and returns what that says of itself, None where it says nothing.

    Args:
        model: built; its outputs become those of the checkpoint for the same targets, whatever their order there.
        path: file or bundle.
        where: the setting that names it, for messages.
        spec: what the model is; None compares the shapes of the tensors alone.

    Raises:
        DataError: the file cannot be read, or belongs to another model, image size or target.
    """
    checkpoint = read_checkpoint(path, where)
    tensors, theirs, here = checkpoint.tensors, checkpoint.spec, f"{where}: '{path}'"
    if spec is not None and theirs is not None:
        tensors = _for_targets(model, tensors, theirs.target_names, spec.target_names, here)
        if problems := spec.differences(theirs):
            raise DataError(f"{here}: belongs to another model: {'; '.join(problems[:3])}. Set these as it has them.")
    else:
        own, found = model.state_dict().get("head.out_proj.bias"), tensors.get("head.out_proj.bias")
        if own is not None and found is not None and own.shape != found.shape:
            raise DataError(
                f"{here}: predicts {len(found)} targets, the dataset has {len(own)}. "
                "Take a checkpoint trained for this dataset, or choose its targets with dataset.targets."
            )
        if spec is not None and len(spec.targets) > 1:
            logger.warning("%s: does not name its targets; taken for %s", here, ", ".join(spec.target_names))
    load_exactly(model, tensors, here, checkpoint.may_miss)
    return theirs


def _for_targets(
    model: nn.Module, tensors: Tensors, theirs: tuple[str, ...], wanted: tuple[str, ...], here: str
) -> Tensors:
    """Returns the tensors with the outputs for the targets that are wanted, in their order."""
    missing = [target for target in wanted if target not in theirs]
    if missing:
        raise DataError(
            f"{here}: predicts {', '.join(theirs) or 'no target'}, not {', '.join(missing)}. "
            "Take a checkpoint trained for these targets, or choose among its own with dataset.targets."
        )
    order = [theirs.index(target) for target in wanted]
    if order == list(range(len(theirs))):
        return tensors
    names = [
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in getattr(module, "per_target", ())
    ]
    if not names:
        raise DataError(f"{here}: predicts {', '.join(theirs)}. Set dataset.targets to these, in this order.")
    return tensors | {name: tensors[name][order] for name in names if name in tensors}
