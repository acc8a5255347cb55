"""The published databases as registered datasets: what `published.yaml` does not say of them is code here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pandas
import yaml

from ipiqa.datasets.databases.annotated import MEANINGS, About, AnnotatedImages
from ipiqa.datasets.readers import read_json, read_rows
from ipiqa.datasets.table import Layout, Target
from ipiqa.errors import ConfigError, DataError, did_you_mean
from ipiqa.registry import register

FORM = '{"00000": {"prompt": "...", "models": {"DALLE_3": [3, 4, 3], ...}}, ...}'  # of GenAI-Bench
_DATABASES = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class Published(AnnotatedImages):
    """A published database, as `published.yaml` describes it. A subclass is registered under its `key` there.

    Attributes:
        targets: which of its targets to predict; null for all.
        group: the segment that a split may not cut, such as generator; null as published: prompt or content.
    """

    facts: ClassVar[dict[str, Any]]
    made: ClassVar[dict[str, Any]] = {}  # see `Layout`

    targets: list[str] | None = None
    group: str | None = None

    def __init_subclass__(cls, key: str) -> None:
        cls.facts = _DATABASES[key]
        cls.about = About(**cls.facts["about"])
        register("dataset", key)(cls)

    def layout(self) -> Layout:
        facts, known = self.facts, self.facts["targets"]
        names = list(known) if self.targets is None else self.targets
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"dataset.targets: {names} is empty or names a target twice. Name each target once.")
        if unknown := [name for name in names if name not in known]:
            near = f"{did_you_mean(unknown[0], known)} There are: {', '.join(known)}."
            raise ConfigError(f"dataset.targets: no target is called {unknown[0]!r}.{near}")
        (low, high), meanings = facts["scale"], MEANINGS | facts.get("meanings", {})
        targets = {Target(name, low, high, meanings[name]): known[name] for name in names}
        layout = dict(facts["layout"])
        if self.group is not None:
            if self.group not in layout.get("segments", {}):
                given = ", ".join(layout.get("segments", {})) or "null alone"
                raise ConfigError(f"dataset.group: {self.group!r} is no segment of this database. There are: {given}.")
            layout |= {"group": layout["segments"][self.group], "reference_draw": None}
        return Layout(targets=targets, made=self.made, **layout)


class Agiqa1k(Published, key="agiqa_1k"):
    """AGIQA-1k: 1,080 images by two generators, one MOS (arXiv:2303.12618); `AIGC_MOS_Zscore.xlsx`."""

    made: ClassVar = {"group": lambda rows: rows["Image"].map(agiqa_1k_group)}


class Agiqa3k(Published, key="agiqa_3k"):
    """AGIQA-3k: 2,982 images of 300 prompts, two MOS (arXiv:2306.04717); `data.csv` or a `mos_joint.xlsx` like it."""

    made: ClassVar = {"group": lambda rows: rows["name"].map(agiqa_3k_group)}


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


class Aigciqa2023(Published, key="aigciqa2023"):
    """AIGCIQA2023: 2,400 images of 100 prompts, three MOS (arXiv:2307.00211); `AIGCIQA2023.csv`."""

    made: ClassVar = {"generator": lambda rows: rows["name"].map(aigciqa2023_generator)}


def aigciqa2023_generator(name: str) -> str:
    """Returns the generator of an image by its number ("1234.png": the fourth), "" for a name of another form."""
    generators = ("Controlnet", "DALLE", "Glide", "Lafite", "stable-diffusion", "Unidiffuser")  # 400 images each
    number = PurePosixPath(name).stem
    return generators[int(number) // 400] if number.isdecimal() and int(number[:9]) < 2400 else ""


class Aigiqa20k(Published, key="aigiqa_20k"):
    """AIGIQA-20K: 20,000 images by 15 generators, one MOS (arXiv:2404.03407).

    `annotations` is `info_train.csv`; `info_val.csv` and `info_test.csv` beside it are read where they are there.
    """

    beside = ("info_val.csv", "info_test.csv")
    made: ClassVar = {"split": lambda rows: rows["split"]}  # by `read`

    def read(self) -> pandas.DataFrame:
        tables = [super().read().assign(split="train")]
        for part, path in zip(("val", "test"), map(Path(self.annotations).with_name, self.beside), strict=True):
            if path.is_file():
                tables.append(self.layout().read(path, self.hint).assign(split=part))
        return pandas.concat(tables)


class PkuAigiqa4k(Published, key="pku_aigiqa_4k"):
    """PKU-AIGIQA-4K: 4,000 images made from text alone or from text and an image (arXiv:2404.18409).

    Read from `annotation.xlsx`; the images are those of its folder `All`. Its authors test every fourth row.
    """

    made: ClassVar = {"split": lambda rows: ["test" if row % 4 == 3 else "train" for row in range(len(rows))]}

    def read(self) -> pandas.DataFrame:
        rows = super().read()
        tasks = ["image-to-image" if cell.strip() else "text-to-image" for cell in rows["Image_prompt"]]
        return rows.assign(Image_prompt=tasks)


class EvalMuse40k(Published, key="evalmuse_40k"):
    """EvalMuse-40K: some 30,000 images with ratings of alignment (arXiv:2412.18150); `train_list.json`."""


class GenAiBench(Published, key="genai_bench"):
    """GenAI-Bench: 527 or 1,600 prompts by six generators, three ratings of alignment each (arXiv:2406.13743).

    Read from `genai_image.json`; images are `<generator>/<prompt number>.jpeg`.
    """

    def read(self) -> pandas.DataFrame:
        here = f"dataset.annotations: '{self.annotations}'"
        content = read_json(Path(self.annotations), "dataset.annotations", self.hint)
        try:
            rows = [(index, str(entry["prompt"]), generator, json.dumps(ratings)) for index, entry in content.items()
                    for generator, ratings in entry["models"].items()]  # fmt: skip
        except (AttributeError, KeyError, TypeError):
            raise DataError(f"{here} is of another form. It should be {FORM}.") from None
        if not rows:
            raise DataError(f"{here} holds no ratings. It should be {FORM}.")
        index = pandas.RangeIndex(1, len(rows) + 1, name="rating")
        return pandas.DataFrame(rows, index, ["index", "prompt", "generator", "ratings"], dtype=object)


class AvtAiImages(Published, key="avt_ai_images"):
    """AVT-AI-Image-Dataset: images of 27 prompts by five generators, four MOS (Göring et al., IEEE Access 2023).

    `annotations` is a table of image, prompt, generator, mos_* and std_*, or evaluation_quality_appeal/quality.csv of
    the published tree, whose other files are then read too.
    """

    # files of the published tree, relative to the first: column -> what it is called here
    files: ClassVar[dict[str, dict[str, str]]] = {
        "quality.csv": {"rating": "mos_quality", "std": "std_quality", "prompt": "prompt"},
        "appeal.csv": {"rating": "mos_appeal", "std": "std_appeal"},
        "../evaluation/all_ratings.csv": {"realism_mean": "mos_realism", "prompt_matching_mean": "mos_align"},
    }
    beside = tuple(files)[1:]

    def read(self) -> pandas.DataFrame:
        path, tables = Path(self.annotations), []
        if path.name != "quality.csv":
            return super().read()
        for file, columns in self.files.items():
            wanted = [[name] for name in ("image_key", *columns)]
            rows = read_rows(path.parent / file, "dataset.annotations", wanted, self.hint).rename(columns=columns)
            # a key ends in generator and prompt, whatever stands between them; images are <generator>/pNN.png
            keys = rows.pop("image_key").str.extract(r"([^/]+)[_/](p\d+)(?:\.\w+)?$").fillna("")
            tables.append(rows.assign(image=keys[0] + "/" + keys[1] + ".png"))
        rows = tables[0]
        for other in tables[1:]:
            rows = rows.join(other.set_index("image"), on="image")
        return rows.fillna("").assign(generator=rows["image"].str.partition("/")[0])
