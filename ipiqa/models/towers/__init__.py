"""Image and prompt towers. Importing the package registers them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ipiqa import prompts
from ipiqa.models.towers import clip_image, clip_text, open_clip_towers, torchvision_resnet

__all__ = ["clip_image", "clip_text", "open_clip_towers", "tokenizer_of", "torchvision_resnet"]


def tokenizer_of(section: Mapping[str, Any] | None) -> Callable[[Sequence[str]], torch.Tensor]:
    """Returns what makes tokens (N, context) of N prompts for the prompt encoder that a section describes.

    Args:
        section: of a prompt encoder; None where a model has none, whose tokens nobody reads.
    """
    architecture = (section or {}).get("architecture", "auto")
    if architecture == "auto" or open_clip_towers.is_clip_text(architecture, "model.prompt_encoder"):
        return prompts.tokenize
    return open_clip_towers.tokenizer_of(architecture)
