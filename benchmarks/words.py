"""Checks on the demo whether what `ipiqa explain` shows means something: words left out, and cells painted over.

    python benchmarks/words.py          after `make demo`; about a minute on one core

Words: in a picture of the demo it is known which parts of the prompt are not there. How often is the word whose removal
raises alignment most one of theirs? Cells: each cell is painted over with the picture's mean colour. How often does the
cell that a map shows strongest change a score more than the one it shows weakest?

One fold's model judges the prompts that it was not trained on. Intervals of 95 % are a bootstrap over prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ipiqa.demo.database import GENERATORS
from ipiqa.demo.scenes import Scene, Thing, alignment, draw_scene, with_errors
from ipiqa.explain.maps import gradient_maps, heat_maps
from ipiqa.explain.words import leave_one_out
from ipiqa.scoring.images import batch_of
from ipiqa.scoring.loading import load_models
from ipiqa.scoring.model_scorer import ModelScorer

NUM_PROMPTS, SEED = 300, 0  # of `make demo`
FUNCTION_WORDS = ("of",)  # in "left of" and "right of"


def scenes() -> dict[str, tuple[Scene, Scene]]:
    """Returns what was asked for and what was drawn, by the image's name, as `ipiqa demo-data` drew it."""
    rng = np.random.default_rng([SEED, 0])
    asked: dict[Scene, None] = {}
    while len(asked) < NUM_PROMPTS:
        asked[draw_scene(rng)] = None
    return {
        f"{name}_normal_{prompt:03d}.jpg": (
            scene,
            with_errors(scene, error_rate, np.random.default_rng([SEED, 1, prompt, number])),
        )
        for prompt, scene in enumerate(asked)
        for number, (name, (error_rate, _)) in enumerate(GENERATORS.items())
    }


def wrong_words(asked: Scene, drawn: Scene) -> np.ndarray:
    """Returns for each word of the prompt whether its part earns nothing in `alignment`, bool (W,)."""

    def of_thing(wanted: Thing, found: Thing | None) -> list[bool]:
        return [getattr(wanted, p) != getattr(found, p, None) for p in ("count", "colour", "shape")]

    relation = None in (drawn.first, drawn.second) or asked.relation != drawn.relation
    wrong = of_thing(asked.first, drawn.first) + [relation] * len(asked.relation.split())
    wrong += of_thing(asked.second, drawn.second) + [asked.style != drawn.style] * len(asked.style.split())
    return np.array(wrong)


def interval(values: np.ndarray, groups: np.ndarray) -> str:
    """Returns the mean of values (N,) as a percentage with its interval, resampling the groups (N,)."""
    frame = pd.DataFrame({"value": values, "group": groups}).groupby("group")["value"].agg(["sum", "size"])
    totals = frame.to_numpy()[np.random.default_rng(0).integers(0, len(frame), (10_000, len(frame)))].sum(axis=1)
    low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return f"{values.mean():7.1%} ({low:.1%} to {high:.1%})"


def check_words(rows: pd.DataFrame) -> None:
    """Prints how often the words found are wrong ones; `rows` has gains (W,), wrong (W,) and prompt."""
    rows = rows[[0 < wrong.sum() < len(wrong) for wrong in rows["wrong"]]]
    hits, chance, others = [], [], []
    for _, row in rows.iterrows():
        beside = rows[(rows["prompt"] == row["prompt"]) & (rows["image"] != row["image"])]
        hits.append(row["wrong"][np.argmax(row["gains"])])
        chance.append(row["wrong"].mean())
        others.append(np.mean([row["wrong"][np.argmax(g)] for g in beside["gains"]]) if len(beside) else np.nan)
    hit, random, other = (np.array(values, float) for values in (hits, chance, others))
    other = np.where(np.isnan(other), random, other)
    prompts = rows["prompt"].to_numpy()
    print(f"\nThe word whose removal raises alignment most: {len(rows)} pictures of {len(set(prompts))} prompts")
    print(f"  is a wrong one                              {interval(hit, prompts)}")
    print(f"  of random words                             {interval(random, prompts)}")
    print(f"  of the prompt's other pictures' words       {interval(other, prompts)}")
    print(f"  above chance                                {interval(hit - random, prompts)}")
    print(f"  above other pictures' words                 {interval(hit - other, prompts)}")
    gains, wrong = (np.concatenate(rows[name].to_list()) for name in ("gains", "wrong"))
    print(f"  mean gain: {gains[wrong].mean():+.3f} of wrong words, {gains[~wrong].mean():+.3f} of right ones")


