"""The database EvalMuse-40K as a registered dataset."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar

from ipiqa.datasets.databases.annotated import ALIGNMENT, About, AnnotatedImages
from ipiqa.datasets.table import Layout, Target
from ipiqa.registry import register


@register("dataset", "evalmuse_40k")
@dataclass(frozen=True, kw_only=True)
class EvalMuse40k(AnnotatedImages):
    """EvalMuse-40K: some 30,000 image-prompt pairs with published ratings of alignment (arXiv:2412.18150).

    Read from `train_list.json`. The score is the mean over raters of `total_score`; the scores of single elements of
    the prompt are not read. The scores of its test part are not published.
    """

    about: ClassVar[About] = About(
        name="EvalMuse-40K", num_rows=(), source="https://github.com/DYEvaLab/EvalMuse",
        licence="BSD-3-Clause (its dataset card); that of the images is not known to us", raters="all are there",
    )  # fmt: skip

    def layout(self) -> Layout:
        return Layout(
            image=["img_path"], prompt=["prompt"], targets={Target("alignment", 1.0, 5.0, ALIGNMENT): ["total_score"]},
            segments={"generator": lambda name: str(PurePosixPath(name).parent), "type": ["type"]}, may_lack=True,
        )  # fmt: skip
