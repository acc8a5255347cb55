"""Pairs of images of one prompt, and which of the two people chose."""

import functools
from dataclasses import dataclass

import numpy as np

CHOICES = {"a": 1.0, "b": 0.0, "tie": 0.5}  # the share of the choice that image a gets


@dataclass(frozen=True, eq=False)
class Comparisons:
    """P pairs of rows of a table; one that was judged several times is there several times.

    Attributes:
        rows: (P, 2) int64 row numbers of image a and image b.
        words: what was chosen in each pair, a word of `CHOICES`.
    """

    rows: np.ndarray
    words: tuple[str, ...]

    @functools.cached_property
    def chosen(self) -> np.ndarray:
        """(P,) float64: the share of each choice that image a gets."""
        return np.array([CHOICES[word] for word in self.words])

    def within(self, rows: np.ndarray) -> np.ndarray:
        """Returns the numbers (Q,) of the pairs whose images are both among the rows (N,)."""
        return np.flatnonzero(np.isin(self.rows, rows).all(axis=1))
