"""Times exported graphs in onnxruntime against the same models in PyTorch, at 224 px, in turns.

    python benchmarks/onnx_speed.py            RN50 and ViT-B-32, some ten minutes on two cores
    python benchmarks/onnx_speed.py --quick    RN50, two repeats

Each way has a process of its own (threads that wait for work would disturb the other), and they work in turns, so that
ratios hold where absolute times drift. Images are tensors in memory: decoding is the same for both.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from cases import WORDS
from growth import seconds_of

import ipiqa
from ipiqa import registry
from ipiqa.config.loading import list_registered
from ipiqa.datasets.table import Target
from ipiqa.export.onnx import export_onnx
from ipiqa.models.bundle import ModelSpec, own_section, write_bundle

SIZE = 224
MODELS = ("RN50-quickgelu", "ViT-B-32-quickgelu")
# what is scored -> (images at once, whether each has a prompt that was not seen before)
WORK = {"32 images, a prompt each": (32, True), "32 images, one prompt": (32, False), "1 image": (1, True)}


def make_files(folder: Path, architecture: str) -> dict[str, str]:
    """Writes IP-IQA on random towers as a bundle and as ONNX; returns what to load, by what runs it."""
    list_registered("model")
    tower = {"name": "clip", "architecture": architecture}
    parts = {"image_encoder": tower, "prompt_encoder": tower | {"freeze": "all"}, "fusion": "cross_attention"}
    section = registry.resolve("model", {"name": "ipiqa", "head": "mlp", **parts}, "model")
    model = registry.build("model", section, "model", {"image_size": SIZE, "num_targets": 2})
    processor = registry.resolve("processor", "squash", "processor")
    targets = (Target("quality", 0.0, 5.0), Target("alignment", 0.0, 5.0))
    spec = ModelSpec(model=own_section(model, section), image_size=SIZE, processor=processor, targets=targets)
    write_bundle(folder / "bundle", model, spec)
    found = export_onnx(folder / "bundle", folder / "model.onnx")
    print(f"{architecture}: largest difference {found:.1e} of the scale", flush=True)
    return {"PyTorch": str(folder / "bundle"), "ONNX": str(folder / "model.onnx")}


def serve(what: str, work: str, commands: Connection) -> None:
    """Loads a model and scores each time it is told to, until told to stop."""
    scorer = ipiqa.load(what, "cpu")
    batch, is_new = WORK[work]
    images = [*torch.randint(0, 256, (batch, 3, SIZE, SIZE), dtype=torch.uint8)]
    prepared = [scorer.prepare(image) for image in images]
    commands.send(None)
    turn = 0
    while commands.recv():
        turn += is_new
        prompts = [" ".join(WORDS[(i * 5 + j * turn) % len(WORDS)] for j in range(4 + i % 9)) for i in range(batch)]
        prompts = [f"{prompt} {turn}" for prompt in prompts] if is_new else prompts[:1] * batch
        commands.send(seconds_of(lambda prompts=prompts: scorer.outputs(prepared, prompts)))


def time_turns(files: dict[str, str], work: str, repeats: int) -> dict[str, list[float]]:
    """Returns seconds of each repeat, by what runs it."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Any] = {}
    for name, what in files.items():
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(what, work, theirs)).start()
        pipes[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for repeat in range(2 + repeats):  # two to warm up
        for name, pipe in pipes.items():
            pipe.send(True)
            spent = pipe.recv()
            if repeat >= 2:
                seconds[name].append(spent)
    for pipe in pipes.values():
        pipe.send(False)
    return seconds


def main() -> None:
    """Prints a table of all models and kinds of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rows = []
    for architecture in MODELS[:1] if quick else MODELS:
        with tempfile.TemporaryDirectory() as folder:
            files = make_files(Path(folder), architecture)
            for work, (batch, _) in WORK.items():
                seconds = time_turns(files, work, 2 if quick else 9)
                ratios = [a / b for a, b in zip(seconds["PyTorch"], seconds["ONNX"], strict=True)]
                rate = [f"{batch / statistics.median(seconds[name]):.1f}" for name in files]
                ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                rows.append(f"| {architecture}, {work} | {' | '.join(rate)} | {ratio} |")
                print(rows[-1], flush=True)
    print(f"\n{torch.get_num_threads()} threads, {SIZE} px, fp32")
    print("| model, work | PyTorch images/s | ONNX images/s | ratio: median (range) |")
    print("| --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
