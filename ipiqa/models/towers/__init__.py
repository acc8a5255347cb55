"""Image and prompt towers. Importing the package registers them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ipiqa import registry
from ipiqa.errors import ConfigError
from ipiqa.models.clip_weights import normalisation
from ipiqa.models.towers import clip_image, clip_text, open_clip_towers, timm_tower
from ipiqa.processors.image import CLIP_MEAN, CLIP_STD

__all__ = ["clip_image", "clip_text", "open_clip_towers", "set_normalisation", "timm_tower", "tokenizer_of"]


def tokenizer_of(section: Mapping[str, Any] | None) -> Callable[[Sequence[str]], torch.Tensor]:
    """Returns what makes tokens (N, context) of N prompts for the section of a prompt encoder, None for no encoder."""
    return open_clip_towers.tokenizer_of((section or {}).get("architecture", "auto"))


def set_normalisation(processor: dict[str, Any], section: Mapping[str, Any]) -> None:
    """Sets mean and std of a processor's resolved section, where they are null, to those of an image encoder's section.

    A mean or std that is given and is not what the encoder's weights were trained with is a ConfigError.
    """
    architecture = section.get("architecture", "auto")
    tower: Any = registry.lookup("image_encoder", section["name"], "model.image_encoder")
    known = getattr(tower, "mean", CLIP_MEAN), getattr(tower, "std", CLIP_STD)
    if hasattr(tower, "normalisation"):
        known = tower.normalisation(architecture)
    elif architecture != "auto":
        known = normalisation(architecture, section.get("weights"))
    for setting, values in zip(("mean", "std"), known, strict=True):
        given = processor.get(setting, values)  # a processor without these settings is left alone
        if given is None:
            processor[setting] = list(values)
        elif section.get("weights") is not None and [round(v, 6) for v in given] != [round(v, 6) for v in values]:
            problem = f"{given} is not what the image encoder was trained with, {list(values)}"
            raise ConfigError(f"processor.{setting}: {problem}. Set processor.{setting}=null to take that.")
