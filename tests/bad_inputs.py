"""Cases of bad input to the real command: configs and tables that are spoilt in one way each.

What each message says is tested where it is raised; here, that the command refuses, in one line that names the place.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Toy:
    """A fresh toy dataset with its config, and what a test may need besides."""

    folder: Path
    run_dir: Path  # a trained run of the same dataset, not to be changed

    @property
    def cfg(self) -> Path:
        return self.folder / "toy.yaml"

    @property
    def table(self) -> Path:
        return self.folder / "data.csv"

    @property
    def image(self) -> Path:
        """One image of the table."""
        return self.folder / "images" / self.rows()[4][0]

    def rows(self) -> list[list[str]]:
        """Returns the cells of the table, the heading first."""
        with self.table.open(newline="") as file:
            return list(csv.reader(file))

    def write_rows(self, rows: list[list[str]]) -> None:
        with self.table.open("w", newline="") as file:
            csv.writer(file).writerows(rows)


Spoil = Callable[[Toy], list[str]]

PAGE = b"<!DOCTYPE html>\n<html><body>404: Not Found</body></html>\n"


@dataclass(frozen=True)
class Case:
    """One thing that is wrong.

    Attributes:
        name: id of the test.
        spoil: does the harm to a toy and returns the words to add to the command line.
        where: what the one line begins with; "{folder}" is the toy's.
    """

    name: str
    spoil: Spoil
    where: str


def words(*extra: str) -> Spoil:
    """Returns a spoil that leaves the files alone; "{folder}" in a word is the toy's."""
    return lambda toy: [word.replace("{folder}", str(toy.folder)) for word in extra]


def config_with(old: str, new: str) -> Spoil:
    """Returns a spoil that replaces one piece of the config."""

    def spoil(toy: Toy) -> list[str]:
        text = toy.cfg.read_text()
        assert text.count(old) == 1
        toy.cfg.write_text(text.replace(old, new))
        return []

    return spoil


def bases(**files: str) -> Spoil:
    """Returns a spoil that writes configs and starts `leaf.yaml`."""

    def spoil(toy: Toy) -> list[str]:
        for name, text in files.items():
            (toy.folder / f"{name}.yaml").write_text(text)
        return ["--cfg-path", str(toy.folder / "leaf.yaml")]

    return spoil


CONFIGS = [
    Case("unknown section", config_with("split:", "spilt:"), "spilt: no such section. Did you mean 'split'?"),
    Case("unknown key of a part", words("model.head.dorpout=0"), "model.head.dorpout: no such setting."),
    Case("unknown name", words("dataset.name=agiqa3k"), "dataset.name: no dataset is called 'agiqa3k'."),
    Case("wrong type", words("run.batch_size=eight"), "run.batch_size: 'eight' is not a whole number."),
    Case("not finite", words("processor.std=[.inf,1,1]"), "processor.std: [inf, 1, 1] is not a list"),
    Case("out of range", words("run.num_folds=1000000000"), "run.num_folds: 1000000000 is out of range."),
    Case("loss of no name", words("task.loss={mes: 1}"), "task.loss"),
    Case("tower that cannot be", words("model.image_encoder.width=3"), "model.image_encoder"),
    Case(
        "no YAML",
        config_with("  num_folds", "\tnum_folds"),
        "{folder}/toy.yaml, line 17: invalid YAML: found character",
    ),
    Case("function in a value", words("run.output_dir=${oc.env:HOME}"), "run.output_dir: '${oc.env:HOME}' is more"),
    Case("missing config", words("--cfg-path", "{folder}/toi.yaml"), "--cfg-path: '{folder}/toi.yaml' does not exist."),
    Case("base of itself", bases(leaf="base: leaf.yaml\n"), "{folder}/leaf.yaml: base: leads in a circle"),
    Case("too many folds", words("split.kind=kfold", "run.num_folds=9"), "num_folds: kfold cannot cut 5 groups"),
    Case("no such fold", words("--folds", "7"), "--folds: 7 is not a choice from 0 to 0."),
    Case("batch of more than all", words("run.batch_size=99"), "run.batch_size: 99 is more than the 12 training"),
]


# -------------------------------------------------------------------------------------------------------------- tables


def cell(row: int, column: int, text: str) -> Spoil:
    """Returns a spoil that writes one cell; row 0 is the heading."""

    def spoil(toy: Toy) -> list[str]:
        rows = toy.rows()
        rows[row][column] = text
        toy.write_rows(rows)
        return []

    return spoil


def table_of(content: bytes | str, name: str = "data.csv") -> Spoil:
    """Returns a spoil that writes another table file and names it."""

    def spoil(toy: Toy) -> list[str]:
        (toy.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return [f"dataset.annotations={toy.folder / name}"]

    return spoil


TABLES = [
    Case("missing table", words("dataset.annotations={folder}/no.csv"), "dataset.annotations: '{folder}/no.csv' does"),
    Case("empty table", table_of(""), "dataset.annotations: '{folder}/data.csv' is empty."),
    Case("missing column", cell(0, 2, "score"), "dataset.annotations: '{folder}/data.csv' has no column 'mos_quality'"),
    Case("text for a score", cell(3, 2, "good"), "dataset.annotations: '{folder}/data.csv': 1 of 15 rows"),
    Case(
        "page named xlsx", table_of(PAGE, "t.xlsx"), "dataset.annotations: '{folder}/t.xlsx' cannot be read: BadZipFile"
    ),
    Case("path to a parent", cell(1, 0, "../../etc/passwd"), "dataset.annotations: '{folder}/data.csv': 1 of 15 rows"),
    Case("endless name", cell(1, 0, "x" * 5000 + "_000.png"), "dataset.annotations: '{folder}/data.csv': 1 of 15"),
    Case("name without a group", cell(1, 0, "cat.png"), "dataset.annotations"),
]
