"""Checks on the demo whether what `ipiqa explain` shows means something: words left out, and cells painted over.

    python benchmarks/words.py          after `make demo`; half a minute on one core

Words: of a picture of the demo it is known which parts of the prompt are not there. How often is the word whose removal
raises alignment most one of these? Cells: each cell is painted over with the picture's mean colour. How often does the
cell that a map shows strongest change a score more than the one it shows weakest? As controls, the same questions are
asked of the words and maps of other pictures.

One fold's model judges the prompts that it was not trained on. Intervals of 95 % are a bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ipiqa.demo.database import draw_table
from ipiqa.demo.scenes import THING, Scene, satisfied
from ipiqa.explain.explanation import HeatMap, gradient_maps, heat_maps, leave_one_out
from ipiqa.scoring.images import batch_of
from ipiqa.scoring.loading import load_models
from ipiqa.scoring.model_scorer import ModelScorer

NUM_PROMPTS, SEED, IMAGE_SIZE = 800, 0, 128  # of `make demo`


@dataclass(frozen=True, eq=False)
class Case:
    """A picture: its W words without "of", which part each names, whether that is wrong, and what removal gains."""

    prompt: str
    parts: np.ndarray
    wrong: np.ndarray
    gains: np.ndarray  # of alignment
    maps: list[HeatMap]
    changes: np.ndarray  # (cells, T): how far each score moves when a cell is painted over


def scenes() -> dict[str, tuple[Scene, Scene]]:
    """Returns what was asked for and what was drawn, by the image's name, as `ipiqa demo-data` drew it."""
    drawings = draw_table(seed=SEED, num_prompts=NUM_PROMPTS, image_size=IMAGE_SIZE)
    return {drawing.name: (drawing.asked, drawing.picture.scene) for drawing in drawings}


def judged_words(asked: Scene, drawn: Scene) -> list[tuple[str, bool]]:
    """Returns for each word of the prompt the part it names and whether that is wrong in the picture."""
    first, second = (
        [(part, getattr(wanted, part) != getattr(found, part)) for part in THING]
        for wanted, found in ((asked.first, drawn.first), (asked.second, drawn.second))
    )
    relation = ("relation", asked.relation != drawn.relation)
    styles = [("style", asked.style != drawn.style)] * len(asked.style.split())
    of = [("of", False)] * (len(asked.relation.split()) - 1)
    return [*first, relation, *of, *second, *styles]


def changes(scorer: ModelScorer, prepared: torch.Tensor, prompt: str, grid: tuple[int, ...]) -> np.ndarray:
    """Returns how far each score moves when a cell is painted over with the mean colour, (h * w, T)."""
    height, width = prepared.shape[1] // grid[0], prepared.shape[2] // grid[1]
    mean = prepared.float().mean(dim=(1, 2), keepdim=True).round().to(prepared.dtype)
    painted = [prepared]
    for top, left in np.ndindex(grid):
        image = prepared.clone()
        image[:, top * height : (top + 1) * height, left * width : (left + 1) * width] = mean
        painted.append(image)
    scores = scorer.outputs(painted, [prompt] * len(painted)).mean(axis=0)
    return np.abs(scores[1:] - scores[:1])


def judge(scorer: ModelScorer, path: Path, asked: Scene, drawn: Scene) -> Case:
    """Returns what is known and what the scorer says of a picture."""
    prepared, prompt = scorer.prepare(path), asked.prompt
    _, words = leave_one_out(scorer, prepared, prompt)
    inputs = batch_of([prepared], scorer.processor, scorer.device)
    maps = heat_maps(scorer, prepared, prompt) + gradient_maps(scorer, inputs, scorer.tokenize([prompt]))
    parts, wrong = (np.array(values) for values in zip(*judged_words(asked, drawn), strict=True))
    which = [target.name for target in scorer.targets].index("alignment")
    kept = parts != "of"
    gains = -words.differences[0, :, which]
    moved = changes(scorer, prepared, prompt, maps[0].weights.shape)
    return Case(prompt, parts[kept], wrong[kept], gains[kept], maps, moved)


def interval(values: list[float] | np.ndarray, prompts: list[str]) -> str:
    """Returns the mean of values as a percentage with its interval, prompts resampled."""
    sums = pd.DataFrame({"value": np.asarray(values, float), "prompt": prompts}).groupby("prompt")["value"]
    frame = sums.agg(["sum", "size"]).to_numpy()
    totals = frame[np.random.default_rng(0).integers(0, len(frame), (10_000, len(frame)))].sum(axis=1)
    low, high = 100 * np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return f"{100 * np.mean(values):5.1f} % ({low:.1f} to {high:.1f})"


