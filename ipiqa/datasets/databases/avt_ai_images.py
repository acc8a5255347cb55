"""The database AVT-AI-Image-Dataset as a registered dataset."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ipiqa.datasets.columns import Source
from ipiqa.datasets.databases.annotated import ALIGNMENT, AUTHENTICITY, QUALITY, About, AnnotatedImages, choose_targets
from ipiqa.datasets.readers import read_rows
from ipiqa.datasets.table import Layout, Target
from ipiqa.registry import register

if TYPE_CHECKING:
    import pandas

FILES = {  # of the published tree, relative to the first: column -> what it is called here
    "quality.csv": {"rating": "mos_quality", "std": "std_quality", "prompt": "prompt"},
    "appeal.csv": {"rating": "mos_appeal", "std": "std_appeal"},
    "../evaluation/all_ratings.csv": {"realism_mean": "mos_realism", "prompt_matching_mean": "mos_align"},
}


@register("dataset", "avt_ai_images")
@dataclass(frozen=True, kw_only=True)
class AvtAiImages(AnnotatedImages):
    """AVT-AI-Image-Dataset: images of 27 prompts by five generators, four MOS (Göring et al., IEEE Access 2023).

    `annotations` is a table of image, prompt, generator, mos_* and std_*, or evaluation_quality_appeal/quality.csv of
    the published tree, whose other files are then read too. `targets` is some of quality, appeal, realism, alignment.
    `group` is what a split may not cut: images of one prompt, or those of one generator.
    """

    about: ClassVar[About] = About(
        name="AVT-AI-Image-Dataset", num_rows=(134,), licence="GPL-3.0", raters="21 to 27, 24 assumed",
        source="https://github.com/Telecommunication-Telemedia-Assessment/AVT-AI-Image-Dataset",
    )  # fmt: skip
    beside: ClassVar[tuple[str, ...]] = tuple(FILES)[1:]

    targets: list[str] | None = None
    group: Literal["prompt", "generator"] = "prompt"

    def layout(self) -> Layout:
        meanings = {"quality": QUALITY, "appeal": "appeal: how pleasing the image is", "realism": AUTHENTICITY}
        columns: dict[Target, Source] = {Target(n, 1.0, 5.0, text): [f"mos_{n}"] for n, text in meanings.items()}
        columns[Target("alignment", 1.0, 5.0, ALIGNMENT)] = ["mos_align"]
        return Layout(
            image=["image"], prompt=["prompt"], num_raters=24, may_lack=True, segments={"generator": ["generator"]},
            group=None if self.group == "prompt" else ["generator"],
            targets=choose_targets(columns, self.targets), std={n: [f"std_{n}"] for n in ("quality", "appeal")},
        )  # fmt: skip

    def read(self) -> "pandas.DataFrame":
        path, tables = Path(self.annotations), []
        if path.name != "quality.csv":
            return super().read()
        for file, columns in FILES.items():
            wanted = [[name] for name in ("image_key", *columns)]
            rows = read_rows(path.parent / file, "dataset.annotations", wanted, self.hint).rename(columns=columns)
            # a key ends in generator and prompt, whatever stands between them; images are <generator>/pNN.png
            keys = rows.pop("image_key").str.extract(r"([^/]+)[_/](p\d+)(?:\.\w+)?$").fillna("")
            tables.append(rows.assign(image=keys[0] + "/" + keys[1] + ".png"))
        rows = tables[0]
        for other in tables[1:]:
            rows = rows.join(other.set_index("image"), on="image")
        return rows.fillna("").assign(generator=rows["image"].str.partition("/")[0])
