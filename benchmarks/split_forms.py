"""Split files in the forms that papers publish, drawn anew by their rule from the real table of a config.

    python benchmarks/split_forms.py ipiqa/projects/agiqa3k/ipiqa.yaml output/splits/agiqa3k

It writes `by_image/` (train.csv and test.csv, a fifth of the images), `by_prompt.json` (lists of names of five folds,
no prompt in two of them) and `folds.csv` (five draws of a fifth of the images, one column each). See docs/protocols.md.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from ipiqa.build import make_dataset
from ipiqa.config.loading import load_config
from ipiqa.datasets.splits import make_split
from ipiqa.datasets.table import AnnotationTable
from ipiqa.files import write_text

FOLDS = 5


def write_forms(table: AnnotationTable, folder: Path) -> None:
    """Writes the three forms."""

    def draw(kind: str, fold: int) -> list[str]:
        split = make_split(table, kind=kind, seed=1, fold=fold, num_folds=FOLDS)
        held_out = set(split.val.tolist())
        return ["test" if row in held_out else "train" for row in range(len(table))]

    draws = [draw("image_random", fold) for fold in range(FOLDS)]
    for part in ("train", "test"):
        rows = [(n, p) for n, p, label in zip(table.names, table.prompts, draws[0], strict=True) if label == part]
        _write_csv(folder / "by_image" / f"{part}.csv", [("name", "prompt"), *rows])
    _write_csv(
        folder / "folds.csv",
        [("name", *(f"fold_{fold}" for fold in range(FOLDS))), *zip(table.names, *draws, strict=True)],
    )
    disjoint = (draw("kfold", fold) for fold in range(FOLDS))
    lists = [[n for n, label in zip(table.names, labels, strict=True) if label == "test"] for labels in disjoint]
    write_text(folder / "by_prompt.json", json.dumps(lists))


def _write_csv(path: Path, rows: list[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    write_forms(make_dataset(load_config(sys.argv[1], *sys.argv[3:])).load(), Path(sys.argv[2]))
