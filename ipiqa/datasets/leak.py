"""What a split gives away: held-out rows that share their prompt or their picture with rows that were trained on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from ipiqa.datasets.splits import Split
from ipiqa.datasets.table import AnnotationTable
from ipiqa.prompts import clean


@dataclass(frozen=True)
class Leak:
    """How many of the held-out rows are known from the rows that train or choose the epoch.

    Attributes:
        num_held_out: number of held-out rows.
        prompts: rows whose prompt is known, letter case and white space aside.
        tokens: rows whose prompt is known to a model that reads CLIP's tokens, no more than its context.
        images: rows whose image file is known, name aside; None where files were not read.
    """

    num_held_out: int
    prompts: int
    tokens: int
    images: int | None = None

    def describe(self) -> str:
        """Returns the line that a report has."""
        images = "" if self.images is None else f", {self._share(self.images)} the image"
        rows = f"Of {self.num_held_out} held-out rows, {self._share(self.tokens)} share the prompt"
        return f"{rows}{images} with rows trained on."

    def _share(self, count: int) -> str:
        return f"{count} ({100 * count / max(1, self.num_held_out):.1f} %)" if count else "none"


def leak(table: AnnotationTable, split: Split, image_hashes: Sequence[str] | None = None) -> Leak:
    """Returns what a split gives away; `image_hashes` are of each row's file, see `checks.image_hashes`."""
    known_rows = np.concatenate([split.train, split.selection])

    def count(keys: Sequence[Hashable]) -> int:
        known = {keys[row] for row in known_rows}
        return sum(keys[row] in known for row in split.val)

    texts = {prompt: clean(prompt) for prompt in dict.fromkeys(table.prompts)}
    return Leak(
        num_held_out=len(split.val), prompts=count([texts[prompt] for prompt in table.prompts]),
        tokens=count(table.prompts_read), images=None if image_hashes is None else count(image_hashes),
    )  # fmt: skip


def over_folds(leaks: Sequence[Leak]) -> Leak:
    """Returns the leak of all folds together."""
    counts = zip(*map(astuple, leaks), strict=True)  # of each kind
    totals: list[Any] = [None if None in each else sum(each) for each in counts]
    return Leak(*totals)


def leak_rows(splits: Sequence[Split], leaks: Sequence[Leak]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a table of leaks, the last one over all folds."""
    names = [(str(split.fold), str(len(split.train) + len(split.selection))) for split in splits] + [("all", "")]
    rows = []
    for (name, count), one in zip(names, [*leaks, over_folds(leaks)], strict=True):
        shares = [one.prompts, one.tokens, one.images]
        cells = ["-" if share is None else f"{share} ({100 * share / one.num_held_out:.1f} %)" for share in shares]
        rows.append([name, count, str(one.num_held_out), *cells])
    return ["fold", "trained on", "held out", "same prompt", "same tokens", "same image"], rows
