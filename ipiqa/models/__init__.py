"""Encoders, fusions, heads and the models made of them. Importing the package registers its parts."""

from ipiqa.models import (
    baselines,
    fusion,
    heads,
    image2prompt,
    image_encoder,
    ipiqa,
    prompt_encoder,
    torchvision_resnet,
)

__all__ = [
    "baselines",
    "fusion",
    "heads",
    "image2prompt",
    "image_encoder",
    "ipiqa",
    "prompt_encoder",
    "torchvision_resnet",
]
