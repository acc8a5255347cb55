"""Checkpoints of whole models: ours, of the reference code -> tensors and what rebuilds the model."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ipiqa import registry
from ipiqa.errors import DataError
from ipiqa.models.bundle import CONFIG, WEIGHTS, ModelSpec, read_bundle
from ipiqa.models.clip_weights import load_exactly
from ipiqa.models.weights import Tensors, read_checkpoint_file, renamed

logger = logging.getLogger("ipiqa")

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


def load_model(model: torch.nn.Module, path: str | Path, where: str, spec: ModelSpec | None = None) -> ModelSpec | None:
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


def _for_targets(model: torch.nn.Module, tensors: Tensors, file: ModelSpec, spec: ModelSpec, here: str) -> Tensors:
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
