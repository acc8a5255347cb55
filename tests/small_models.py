"""Models of random values that are built in no time, an image and prompts to score."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import nn

from ipiqa import registry
from ipiqa.datasets.table import AnnotationTable, Target
from ipiqa.models.bundle import ModelSpec, own_section
from ipiqa.scoring.model_scorer import ModelScorer

RESNET = {"name": "clip_resnet", "layers": [1, 1, 1, 1], "width": 4, "embed_dim": 8}
TEXT = {"name": "clip_text", "width": 8, "layers": 1, "heads": 1, "embed_dim": 8}
PARTS = {"image_encoder": RESNET, "prompt_encoder": TEXT, "fusion": "cross_attention", "head": "mlp"}
TARGETS = (Target("quality", 0.0, 5.0, "how good"), Target("alignment"))
PROMPT = "one red circle above two blue squares"
NASTY = [
    "a \"quoted\" <b>bold</b> & 'odd' <script>alert(1)</script> {{ prompt }}",
    "ein grüner Kreis 🐱 猫が一匹 \x1b[31m red",
    " ".join(f"word{i}" for i in range(80)),
    "x" * 3000 + " cat",
]


def build(name: str = "ipiqa", size: int = 64, seed: int = 0, **parts: Any) -> tuple[nn.Module, ModelSpec]:
    """Returns a small model with random values, and what it is."""
    torch.manual_seed(seed)
    taken = registry.keys_of("model", name)
    section = {"name": name} | {key: part for key, part in (PARTS | parts).items() if key in taken}
    section = registry.resolve("model", section, "model")
    model = registry.build("model", section, "model", {"image_size": size, "num_targets": 2}).eval()
    for parameter_name, parameter in model.named_parameters():  # as of a trained model, whose pools are not even
        if ".tower." not in parameter_name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    processor = registry.resolve("processor", "squash", "processor")
    return model, ModelSpec(model=own_section(model, section), image_size=size, processor=processor, targets=TARGETS)


def make_scorer(name: str = "ipiqa", folds: int = 2, **parts: Any) -> ModelScorer:
    models, specs = zip(*(build(name, seed=seed, **parts) for seed in range(folds)), strict=True)
    return ModelScorer(models, specs, device="cpu")


def noise() -> Image.Image:
    """Returns an upright image of coloured patches."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((60, 90))


def add_architectures(folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Makes architectures known to open_clip by their names."""
    for name, one in settings.items():
        (folder / f"{name}.json").write_text(json.dumps(one))
    open_clip.add_model_config(folder)


def image_table(folder: Path, ending: str, height: int) -> AnnotationTable:
    """Returns a table of seven rows and six images in `folder`: the first image stands in the last row, too."""
    folder.mkdir()
    names = [f"{number}.{ending}" for number in (3, 1, 2, 5, 4, 0)]
    for number, name in enumerate(names):
        pixels = np.random.RandomState(number).randint(0, 256, (height, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    names.append(names[0])
    return AnnotationTable(tuple(names), ("p",) * 7, np.zeros((7, 1)), ("quality",), ("g",) * 7, folder)
