"""A dataset and a config of the published form, small enough to train in a second."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from small_models import build

from ipiqa.models.bundle import Training, write_bundle

CONFIG = """\
image_size: 32
model:
  name: ipiqa
  image_encoder: {{name: clip_resnet, layers: [1, 1, 1, 1], width: 4, embed_dim: 8}}
  prompt_encoder: {{name: clip_text, width: 8, layers: 1, heads: 1, embed_dim: 8}}
  fusion: {{name: cross_attention}}
  head: {{name: mlp, dropout: 0.1}}
dataset:
  name: agiqa_3k
  annotations: {folder}/data.csv
  images: {folder}/images
  image_cache: false
  cache_dir: {folder}/cache
split: {{kind: holdout, seed: 1}}
run:
  output_dir: {folder}/output/toy
  num_folds: 2
  max_epochs: 2
  batch_size: 8
  eval_batch_size: 8
  learning_rate: 1e-3
  num_workers: 0
"""

WORDS = ["red", "blue", "green", "circle", "square", "tree", "house", "river", "cat", "dog"]


def write_dataset(folder: Path, num_prompts: int = 10, images_per_prompt: int = 4) -> None:
    """Writes images and data.csv in the AGIQA-3k form; brightness is quality, noise is alignment."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "prompt", "mos_quality", "mos_align"])
        for prompt in range(num_prompts):
            text = f"a {WORDS[prompt % 10]} {WORDS[(prompt * 3 + 1) % 10]}"
            for i in range(images_per_prompt):
                name = f"gen{i}_normal_{prompt:03d}.png"
                level, noise = generator.uniform(0, 1, 2)
                pixels = level * 200 + noise * generator.normal(0, 25, (32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / name)
                writer.writerow([name, text, f"{5 * level:.4f}", f"{5 * noise:.4f}"])


def write_config(folder: Path) -> Path:
    """Writes the dataset and toy.yaml into a folder and returns the path of the config."""
    write_dataset(folder)
    path = folder / "toy.yaml"
    path.write_text(CONFIG.format(folder=folder))
    return path


def write_folds(folder: Path, count: int = 2) -> Path:
    """Writes a run folder of tiny models with random weights, each fold a bundle, and returns it."""
    quantiles = {name: torch.linspace(0, 5, 101).tolist() for name in ("quality", "alignment")}
    for fold in range(count):
        model, spec = build(size=32, seed=fold)
        with torch.no_grad():  # scores of random weights are nearly the same: spread them over the scale
            images, prompts = torch.rand(10, 3, 32, 1).mul(4).sub(2).expand(-1, -1, -1, 32), [f"a {w}" for w in WORDS]
            scores, last = model(images, prompts), model.head.out_proj
            last.weight.div_(scores.std(dim=0)[:, None])
            last.bias.sub_(scores.mean(dim=0)).div_(scores.std(dim=0)).add_(2.5)
        spec = dataclasses.replace(spec, training=Training(quantiles=quantiles))
        write_bundle(folder / f"fold_{fold:02d}", model, spec)
    return folder
