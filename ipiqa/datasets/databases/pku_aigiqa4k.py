"""The database PKU-AIGIQA-4K as a registered dataset."""

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar

from ipiqa.datasets.databases.annotated import ALIGNMENT, AUTHENTICITY, QUALITY, About, AnnotatedImages, choose_targets
from ipiqa.datasets.table import Layout, Target
from ipiqa.registry import register

if TYPE_CHECKING:
    import pandas


@register("dataset", "pku_aigiqa_4k")
@dataclass(frozen=True, kw_only=True)
class PkuAigiqa4k(AnnotatedImages):
    """PKU-AIGIQA-4K: 4,000 images made from text alone or from text and an image (arXiv:2404.18409).

    Read from `annotation.xlsx`; the images are those of its folder `All`. Its authors test every fourth row.

    Attributes:
        targets: which of quality, authenticity and alignment to predict; null for all.
    """

    about: ClassVar[About] = About(
        name="PKU-AIGIQA-4K", num_rows=(4000,), source="https://github.com/jiquan123/AIGIQA4K",
        licence="see its page; that of the images is not known to us", raters="not known to us",
    )  # fmt: skip

    targets: list[str] | None = None

    def layout(self) -> Layout:
        columns = {
            Target("quality", meaning=QUALITY): ["MOS_q"],
            Target("authenticity", meaning=AUTHENTICITY): ["MOS_a"],
            Target("alignment", meaning=ALIGNMENT): ["MOS_c"],
        }
        return Layout(
            image=["Generated_image"], prompt=["Text_prompt"], official=["split"],
            targets=choose_targets(columns, self.targets),
            segments={"generator": lambda name: PurePosixPath(name).name.partition("_")[0], "task": ["Image_prompt"]},
        )  # fmt: skip

    def read(self) -> "pandas.DataFrame":
        rows = replace(self.layout(), official=None).read(Path(self.annotations), self.hint)
        tasks = ["image-to-image" if cell.strip() else "text-to-image" for cell in rows["Image_prompt"]]
        parts = ["test" if row % 4 == 3 else "train" for row in range(len(rows))]
        return rows.assign(Image_prompt=tasks, split=parts)