def changes_of_cells(
    scorer: ModelScorer, prepared: torch.Tensor, prompt: str, grid: Sequence[int], score: np.ndarray
) -> np.ndarray:
    """Returns how far each score moves when a cell is painted over with the mean colour, (h * w, T)."""
    height, width = prepared.shape[1] // grid[0], prepared.shape[2] // grid[1]
    painted = []
    for i in range(grid[0] * grid[1]):
        image = prepared.clone()
        top, left = i // grid[1] * height, i % grid[1] * width
        mean = prepared.float().mean(dim=(1, 2), keepdim=True)
        image[:, top : top + height, left : left + width] = mean.round().to(image.dtype)
        painted.append(image)
    return np.abs(scorer.outputs(painted, [prompt] * len(painted)).mean(axis=0) - score)


def main() -> None:
    """Prints both checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("output/demo/ipiqa"), help="run folder of the demo")
    parser.add_argument("--data", type=Path, default=Path("cache/demo"), help="folder of the demo's data")
    parser.add_argument("--fold", type=int, default=0, help="whose model and held-out prompts")
    arguments = parser.parse_args()
    table = pd.read_csv(arguments.data / "data.csv").set_index("name")
    drawn = scenes()
    assert all(drawn[name][0].prompt == prompt for name, prompt in table["prompt"].items()), "not the data of make demo"
    truth = [alignment(*drawn[name]) for name in table.index]
    srcc = table["mos_align"].corr(pd.Series(truth, table.index), "spearman")
    print(f"SRCC of the scenes' alignment and the table's: {srcc:.3f}")

    scorer = load_models(arguments.run, "cpu", folds=[arguments.fold])
    names = json.loads((arguments.run / f"fold_{arguments.fold:02d}" / "split.json").read_text())["val"]
    targets = [target.name for target in scorer.targets]
    rows, cells = [], []
    for name in names:
        asked, found = drawn[name]
        prepared = scorer.prepare(arguments.data / "images" / name)
        scores, words = leave_one_out(scorer, prepared, asked.prompt)
        is_content = [word not in FUNCTION_WORDS for word in words.words]
        gains = -words.differences[0, :, targets.index("alignment")][is_content]
        rows.append(
            {"image": name, "prompt": asked.prompt, "gains": gains, "wrong": wrong_words(asked, found)[is_content]}
        )
        tokens = scorer.tokenize([asked.prompt])
        maps = heat_maps(scorer, prepared, asked.prompt)
        maps += gradient_maps(scorer, batch_of([prepared], scorer.processor, scorer.device), tokens)
        changes = changes_of_cells(scorer, prepared, asked.prompt, maps[0].weights.shape, scores[0])
        for heat in maps:
            weights = heat.weights.flatten()
            for i, target in enumerate(targets):
                larger = changes[weights.argmax(), i] > changes[weights.argmin(), i]
                cells.append(
                    {"prompt": asked.prompt, "map": f"{heat.kind} {heat.target}", "score": target, "hit": larger}
                )
    check_words(pd.DataFrame(rows))
    print("\nThe strongest cell changes the score more than the weakest, when painted over (chance 50 %)")
    for (kind, target), part in pd.DataFrame(cells).groupby(["map", "score"]):
        print(f"  {kind:20} {target:10} {interval(part['hit'].to_numpy(float), part['prompt'].to_numpy())}")


if __name__ == "__main__":
    main()