def print_words(title: str, cases: list[Case]) -> None:
    """Prints how often the word whose removal gains most is a wrong one."""
    prompts = [case.prompt for case in cases]
    hits = np.array([case.wrong[case.gains.argmax()] for case in cases], float)
    chance = np.array([case.wrong.mean() for case in cases])
    others = []
    for case in cases:
        beside = [other for other in cases if other.prompt == case.prompt and other is not case]
        others.append(np.mean([case.wrong[b.gains.argmax()] for b in beside]) if beside else case.wrong.mean())
    print(f"\n{title}: {len(cases)} pictures of {len(set(prompts))} prompts. The word found is a wrong one:")
    print(f"  found by its removal                {interval(hits, prompts)}")
    print(f"  chance: a word at random            {interval(chance, prompts)}")
    print(f"  found on other pictures of a prompt {interval(np.array(others), prompts)}")
    print(f"  above chance                        {interval(hits - chance, prompts)}")
    print(f"  above other pictures                {interval(hits - np.array(others), prompts)}")


def print_parts(cases: list[Case]) -> None:
    """Prints for each part of a prompt how often the removal of its word raises alignment."""
    print("\nRemoval of a word raises alignment, by the part it names:   if wrong                 if right")
    parts, wrong, gains = (np.concatenate([getattr(c, name) for c in cases]) for name in ("parts", "wrong", "gains"))
    prompts = np.repeat([case.prompt for case in cases], [len(case.parts) for case in cases])
    for part in dict.fromkeys(parts.tolist()):
        both = [interval(gains[rows] > 0, prompts[rows].tolist()) for rows in (parts == part) & [wrong, ~wrong]]
        print(f"  {part:10}{both[0]:>61}{both[1]:>25}")


def print_cells(cases: list[Case], targets: list[str]) -> None:
    """Prints how often a painted-over cell that a map shows strongest moves a score more than the weakest."""
    prompts = [case.prompt for case in cases]
    print("\nThe strongest cell, painted over, moves the score more than the weakest (chance 50 %):")
    print(f"  {'map':20} {'score':10} {'of the picture':>24} {'of another picture':>24}")
    for i, heat in enumerate(cases[0].maps):
        for t, target in enumerate(targets):
            rates = []
            for shift in (0, len(cases) // 2):
                weights = [cases[(n + shift) % len(cases)].maps[i].weights.flatten() for n in range(len(cases))]
                pairs = zip(cases, weights, strict=True)
                hits = [case.changes[w.argmax(), t] > case.changes[w.argmin(), t] for case, w in pairs]
                rates.append(interval(np.array(hits, float), prompts))
            print(f"  {heat.kind + ' ' * bool(heat.target) + heat.target:20} {target:10} {rates[0]:>24} {rates[1]:>24}")


def main() -> None:
    """Prints all checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("output/demo/ipiqa"), help="run folder of the demo")
    parser.add_argument("--data", type=Path, default=Path("cache/demo"), help="folder of the demo's data")
    parser.add_argument("--fold", type=int, default=0, help="whose model and held-out prompts")
    arguments = parser.parse_args()
    table, drawn = pd.read_csv(arguments.data / "data.csv").set_index("name"), scenes()
    assert all(drawn[name][0].prompt == prompt for name, prompt in table["prompt"].items()), "not the data of make demo"
    truth = pd.Series([satisfied(*drawn[name]) for name in table.index], table.index)
    print(f"SRCC of true statements and the table's alignment: {table['mos_align'].corr(truth, 'spearman'):.3f}")

    scorer = load_models(arguments.run, "cpu", folds=[arguments.fold])
    split = json.loads((arguments.run / f"fold_{arguments.fold:02d}" / "split.json").read_text())
    cases = [judge(scorer, arguments.data / "images" / name, *drawn[name]) for name in split["val"]]
    partly_wrong = [case for case in cases if 0 < case.wrong.sum() < len(case.wrong)]
    print_words("Something wrong", partly_wrong)
    print_words("One word wrong", [case for case in partly_wrong if case.wrong.sum() == 1])
    print_parts(cases)
    print_cells(cases, [target.name for target in scorer.targets])


if __name__ == "__main__":
    main()
