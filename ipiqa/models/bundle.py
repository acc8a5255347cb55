"""A model that stands alone: what rebuilds it, what it predicts, what it was trained on, and the folder to share.

The weights of whole models are read here, from such folders, our checkpoints and those of the reference code.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ipiqa import registry
from ipiqa.datasets.table import Target
from ipiqa.errors import ConfigError, DataError
from ipiqa.files import FORMAT, refuse_newer, write_json
from ipiqa.models.clip_weights import load_exactly
from ipiqa.models.weights import Tensors, printable, read_checkpoint_file, read_tensors, renamed, write_tensors
from ipiqa.processors.image import SquashProcessor

logger = logging.getLogger("ipiqa")

CONFIG, WEIGHTS, README = "config.json", "model.safetensors", "README.md"
PARTS = {"image_encoder", "prompt_encoder", "fusion", "head"}
HASH_DIGITS = 16  # of an image's sha256 that are kept

# Settings that say how a model trains, not what it computes.
TRAINING_ONLY = ("freeze", "dropout", "train_embeddings", "weights", "sha256")


# The reference code's names -> ours, longest prefix first: "resnet50." must not be taken for something shorter.
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
REFERENCE_FROZEN = ("prompt_encoder.transformer.", "prompt_encoder.ln_final.")
HINT = "Give a checkpoint, a bundle, or a run folder with the best.pt of every fold."


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a model was trained on, as far as it is known."""

    dataset: str = ""  # name of its part
    table_sha256: str = ""
    split_sha256: str = ""
    fold: int = -1
    epoch: int = -1  # number of epochs trained
    versions: dict[str, str] = field(default_factory=dict)  # of ipiqa and torch
    licence: str = ""  # what whoever passes the weights on must look at
    images: list[str] = field(default_factory=list)  # first digits of the sha256 of each training image
    quantiles: dict[str, list[float]] = field(default_factory=dict)  # target -> MOS at 0, 1, ..., 100 % of these images


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What rebuilds a model without any other file, and says what its scores mean."""

    model: dict[str, Any]  # resolved section, sizes and architectures explicit, no weights
    image_size: int  # side S of the input, in pixels
    processor: dict[str, Any]  # resolved section, mean and std included
    targets: tuple[Target, ...]  # what the T scores mean, in order
    training: Training = field(default_factory=Training)

    @property
    def target_names(self) -> tuple[str, ...]:
        """T names."""
        return tuple(target.name for target in self.targets)

    def to_dict(self) -> dict[str, Any]:
        """Returns the spec as plain dictionaries, lists, texts and numbers."""
        return {"format": FORMAT, **asdict(self), "targets": [asdict(target) for target in self.targets]}

    @classmethod
    def from_dict(cls, content: Any, where: str) -> ModelSpec:
        """Returns the spec that `to_dict` wrote to the file `where`; raises DataError where the file has no such."""
        try:
            refuse_newer(content, f"{where}:")
            return _spec(**registry.check_settings(_spec, content, "spec", ["format"]))
        except (ConfigError, RecursionError) as error:
            raise DataError(f"{where}: {printable(error)} Take a file that ipiqa has written.") from None

    def build(self) -> nn.Module:
        """Returns the model with random weights, on the CPU; raises ConfigError where no model has these sizes."""
        context = {"image_size": self.image_size, "num_targets": len(self.targets), "targets": self.targets}
        try:
            model: nn.Module = registry.build("model", self.model, "model", context)
        except (RuntimeError, MemoryError, ValueError, TypeError, ArithmeticError) as error:
            raise ConfigError(f"model: cannot be built ({' '.join(str(error).split())[:120]}).") from None
        return model

    def build_processor(self) -> SquashProcessor:
        """Returns what makes the model's inputs of images."""
        return registry.build("processor", self.processor, "processor", {"image_size": self.image_size})

    def differences(self, other: ModelSpec) -> list[str]:
        """Returns in what, field by field, another spec would not compute the same: "setting is A, not B"."""
        own, theirs = (registry.flatten({"model": s.model, "image_size": s.image_size}) for s in (self, other))
        names = [name for name in {**own, **theirs} if name.rpartition(".")[2] not in TRAINING_ONLY]
        return [f"{n} is {own.get(n)!r}, not {theirs.get(n)!r}" for n in names if own.get(n) != theirs.get(n)]


def _spec(*, model: dict, image_size: int, processor: dict, targets: list, training: dict) -> ModelSpec:
    """Returns the spec of its fields as a file has them: the signature is their schema, as that of a part is."""
    known = [_target(**registry.check_settings(_target, target, "spec.targets")) for target in targets]
    if not 1 <= image_size <= 2**14 or len({target.name for target in known}) != len(known):
        raise ConfigError("spec: image_size is out of range, or a target is named twice.")
    return ModelSpec(
        model=registry.resolve("model", model, "model"), image_size=image_size,
        processor=registry.resolve("processor", processor, "processor"), targets=tuple(known),
        training=Training(**registry.check_settings(Training, training, "spec.training")),
    )  # fmt: skip


def _target(*, name: str, low: float | None = None, high: float | None = None, meaning: str = "") -> Target:
    return Target(name, low, high, meaning)


