"""Times head training on a frozen image tower, with the tower's features stored and without, and the one pass.

    python benchmarks/features.py            a few minutes on two quiet cores
    python benchmarks/features.py --device cuda

Each way trains the same config, an image tower of RN50's size with random weights at 224 px on generated images, as
`ipiqa train` does, and they take turns. Ten folds of 100 epochs without the store would take hours: what an epoch costs
is the difference between a run of more epochs and one of fewer, over the epochs between; the pass is what the first run
with the store costs more than the second. From these the cost of ten folds is computed, start of the folds included.
A run of ten folds of 100 epochs with the store is also timed whole (--whole), to check that computation.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from growth import seconds_of
from PIL import Image

from ipiqa import registry
from ipiqa.config.loading import list_registered, load_config
from ipiqa.models.weights import write_tensors
from ipiqa.training.cross_validation import run

FOLDS, EPOCHS = 10, 100
RN50 = {"name": "clip_resnet", "layers": [3, 4, 6, 3], "width": 64, "embed_dim": 1024}
TEXT = {"name": "clip_text", "width": 64, "layers": 1, "heads": 1, "embed_dim": 1024, "freeze": "all"}
MODELS: dict[str, dict[str, Any]] = {
    "linear_probe": {"name": "linear_probe", "image_encoder": RN50},
    "ipiqa": {
        "name": "ipiqa", "image_encoder": RN50 | {"freeze": "all"}, "prompt_encoder": TEXT,
        "fusion": {"name": "cross_attention"}, "head": {"name": "mlp"},
    },
}  # fmt: skip


@dataclass
class Bench:
    """A folder with data, weights and the runs of this program."""

    folder: Path
    device: str
    runs: int = 0

    def write_data(self, num_images: int) -> None:
        """Writes images of 224 px, four to a prompt, their table, and the weights of the tower."""
        (self.folder / "images").mkdir()
        rng = np.random.default_rng(0)
        with (self.folder / "data.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "prompt", "mos_quality", "mos_align"])
            for number in range(num_images):
                pixels = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)
                name = f"generator{number % 4}_normal_{number // 4:03d}.png"
                image.save(self.folder / "images" / name)
                scores = rng.uniform(0, 5, 2).round(3).tolist()
                writer.writerow([name, f"a picture of thing {number // 4}", *scores])
        list_registered("model")
        torch.manual_seed(0)
        section = registry.resolve("image_encoder", RN50, "model.image_encoder")
        tower = registry.build("image_encoder", section, "model.image_encoder", {"image_size": 224})
        write_tensors(self.folder / "tower.safetensors", tower.clip_tensors())

    def train(self, name: str, stored: bool, epochs: int, folds: int = 1) -> float:
        """Returns the seconds that folds of so many epochs take, from the config on."""
        self.runs += 1
        tower = {**MODELS[name]["image_encoder"], "weights": str(self.folder / "tower.safetensors")}
        model = MODELS[name] | {"image_encoder": tower}
        config = {
            "image_size": 224, "model": model, "split": {"kind": "kfold", "seed": 1},
            "dataset": {
                "name": "agiqa_3k", "annotations": str(self.folder / "data.csv"), "feature_cache": stored,
                "images": str(self.folder / "images"), "cache_dir": str(self.folder / "cache"),
            },
            "run": {
                "output_dir": str(self.folder / f"run{self.runs}"), "num_folds": FOLDS, "max_epochs": epochs,
                "batch_size": 16, "eval_batch_size": 16, "learning_rate": 1e-4, "save_every": EPOCHS,
                "device": self.device,
            },
        }  # fmt: skip
        path = self.folder / f"{self.runs}.yaml"
        path.write_text(yaml.safe_dump(config))
        return seconds_of(lambda: run(load_config(path), folds=list(range(folds))))


def spread(values: list[float]) -> str:
    """Returns median and range."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def compare(bench: Bench, name: str, turns: int, epochs: int) -> None:
    """Prints what an epoch costs each way, the pass, and ten folds of 100 epochs by these."""
    first = bench.train(name, stored=True, epochs=1)
    starts: list[float] = []
    costs: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(turns):
        for stored, longer in ((True, 20 * epochs), (False, epochs)):
            short, long = (bench.train(name, stored, count) for count in (1, 1 + longer))
            costs[stored].append((long - short) / longer)
            if stored:
                starts.append(short)
    one_pass = first - statistics.median(starts)
    with_store, without = (statistics.median(costs[stored]) for stored in (True, False))
    start = statistics.median(starts) - with_store  # of a fold and a run; both ways alike
    total = FOLDS * (start + EPOCHS * without), one_pass + FOLDS * (start + EPOCHS * with_store)
    print(f"\n{name}, seconds, median and range of {turns} turns:")
    print(f"  epoch without the store   {spread(costs[False])}")
    print(f"  epoch with it             {spread(costs[True])}")
    print(f"  the pass, measured once   {one_pass:.1f}")
    print(f"  start of a run of a fold  {start:.1f}")
    print(f"  {FOLDS} folds x {EPOCHS} epochs, computed: {total[0]:.0f} without, {total[1]:.0f} with: "
          f"ratio {total[0] / total[1]:.1f}")  # fmt: skip
    print(f"  their epochs and the pass alone: ratio "
          f"{FOLDS * EPOCHS * without / (one_pass + FOLDS * EPOCHS * with_store):.1f}")  # fmt: skip


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="epochs timed without the store; 20 times as many with")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--whole", action="store_true", help="time ten folds x 100 epochs with the store, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.device)
        bench.write_data(arguments.images)
        print(f"{arguments.images} images of 224 px, {torch.get_num_threads()} threads, {arguments.device}")
        for name in arguments.models:
            compare(bench, name, arguments.turns, arguments.epochs)
            if arguments.whole:
                seconds = bench.train(name, stored=True, epochs=EPOCHS, folds=FOLDS)
                print(f"  {FOLDS} folds x {EPOCHS} epochs with the store (the pass done), whole: {seconds:.0f}")


if __name__ == "__main__":
    main()
