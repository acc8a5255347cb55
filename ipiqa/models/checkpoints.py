"""Weights of a whole model: ours, or trained with the reference code."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from ipiqa.errors import ConfigError, DataError
from ipiqa.models.clip_weights import load_exactly
from ipiqa.models.weights import Tensors, read_tensors

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
REFERENCE_FROZEN = ("prompt_encoder.transformer.", "prompt_encoder.ln_final.")


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


def load_model(model: nn.Module, path: str, where: str) -> None:
    """Fills a whole model from a checkpoint file, ours or the reference code's.

    Raises:
        DataError: the file cannot be read, or belongs to another model, image size or number of targets.
    """
    tensors = read_tensors(path, where, hint="Give a checkpoint, or a run folder with the best.pt of every fold.")
    may_miss: tuple[str, ...] = ()
    if is_reference(tensors):
        tensors, may_miss = from_reference(tensors), REFERENCE_FROZEN
        logger.info("%s: '%s' was trained with the reference code; its names are translated", where, path)
    _check_targets(model, tensors, path, where)
    load_exactly(model, tensors, f"{where}: '{path}'", may_miss)


def _check_targets(model: nn.Module, tensors: Tensors, path: str, where: str) -> None:
    """Says the most likely mistake in its own words: a checkpoint of one database loaded for another."""
    own, theirs = model.state_dict().get("head.out_proj.bias"), tensors.get("head.out_proj.bias")
    if own is not None and theirs is not None and own.shape != theirs.shape:
        raise DataError(
            f"{where}: '{path}' predicts {len(theirs)} targets, the dataset has {len(own)}. "
            "Take a checkpoint trained for this dataset, or choose its targets with dataset.targets."
        )
