"""What is timed: for each case, one piece of work done the plain way and by this framework.

The attributes of a `Work` are read by run.py, which gives every way of doing a case a process of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from plain import PlainImages, PlainPath
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from ipiqa import registry
from ipiqa.build import keep_freed_memory
from ipiqa.config.loading import list_registered
from ipiqa.datasets.databases.annotated import OwnTable
from ipiqa.datasets.loaders import Loading, train_loader
from ipiqa.engine.predict import PromptCache, autocast
from ipiqa.processors.image import SquashProcessor
from ipiqa.prompts import tokenize

CPU = torch.device("cpu")
WORDS = ["statue", "tray", "sushi", "man", "space", "universe", "lighting", "style", "painting", "cat", "bird", "city"]
VARIANTS = ("plain", "exact", "bf16")
IMAGES_PER_PROMPT = 10  # as in AGIQA-3k


@dataclass(frozen=True)
class Work:
    """One repeat of a case."""

    run: Callable[[], None]
    images: int
    flops: float = 0.0


@dataclass(frozen=True)
class Case:
    """A case, its variants and how to make its work."""

    name: str
    make: Callable[[str], Work]
    variants: tuple[str, ...] = VARIANTS


def make_model(image_size: int) -> nn.Module:
    """Returns IP-IQA on RN50 with random weights."""
    list_registered("model")
    tower = {"name": "clip", "architecture": "RN50-quickgelu"}
    section = {
        "name": "ipiqa",
        "image_encoder": tower,
        "prompt_encoder": tower,
        "fusion": "cross_attention",
        "head": "mlp",
    }
    torch.manual_seed(0)
    context = {"image_size": image_size, "num_targets": 2}
    return registry.build("model", registry.resolve("model", section, "model"), "model", context)


def make_texts(count: int) -> list[str]:
    """Returns prompts as long as those of AGIQA-3k: 5 to 24 tokens."""
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(WORDS, rng.integers(4, 22))) for _ in range(count)]


def _model(variant: str, image_size: int) -> nn.Module:
    ours = make_model(image_size)
    if variant == "plain":
        return PlainPath(ours)
    keep_freed_memory()
    return ours


def _counted(work: Callable[[], None], images: int) -> Work:
    with FlopCounterMode(display=False) as counter:
        work()
    return Work(work, images, float(counter.get_total_flops()))


def train_step(variant: str, image_size: int, batch_size: int) -> Work:
    """Returns a step of training: forward, backward and AdamW. Every image has a prompt of its own."""
    model = _model(variant, image_size).train()
    images = torch.randn(batch_size, 3, image_size, image_size)
    tokens, targets = tokenize(make_texts(batch_size)), torch.rand(batch_size, 2)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0, fused=variant != "plain")

    def step() -> None:
        with autocast(CPU, "bf16" if variant == "bf16" else "none"):
            loss = mse_loss(model(images, tokens), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _counted(step, batch_size)


def evaluation(variant: str, image_size: int, batch_size: int, num_batches: int) -> Work:
    """Returns a pass over batches in which every prompt has ten images, after weights that have just changed."""
    model = _model(variant, image_size).eval()
    images = torch.randn(batch_size, 3, image_size, image_size)
    count = batch_size * num_batches
    texts = make_texts(-(-count // IMAGES_PER_PROMPT))
    tokens = tokenize([texts[i // IMAGES_PER_PROMPT] for i in range(count)]).split(batch_size)
    changed = next(p for name, p in model.named_parameters() if name.endswith("text_projection"))

    def one_pass() -> None:
        with torch.no_grad():
            changed.add_(0)
        with torch.inference_mode(), autocast(CPU, "bf16" if variant == "bf16" else "none"):
            prompts = PromptCache.of(model)
            for part in tokens:
                model(images, part if prompts is None else prompts(part))

    return _counted(one_pass, count)


def write_images(folder: Path, count: int, size: int) -> list[Path]:
    """Writes smooth random JPEGs and returns their paths."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        paths.append(folder / f"{i:05d}.jpg")
        small.resize((size, size), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def make_dataset(folder: Path, paths: list[Path]) -> OwnTable:
    """Writes a table over the images, with ten rows a prompt, and returns the dataset."""
    rng = np.random.default_rng(0)
    lines = ["image\tprompt\tquality"]
    texts = [f"{' '.join(rng.choice(WORDS, 8))} {i // IMAGES_PER_PROMPT}" for i in range(len(paths))]
    lines += [f"{p.name}\t{t}\t{s:.3f}" for p, t, s in zip(paths, texts, rng.uniform(0, 5, len(paths)), strict=True)]
    (folder / "table.tsv").write_text("\n".join(lines) + "\n")
    return OwnTable(
        annotations=str(folder / "table.tsv"), images=str(folder), targets=["quality"], cache_dir=str(folder / "cache")
    )


def loading(variant: str, count: int) -> Work:
    """Returns an epoch of 224 px batches from 512 px files: decoded by two workers, or from the cache."""
    keeper = tempfile.TemporaryDirectory()
    folder = Path(keeper.name)
    paths = write_images(folder, count, 512)
    if variant == "plain":
        loader = DataLoader(
            PlainImages(paths, 224), batch_size=32, shuffle=True, num_workers=2, persistent_workers=True
        )

        def epoch_plain(keeper: object = keeper) -> None:  # the files live as long as the work
            for _ in loader:
                pass

        return Work(epoch_plain, count)
    keep_freed_memory()
    processor, dataset = SquashProcessor(224), make_dataset(folder, paths)
    table = dataset.load()
    images = dataset.open_images(table, dataset.image_hashes(table), processor)
    loading = Loading(batch_size=32, eval_batch_size=32, seed=0)
    ours = train_loader(table, images, tokenize(table.prompts), np.arange(count), loading, fold=0)

    def epoch_ours(keeper: object = keeper) -> None:
        for batch in ours:
            flips = processor.flips(batch["rows"], num_rows=count, seed=0, fold=0, epoch=0)
            processor.normalise(batch["images"], flips)

    return Work(epoch_ours, count)


CASES = {
    case.name: case
    for case in (
        Case("train step, 224 px, batch 32", lambda v: train_step(v, 224, 32)),
        Case("train step, 512 px, batch 8", lambda v: train_step(v, 512, 8)),
        Case("evaluation, 224 px, batch 32", lambda v: evaluation(v, 224, 32, 3)),
        Case("evaluation, 512 px, batch 8", lambda v: evaluation(v, 512, 8, 3)),
        Case("input pipeline, 512 px files at 224 px", lambda v: loading(v, 320), ("plain", "exact")),
    )
}
