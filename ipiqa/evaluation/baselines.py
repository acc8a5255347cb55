"""What can be predicted without looking at a picture: whoever does not beat it has learnt nothing about pictures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ipiqa.datasets.splits import Split
from ipiqa.datasets.table import AnnotationTable
from ipiqa.metrics import DRAWN, Images, plain

MEASURED = ("srcc", "plcc", "srcc_within", "pair_accuracy")
PROMPT, PROMPT_LENGTH, OTHER_TARGETS = "prompt", "prompt length", "other targets"
_SWEEPS = 20  # of an additive model; the levels of two crossed factors settle in fewer


def no_pixel(table: AnnotationTable, split: Split, by: Sequence[str]) -> np.ndarray:
    """Returns predictions (held-out rows, T) that the training part and no picture give; nan where none can be.

    Scores of held-out images are not read, but for `other targets`. What the training part does not hold, a new prompt
    or generator, counts as average.

    Args:
        by: names of segments of the table and "prompt": the mean of that in the training part; for several the sum of
            their effects, fitted by least squares. Or one of "prompt length" (a line through the number of words) and
            "other targets" (a plane through the scores that the image has in them).
    """
    if list(by) in ([PROMPT_LENGTH], [OTHER_TARGETS]):
        words = np.array([[len(prompt.split())] for prompt in table.prompts], dtype=np.float64)
        is_length = by[0] == PROMPT_LENGTH
        inputs = [words if is_length else np.delete(table.scores, t, axis=1) for t in range(len(table.targets))]
        fits = [linear(x, y, split.train, split.val) for x, y in zip(inputs, table.scores.T, strict=True)]
    else:
        labels = [table.prompts_read if name == PROMPT else table.segments[name] for name in by]
        codes = [pd.factorize(np.array(of_rows, dtype=object))[0] for of_rows in labels]
        fits = [_additive(codes, y, split.train, split.val) for y in table.scores.T]
    return np.stack(fits, axis=1)


def measure_baselines(table: AnnotationTable, split: Split) -> dict[str, dict[str, dict[str, float | None]]]:
    """Returns {baseline: {target: {metric: value}}} on the held-out part, of all baselines that the table allows.

    Images without a score in a target do not count in it.
    """
    prompts = pd.factorize(np.array(table.prompts_read, dtype=object))[0]
    out: dict[str, dict[str, dict[str, float | None]]] = {}
    for by in possible(table, split):
        predicted, out[" + ".join(by)] = no_pixel(table, split, by), (of_targets := {})
        for t, target in enumerate(table.target_names):
            scored = np.isfinite(table.scores[split.val, t]) & np.isfinite(predicted[:, t])
            rows = split.val[scored]
            images = Images(predicted[scored, t], table.scores[rows, t], prompts[rows])
            of_targets[target] = {metric: plain(DRAWN[metric], images) for metric in MEASURED}
    return out


def possible(table: AnnotationTable, split: Split) -> list[tuple[str, ...]]:
    """Returns what `no_pixel` can go `by`, nothing without a score in the training part.

    These are each segment of the table, prompt length, the other targets, and, where prompts stand on both sides, the
    prompt alone and with each segment. Of segments that part the images alike, the first is taken.
    """
    segments, seen = [], set()
    for name, labels in table.segments.items():
        codes = pd.factorize(np.array(labels, dtype=object))[0]
        if 0 < codes.max(initial=0) < len(table) / 2 and codes.tobytes() not in seen:
            segments.append((name,))
            seen.add(codes.tobytes())
    prompts = np.array(table.prompts_read, dtype=object)
    leaks = bool(set(prompts[split.val]) & set(prompts[split.train]))
    known_prompt = [(PROMPT,), *((*segment, PROMPT) for segment in segments)] if leaks else []
    chosen = [*segments, *known_prompt, (PROMPT_LENGTH,), *[(OTHER_TARGETS,)] * (len(table.targets) > 1)]
    return chosen if np.isfinite(table.scores[split.train]).any() else []


def linear(x: np.ndarray, y: np.ndarray, known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Returns a least-squares plane through y over x (N, D), fitted to the known rows, at the rows asked for."""
    known = known[np.isfinite(y[known]) & np.isfinite(x[known]).all(axis=1)]
    if not len(known):
        return np.full(len(asked), np.nan)
    centre = x[known].mean(axis=0)
    slopes = np.linalg.lstsq(x[known] - centre, y[known] - y[known].mean(), rcond=None)[0]
    return np.asarray(y[known].mean() + np.nan_to_num(x[asked] - centre) @ slopes)


def _additive(codes: Sequence[np.ndarray], y: np.ndarray, known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Returns the mean of the known rows plus an effect of each factor, whose levels (N,) are numbered from 0."""
    known = known[np.isfinite(y[known])]
    if not len(known):
        return np.full(len(asked), np.nan)
    effects = [np.zeros(code.max() + 1) for code in codes]
    mean = y[known].mean()
    for _ in range(_SWEEPS if len(codes) > 1 else 1):
        for code, effect in zip(codes, effects, strict=True):
            others = sum(e[c[known]] for c, e in zip(codes, effects, strict=True) if e is not effect)
            level = code[known]
            number = np.bincount(level, minlength=len(effect))
            effect[:] = np.bincount(level, y[known] - mean - others, len(effect)) / np.maximum(number, 1)
    return np.asarray(mean + sum(effect[code[asked]] for code, effect in zip(codes, effects, strict=True)))
