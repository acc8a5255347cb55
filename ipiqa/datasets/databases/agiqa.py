"""The databases AGIQA-1k and AGIQA-3k as registered datasets."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar

from ipiqa.datasets.databases.annotated import ALIGNMENT, QUALITY, About, AnnotatedImages, choose_targets
from ipiqa.datasets.table import Layout, Target
from ipiqa.errors import DataError
from ipiqa.registry import register

_SOURCE, _LICENCE = (
    "https://github.com/lcysyzxdxc/{}-Database",
    "MIT (the table; that of the images is not known to us)",
)


def _field(name: str, *, last: bool) -> str:
    """Returns the first field of a file name, between underscores, or all but the last one."""
    stem = PurePosixPath(name).name
    return stem.rpartition("_")[0] if last else stem.partition("_")[0]


@register("dataset", "agiqa_1k")
@dataclass(frozen=True, kw_only=True)
class Agiqa1k(AnnotatedImages):
    """AGIQA-1k: 1,080 images by two generators, one MOS (arXiv:2303.12618); `AIGC_MOS_Zscore.xlsx`."""

    about: ClassVar[About] = About(
        name="AGIQA-1k", num_rows=(1080,), source=_SOURCE.format("AGIQA-1k"), licence=_LICENCE, raters="not published",
        sha256={"AIGC_MOS_Zscore.xlsx": "83706b6e46314feffd9ba5e48eba31e6585f7f5056f15cb38166b8b53e2b3323"},
    )  # fmt: skip

    def layout(self) -> Layout:
        return Layout(
            image=["Image", "name"], prompt=["Prompt"],
            targets={Target("quality", 0.0, 5.0, QUALITY): ["MOS", "mos_quality"]},
            group=agiqa_1k_group, segments={"generator": lambda name: _field(name, last=False)},
            # reference: the published table ends with two rows of this name and different scores; both are trained on
            known_duplicates=frozenset({"dreamStudio_8_9_1_1.jpg"}), reference_draw="bernoulli",
        )  # fmt: skip


@register("dataset", "agiqa_3k")
@dataclass(frozen=True, kw_only=True)
class Agiqa3k(AnnotatedImages):
    """AGIQA-3k: 2,982 images of 300 prompts, quality and alignment MOS (arXiv:2306.04717).

    Read from `data.csv`, as published, or from a `mos_joint.xlsx` with the same columns.

    Attributes:
        targets: which of quality and alignment to predict; null for both.
    """

    about: ClassVar[About] = About(
        name="AGIQA-3k", num_rows=(2982,), source=_SOURCE.format("AGIQA-3k"), licence=_LICENCE,
        raters="21 assumed: the table has their spread, not their number",
        sha256={"data.csv": "4b1945c2137e196d9378b9cf4a114de2267b97a4724f0743e260287eb2ddd6c0"},
    )  # fmt: skip

    targets: list[str] | None = None

    def layout(self) -> Layout:
        columns = {
            Target("quality", 0.0, 5.0, QUALITY): ["mos_quality", "quality"],
            Target("alignment", 0.0, 5.0, ALIGNMENT): ["mos_align", "mos_alignment", "alignment"],
        }
        return Layout(
            image=["name", "Image"], prompt=["prompt"], group=agiqa_3k_group, reference_draw="permutation",
            targets=choose_targets(columns, self.targets),
            std={"quality": ["std_quality"], "alignment": ["std_align"]}, num_raters=21, may_lack=True,
            segments={
                "generator": lambda name: _field(name, last=False),
                "variant": lambda name: _field(name, last=True),  # generator and setting: ten names
            },
        )  # fmt: skip


def agiqa_3k_group(name: str) -> str:
    """Returns the prompt id, the last number field of a file name ("012" of "sd1.5_highcorr_012.jpg"), or DataError."""
    return _fields(r"(?s:.*_)?([0-9]+)(?:\.[^.]*)?", name, "'<generator>_<variant>_<prompt id>.jpg'")[0]


def agiqa_1k_group(name: str) -> str:
    """Returns the content code, subject and action ("bird", "having pizza") alike for both generators, or DataError.

    # reference: dreamStudio numbers its subjects without number 6 and its actions from 5 on; this undoes it.
    """
    fields = _fields("[^_]*_([0-9]+)_([0-9]+)_(?s:.*)", name, "'<generator>_<subject>_<action>_<place>_<style>.jpg'")
    subject, action = map(int, fields)
    if PurePosixPath(name).name.startswith("dream"):
        subject, action = subject + (subject > 5), action + 5
    return f"{subject}_{action}"


def _fields(pattern: str, name: str, form: str) -> tuple[str, ...]:
    """Returns the groups of a pattern in a file name; raises DataError where it is of another form."""
    match = re.fullmatch(pattern, PurePosixPath(name).name)
    if match is None:
        raise DataError(f"dataset.annotations: {name!r} tells no group. Names of the database have the form {form}.")
    return match.groups()
