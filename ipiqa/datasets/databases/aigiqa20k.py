"""The database AIGIQA-20K as a registered dataset."""

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar

from ipiqa.datasets.databases.annotated import About, AnnotatedImages
from ipiqa.datasets.table import Layout, Target
from ipiqa.registry import register

if TYPE_CHECKING:
    import pandas

MEANING = "perceptual quality and text-image alignment in one score"


@register("dataset", "aigiqa_20k")
@dataclass(frozen=True, kw_only=True)
class Aigiqa20k(AnnotatedImages):
    """AIGIQA-20K: 20,000 images by 15 generators, one MOS (arXiv:2404.03407).

    `annotations` is `info_train.csv`; `info_val.csv` and `info_test.csv` beside it are read where they are there.
    """

    about: ClassVar[About] = About(
        name="AIGIQA-20K", num_rows=(20_000,), source="https://www.modelscope.cn/datasets/lcysyzxdxc/AIGCQA-30K-Image",
        licence="none stated: ask its authors before you pass it on", raters="21 (its paper); no spread is published",
    )  # fmt: skip
    beside: ClassVar[tuple[str, ...]] = ("info_val.csv", "info_test.csv")

    def layout(self) -> Layout:
        return Layout(
            image=["name"], prompt=["prompt"], targets={Target("quality", 0.0, 5.0, MEANING): ["mos"]},
            segments={"generator": lambda name: PurePosixPath(name).name.rpartition("_")[0]}, official=["split"],
        )  # fmt: skip

    def read(self) -> "pandas.DataFrame":
        import pandas

        train, layout = Path(self.annotations), replace(self.layout(), official=None)
        paths = {"train": train} | dict(zip(("val", "test"), map(train.with_name, self.beside), strict=True))
        there = {part: path for part, path in paths.items() if part == "train" or path.is_file()}
        return pandas.concat([layout.read(path, self.hint).assign(split=part) for part, path in there.items()])
