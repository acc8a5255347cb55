"""Made-up run folders in the form that training leaves."""

from __future__ import annotations

import csv
import html.parser
import json
from pathlib import Path

import numpy as np

from ipiqa.files import without_nan, write_json
from ipiqa.metrics import aggregate, measure
from ipiqa.report import write_summary

HOSTILE = '<script>alert(1)</script> & "<img src=x onerror=alert(2)>" a|b'


def write_run(
    run_dir: Path,
    *,
    folds=(0, 1, 2),
    num_folds=3,
    targets=("quality", "alignment"),
    kind="reference",
    seed=42,
    selection="reported part",
    epochs: int | None = 12,
    noise=0.3,
    num_images=120,
    prompts=None,
    settings=None,
) -> Path:
    """Writes a run folder as training leaves it; `epochs` None is a run that evaluated checkpoints."""
    run_dir.mkdir(parents=True, exist_ok=True)
    fraction = 0.1 if selection == "validation part" else 0.0
    run = f"  num_folds: {num_folds}\n  val_fraction: {fraction}\n"
    (run_dir / "config.yaml").write_text(
        f"image_size: 512\nmodel: {{name: ipiqa}}\nrun:\n  output_dir: {run_dir}\n{run}"
    )
    (run_dir / "command.txt").write_text("train_agiqa3k.py --cfg-path ipiqa/projects/agiqa3k/ipiqa.yaml\n")
    write_json(run_dir / "environment.json", {"ipiqa": "0.1.0", "python": "3.11.7", "gpus": [], "num_processes": 1})
    for fold in folds:
        folder = run_dir / f"fold_{fold:02d}"
        folder.mkdir()
        rng = np.random.default_rng([seed, fold])
        mos = np.clip(rng.normal(2.5, 0.9, size=(num_images, len(targets))), 0, 5)
        error = np.random.default_rng([fold, int(1000 * noise)]).normal(size=mos.shape)

        def at(epoch, mos=mos, error=error):
            return 5 / (1 + np.exp(-(mos - 2.5) * 0.9)) + (noise + 2 / (epoch + 1)) * error

        numbers = range(1, epochs + 1) if epochs else ()
        lines = []
        for epoch in numbers:
            metrics = measure(at(epoch), mos, targets, fitted=False)
            row = {"epoch": epoch, "step": 74 * epoch, "loss": 0.2 + 1 / epoch + 0.02 * fold, "learning_rate": 1e-5}
            lines.append(json.dumps(without_nan(row | {"metrics": metrics, "value": aggregate(metrics)})))
        if epochs:
            (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
        checkpoints = {"best": max(1, epochs - 2 + fold % 3), "last": epochs} if epochs else {"best": None}
        predictions = {m: at(e or 12) for m, e in checkpoints.items()}
        scores = {
            "format": 1,
            "fold": fold,
            "split": {
                "kind": kind, "seed": seed, "sha256": f"{seed}{fold}".rjust(64, "a"),
                "num_train": 480, "num_selection": 48 * (selection != "reported part"), "num_val": num_images,
            },
            "selection": selection,
            "targets": list(targets),
            "dataset": {"name": "agiqa_3k", "sha256": "d" * 64, "num_images": 600},
            "epochs": epochs,
            "settings": settings or {"model.name": "ipiqa", "run.seed": 0, "run.val_fraction": fraction},
            "num_folds": num_folds,
            **{m: {"epoch": e, "metrics": measure(predictions[m], mos, targets)} for m, e in checkpoints.items()},
        }  # fmt: skip
        write_json(folder / "scores.json", scores)
        with (folder / "predictions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "prompt", "group", *(f"{p}_{t}" for p in ("mos", *predictions) for t in targets)])
            for i in range(num_images):
                group = f"{fold}{i // 10:02d}"
                prompt = (prompts or ["a statue of a man, oil painting", "two red circles above a blue square"])[i % 2]
                values = [v for block in (mos, *predictions.values()) for v in block[i].tolist()]
                writer.writerow([f"sd1.5_normal_{seed}{fold}{i:03d}.jpg", prompt, group, *values])
    return run_dir


def edit(run_dir: Path, fold: int, change) -> None:
    path = run_dir / f"fold_{fold:02d}" / "scores.json"
    scores = json.loads(path.read_text())
    change(scores)
    write_json(path, scores)


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def page(run_dir: Path) -> Page:
    write_summary(run_dir)
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))