def own_section(model: nn.Module, section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section that rebuilds a built model without any file: each part that can says its own."""
    own = dict(section)
    for kind in PARTS & section.keys():
        if describe := getattr(getattr(model, kind, None), "section", None):
            own[kind] = registry.resolve(kind, describe(), f"model.{kind}")
        else:
            own[kind] = section[kind] | dict.fromkeys({"weights", "sha256"} & section[kind].keys())
    return own


def write_bundle(folder: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Writes a folder that `read_bundle` and `ipiqa.load` need nothing else beside: settings and weights."""
    write_tensors(folder / WEIGHTS, model.state_dict())
    write_json(folder / CONFIG, spec.to_dict())


def read_bundle(folder: Path, where: str) -> tuple[ModelSpec, Tensors]:
    """Returns what `write_bundle` wrote to a folder; raises DataError where a file is missing or damaged."""
    path, hint = folder / CONFIG, "Copy the whole folder."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: '{path}' cannot be read ({printable(error)[:100]}). {hint}") from None
    return ModelSpec.from_dict(content, str(path)), read_tensors(folder / WEIGHTS, where, hint=hint)


class Checkpoint(NamedTuple):
    """The weights of a whole model under our names."""

    tensors: Tensors
    spec: ModelSpec | None  # what rebuilds the model; None where the file does not say
    may_miss: tuple[str, ...] = ()  # prefixes of names that the file leaves out


def read_checkpoint(path: str | Path, where: str) -> Checkpoint:
    """Returns the weights in a file or a bundle, ours or the reference code's; raises DataError for any other."""
    path = Path(registry.file_path(str(path), where))
    bundle = path.parent if path.name == WEIGHTS else path
    if os.path.isfile(bundle / CONFIG):  # noqa: PTH113 (is_file raises where a whole path is too long)
        spec, tensors = read_bundle(bundle, where)
        return Checkpoint(tensors, spec)
    tensors, rest = read_checkpoint_file(path, where, HINT)
    if any(name.startswith(("resnet50.", "txt_attnpool.")) for name in tensors):
        logger.info("%s: '%s' was trained with the reference code; its names are translated", where, path)
        return Checkpoint(renamed(tensors, REFERENCE_NAMES), None, REFERENCE_FROZEN)
    if rest.get("spec"):
        spec = ModelSpec.from_dict(rest["spec"], f"{where}: '{path}'")
        epoch = rest["epoch"] if isinstance(rest.get("epoch"), int) else -1
        return Checkpoint(tensors, replace(spec, training=replace(spec.training, epoch=epoch or -1)))
    return Checkpoint(tensors, None)


def load_model(model: nn.Module, path: str | Path, where: str, spec: ModelSpec | None = None) -> ModelSpec | None:
    """Fills a whole model from a checkpoint and returns what that says of itself, None where it says nothing.

    Its outputs become those of the checkpoint for the same targets, whatever their order there. A file that cannot be
    read, or belongs to another model, image size or target than `spec` says, is a DataError; without a spec the shapes
    of the tensors are compared alone. `where` is the setting that names the file, for messages.
    """
    checkpoint = read_checkpoint(path, where)
    tensors, theirs, here = checkpoint.tensors, checkpoint.spec, f"{where}: '{path}'"
    if spec is not None and theirs is not None:
        tensors = _for_targets(model, tensors, theirs, spec, here)
        if problems := spec.differences(theirs):
            raise DataError(f"{here}: belongs to another model: {'; '.join(problems[:3])}. Set these as it has them.")
    else:
        own, found = (state.get("head.out_proj.bias") for state in (model.state_dict(), tensors))
        if own is not None and found is not None and own.shape != found.shape:
            remedy = "Take a checkpoint trained for this dataset, or choose its targets with dataset.targets."
            raise DataError(f"{here}: predicts {found.numel()} targets, the dataset has {own.numel()}. {remedy}")
        if spec is not None and len(spec.targets) > 1:
            logger.warning("%s: does not name its targets; taken for %s", here, ", ".join(spec.target_names))
    load_exactly(model, tensors, here, checkpoint.may_miss)
    return theirs


def _for_targets(model: nn.Module, tensors: Tensors, file: ModelSpec, spec: ModelSpec, here: str) -> Tensors:
    """Returns the tensors of a file with the outputs for the targets of a spec, in its order."""
    theirs, wanted = file.target_names, spec.target_names
    if missing := [target for target in wanted if target not in theirs]:
        remedy = "Take a checkpoint trained for these targets, or choose among its own with dataset.targets."
        raise DataError(f"{here}: predicts {', '.join(theirs) or 'no target'}, not {', '.join(missing)}. {remedy}")
    if wanted == theirs:
        return tensors
    modules = model.named_modules()
    names = [f"{path}.{name}".lstrip(".") for path, module in modules for name in getattr(module, "per_target", ())]
    if not names:
        raise DataError(f"{here}: predicts {', '.join(theirs)}. Set dataset.targets to these, in this order.")
    order = [theirs.index(target) for target in wanted]
    # what has not one row per target is damaged: `load_exactly` says so
    whole = [name for name in names if name in tensors and tensors[name].shape[:1] == (len(theirs),)]
    return tensors | {name: tensors[name][order] for name in whole}
