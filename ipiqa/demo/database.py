"""The demo database: rendered scenes in the form of AGIQA-3k. Synthetic from the first pixel to the last opinion.

Ten simulated generators draw each prompt. How much of it they get right decides the alignment, how strongly their
picture is distorted the quality; twenty simulated raters then judge both with an error of their own.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from scipy import stats
from tqdm import tqdm

from ipiqa.demo.scenes import (
    DISTORTIONS,
    Scene,
    alignment,
    distort,
    draw_scene,
    look,
    near_miss,
    render,
    with_errors,
)
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

Job = TypeVar("Job")
Done = TypeVar("Done")

MARK = "These images and scores are synthetic: rendered by `ipiqa demo-data`"  # its README.txt begins so
README = """{mark}, judged by simulated raters.
They show that the framework works and say nothing about real images. Seed {seed}, {size} px.
"""


@dataclass(frozen=True)
class DemoSummary:
    """What was written, and how well the noiseless truth itself would score against the noisy opinions.

    Attributes:
        num_images: images in the folder.
        num_prompts: different prompts.
        ceilings: target -> (SRCC, PLCC) of the truth; no predictor can expect more.
        crosstalk: SRCC between the true quality and the true alignment; what one tells about the other.
    """

    num_images: int
    num_prompts: int
    ceilings: dict[str, tuple[float, float]]
    crosstalk: float

    def __str__(self) -> str:
        lines = [f"{self.num_images} synthetic images of {self.num_prompts} prompts"]
        for target, (srcc, plcc) in self.ceilings.items():
            lines.append(
                f"  {target:9} noise ceiling: SRCC {srcc:.3f}, PLCC {plcc:.3f} "
                f"(the truth against {NUM_RATERS} simulated raters)"
            )
        lines.append(f"  SRCC between true quality and true alignment: {self.crosstalk:.3f}")
        return "\n".join(lines)


def draw_prompts(num_prompts: int, seed: int) -> list[Scene]:
    """Returns scenes with different prompts, a pure function of the arguments."""
    rng = np.random.default_rng([seed, 0])
    scenes: dict[str, Scene] = {}
    while len(scenes) < num_prompts:
        scene = draw_scene(rng)
        scenes.setdefault(scene.prompt, scene)
    return list(scenes.values())


@dataclass(frozen=True)
class _Picture:
    """One image still to be rendered."""

    path: Path
    drawn: Scene
    kind: str
    strength: float
    size: int
    seed: tuple[int, ...]


def _write_picture(picture: _Picture) -> None:
    rng = np.random.default_rng(picture.seed)
    image = distort(render(picture.drawn, picture.size, rng), picture.kind, picture.strength, rng)
    image.save(picture.path, quality=JPEG_QUALITY, subsampling=0)


def _in_processes(
    function: Callable[[Job], Done], jobs: list[Job], description: str, processes: int | None, chunksize: int = 1
) -> list[Done]:
    """Returns what a function makes of each job, in their order, worked out in processes under a progress bar."""
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        results = pool.map(function, jobs, chunksize=chunksize)
        return list(tqdm(results, total=len(jobs), desc=description, leave=False, disable=None))


def refuse_other_dataset(folder: Path) -> None:
    """Raises ConfigError when a folder holds a table or README.txt that `write_demo_dataset` has not made."""
    readme = folder / "README.txt"
    is_demo = readme.is_file() and readme.read_bytes().startswith(MARK.encode())
    others = [path.name for path in (folder / "data.csv", readme) if path.exists() and not is_demo]
    if others:
        raise ConfigError(
            f"--out: '{folder}' holds a {others[0]} that `ipiqa demo-data` has not made. Give another folder."
        )


def write_demo_dataset(
    folder: Path, *, seed: int = 0, num_prompts: int = 300, image_size: int = 64, processes: int | None = None
) -> DemoSummary:
    """Renders the demo database into `folder`: images/, data.csv, README.txt. Equal arguments give equal bytes.

    Args:
        folder: made if need be; files of an earlier call are replaced, another dataset is not.
        seed: of everything.
        num_prompts: each is drawn by every generator.
        image_size: side of the images, in pixels.
        processes: to render in; None for one per core.

    Raises:
        ConfigError: the folder holds another dataset.
    """
    refuse_other_dataset(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_text(folder / "README.txt", README.format(mark=MARK, seed=seed, size=image_size))
    pictures, rows, truth = [], [], []
    for prompt_id, asked in enumerate(draw_prompts(num_prompts, seed)):
        for number, (generator, (error_rate, distortion)) in enumerate(GENERATORS.items()):
            rng = np.random.default_rng([seed, 1, prompt_id, number])
            drawn = with_errors(asked, error_rate, rng)
            strength = float(np.clip(distortion + rng.normal(0, 0.25), 0, 1))
            kind = str(rng.choice(list(DISTORTIONS)))
            true = np.array([5 * (1 - strength), 5 * alignment(asked, drawn)])
            opinions = true + rng.normal(0, RATER_STD, (NUM_RATERS, 2))
            mos, std = opinions.mean(axis=0).clip(0, 5), opinions.std(axis=0, ddof=1)
            name = f"{generator}_normal_{prompt_id:03d}.jpg"
            path = folder / "images" / name
            pictures.append(_Picture(path, drawn, kind, strength, image_size, (seed, 2, prompt_id, number)))
            rows.append(
                [name, asked.prompt, "", "", asked.style, *(f"{v:.6f}" for v in (mos[0], std[0], mos[1], std[1]))]
            )
            truth.append([*true, *mos])
    _in_processes(_write_picture, pictures, "render", processes, chunksize=64)
    header = ["name", "prompt", "adj1", "adj2", "style", "mos_quality", "std_quality", "mos_align", "std_align"]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    write_text(folder / "data.csv", out.getvalue())
    return _summary(np.array(truth), num_prompts)


def _summary(truth: np.ndarray, num_prompts: int) -> DemoSummary:
    """Returns the ceilings: columns of `truth` are true quality, true alignment and the two MOS."""
    ceilings = {}
    for i, target in enumerate(("quality", "alignment")):
        true, mos = truth[:, i], truth[:, i + 2]
        ceilings[target] = (float(stats.spearmanr(true, mos).statistic), float(stats.pearsonr(true, mos).statistic))
    crosstalk = float(stats.spearmanr(truth[:, 0], truth[:, 1]).statistic)
    return DemoSummary(len(truth), num_prompts, ceilings, crosstalk)


@dataclass(frozen=True)
class Pairs:
    """Pictures that show all of their prompts, and prompts that are almost right.

    Attributes:
        images: (N, 3, S, S) uint8.
        prompts: N prompts.
        near_misses: N prompts with one part changed.
        looks: N texts that say how the picture is distorted.
    """

    images: np.ndarray
    prompts: list[str]
    near_misses: list[str]
    looks: list[str]


@dataclass(frozen=True)
class _Pair:
    """One pair still to be rendered."""

    scene: Scene
    kind: str
    strength: float


def _render_some(job: tuple[list[_Pair], int, int, int]) -> np.ndarray:
    pairs, size, seed, first = job
    out = np.empty((len(pairs), 3, size, size), np.uint8)
    for i, pair in enumerate(pairs):
        rng = np.random.default_rng([seed, 4, first + i])
        image = distort(render(pair.scene, size, rng), pair.kind, pair.strength, rng)
        out[i] = np.asarray(image).transpose(2, 0, 1)
    return out


def render_pairs(
    num: int, *, seed: int, image_size: int, exclude: Sequence[str], processes: int | None = None
) -> Pairs:
    """Returns picture-prompt pairs; none of their prompts, nor of the near misses, is among `exclude`.

    Args:
        num: number of pairs.
        seed: of everything.
        image_size: side of the pictures, in pixels.
        exclude: prompts that must stay unseen.
        processes: to render in; None for one per core.
    """
    rng = np.random.default_rng([seed, 3])
    forbidden = set(exclude)
    pairs: list[_Pair] = []
    misses: list[str] = []
    while len(pairs) < num:
        pair = _Pair(draw_scene(rng), str(rng.choice(list(DISTORTIONS))), float(rng.uniform()))
        miss = near_miss(pair.scene, rng)
        if pair.scene.prompt not in forbidden and miss.prompt not in forbidden:
            pairs.append(pair)
            misses.append(miss.prompt)
    jobs = [(pairs[i : i + 256], image_size, seed, i) for i in range(0, num, 256)]
    parts = _in_processes(_render_some, jobs, "render pairs", processes)
    return Pairs(
        np.concatenate(parts), [p.scene.prompt for p in pairs], misses, [look(p.kind, p.strength) for p in pairs]
    )


def write_demo_pairs(folder: Path, num: int, *, seed: int, image_size: int, exclude: Sequence[str]) -> None:
    """Writes pictures and pairs.csv (columns image, prompt): what Image2Prompt learns from on the demo.

    Args:
        folder: where to; made if need be.
        num, seed, image_size, exclude: as for `render_pairs`.
    """
    pairs = render_pairs(num, seed=seed, image_size=image_size, exclude=exclude)
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (pixels, prompt) in enumerate(zip(pairs.images, pairs.prompts, strict=True)):
        name = f"{number:05d}.png"
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / "pairs" / name)
        rows.append((name, prompt))
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prompt"])
        writer.writerows(rows)
