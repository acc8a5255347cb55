"""The published databases: read from their real tables where those are at hand, otherwise from generated ones.

`real` in a test's name: the published file itself. `generated`: a small file of the form that was published, made
here; that it is that form was not checked against the file.
"""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
from conftest import REPOSITORY, error_of

from ipiqa import registry
from ipiqa.build import make_dataset
from ipiqa.config.loading import load_config
from ipiqa.datasets.databases.annotated import MEANINGS, AnnotatedImages
from ipiqa.datasets.databases.published import (
    Agiqa1k,
    Agiqa3k,
    Aigciqa2023,
    Aigiqa20k,
    AvtAiImages,
    EvalMuse40k,
    GenAiBench,
    PkuAigiqa4k,
)
from ipiqa.datasets.splits import make_split


def write_csv(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_every_database_says_what_must_be_known() -> None:
    for name in registry.list_registered("dataset"):
        part = registry.lookup("dataset", name, "dataset")
        if isinstance(part, type) and issubclass(part, AnnotatedImages) and name != "table":
            assert part.about is not None, name
            assert all([part.about.name, part.about.licence, part.about.raters]), name
            assert part.about.source.startswith("https://"), name


@pytest.mark.parametrize("path", sorted((REPOSITORY / "ipiqa" / "projects").glob("*/ipiqa.yaml")), ids=str)
def test_the_targets_of_every_config_have_a_meaning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    dataset = make_dataset(load_config(path))
    assert isinstance(dataset, AnnotatedImages)
    assert all(target.meaning for target in dataset.layout().targets)


def test_real_agiqa_segments_and_spread(shared: Path) -> None:
    table = Agiqa3k(annotations=str(shared / "data/agiqa3k/data.csv"), images="x").load()
    assert set(table.segments["generator"]) == {"AttnGAN", "DALLE2", "glide", "midjourney", "sd1.5", "xl2.2"}
    assert len(set(table.segments["variant"])) == 10
    assert table.rater_std is not None and table.num_raters is not None
    np.testing.assert_array_equal(table.rater_std[0], [0.223270101, 0.615607722])
    assert set(table.num_raters.ravel()) == {21}
    first = Agiqa1k(annotations=str(shared / "data/agiqa1k/AIGC_MOS_Zscore.xlsx"), images="x").load()
    assert Counter(first.segments["generator"]) == {"deepai": 720, "dreamStudio": 360}
    assert first.rater_std is None


def test_real_aigciqa2023(shared: Path) -> None:
    dataset = Aigciqa2023(annotations=str(shared / "data/aigciqa2023/AIGCIQA2023.csv"), images="x")
    table = dataset.load()
    assert (len(table), len(set(table.groups))) == (2400, 100)
    assert table.target_names == ("quality", "authenticity", "alignment")
    assert [target.meaning for target in table.targets] == [MEANINGS[name] for name in table.target_names]
    np.testing.assert_array_equal(table.scores[0], [60.16417843, 47.24654087, 59.98587335])
    assert set(Counter(table.segments["generator"]).values()) == {400}
    assert table.segments["generator"][399:401] == ("Controlnet", "DALLE")
    # each generator made four images of each prompt, in the order of prompts
    assert table.prompts[0:4] == table.prompts[400:404] and len(set(table.prompts[0:400])) == 100
    assert set(Counter(table.segments["style"]).values()) == {240}
    assert "AIGCIQA2023 has 2,400 rows" in "".join(dataset.summary(table))
    one = Aigciqa2023(annotations=dataset.annotations, images="x", targets=["alignment"], scale_to=5.0).load()
    np.testing.assert_allclose(one.scores[:, 0], table.scores[:, 2] / 20)


def test_real_aigiqa_20k(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/aigiqa20k/info_train.csv"
    dataset = Aigiqa20k(annotations=str(source), images="x")
    table = dataset.load()
    assert (len(table), len(set(table.segments["generator"]))) == (14_000, 15)
    assert Counter(table.segments["generator"])["LCM_SD1.5"] == 700
    assert table.official == ("train",) * 14_000
    assert "  AIGIQA-20K has 20,000 rows, this table has 14,000" in dataset.summary(table)
    assert "the val part of fold 0 is empty" in error_of(
        lambda: make_split(table, kind="official", seed=1, fold=0, num_folds=1)
    )


def test_generated_official_split_of_aigiqa_20k(tmp_path: Path) -> None:
    def part(name: str, first: int, count: int) -> str:
        rows = [{"name": f"LCM_SDXL_{i:04d}.png", "prompt": f"p{i}", "mos": 2.5} for i in range(first, first + count)]
        return write_csv(tmp_path / name, rows)

    dataset = Aigiqa20k(annotations=part("info_train.csv", 0, 5), images="x")
    part("info_val.csv", 5, 2)
    split = make_split(dataset.load(), kind="official", seed=1, fold=0, num_folds=1)
    assert (list(split.train), list(split.val)) == ([0, 1, 2, 3, 4], [5, 6])  # without a test part, val is reported
    part("info_test.csv", 7, 3)
    table = dataset.load()
    split = make_split(table, kind="official", seed=1, fold=0, num_folds=1)
    assert (list(split.selection), list(split.val)) == ([5, 6], [7, 8, 9])
    assert set(table.segments["generator"]) == {"LCM_SDXL"}


def test_generated_pku_aigiqa_4k(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(["Generated_image", "Image_prompt", "Text_prompt", "MOS_q", "MOS_a", "MOS_c"])
    for i in range(8):
        sheet.append([f"DALLE_{i}_00.jpg", "ref.jpg" if i < 4 else None, f"p{i // 2}", 50 + i, 40.0, 30])
    book.save(tmp_path / "annotation.xlsx")
    table = PkuAigiqa4k(annotations=str(tmp_path / "annotation.xlsx"), images="x").load()
    assert table.segments["task"] == ("image-to-image",) * 4 + ("text-to-image",) * 4
    assert table.segments["generator"] == ("DALLE",) * 8
    assert table.official == ("train", "train", "train", "test") * 2
    assert table.target_names == ("quality", "authenticity", "alignment") and table.scores[7, 0] == 57


def test_generated_evalmuse_40k(tmp_path: Path) -> None:
    row = {"prompt": "a cat", "total_score": [1, 2, 4], "element_score": {"cat": [1, 0, 1]}, "promt_meaningless": [0]}
    rows = [row | {"img_path": f"dreamina/{i}.png", "type": "real" if i else "synthetic"} for i in range(2)]
    path = tmp_path / "train_list.json"
    path.write_text(json.dumps(rows))
    table = EvalMuse40k(annotations=str(path), images="x").load()
    assert table.num_raters is not None and table.rater_std is not None
    np.testing.assert_allclose(table.scores, [[7 / 3], [7 / 3]])
    np.testing.assert_allclose(table.rater_std, np.std([1, 2, 4], ddof=1))
    assert set(table.num_raters.ravel()) == {3}
    assert table.segments == {"generator": ("dreamina", "dreamina"), "type": ("synthetic", "real")}
    path.write_text(json.dumps([{key: value for key, value in row.items() if key != "type"} for row in rows]))
    assert set(EvalMuse40k(annotations=str(path), images="x").load().segments) == {"generator"}


def test_generated_genai_bench(tmp_path: Path) -> None:
    path = tmp_path / "genai_image.json"
    ratings = {"DALLE_3": [5, 4, 3], "SDXL_Turbo": [1, 1, 1]}
    path.write_text(json.dumps({f"{i:05d}": {"prompt": f"p{i}", "models": ratings} for i in range(3)}))
    dataset = GenAiBench(annotations=str(path), images="x")
    table = dataset.load()
    assert table.names[:3] == ("DALLE_3/00000.jpeg", "SDXL_Turbo/00000.jpeg", "DALLE_3/00001.jpeg")
    assert table.segments["generator"] == ("DALLE_3", "SDXL_Turbo") * 3
    np.testing.assert_array_equal(table.scores[:, 0], [4, 1] * 3)
    assert "GenAI-Bench has 3,162 or 9,600 rows, this table has 6" in "".join(dataset.summary(table))
    for content, message in (("[]", "is of another form"), ("{}", "holds no ratings"), ("{", "is no JSON")):
        path.write_text(content)
        assert message in error_of(dataset.load)


def test_real_avt_ai_images(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shared / "data/avt_ai_images"
    with caplog.at_level(logging.WARNING):
        table = AvtAiImages(annotations=str(folder / "ratings.csv"), images=str(folder / "images")).load()
    assert not caplog.text
    assert (len(table), len(set(table.groups)), len(set(table.segments["generator"]))) == (134, 27, 5)
    np.testing.assert_array_equal(table.scores[0], [2.28, 2.6, 2.0455, 4.7273])
    assert table.rater_std is not None
    np.testing.assert_array_equal(table.rater_std[0], [0.9798, 1.1902, np.nan, np.nan])
    assert all(path.is_file() for path in table.image_paths)


def test_generated_tree_of_avt_ai_images(tmp_path: Path) -> None:
    keys = ["glide_p01.png", "images/dall-e/p02.png"]
    quality = [{"image_key": key, "rating": i + 1, "std": 0.5, "prompt": f"p{i}"} for i, key in enumerate(keys)]
    appeal = [{"image_key": key, "rating": 3, "std": 1} for key in reversed(keys)]
    others = [
        {"image_key": k, "db": "x", "realism_mean": 2, "prompt_matching_mean": i} for i, k in enumerate(["a_p1", *keys])
    ]
    path = write_csv(tmp_path / "evaluation_quality_appeal" / "quality.csv", quality)
    write_csv(tmp_path / "evaluation_quality_appeal" / "appeal.csv", appeal)
    write_csv(tmp_path / "evaluation" / "all_ratings.csv", others)
    table = AvtAiImages(annotations=path, images="x").load()
    assert table.names == ("glide/p01.png", "dall-e/p02.png")
    assert table.segments["generator"] == ("glide", "dall-e")
    np.testing.assert_array_equal(table.scores, [[1, 3, 2, 1], [2, 3, 2, 2]])
    write_csv(tmp_path / "evaluation" / "all_ratings.csv", others[:2])
    assert "1 of 2 rows have no finite score 'realism'" in error_of(AvtAiImages(annotations=path, images="x").load)


def test_a_segment_as_group(shared: Path) -> None:
    """A new generator: all of its images stand on one side of a split."""
    table = shared / "data" / "agiqa3k" / "data.csv"
    loaded = Agiqa3k(annotations=str(table), images="x", group="generator").load()
    assert set(loaded.groups) == set(loaded.segments["generator"]) and loaded.reference_draw is None
    refused = error_of(Agiqa3k(annotations=str(table), images="x", group="style").load)
    assert "'style' is no segment of this database. There are: generator, variant" in refused
