"""Image and prompt towers. Importing the package registers them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ipiqa import prompts, registry
from ipiqa.errors import ConfigError
from ipiqa.models.clip_weights import normalisation
from ipiqa.models.towers import clip_image, clip_text, open_clip_towers, torchvision_resnet
from ipiqa.processors.image import CLIP_MEAN, CLIP_STD

__all__ = ["clip_image", "clip_text", "open_clip_towers", "set_normalisation", "tokenizer_of", "torchvision_resnet"]


def tokenizer_of(section: Mapping[str, Any] | None) -> Callable[[Sequence[str]], torch.Tensor]:
    """Returns what makes tokens (N, context) of N prompts for the prompt encoder that a section describes.

    Args:
        section: of a prompt encoder; None where a model has none, whose tokens nobody reads.
    """
    architecture = (section or {}).get("architecture", "auto")
    if architecture == "auto" or open_clip_towers.is_clip_text(architecture, "model.prompt_encoder"):
        return prompts.tokenize
    return open_clip_towers.tokenizer_of(architecture)


def set_normalisation(processor: dict[str, Any], section: Mapping[str, Any]) -> None:
    """Sets mean and std of a processor's section to those of an image encoder where they are null.

    Args:
        processor: resolved section; one without these settings is left alone.
        section: resolved section of the image encoder.

    Raises:
        ConfigError: mean or std is given and is not what the encoder's weights were trained with.
    """
    architecture = section.get("architecture", "auto")
    tower: Any = registry.lookup("image_encoder", section["name"], "model.image_encoder")
    known = [getattr(tower, "mean", CLIP_MEAN), getattr(tower, "std", CLIP_STD)]
    if architecture != "auto":
        known = list(normalisation(architecture, section.get("weights")))
    for setting, values in zip(("mean", "std"), known, strict=True):
        given = processor.get(setting, values)
        if given is None:
            processor[setting] = list(values)
        elif section.get("weights") is not None and [round(v, 6) for v in given] != [round(v, 6) for v in values]:
            raise ConfigError(
                f"processor.{setting}: {given} is not what the image encoder was trained with, {list(values)}. "
                f"Set processor.{setting}=null to take that."
            )
