"""The database AIGCIQA2023 as a registered dataset."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar

from ipiqa.datasets.databases.annotated import ALIGNMENT, AUTHENTICITY, QUALITY, About, AnnotatedImages, choose_targets
from ipiqa.datasets.table import Layout, Target
from ipiqa.registry import register

# 400 images each, in the order of the file names
GENERATORS = ("Controlnet", "DALLE", "Glide", "Lafite", "stable-diffusion", "Unidiffuser")


@register("dataset", "aigciqa2023")
@dataclass(frozen=True, kw_only=True)
class Aigciqa2023(AnnotatedImages):
    """AIGCIQA2023: 2,400 images of 100 prompts, three MOS (arXiv:2307.00211); `AIGCIQA2023.csv`.

    The published standard deviations are in another unit than the MOS, which are rescaled z-scores: they are not read.

    Attributes:
        targets: which of quality, authenticity and alignment (the paper's correspondence) to predict; null for all.
    """

    about: ClassVar[About] = About(
        name="AIGCIQA2023", num_rows=(2400,), source="https://github.com/wangjiarui153/AIGCIQA2023",
        licence="none stated: ask its authors before you pass it on", raters="not known to us",
    )  # fmt: skip

    targets: list[str] | None = None

    def layout(self) -> Layout:
        columns = {
            Target("quality", 0.0, 100.0, QUALITY): ["quality_mos"],
            Target("authenticity", 0.0, 100.0, AUTHENTICITY): ["authenticity_mos"],
            Target("alignment", 0.0, 100.0, ALIGNMENT): ["correspondence_mos"],
        }
        return Layout(
            image=["name"], prompt=["prompt"],
            targets=choose_targets(columns, self.targets),
            segments={"generator": generator_of, "style": ["style"], "class": ["class"]},
        )  # fmt: skip


def generator_of(name: str) -> str:
    """Returns the generator of an image by its number ("1234.png": the fourth), "" for a name of another form."""
    number = PurePosixPath(name).stem
    return GENERATORS[int(number) // 400] if number.isdecimal() and int(number[:9]) < 2400 else ""
