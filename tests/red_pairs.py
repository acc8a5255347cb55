"""Pairs of tiny pictures, of which people prefer the redder one."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
from PIL import Image
from toy import CONFIG

PROMPTS = [f"a {colour} {thing}" for colour in ("dark", "pale", "warm") for thing in ("tree", "house", "cat", "dog")]


def write_pairs(folder: Path, images_per_prompt: int = 4) -> Path:
    """Writes pictures and pairs.csv, all pairs of a prompt, sides by lot and every tenth a tie; returns the config."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows: list[tuple[str, ...]] = []
    for number, prompt in enumerate(PROMPTS):
        names = [f"{number:02d}_{i}.png" for i in range(images_per_prompt)]
        reds = dict(zip(names, generator.permutation(images_per_prompt) * 55.0 + 30, strict=True))
        for name, red in reds.items():
            pixels = generator.normal(110, 25, (32, 32, 3))
            pixels[:, :, 0] = red + generator.normal(0, 15, (32, 32))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / name)
        for pair in itertools.combinations(names, 2):
            a, b = generator.permutation(pair)
            preferred = "tie" if len(rows) % 10 == 9 else "a" if reds[a] > reds[b] else "b"
            rows.append((a, b, prompt, preferred))
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_a", "image_b", "prompt", "preferred"), *rows])
    path = folder / "pairs.yaml"
    text = CONFIG.format(folder=folder).replace("name: agiqa_3k", "name: preferences").replace("data.csv", "pairs.csv")
    text = text.replace("kind: holdout", "kind: kfold").replace("max_epochs: 2", "max_epochs: 8")
    path.write_text(f"task: {{name: preference}}\n{text}")
    return path
