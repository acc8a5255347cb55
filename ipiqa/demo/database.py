"""The demo database: rendered scenes in the form of AGIQA-3k. Synthetic from the first pixel to the last opinion.

Ten simulated generators draw each prompt. How much of it they get right decides the alignment, how strongly their
picture is distorted the quality; twenty simulated raters then judge both with an error of their own.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy import stats
from tqdm import tqdm

from ipiqa.demo.scenes import DISTORTIONS, Scene, alignment, distort, draw_scene, near_miss, render, with_errors
from ipiqa.errors import ConfigError
from ipiqa.files import write_text

NUM_RATERS = 20
RATER_STD = 1.0  # of one rater's opinion around the truth, on the scale 0 to 5
JPEG_QUALITY = 97  # of the files themselves: no distortion to speak of

# How often each generator gets a part of the prompt wrong, and how strongly its pictures are distorted on average. The
# two are in no order to each other, so that a picture's quality tells little about its alignment.
GENERATORS = {
    "scribe1.0": (0.02, 0.50), "scribe2.1": (0.10, 0.15), "palette": (0.18, 0.70), "easel3": (0.26, 0.30),
    "muse-xl": (0.34, 0.60), "muse-s": (0.42, 0.20), "fresco": (0.50, 0.45), "gouache1.5": (0.58, 0.75),
    "stencil": (0.66, 0.25), "doodle": (0.74, 0.55),
}  # fmt: skip

MARK = "These images and scores are synthetic: rendered by `ipiqa demo-data`"  # its README.txt begins so
README = """{mark}, judged by simulated raters.
They show that the framework works and say nothing about real images. Seed {seed}, {size} px.
"""
COLUMNS = ("name", "prompt", "adj1", "adj2", "style", "mos_quality", "std_quality", "mos_align", "std_align")


@dataclass(frozen=True)
class DemoSummary:
    """What was written, and how well the noiseless truth itself would score against the noisy opinions."""

    num_images: int
    num_prompts: int
    ceilings: dict[str, tuple[float, float]]  # target -> (SRCC, PLCC) of the truth; no predictor can expect more
    crosstalk: float  # SRCC between true quality and true alignment: what one tells about the other

    def __str__(self) -> str:
        lines = [f"{self.num_images} synthetic images of {self.num_prompts} prompts"]
        for target, (srcc, plcc) in self.ceilings.items():
            measured = f"SRCC {srcc:.3f}, PLCC {plcc:.3f} (the truth against {NUM_RATERS} simulated raters)"
            lines.append(f"  {target:9} noise ceiling: {measured}")
        return "\n".join([*lines, f"  SRCC between true quality and true alignment: {self.crosstalk:.3f}"])


@dataclass(frozen=True)
class Picture:
    """A picture that can be rendered: a scene, its distortion, the side in pixels, the seed of all that varies."""

    scene: Scene
    kind: str
    strength: float
    size: int
    seed: tuple[int, ...]

    def image(self) -> Image.Image:
        """Returns the rendered picture."""
        rng = np.random.default_rng(self.seed)
        return distort(render(self.scene, self.size, rng), self.kind, self.strength, rng)

    def pixels(self) -> np.ndarray:
        """Returns the rendered picture as an array, (3, S, S) uint8."""
        return np.asarray(self.image()).transpose(2, 0, 1)

    def save(self, path: Path) -> None:
        """Writes the rendered picture in the format its name ends with."""
        self.image().save(path, quality=JPEG_QUALITY, subsampling=0)


def render_all(
    function: Callable[..., Any], pictures: Sequence[Picture], *others: Iterable[Any], processes: int | None = None
) -> list[Any]:
    """Returns what a method of `Picture` makes of each, in their order; works in processes, by default one per core."""
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        results = pool.map(function, pictures, *others, chunksize=64)
        return list(tqdm(results, total=len(pictures), desc="render", leave=False, disable=None))


def refuse_other_dataset(folder: Path) -> None:
    """Raises ConfigError when a folder holds a table or README.txt that `write_demo_dataset` has not made."""
    readme = folder / "README.txt"
    is_demo = readme.is_file() and readme.read_bytes().startswith(MARK.encode())
    others = [path.name for path in (folder / "data.csv", readme) if path.exists() and not is_demo]
    if others:
        problem = f"'{folder}' holds a {others[0]} that `ipiqa demo-data` has not made"
        raise ConfigError(f"--out: {problem}. Give another folder.")


def write_demo_dataset(
    folder: Path, *, seed: int = 0, num_prompts: int = 300, image_size: int = 64, processes: int | None = None
) -> DemoSummary:
    """Renders the demo database into `folder`: images/, data.csv, README.txt. Equal arguments give equal bytes.

    Each prompt is drawn by every generator. Files of an earlier call are replaced; another dataset is a ConfigError.
    """
    refuse_other_dataset(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_text(folder / "README.txt", README.format(mark=MARK, seed=seed, size=image_size))
    rng = np.random.default_rng([seed, 0])
    scenes: dict[Scene, None] = {}  # in the order drawn
    while len(scenes) < num_prompts:
        scenes[draw_scene(rng)] = None
    pictures, rows, truth = [], [], []
    for prompt_id, asked in enumerate(scenes):
        for number, (generator, (error_rate, distortion)) in enumerate(GENERATORS.items()):
            rng = np.random.default_rng([seed, 1, prompt_id, number])
            drawn = with_errors(asked, error_rate, rng)
            strength = float(np.clip(distortion + rng.normal(0, 0.25), 0, 1))
            kind = str(rng.choice(list(DISTORTIONS)))
            pictures.append(Picture(drawn, kind, strength, image_size, (seed, 2, prompt_id, number)))
            true = np.array([5 * (1 - strength), 5 * alignment(asked, drawn)])
            opinions = true + rng.normal(0, RATER_STD, (NUM_RATERS, 2))
            mos, std = opinions.mean(axis=0).clip(0, 5), opinions.std(axis=0, ddof=1)
            scores = [f"{value:.6f}" for value in (mos[0], std[0], mos[1], std[1])]
            rows.append([f"{generator}_normal_{prompt_id:03d}.jpg", asked.prompt, "", "", asked.style, *scores])
            truth.append([*true, *mos])
    render_all(Picture.save, pictures, [folder / "images" / row[0] for row in rows], processes=processes)
    write_text(folder / "data.csv", pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, lineterminator="\n"))
    srcc, plcc = stats.spearmanr(truth).statistic, np.corrcoef(truth, rowvar=False)
    ceilings = {t: (float(srcc[i, i + 2]), float(plcc[i, i + 2])) for i, t in enumerate(("quality", "alignment"))}
    return DemoSummary(len(rows), num_prompts, ceilings, float(srcc[0, 1]))


def draw_pairs(num: int, *, seed: int, image_size: int, exclude: Iterable[str]) -> tuple[list[Picture], list[str]]:
    """Returns pictures that show all of their prompts, and near misses of these; none of either is one to exclude."""
    rng, forbidden = np.random.default_rng([seed, 3]), set(exclude)
    pictures: list[Picture] = []
    near_misses: list[str] = []
    while len(pictures) < num:
        scene, kind, strength = draw_scene(rng), str(rng.choice(list(DISTORTIONS))), float(rng.uniform())
        miss = near_miss(scene, rng).prompt
        if not forbidden & {scene.prompt, miss}:
            pictures.append(Picture(scene, kind, strength, image_size, (seed, 4, len(pictures))))
            near_misses.append(miss)
    return pictures, near_misses


def write_demo_pairs(folder: Path, num: int, *, seed: int, image_size: int, exclude: Iterable[str]) -> None:
    """Writes pairs/ and pairs.csv (columns image, prompt): what Image2Prompt learns from on the demo."""
    pictures, _ = draw_pairs(num, seed=seed, image_size=image_size, exclude=exclude)
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}.png" for number in range(num)]
    render_all(Picture.save, pictures, [folder / "pairs" / name for name in names])
    table = pd.DataFrame({"image": names, "prompt": [picture.scene.prompt for picture in pictures]})
    write_text(folder / "pairs.csv", table.to_csv(index=False, lineterminator="\r\n"))
