"""Pairwise preferences: which of two images of one prompt people chose."""

import posixpath
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas

from ipiqa.datasets.comparisons import CHOICES, Comparisons
from ipiqa.datasets.image_folder import ImageFolder
from ipiqa.datasets.readers import read_rows
from ipiqa.datasets.table import AnnotationTable, Layout, Target, make_table, report
from ipiqa.errors import ConfigError
from ipiqa.registry import FilePath, register

_MEANING = "preference: which image of a prompt people would choose; differences are log odds, the level means nothing"
PREFERENCE = Target("preference", meaning=_MEANING)
WORDS = {word: word for word in CHOICES} | {"0": "a", "1": "b"}


@register("dataset", "preferences")
@dataclass(frozen=True, kw_only=True)
class Preferences(ImageFolder):
    """A table with a row a pair: csv, tsv, xlsx, json, json lines or parquet.

    The rows of its `AnnotationTable` are the distinct images, in order of appearance; their scores are missing.

    Attributes:
        annotations: table file.
        image_a: column of one image's file name, relative to `images` or a full path below it.
        image_b: column of the other's.
        prompt: column of the prompt of both.
        preferred: column of the choice; null: image a was chosen in every row.
        choices: what a cell of `preferred` says, case aside -> a, b or tie; null: a or 0 (the first), b or 1, tie.
    """

    compares: ClassVar[bool] = True

    annotations: FilePath
    image_a: str = "image_a"
    image_b: str = "image_b"
    prompt: str = "prompt"
    preferred: str | None = "preferred"
    choices: dict[str, str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [meaning for meaning in (self.choices or {}).values() if meaning not in CHOICES]:
            raise ConfigError(f"dataset.choices: {unknown[0]!r} is not a, b or tie. Write {{left: a, same: tie}}.")

    @property
    def num_targets(self) -> int:
        return 1

    def load(self) -> AnnotationTable:
        path, folder, names = Path(self.annotations), Path(self.images), (self.image_a, self.image_b)
        here, root = f"dataset.annotations: '{path}'", f"{folder.absolute().as_posix()}/"
        wanted = dict.fromkeys(column for column in (*names, self.prompt, self.preferred) if column is not None)
        rows = read_rows(path, "dataset.annotations", [[column] for column in wanted], self.hint)
        sides = [rows[[name, self.prompt]].set_axis(["image", "prompt"], axis=1) for name in names]
        entries = pandas.concat(sides).sort_index(kind="stable")
        entries["path"] = [posixpath.normpath(name.removeprefix(root)) for name in entries["image"]]
        distinct = entries.drop_duplicates(["path", "prompt"])
        layout = Layout(image="image", prompt="prompt", targets={})
        table = make_table(distinct, layout, here=here, image_dir=folder, duplicates="error")
        # Now that an image is known to have one prompt, its path stands for both.
        row_of = {name: row for row, name in enumerate(distinct["path"])}
        pairs = np.array([row_of[name] for name in entries["path"]], dtype=np.int64).reshape(-1, 2)
        report(rows[self.image_a], pairs[:, 0] == pairs[:, 1], "compare an image with itself", "Remove them.", here)
        compared = Comparisons(pairs, self._words(rows, here))
        return replace(table, targets=(PREFERENCE,), scores=np.full((len(table), 1), np.nan), comparisons=compared)

    def _words(self, rows: pandas.DataFrame, here: str) -> tuple[str, ...]:
        """Returns what was chosen in each row: a, b or tie."""
        if self.preferred is None:
            return ("a",) * len(rows)
        meanings = {cell.strip().casefold(): word for cell, word in (self.choices or WORDS).items()}
        words = [meanings.get(cell.strip().casefold(), "") for cell in rows[self.preferred]]
        what = f"have a choice in column {self.preferred!r} that is none of {', '.join(meanings)}"
        remedy = "Correct them, or say in dataset.choices what they mean."
        report(rows[self.preferred], [not word for word in words], what, remedy, here)
        return tuple(words)

    def summary(self, table: AnnotationTable) -> list[str]:
        assert table.comparisons is not None
        words, distinct = table.comparisons.words, len(np.unique(np.sort(table.comparisons.rows, axis=1), axis=0))
        counts = f"a chosen in {words.count('a')}, b in {words.count('b')}, ties {words.count('tie')}"
        without_mos = replace(table, targets=(), scores=table.scores[:, :0])
        return [*super().summary(without_mos), f"  {len(words)} pairs, {distinct} different: {counts}"]
