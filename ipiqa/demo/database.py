"""The demo database: rendered scenes in the form of AGIQA-3k. Synthetic from the first pixel to the last opinion.

Four simulated generators draw each prompt. They distort their pictures to different degrees, and misread prompts alike.
Twenty simulated raters then judge both with an error of their own.
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

from ipiqa.demo.scenes import DISTORTIONS, Scene, distort, draw_scene, near_miss, render, satisfied, with_errors
from ipiqa.errors import ConfigError
from ipiqa.files import write_text

NUM_RATERS = 20
RATER_STD = 1.0  # of one rater's opinion around the truth, on the scale 0 to 5
JPEG_QUALITY = 97  # of the files themselves: no distortion to speak of

# How strongly each generator's pictures are distorted on average, 0 to 1.
GENERATORS = {"scribe1.0": 0.30, "muse-xl": 0.45, "fresco": 0.60, "doodle": 0.50}
DISTORTION_STD = 0.25  # of its pictures around that

# Each picture has an error rate of its own, from 0 to this, whoever draws it.
MAX_ERROR_RATE = 0.9

# Raters mark down the alignment of an ugly picture. This share makes the two targets correlate moderately.
QUALITY_IN_ALIGNMENT = 0.35

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
    size: int
    seed: tuple[int, ...]
    kind: str = DISTORTIONS[0]
    strength: float = 0.0
    negative: bool = False

    def image(self) -> Image.Image:
        """Returns the rendered picture."""
        rng = np.random.default_rng(self.seed)
        image = render(self.scene, self.size, rng, negative=self.negative)
        return distort(image, self.kind, self.strength, rng) if self.strength else image

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


@dataclass(frozen=True)
class Drawing:
    """An image of the table: its file's name, what was asked for, the picture that was made of it."""

    name: str
    asked: Scene
    picture: Picture

    @property
    def truth(self) -> tuple[float, float]:
        """Quality and alignment without any rater's error, 0 to 5."""
        quality, found = 1 - self.picture.strength, satisfied(self.asked, self.picture.scene)
        return 5 * quality, 5 * (found + QUALITY_IN_ALIGNMENT * (quality - found))


def draw_table(*, seed: int, num_prompts: int, image_size: int) -> list[Drawing]:
    """Returns the images of the demo database, those of a prompt one after the other."""
    rng, scenes = np.random.default_rng([seed, 0]), dict[Scene, None]()  # in the order drawn
    while len(scenes) < num_prompts:
        scenes[draw_scene(rng, of_table=True)] = None
    drawings = []
    for prompt_id, asked in enumerate(scenes):
        for number, (generator, distortion) in enumerate(GENERATORS.items()):
            rng = np.random.default_rng([seed, 1, prompt_id, number])
            drawn = with_errors(asked, rng.uniform(0, MAX_ERROR_RATE), rng)
            strength = float(np.clip(distortion + rng.normal(0, DISTORTION_STD), 0, 1))
            kind, name = str(rng.choice(DISTORTIONS)), f"{generator}_normal_{prompt_id:03d}.jpg"
            picture = Picture(drawn, image_size, (seed, 2, prompt_id, number), kind, strength)
            drawings.append(Drawing(name, asked, picture))
    return drawings


def write_demo_dataset(
    folder: Path, *, seed: int = 0, num_prompts: int = 800, image_size: int = 128, processes: int | None = None
) -> DemoSummary:
    """Renders the demo database into `folder`: images/, data.csv, README.txt. Equal arguments give equal bytes.

    Each prompt is drawn by every generator. Files of an earlier call are replaced; another dataset is a ConfigError.
    """
    refuse_other_dataset(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_text(folder / "README.txt", README.format(mark=MARK, seed=seed, size=image_size))
    drawings = draw_table(seed=seed, num_prompts=num_prompts, image_size=image_size)
    true = np.array([drawing.truth for drawing in drawings])  # (N, 2)
    opinions = true + np.random.default_rng([seed, 6]).normal(0, RATER_STD, (NUM_RATERS, *true.shape))
    mos, std = opinions.mean(axis=0).clip(0, 5), opinions.std(axis=0, ddof=1)
    rows = [
        [drawing.name, drawing.asked.prompt, "", "", drawing.asked.style, *(f"{value:.6f}" for value in scores)]
        for drawing, scores in zip(drawings, np.stack([mos, std], axis=2).reshape(-1, 4), strict=True)
    ]
    paths = [folder / "images" / drawing.name for drawing in drawings]
    render_all(Picture.save, [drawing.picture for drawing in drawings], paths, processes=processes)
    write_text(folder / "data.csv", pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, lineterminator="\n"))
    both = np.hstack([true, mos])
    srcc, plcc = stats.spearmanr(both).statistic, np.corrcoef(both, rowvar=False)
    ceilings = {t: (float(srcc[i, i + 2]), float(plcc[i, i + 2])) for i, t in enumerate(("quality", "alignment"))}
    return DemoSummary(len(rows), num_prompts, ceilings, float(srcc[0, 1]))


def draw_pairs(num: int, *, seed: int, image_size: int, negative: bool = False) -> tuple[list[Picture], list[str]]:
    """Returns undistorted pictures that show all of their prompts, and near misses of these; no scene is a table's."""
    rng = np.random.default_rng([seed, 3])
    scenes = [draw_scene(rng, of_table=False) for _ in range(num)]
    pictures = [Picture(scene, image_size, (seed, 4, row), negative=negative) for row, scene in enumerate(scenes)]
    return pictures, [near_miss(scene, rng).prompt for scene in scenes]


def write_demo_pairs(folder: Path, num: int, *, seed: int, image_size: int) -> None:
    """Writes pairs/ and pairs.csv (columns image, prompt): what Image2Prompt learns from on the demo."""
    pictures, _ = draw_pairs(num, seed=seed, image_size=image_size)
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}.png" for number in range(num)]
    render_all(Picture.save, pictures, [folder / "pairs" / name for name in names])
    table = pd.DataFrame({"image": names, "prompt": [picture.scene.prompt for picture in pictures]})
    write_text(folder / "pairs.csv", table.to_csv(index=False, lineterminator="\r\n"))
